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
    steps = len(trace.steps)
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
        ("active tokens in sparse steps", active_tokens(comparison.ras)),
        ("text rows T", str(trace.num_text_tokens)),
        ("dense steps", f"{trace.num_dense_steps} of {steps}"),
        ("PSNR to the dense image", ", ".join(map(_decibels, comparison.psnr))),
    ]


def run_line(generated: Generated) -> str:
    """One region-adaptive run in one line."""
    trace = generated.trace
    assert trace is not None
    steps = len(trace.steps)
    return (
        f"denoising loop {generated.loop_seconds:.2f} s, all {generated.total_seconds:.2f} s; "
        f"{steps - trace.num_dense_steps} of {steps} steps sparse, active tokens there: "
        f"{active_tokens(generated)} of {trace.num_tokens}"
    )


def active_tokens(generated: Generated) -> str:
    """Active tokens per image in the sparse steps: a number, a range, or ``"all"``."""
    assert generated.trace is not None
    counts = {step.num_active for step in generated.trace.steps if step.kind == "sparse"}
    if not counts:
        return "all"
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _decibels(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"
