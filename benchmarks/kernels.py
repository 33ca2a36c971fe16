"""The kernels of ras_dit.kernels: against torch on a GPU, and as machine code without one.

    python -m benchmarks.kernels                 # times, where there is a CUDA device
    python -m benchmarks.kernels --compile-only  # registers and shared memory, anywhere

Times are of one sparse step's projections of keys and values into the caches, and of whole sparse
steps of an SD3 transformer with random weights, with the kernels and without, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

import ras_dit
from benchmarks.kernel_code import TYPES, compile_table
from ras_dit.adapters import describe
from ras_dit.kernels import machine_obstacle


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        heads: Attention heads, each of 64 channels.
        layers: Layers of the transformer.
        grid: Side of the token grid.
        text: Text tokens.
        batch: Rows of the model batch.
    """

    heads: int
    layers: int
    grid: int
    text: int
    batch: int


class Projection:
    """One projection of one kind of tokens, by torch and by the kernel, into caches of their own.

    Args:
        shape: Sizes.
        ratio: Share of active tokens.
        dtype: dtype of the model.
        device: Where.
    """

    def __init__(
        self, shape: Shape, ratio: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        width, tokens = 64 * shape.heads, shape.grid**2
        active = max(1, round(ratio * tokens))
        on = {"dtype": dtype, "device": device}
        self.heads = shape.heads
        self.x = torch.randn(shape.batch, active, width, **on)
        self.weight = torch.randn(width, width, **on) / width**0.5
        self.bias = torch.randn(width, **on)
        sets = [torch.randperm(tokens)[:active].sort()[0] for _ in range(shape.batch)]
        self.rows = torch.stack(sets).to(device)
        self.cache = torch.zeros(shape.batch, shape.heads, tokens + shape.text, 64, **on)
        self.other = self.cache.clone()
        length = tokens + shape.text
        starts = torch.arange(shape.batch * shape.heads, device=device) * length
        flat = self.rows.unsqueeze(1) + starts.view(shape.batch, shape.heads, 1)
        self.flat_rows = flat.flatten()

    def torch_path(self) -> None:
        """Projection, heads apart, rows copied."""
        fresh = F.linear(self.x, self.weight, self.bias).unflatten(-1, (self.heads, 64))
        flat = fresh.transpose(1, 2).reshape(-1, 64)
        self.cache.view(-1, 64).index_copy_(0, self.flat_rows, flat)

    def kernel(self) -> None:
        """All in one."""
        from ras_dit.kernels.linear import linear_scatter

        linear_scatter(self.other.transpose(1, 2), self.x, self.weight, self.bias, self.rows)


class SparseSteps:
    """An SD3 transformer and scheduler, as ``enable`` expects them of a pipeline."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        self.transformer = SD3Transformer2DModel(
            sample_size=2 * shape.grid,
            num_layers=shape.layers,
            num_attention_heads=shape.heads,
            joint_attention_dim=256,
            caption_projection_dim=64 * shape.heads,
            pooled_projection_dim=256,
            pos_embed_max_size=2 * shape.grid,
        )
        self.transformer.eval().to(device, dtype)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        on = {"dtype": dtype, "device": device}
        self.inputs = {
            "hidden_states": torch.randn(shape.batch, 16, 2 * shape.grid, 2 * shape.grid, **on),
            "encoder_hidden_states": torch.randn(shape.batch, shape.text, 256, **on),
            "pooled_projections": torch.randn(shape.batch, 256, **on),
            "timestep": torch.full((shape.batch,), 500.0, device=device),
        }
        self.device = device

    def seconds(self, ratio: float, *, kernels: bool) -> tuple[float, torch.Tensor]:
        """Seconds of the second sparse step of a run, and its output."""
        description = describe(self.transformer)
        if not kernels:
            description = replace(description, fused=None)
        options = {"sample_ratio": ratio, "warmup_steps": 1, "reset_steps": ()}
        with ras_dit.enable(self, description=description, **options):
            self.scheduler.set_timesteps(3, device=self.device)
            for timestep in self.scheduler.timesteps:
                synchronize(self.device)
                started = time.perf_counter()
                noise = self.transformer(**self.inputs, return_dict=False)[0]
                self.scheduler.step(noise, timestep, self.inputs["hidden_states"])
                synchronize(self.device)
                elapsed = time.perf_counter() - started
        return elapsed, noise


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Median over rounds of the time of one call, each of ten in a row."""
    work()
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            work()
        synchronize(device)
        times.append((time.perf_counter() - started) / 10)
    return statistics.median(times)


def measure(
    shape: Shape,
    ratios: list[float],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    say: Callable[[str], object],
) -> None:
    """Print a markdown table of projections and one of sparse steps."""
    say(f"{shape}, {TYPES[dtype]}, medians of {rounds} rounds\n\n")
    say("| ratio | torch, us | kernel, us | torch / kernel | largest difference |\n")
    say("| --- | --- | --- | --- | --- |\n")
    for ratio in ratios:
        work = Projection(shape, ratio, dtype, device)
        by_torch = median_seconds(work.torch_path, device, rounds)
        by_kernel = median_seconds(work.kernel, device, rounds)
        difference = (work.cache.float() - work.other.float()).abs().max().item()
        say(
            f"| {ratio:g} | {1e6 * by_torch:.1f} | {1e6 * by_kernel:.1f} "
            f"| {by_torch / by_kernel:.2f} | {difference:.2g} |\n"
        )
    steps = SparseSteps(shape, dtype, device)
    say("\n| ratio | sparse step, torch, ms | with kernels, ms | torch / kernels | difference |\n")
    say("| --- | --- | --- | --- | --- |\n")
    for ratio in ratios:
        pairs = [
            (steps.seconds(ratio, kernels=False), steps.seconds(ratio, kernels=True))
            for _ in range(rounds + 1)
        ][1:]
        by_torch, by_kernel = (
            statistics.median(t for t, _ in side) for side in zip(*pairs, strict=True)
        )
        difference = (pairs[0][0][1].float() - pairs[0][1][1].float()).abs().max().item()
        say(
            f"| {ratio:g} | {1e3 * by_torch:.2f} | {1e3 * by_kernel:.2f} "
            f"| {by_torch / by_kernel:.2f} | {difference:.2g} |\n"
        )


def main(say: Callable[[str], object] = sys.stdout.write) -> int:
    """Measure or compile, and print markdown tables. The exit status is 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-only", action="store_true", help="machine code, no times")
    parser.add_argument("--heads", type=int, default=24, help="of width 64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--grid", type=int, default=64, help="side of the token grid")
    parser.add_argument("--text", type=int, default=333, help="text tokens")
    parser.add_argument("--batch", type=int, default=2, help="rows of the model batch")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    options = parser.parse_args()
    if options.compile_only:
        compile_table(say)
        return 0
    obstacle = machine_obstacle()
    if obstacle is not None:
        say(f"Nothing was measured: {obstacle}.\n")
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(options.heads, options.layers, options.grid, options.text, options.batch)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
    say(f"{name}: ")
    with torch.inference_mode():
        measure(shape, options.ratios, getattr(torch, options.dtype), device, options.rounds, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
