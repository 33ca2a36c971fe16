"""What one step costs: stock, dense with RAS enabled, and sparse, in turn, beside the FLOP limit.

    python -m benchmarks.step --heads 24 --layers 4 --grid 32 --text 333 --ratios 0.5 0.25

Weights are random: time does not depend on them. Every row is a median of ratios of neighbouring
measurements, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

import ras_dit
from ras_dit.adapters import describe
from ras_dit.cost import forward_flops
from ras_dit.schedule import count_active


class Setting:
    """A transformer and scheduler, as ``enable`` expects them of a pipeline, and their inputs."""

    def __init__(self, options: argparse.Namespace) -> None:
        width = 64 * options.heads
        torch.manual_seed(0)
        self.transformer = (
            SD3Transformer2DModel(
                sample_size=2 * options.grid,
                num_layers=options.layers,
                num_attention_heads=options.heads,
                joint_attention_dim=256,
                caption_projection_dim=width,
                pooled_projection_dim=256,
                pos_embed_max_size=2 * options.grid,
            )
            .eval()
            .to(options.dtype)
        )
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.latents = torch.randn(options.batch, 16, 2 * options.grid, 2 * options.grid)
        self.inputs = {
            "hidden_states": self.latents.repeat(2, 1, 1, 1).to(options.dtype),
            "encoder_hidden_states": torch.randn(2 * options.batch, options.text, 256).to(
                options.dtype
            ),
            "pooled_projections": torch.randn(2 * options.batch, 256).to(options.dtype),
            "timestep": torch.full((2 * options.batch,), 500.0),
        }

    def step(self, timestep: torch.Tensor) -> float:
        """Seconds of one transformer call and scheduler step, guidance in one batch."""
        started = time.perf_counter()
        noise = self.transformer(**self.inputs, return_dict=False)[0].chunk(2)[0]
        self.scheduler.step(noise, timestep, self.latents)
        return time.perf_counter() - started

    def pairs(self, ratio: float, rounds: int) -> dict[str, list[float]]:
        """Seconds of stock, enabled-dense and sparse steps, one of each per round."""
        seconds: dict[str, list[float]] = {"stock": [], "dense": [], "sparse": []}
        for _ in range(rounds + 1):
            self.scheduler.set_timesteps(3)
            seconds["stock"].append(self.step(self.scheduler.timesteps[0]))
            with ras_dit.enable(self, sample_ratio=ratio, warmup_steps=1, reset_steps=()):
                self.scheduler.set_timesteps(3)
                times = [self.step(t) for t in self.scheduler.timesteps]
            seconds["dense"].append(times[0])
            seconds["sparse"].append(times[2])
        return {name: values[1:] for name, values in seconds.items()}


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=24, help="of width 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--grid", type=int, default=32, help="side of the token grid")
    parser.add_argument("--text", type=int, default=333, help="text rows")
    parser.add_argument("--batch", type=int, default=1, help="images; guidance doubles them")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.125])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype)
    setting = Setting(options)
    work = describe(setting.transformer).work(setting.transformer.config)
    tokens = options.grid**2
    say(
        f"{options.heads} heads x 64, {options.layers} layers, {tokens} image and {options.text} "
        f"text tokens, batch 2 x {options.batch}, {options.dtype}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds} rounds\n\n"
        "| ratio | dense, enabled / stock | stock / sparse | FLOP limit | share |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    with torch.inference_mode():
        for ratio in options.ratios:
            seconds = setting.pairs(ratio, options.rounds)
            triples = list(zip(*seconds.values(), strict=True))
            overhead = statistics.median(dense / stock for stock, dense, _ in triples)
            speedup = statistics.median(stock / sparse for stock, _, sparse in triples)
            shape = {"batch": 2, "num_tokens": tokens, "num_text_tokens": options.text}
            active = count_active(ratio, tokens)
            limit = forward_flops(work, num_active=tokens, **shape) / forward_flops(
                work, num_active=active, **shape
            )
            say(
                f"| {ratio:g} | {overhead:.3f} | {speedup:.2f}x | {limit:.2f}x "
                f"| {speedup / limit:.0%} |\n"
            )


if __name__ == "__main__":
    main()
