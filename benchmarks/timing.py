"""Interleaved timing: what is compared is measured in turn, so that a drifting machine is fair."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Variants = Mapping[str, Callable[[], Sequence[float]]]


def interleaved(variants: Variants, rounds: int) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each variant, all in turn, once to warm up and then in every round."""
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, measure in variants.items():
            seconds[name].append(tuple(measure()))
    return {name: values[1:] for name, values in seconds.items()}


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of measurements of the same round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def machine() -> str:
    """Processor, threads and versions in one line."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text("utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    extensions = torch.backends.cpu.get_cpu_capability()
    return (
        f"{name} ({extensions}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
