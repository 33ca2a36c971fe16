"""Steps of a compiled transformer beside those of the same one as it is.

    python -m benchmarks.compiled --grid 32 --ratio 0.25

All are timed in turn. RAS is enabled once and stays: graphs are made in the first round, which does
not count, and belong to that enabling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

import ras_dit
from benchmarks.settings import Setting, Size
from benchmarks.timing import interleaved, machine, median_ratio, table


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=32, help="side of the token grid")
    parser.add_argument("--heads", type=int, default=6, help="of width 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = Size(heads=options.heads, layers=options.layers, height=options.grid, width=options.grid)
    eager, compiled, static = Setting(size), Setting(size), Setting(size)
    for setting in (compiled, static):
        setting.transformer = torch.compile(setting.transformer)
    variants = {
        "eager": lambda: eager.run(2),
        "compiled": lambda: compiled.run(2),
        "compiled, static_cache": lambda: static.run(2),
    }
    schedule = (1.0, 1.0, options.ratio, options.ratio)
    with (
        torch.inference_mode(),
        ras_dit.enable(eager, schedule=schedule),
        ras_dit.enable(compiled, schedule=schedule),
        ras_dit.enable(static, schedule=schedule, static_cache=True),
    ):
        seconds = interleaved(variants, options.rounds)
    rows = []
    for name, values in seconds.items():
        ratios = [
            median_ratio([e[step] for e in seconds["eager"]], [v[step] for v in values])
            for step in (0, 2)
        ]
        rows.append([name, *(f"{ratio:.2f}x" for ratio in ratios)])
    say(
        f"sd3 blocks, {size.heads} heads, {size.layers} layers, {size.num_tokens} image and "
        f"{size.text} text tokens, ratio {options.ratio:g}, float32; medians of {options.rounds} "
        f"rounds; {machine()}\n\n"
    )
    say(table(["transformer", "dense step, eager / this", "sparse step, eager / this"], rows))


if __name__ == "__main__":
    main()
