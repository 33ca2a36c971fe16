"""Has the embedded model reached its bar? Its pictures, judged.

    python -m training.judge_model --per-kind 50 [--model FOLDER] [--size 256] [--out out/judge]
    python -m training.judge_model --per-kind 50 --checkpoint work/diffusion.pt --size 128

Draws the 24 fixed prompts of the contact sheet and so many sampled held-out prompts of each kind,
every picture from a seed of its own, and judges them. Pictures that are there already are kept, so
it can be stopped and started again; another model, size or number of steps needs another folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from rich.console import Console
from rich.table import Table

from ras_dit.embedded import MODEL_DIR
from ras_dit.evaluation.emoji_prompts import KINDS, KindScene, suite_scenes
from ras_dit.evaluation.emoji_scorers import NUMBERS
from ras_dit.evaluation.judge_folder import CAPTIONS, judge_folder, read_captions, summary_table
from ras_dit.world import caption, evaluation_scenes
from training.latents import to_images
from training.samples import from_checkpoint

# The quality bar: number, least share, and the kinds of prompts that it is measured on.
BAR: Final = (
    ("recognised", 0.8, ("single",)),
    ("background colours", 0.9, tuple(KINDS)),
    ("two", 0.5, ("pair",)),
    ("position", 0.5, ("pair",)),
)


@dataclass(frozen=True)
class Wanted:
    """A picture to draw."""

    name: str
    kind: str
    prompt: str
    seed: int


def wanted_pictures(scenes: Sequence[KindScene]) -> list[Wanted]:
    """Names, prompts and seeds; the seed is the picture's number."""
    return [
        Wanted(f"{number:05d}-{each.kind}.png", each.kind, caption(each.scene), number)
        for number, each in enumerate(scenes)
    ]


def draw_missing(
    pipeline: StableDiffusion3Pipeline,
    wanted: Sequence[Wanted],
    folder: Path,
    options: argparse.Namespace,
) -> None:
    """Draw what is not in the folder yet, and write its captions."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"file": each.name, "prompt": each.prompt}) + "\n" for each in wanted]
    (folder / CAPTIONS).write_text("".join(lines))
    missing = [each for each in wanted if not (folder / each.name).exists()]
    linear = options.checkpoint is not None
    for start in range(0, len(missing), options.batch):
        part = missing[start : start + options.batch]
        output = pipeline(
            [each.prompt for each in part],
            width=options.size[0],
            height=options.size[-1],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            max_sequence_length=32,
            generator=[torch.Generator().manual_seed(each.seed) for each in part],
            output_type="latent" if linear else "pil",
        )
        pictures = output.images
        if linear:
            pixels = to_images(output.images.float()).permute(0, 2, 3, 1) / 2 + 0.5
            arrays = (pixels.numpy() * 255).round().astype(np.uint8)
            pictures = [Image.fromarray(array) for array in arrays]
        for each, picture in zip(part, pictures, strict=True):
            fresh = folder / f"{each.name}.new"
            picture.save(fresh, format="PNG")
            fresh.replace(folder / each.name)


def by_kind(
    rows: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted]
) -> dict[str, dict[str, list[float]]]:
    """Every number of every picture, by kind of prompt and name of the number."""
    found: dict[str, dict[str, list[float]]] = {}
    for each, row in zip(wanted, rows, strict=True):
        for name in NUMBERS:
            if name in row:
                found.setdefault(each.kind, {}).setdefault(name, []).append(row[name])
    return found


def bar_lines(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """One line for each part of the bar: what was measured, what is asked for."""
    for name, least, kinds in BAR:
        values = [value for kind in kinds for value in found.get(kind, {}).get(name, ())]
        if values:
            share = sum(values) / len(values)
            met = "met" if share >= least else "not met"
            yield f"{name}: {share:.1%} of {len(values)}, asked for {least:.0%}: {met}"


def kinds_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """Shares by kind of prompt."""
    table = Table("prompts", *NUMBERS)
    for kind, numbers in found.items():
        shares = [numbers.get(name, ()) for name in NUMBERS]
        table.add_row(kind, *(f"{sum(v) / len(v):.1%}" if v else "" for v in shares))
    return table


def judge_set(
    pipeline: StableDiffusion3Pipeline,
    scenes: Sequence[KindScene],
    folder: Path,
    options: argparse.Namespace,
) -> None:
    """Draw and judge a set of scenes, and print what was found."""
    wanted = wanted_pictures(scenes)
    draw_missing(pipeline, wanted, folder, options)
    judged = judge_folder(read_captions(folder), folder)
    console = Console(width=140)
    console.rule(str(folder))
    console.print(summary_table(judged.summaries))
    found = by_kind(judged.rows, wanted)
    console.print(kinds_table(found))
    for line in (*bar_lines(found), *(s.note for s in judged.summaries if s.note)):
        console.print(line)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, default=MODEL_DIR, help="an exported pipeline")
    source.add_argument("--checkpoint", type=Path, help="a checkpoint of diffusion training")
    parser.add_argument("--out", type=Path, default=Path("out/judge"))
    parser.add_argument("--per-kind", type=int, default=50, help="sampled prompts of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled prompts")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="one side, or two")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--shift", type=float, default=3.0, help="of a checkpoint's schedule")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    if options.checkpoint:
        pipeline = from_checkpoint(options.checkpoint, options.shift)
    else:
        pipeline = StableDiffusion3Pipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    fixed = [KindScene("fixed", scene) for scene in evaluation_scenes()]
    judge_set(pipeline, fixed, options.out / "fixed", options)
    if options.per_kind:
        sampled = suite_scenes(options.per_kind, seed=options.seed)
        judge_set(pipeline, sampled, options.out / "sampled", options)


if __name__ == "__main__":
    main()
