"""A contact sheet: pictures of prompts with the prompts under them.

    python -m training.samples [--model FOLDER] [--out docs/samples/contact-sheet.png]
    python -m training.samples --checkpoint WORK/diffusion.pt --out preview.png --size 128

Without `--prompt`, the 24 fixed held-out prompts.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageDraw

from ras_dit.embedded import MODEL_DIR
from ras_dit.world import evaluation_prompts
from training.latents import to_images
from training.models import Texts, make_autoencoder, make_pipeline, make_transformer

SEED, MARGIN, TEXT_HEIGHT, LINE = 0, 6, 34, 14


def from_checkpoint(path: Path, shift: float) -> StableDiffusion3Pipeline:
    """The averaged weights of a diffusion checkpoint, with an untrained autoencoder."""
    state = torch.load(path, weights_only=True)
    texts, transformer = Texts.make(), make_transformer()
    model = texts.encoders
    model["transformer"] = transformer
    model.load_state_dict(state["average"])
    return make_pipeline(transformer.eval(), texts, make_autoencoder(), shift)


def draw(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    *,
    width: int = 256,
    height: int = 256,
    steps: int = 28,
    guidance: float = 4.0,
    t5_rows: int = 32,
    batch: int = 8,
    linear: bool = False,
) -> list[Image.Image]:
    """One picture per prompt, each from the seed 0; `linear` goes around the decoder."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        output = pipeline(
            part,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=t5_rows,
            generator=[torch.Generator().manual_seed(SEED) for _ in part],
            output_type="latent" if linear else "pil",
        )
        if linear:
            pixels = to_images(output.images.float()).permute(0, 2, 3, 1) / 2 + 0.5
            arrays = (pixels.numpy() * 255).round().astype(np.uint8)
            pictures += [Image.fromarray(array) for array in arrays]
        else:
            pictures += output.images
    return pictures


def contact_sheet(
    pictures: Sequence[Image.Image], prompts: Sequence[str], columns: int
) -> Image.Image:
    """Pictures in rows with the prompts under them."""
    width, height = pictures[0].size
    cell, row = width + 2 * MARGIN, height + 2 * MARGIN + TEXT_HEIGHT
    lines = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, lines * row), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        left, top = index % columns * cell + MARGIN, index // columns * row + MARGIN
        sheet.paste(picture, (left, top))
        for number, line in enumerate(textwrap.wrap(prompt, max(12, width // 6))[:2]):
            pen.text((left, top + height + 4 + number * LINE), line, fill="black")
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, default=MODEL_DIR, help="an exported pipeline")
    source.add_argument("--checkpoint", type=Path, help="a checkpoint of diffusion training")
    parser.add_argument("--out", type=Path, default=Path("docs/samples/contact-sheet.png"))
    parser.add_argument("--prompt", action="append", help="instead of the fixed ones")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="one side, or two")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--shift", type=float, default=3.0, help="of a checkpoint's schedule")
    parser.add_argument("--t5-rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=6)
    options = parser.parse_args()
    if options.checkpoint:
        pipeline = from_checkpoint(options.checkpoint, options.shift)
    else:
        pipeline = StableDiffusion3Pipeline.from_pretrained(options.model)
    prompts = options.prompt or evaluation_prompts()
    pictures = draw(
        pipeline,
        prompts,
        width=options.size[0],
        height=options.size[-1],
        steps=options.steps,
        guidance=options.guidance,
        t5_rows=options.t5_rows,
        linear=options.checkpoint is not None,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, prompts, options.columns).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
