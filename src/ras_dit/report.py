"""Measured numbers as rows of text."""

from __future__ import annotations

import math
import statistics

from ras_dit.generate import Comparison, Generated


def comparison_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """What was measured, and the controls it was measured with, as (name, value).

    Seconds are medians over the timed runs of the denoising loop only.
    """
    trace = comparison.trace
    runs = len(comparison.dense_seconds)
    grid = " x ".join(map(str, trace.grid.shape))
    return [
        ("denoising loop, dense", f"{statistics.median(comparison.dense_seconds):.2f} s"),
        ("denoising loop, RAS", f"{statistics.median(comparison.ras_seconds):.2f} s"),
        ("timed runs", f"{runs} each, in turn, after one warm-up; medians"),
        ("speed-up", f"{comparison.speedup:.2f}x"),
        ("FLOP limit of this plan", f"{comparison.limit:.2f}x"),
        ("share of the limit reached", f"{comparison.limit_share:.0%}"),
        ("image tokens", f"{trace.num_tokens} ({grid})"),
        ("what was run", trace.work),
        ("text rows T", str(trace.num_text_tokens)),
        ("PSNR to the dense image", ", ".join(map(_decibels, comparison.psnr))),
    ]


def run_line(generated: Generated) -> str:
    """One region-adaptive run in one line."""
    assert generated.trace is not None
    return (
        f"denoising loop {generated.loop_seconds:.2f} s, all {generated.total_seconds:.2f} s; "
        f"{generated.trace.work}"
    )


def _decibels(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"
