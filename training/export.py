"""Export: the averaged weights as a stock pipeline folder, fp16 on disk, fp32 when loaded.

python -m training.export --work WORK [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Final

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import nn

from ras_dit.embedded import MODEL_DIR
from training.autoencoder import quieten
from training.models import Texts, load_parts, make_autoencoder, make_pipeline, make_transformer
from training.tokenizers import capitalised

SHIFT: Final = 3.0  # of the exported schedule


def collect(
    work: Path, init_from: Path | None = None, *, shift: float = SHIFT
) -> StableDiffusion3Pipeline:
    """The pipeline of a folder of checkpoints; what is missing comes from an exported one."""
    if init_from is None:
        transformer, texts, autoencoder = make_transformer(), Texts.make(), make_autoencoder()
    else:
        transformer, texts, autoencoder = load_parts(init_from)
    diffusion, coded = work / "diffusion.pt", work / "autoencoder.pt"
    if diffusion.exists():
        model = texts.encoders
        model["transformer"] = transformer
        model.load_state_dict(torch.load(diffusion, weights_only=True)["average"])
    elif init_from is None:
        raise FileNotFoundError(diffusion)
    if coded.exists():
        autoencoder.load_state_dict(torch.load(coded, weights_only=True))
    quieten(autoencoder)
    return make_pipeline(transformer.eval(), texts, autoencoder.eval(), shift)


def learn_capitals(pipeline: StableDiffusion3Pipeline) -> None:
    """Give the T5 encoder words with capitals, each with its small sister's embedding.

    The CLIP tokenizers write everything small themselves.
    """
    tokenizer, sources = capitalised(pipeline.tokenizer_3)
    encoder = pipeline.text_encoder_3
    old = encoder.get_input_embeddings().weight.data
    embeddings = nn.Embedding(len(sources), old.shape[1])
    embeddings.weight.data.copy_(old[sources])
    encoder.set_input_embeddings(embeddings)
    encoder.config.vocab_size = len(sources)
    pipeline.tokenizer_3 = tokenizer


def halve(folder: Path) -> None:
    """Store every tensor as fp16; the configurations go on saying fp32."""
    for path in folder.rglob("*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def name_for_all(folder: Path) -> None:
    """Name tokenizers so that older releases of transformers find them too."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["tokenizer_3"][1] = "T5TokenizerFast"
    path.write_text(json.dumps(index, indent=2) + "\n")
    for name in ("tokenizer", "tokenizer_2"):
        model = json.loads((folder / name / "tokenizer.json").read_text())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / name / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def forget_origin(folder: Path) -> None:
    """Leave out where the parts were loaded from."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def export(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write the folder anew."""
    learn_capitals(pipeline)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(torch.float32).save_pretrained(fresh, safe_serialization=True)
    halve(fresh)
    name_for_all(fresh)
    forget_origin(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("work"), help="the checkpoints")
    parser.add_argument("--init-from", type=Path, help="an exported pipeline for missing parts")
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    options = parser.parse_args()
    export(collect(options.work, options.init_from, shift=options.shift), options.out)


if __name__ == "__main__":
    main()
