"""Export of the trained judge, its accuracy on held-out scenes, and the statistics of real scenes.

    python -m training.judge_measure [--art ASSETS] --work work-judge

Writes the weights and the references into src/ras_dit/embedded/judge, and docs/judge.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ras_dit.embedded import MODEL_DIR
from ras_dit.evaluation.emoji_distance import judge_checksum, make_reference, save_reference
from ras_dit.evaluation.frechet import fit, frechet_distance
from ras_dit.evaluation.judge import JUDGE_DIR, WEIGHTS, Judge
from ras_dit.evaluation.judge_network import JudgeNetwork, judged_things
from ras_dit.evaluation.judge_rules import recognised, verdicts
from ras_dit.world import ColourCheck, Mixture, PatternCheck, Scene, sample_scene
from training.__main__ import get_art
from training.judge_scenes import blurred, noisy, scene_canvas, to_tensor
from training.latents import to_images, to_latents
from training.render import Art, render

BLUR, NOISE = 1.5, 0.1  # deviations: pixels, and on the scale 0 to 1
SCENES: Final = 60  # held-out scenes of each kind and size
KINDS: Final = {
    "alone": Mixture(alone=1, pair=0, group=0),
    "pair": Mixture(alone=0, pair=1, group=0),
    "group": Mixture(alone=0, pair=0, group=1),
}
SIZES: Final = (256, 128)
REAL: Final = (50, 100, 200, 500, 1000)
IN_REFERENCE: Final = 2000
SPOILT: Final = 100  # scenes whose distance to themselves, spoilt, is measured


def export(work: Path, folder: Path = JUDGE_DIR) -> Path:
    """The averaged weights of a checkpoint as fp16 safetensors."""
    state = torch.load(work / "judge.pt", weights_only=True)
    average = AveragedModel(JudgeNetwork(len(judged_things())), use_buffers=True)
    average.load_state_dict(state["average"])
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in average.module.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    things = json.dumps([thing.label for thing in judged_things()])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "things": things})
    return folder / WEIGHTS


def to_picture(image: Tensor) -> Image.Image:
    """[3, H, W] in -1 to 1 as a picture of eight bits."""
    array = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def spoils(autoencoder: AutoencoderKL) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """The ways in which held-out scenes are spoilt, each of (image, number of the scene)."""

    def coded(image: Tensor, _: int) -> Tensor:
        latents = autoencoder.encode(image[None]).latent_dist.mode()
        decoded: Tensor = autoencoder.decode(latents).sample[0]
        return decoded

    return {
        "clean": lambda image, _: image,
        "blurred": lambda image, _: blurred(image, BLUR),
        "noisy": lambda image, seed: noisy(image, NOISE, torch.Generator().manual_seed(seed)),
        "autoencoder": coded,
        "latent map": lambda image, _: to_images(to_latents(image[None]))[0],
    }


def marks(judge: Judge, scene: Scene, image: Tensor) -> dict[str, float]:
    """Whether things, colours and patterns of a picture are read right."""
    reading = judge.read(to_picture(image))
    found = verdicts(scene, reading)
    backdrop = (ColourCheck, PatternCheck)
    things = [v.right for v in found if not isinstance(v.check, backdrop)]
    number = 2 if scene.second is not None else scene.count
    marked = {
        "things": float(all(things) and len(reading.things) == number),
        "background": float(all(v.right for v in found if isinstance(v.check, backdrop))),
    }
    known = recognised(scene, reading)
    if known is not None:
        marked["recognised"] = float(known)
    return marked


@torch.inference_mode()
def accuracy(
    judge: Judge, art: Art, autoencoder: AutoencoderKL, scenes: int
) -> list[dict[str, object]]:
    """Shares read right, by size, kind and spoil: things (names, number, places), background."""
    rows: list[dict[str, object]] = []
    for size in SIZES:
        for kind, mixture in KINDS.items():
            rng = random.Random(f"judge/{size}/{kind}")
            drawn = [sample_scene(rng, mixture, from_held_out=True) for _ in range(scenes)]
            images = [to_tensor([scene_canvas(art, scene, size, size, rng)])[0] for scene in drawn]
            for name, change in spoils(autoencoder).items():
                marked = [
                    marks(judge, scene, change(image, number))
                    for number, (scene, image) in enumerate(zip(drawn, images, strict=True))
                ]
                row: dict[str, object] = {"size": size, "kind": kind, "spoilt": name}
                for key in ("things", "recognised", "background"):
                    values = [mark[key] for mark in marked if key in mark]
                    if values:
                        row[key] = round(float(np.mean(values)), 4)
                rows.append({**row, "scenes": scenes})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def draw_scenes(art: Art, rng: random.Random, size: int, number: int) -> list[Tensor]:
    """Held-out scenes of the usual mixture, each [3, size, size] in -1 to 1."""
    scenes = [sample_scene(rng, from_held_out=True) for _ in range(number)]
    pixels = [render(art, scene, size, size, rng) for scene in scenes]
    return [torch.from_numpy(image).permute(2, 0, 1) * 2 - 1 for image in pixels]


def features_of(judge: Judge, images: Sequence[Tensor]) -> npt.NDArray[np.float32]:
    """Features [n, 128] of pictures."""
    return np.stack([judge.features(to_picture(image)) for image in images])


def keep_reference(judge: Judge, art: Art, size: int, folder: Path) -> dict[str, object]:
    """Make and keep the reference of a size; what it says of real scenes."""
    rng = random.Random(f"reference/{size}")
    known = features_of(judge, draw_scenes(art, rng, size, IN_REFERENCE))
    others = features_of(judge, draw_scenes(art, rng, size, max(REAL)))
    reference = make_reference(known, others, REAL, judge_checksum(folder))
    save_reference(reference, folder, size, size)
    return {
        "scenes": IN_REFERENCE,
        "halves": round(reference.halves, 4),
        "real": {str(number): round(value, 4) for number, value in reference.real.items()},
    }


@torch.inference_mode()
def spoilt_distances(
    judge: Judge, art: Art, autoencoder: AutoencoderKL, size: int
) -> dict[str, float]:
    """FD-emoji between the same scenes clean and spoilt: what spoiling alone does."""
    images = draw_scenes(art, random.Random(f"spoilt/{size}"), size, SPOILT)
    clean = fit(features_of(judge, images))
    found = {}
    for name, change in spoils(autoencoder).items():
        changed = [change(image, number) for number, image in enumerate(images)]
        apart = frechet_distance(fit(features_of(judge, changed)), clean)
        found[name] = round(max(0.0, apart), 4)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, help="folder of the webp pictures; else from npm")
    parser.add_argument("--work", type=Path, help="export this folder's checkpoint first")
    parser.add_argument("--judge", type=Path, default=JUDGE_DIR, help="folder of the judge")
    parser.add_argument("--init-from", type=Path, default=MODEL_DIR, help="for its autoencoder")
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each kind and size")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="of the references")
    parser.add_argument("--out", type=Path, default=Path("docs/judge.json"))
    options = parser.parse_args()
    art = Art(options.art or get_art(options.work or Path("work-judge")))
    if options.work is not None:
        export(options.work, options.judge)
    judge = Judge.load(options.judge)
    autoencoder = AutoencoderKL.from_pretrained(options.init_from / "vae").eval()
    rows = accuracy(judge, art, autoencoder, options.scenes) if options.scenes else []
    apart: list[dict[str, object]] = []
    for size in options.sizes:
        row = {"size": size, **keep_reference(judge, art, size, options.judge)}
        row[f"{SPOILT} scenes, spoilt"] = spoilt_distances(judge, art, autoencoder, size)
        print(json.dumps(row), flush=True)
        apart.append(row)
    facts = {"blur": BLUR, "noise": NOISE, "accuracy": rows, "distances": apart}
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
