"""How the cost of a sparse step grows with the number of tokens and with the batch.

python -m benchmarks.growth --ratio 0.25
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks.settings import Setting, Size
from benchmarks.timing import interleaved, machine, median_ratio, table

# Sides of token grids with 256 to 16,384 tokens.
GRIDS = ((16, 16), (32, 32), (64, 64), (128, 64), (128, 128))
IMAGES = (1, 2, 4, 8)


def row(size: Size, ratio: float, rounds: int) -> list[str]:
    """One size: dense seconds, speed-up, limit, share."""
    setting = Setting(size)
    with torch.inference_mode():
        seconds = interleaved(
            {"stock": setting.stock, "ras": lambda: setting.accelerated([ratio])}, rounds
        )
    stock = [values[0] for values in seconds["stock"]]
    dense, sparse = zip(*seconds["ras"], strict=True)
    speedup, limit = median_ratio(stock, sparse), setting.limit(ratio)
    return [
        str(size.num_tokens),
        str(size.images),
        f"{median_ratio(dense, stock):.3f}",
        f"{speedup:.2f}x",
        f"{limit:.2f}x",
        f"{speedup / limit:.2f}",
    ]


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--heads", type=int, default=6, help="of width 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=16384, help="image tokens")
    options = parser.parse_args()
    sizes = [
        Size(heads=options.heads, layers=options.layers, height=height, width=width, text=128)
        for height, width in GRIDS
        if height * width <= options.most
    ]
    sizes += [
        Size(heads=options.heads, layers=options.layers, height=16, width=16, images=n, text=128)
        for n in IMAGES[1:]
    ]
    rows = [row(size, options.ratio, options.rounds) for size in sizes]
    say(
        f"sd3 blocks, {options.heads} heads, {options.layers} layers, 128 text tokens, ratio "
        f"{options.ratio:g}, float32; medians of {options.rounds} rounds; {machine()}\n\n"
    )
    headings = ["image tokens", "images", "dense, enabled / stock", "stock / sparse"]
    say(table([*headings, "FLOP limit", "share"], rows))


if __name__ == "__main__":
    main()
