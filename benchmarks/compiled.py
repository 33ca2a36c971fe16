"""Steps of a compiled transformer beside those of the same one as it is.

    python -m benchmarks.compiled --grid 32 --ratio 0.25

Both are timed in turn, with RAS enabled; graphs are made before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

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
        "eager": lambda: eager.accelerated([options.ratio, options.ratio]),
        "compiled": lambda: compiled.accelerated([options.ratio, options.ratio]),
        "compiled, static_cache": lambda: static.accelerated(
            [options.ratio, options.ratio], static_cache=True
        ),
    }
    with torch.inference_mode():
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
