"""What a step costs beside the transformer's own work: choosing tokens, hooks, row numbers.

    python -m benchmarks.bookkeeping --grid 64
    python -m benchmarks.bookkeeping --grid 32 --share   # of a sparse step, too

Bookkeeping is all time inside the wrapped ``scheduler.step`` beyond the stock step, and before
and after each call of the transformer. Gathering and scattering rows inside the transformer is
part of the sparse step's own time (``benchmarks.step``).

``--share`` measures a sparse step of half of the tokens on four of SD3-medium's blocks, with
guidance, and takes it six times for all 24: the whole model would need 8 GB.
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

# What a row of the table sets beside the schedule.
VARIANTS: dict[str, dict[str, Any]] = {
    "std": {"metric": "std"},
    "l2": {"metric": "l2"},
    "random": {"metric": "random"},
    "innovation": {"metric": "innovation"},
    "innovation, linear, ab2": {"metric": "innovation", "forecast": "linear", "solver": "ab2"},
    "innovation, linear, damped-ab2": {
        "metric": "innovation",
        "forecast": "linear",
        "forecast_damping": "auto",
        "solver": "damped-ab2",
    },
    "innovation, linear, ab2, corrected": {
        "metric": "innovation",
        "forecast": "linear",
        "solver": "ab2",
        "correction_age": 3,
    },
}
_BLOCKS, _ALL_BLOCKS = 4, 24


@contextmanager
def clocks() -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of each part, while entered."""
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    stock = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = stock[name](*args, **kwargs)
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


def sparse_step(grid: int, heads: int = 24, rounds: int = 3) -> float:
    """Seconds of a sparse step of half of the tokens, all of SD3-medium's blocks."""
    setting = Setting(Size(heads=heads, layers=_BLOCKS, height=grid, width=grid, text=333))
    with torch.inference_mode():
        seconds = [setting.accelerated([0.5])[1] for _ in range(rounds)]
    return statistics.median(seconds) * _ALL_BLOCKS / _BLOCKS


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=64, help="side of the token grid")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--share", action="store_true", help="of a sparse step, too")
    options = parser.parse_args()
    size = Size(heads=1, layers=options.layers, height=options.grid, width=options.grid, text=333)
    setting = Setting(size)
    rows = []
    step = sparse_step(options.grid) if options.share else None
    for name in options.variants:
        with torch.inference_mode(), clocks() as seconds:
            ratios = (1.0, *(0.01 for _ in range(options.steps - 1)))
            with ras_dit.enable(setting, schedule=ratios, **VARIANTS[name]):
                setting.scheduler.set_timesteps(options.steps)
                for timestep in setting.scheduler.timesteps:
                    setting.step(timestep)
        # The first steps make what later ones find.
        parts = [statistics.median(values[4:]) * 1e3 for values in seconds.values()]
        row = [name, *(f"{value:.3f}" for value in (*parts, sum(parts)))]
        rows.append(row if step is None else [*row, f"{sum(parts) / step / 1e3:.2%}"])
    say(
        f"{size.num_tokens} tokens of 16 latent channels, batch 1, {options.layers} layers; "
        f"medians over {options.steps} steps, milliseconds; {machine()}\n\n"
    )
    headings = ["metric", *PARTS, "together"]
    if step is not None:
        say(f"A sparse step of half of the tokens at SD3-medium's width: {step:.2f} s.\n\n")
        headings.append("of a sparse step")
    say(table(headings, rows))


if __name__ == "__main__":
    main()
