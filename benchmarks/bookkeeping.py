"""What a step costs beside the transformer's own work: choosing tokens, hooks, row numbers.

    python -m benchmarks.bookkeeping --grid 64

Bookkeeping is all time inside the wrapped ``scheduler.step`` beyond the stock step, and before
and after each call of the transformer. Gathering and scattering rows inside the transformer is
part of the sparse step's own time (``benchmarks.step``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import ras_dit
from benchmarks.settings import Setting, Size
from benchmarks.timing import machine, table
from ras_dit.engine import Engine
from ras_dit.hooks import TransformerHooks

PARTS = {
    "choosing, in scheduler.step": (Engine, "before_step"),
    "before the transformer": (TransformerHooks, "_before_transformer"),
    "after the transformer": (TransformerHooks, "_after_transformer"),
}


@contextmanager
def clocks() -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of each part, while entered."""
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    stock = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            result = stock[name](*args)
            seconds[name].append(time.perf_counter() - started)
            return result

        return call

    for name, (owner, method) in PARTS.items():
        setattr(owner, method, timed(name))
    try:
        yield seconds
    finally:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, stock[name])


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=64, help="side of the token grid")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--metrics", nargs="+", default=["std", "l2", "random"])
    options = parser.parse_args()
    size = Size(heads=1, layers=options.layers, height=options.grid, width=options.grid, text=333)
    setting = Setting(size)
    rows = []
    for metric in options.metrics:
        with torch.inference_mode(), clocks() as seconds:
            ratios = (1.0, *(0.01 for _ in range(options.steps - 1)))
            with ras_dit.enable(setting, schedule=ratios, metric=metric):
                setting.scheduler.set_timesteps(options.steps)
                for timestep in setting.scheduler.timesteps:
                    setting.step(timestep)
        # The first steps make what later ones find.
        parts = {name: statistics.median(values[4:]) * 1e3 for name, values in seconds.items()}
        row = [metric, *(f"{value:.3f}" for value in parts.values())]
        rows.append([*row, f"{sum(parts.values()):.3f}"])
    say(
        f"{size.num_tokens} tokens of 16 latent channels, batch 1, {options.layers} layers; "
        f"medians over {options.steps} steps, milliseconds; {machine()}\n\n"
    )
    say(table(["metric", *PARTS, "together"], rows))


if __name__ == "__main__":
    main()
