"""What one step costs: stock, dense with RAS enabled, and sparse, in turn, beside the FLOP limit.

    python -m benchmarks.step --model sd3 --heads 24 --layers 4 --grid 32 --ratios 0.5 0.25

Weights are random: time does not depend on them. Every number is a median of ratios of
measurements of the same round. FLOPs come from the formula that the tests hold against
``torch.utils.flop_counter``.

``--other PACKAGE.MODULE:FUNCTION`` times another implementation in the same rounds: the function
gets the transformer, the scheduler and the ratio, and returns a context manager inside of which
the transformer is accelerated.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.settings import TEXT_TOKENS, Setting, Size
from benchmarks.timing import interleaved, machine, median_ratio, table
from ras_dit.errors import RASError


def load(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        RASError: If there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise RASError(f"--other {name!r}; expected package.module:function ({error})") from error


def measure(
    size: Size,
    ratios: list[float],
    rounds: int,
    other: Callable[..., Any] | None = None,
    **settings: Any,
) -> str:
    """A markdown table with a row for each ratio."""
    setting = Setting(size)
    variants: dict[str, Callable[[], tuple[float, ...]]] = {
        "stock": setting.stock,
        "ras": lambda: setting.accelerated(ratios, **settings),
    }
    if other is not None:
        for ratio in ratios:
            variants[f"other {ratio}"] = lambda ratio=ratio: setting.other(other, ratio)
    with torch.inference_mode():
        seconds = interleaved(variants, rounds)
    stock = [values[0] for values in seconds["stock"]]
    dense, *sparse = zip(*seconds["ras"], strict=True)
    overhead = median_ratio(dense, stock)
    rows = []
    for ratio, times in zip(ratios, sparse, strict=True):
        limit = setting.limit(ratio, keeps_text=settings.get("text") == "keep")
        speedup = median_ratio(stock, times)
        row = [f"{ratio:g}", f"{overhead:.3f}", f"{speedup:.2f}x", f"{limit:.2f}x"]
        row.append(f"{speedup / limit:.2f}")
        if other is not None:
            theirs = median_ratio(stock, [values[0] for values in seconds[f"other {ratio}"]])
            row += [f"{theirs:.2f}x", f"{theirs / limit:.2f}"]
        rows.append(row)
    headings = ["ratio", "dense, enabled / stock", "stock / sparse", "FLOP limit", "share"]
    return table(headings + (["other", "share"] if other is not None else []), rows)


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd3", choices=["sd3", "lumina"])
    parser.add_argument("--heads", type=int, help="as in the published model unless given")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--grid", type=int, default=32, help="side of the token grid")
    parser.add_argument("--text", type=int, help="text rows")
    parser.add_argument("--images", type=int, default=1, help="guidance doubles them")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.125])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--keep-text", action="store_true", help='text="keep"')
    parser.add_argument("--cache-dtype", default="model", choices=["model", "int8", "float8"])
    parser.add_argument("--static-cache", action="store_true")
    parser.add_argument("--other", help="another implementation, package.module:function")
    options = parser.parse_args()
    size = Size(
        model=options.model,
        heads=options.heads or {"sd3": 24, "lumina": 32}[options.model],
        layers=options.layers,
        height=options.grid,
        width=options.grid,
        text=TEXT_TOKENS[options.model] if options.text is None else options.text,
        images=options.images,
        dtype=getattr(torch, options.dtype),
    )
    settings = {
        "text": "keep" if options.keep_text else "fresh",
        "cache_dtype": options.cache_dtype,
        "static_cache": options.static_cache,
    }
    other = None if options.other is None else load(options.other)
    rows = measure(size, options.ratios, options.rounds, other, **settings)
    changed = [f"{name}={value}" for name, value in settings.items() if value not in _USUAL]
    say(
        f"{size.model} blocks, {size.heads} heads, {size.layers} layers, {size.num_tokens} image "
        f"and {size.text} text tokens, batch 2 x {size.images}, {options.dtype}"
        f"{', ' if changed else ''}{', '.join(changed)}; medians of {options.rounds} rounds; "
        f"{machine()}\n\n{rows}"
    )


_USUAL = ("fresh", "model", False)

if __name__ == "__main__":
    main()
