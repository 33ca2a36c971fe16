"""Fidelity at equal cost: region-adaptive sampling, random selection, and fewer dense steps.

    python -m benchmarks.controls --prompts 16 --size 128
    python -m benchmarks.controls --part storage  # what text="keep" and small caches cost

Every row makes the same pictures (the embedded model's held-out prompts, one seed each) and is
compared with the dense 28-step pictures. Cost is the transformer's FLOPs in units of one dense
step, so it does not depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.generate import Generated, Job, generate, psnr
from ras_dit.loading import call_defaults, load_pipeline
from ras_dit.world import evaluation_prompts

STEPS = 28
PARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "controls": tuple({"metric": metric} for metric in ("std", "l2", "random")),
    "storage": (
        {"text": "fresh"},
        {"text": "keep"},
        {"cache_dtype": "int8"},
        {"cache_dtype": "float8"},
    ),
}


def interval(values: Sequence[float]) -> str:
    """Mean and bootstrapped 95 % interval."""
    data = np.asarray(values)
    draws = np.random.default_rng(0).choice(data, (2000, len(data))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{data.mean():.1f} ({low:.1f} to {high:.1f})"


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--part", default="controls", choices=list(PARTS))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    options = parser.parse_args()
    pipeline = load_pipeline(None)
    pipeline.set_progress_bar_config(disable=True)
    defaults = call_defaults(None)
    work = describe(pipeline.transformer).work(pipeline.transformer.config)
    prompts = evaluation_prompts()[: options.prompts]

    def pictures(config: RASConfig | None, steps: int) -> list[Generated]:
        return [
            generate(
                pipeline,
                config,
                Job(
                    prompts=tuple(prompts[start : start + options.batch]),
                    seeds=tuple(range(start, min(start + options.batch, len(prompts)))),
                    num_inference_steps=steps,
                    height=options.size,
                    width=options.size,
                    guidance_scale=defaults.guidance_scale,
                    max_sequence_length=defaults.max_sequence_length,
                ),
            )
            for start in range(0, len(prompts), options.batch)
        ]

    reference = [image for part in pictures(None, STEPS) for image in part.images]

    def row(name: str, parts: list[Generated], cost: float) -> None:
        images = [image for part in parts for image in part.images]
        values = [psnr(a, b) for a, b in zip(images, reference, strict=True)]
        say(f"| {name} | {cost:.1f} | {STEPS / cost:.2f}x | {interval(values)} |\n")

    say(
        f"{len(prompts)} pictures of {options.size} x {options.size}, {STEPS} steps, "
        f"{torch.__version__}\n\n| row | cost in dense steps | FLOP speed-up | PSNR, dB |\n"
        "| --- | --- | --- | --- |\n"
    )
    for ratio in options.ratios:
        for settings in PARTS[options.part]:
            parts = pictures(RASConfig(sample_ratio=ratio, **settings), STEPS)
            assert parts[0].trace is not None
            cost = STEPS / trace_cost(work, parts[0].trace).limit
            named = ", ".join(f"{name}={value}" for name, value in settings.items())
            row(f"RAS {ratio:g}, {named}", parts, cost)
        fewer = round(cost)
        row(f"dense, {fewer} steps", pictures(None, fewer), fewer)


if __name__ == "__main__":
    main()
