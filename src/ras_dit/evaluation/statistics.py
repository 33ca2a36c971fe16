"""Means with bootstrap intervals, resampled by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ras_dit.evaluation.scorers import Better, Picture, Statistic

RESAMPLES = 2000
_LOW, _HIGH = 2.5, 97.5
_DRAWN_AT_ONCE = 2**20


def mean_statistic(
    name: str,
    values: ArrayLike,
    pictures: Sequence[Picture],
    *,
    better: Better,
    column: str | None = None,
    unit: str = "",
) -> Statistic:
    """The mean of a per-picture number, with its 95 % interval.

    Args:
        name: Heading in the report.
        values: One number per picture.
        pictures: The pictures.
        better: Whether higher or lower is better.
        column: Name of the column that the numbers stand in.
        unit: For the heading.
    """
    numbers = np.asarray(values, dtype=np.float64)
    draws = bootstrap_means(numbers, [picture.group for picture in pictures])
    low, high = interval(draws)
    return Statistic(
        name=name,
        value=float(numbers.mean()),
        low=low,
        high=high,
        count=len(numbers),
        better=better,
        column=column,
        error=float(draws.std()),
        unit=unit,
    )


def bootstrap_means(
    values: NDArray[np.float64], groups: Sequence[int], *, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means of bootstrap samples, drawn by whole groups, always the same ones.

    Args:
        values: One number per picture.
        groups: Group of each picture (its prompt): pictures of one prompt are no independent
            draws.
        resamples: Number of samples.

    Returns:
        ``[resamples]``.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(member, weights=values)
    sizes = np.bincount(member)
    rng = np.random.default_rng(0)
    means = np.empty(resamples)
    at_once = max(1, _DRAWN_AT_ONCE // len(sums))
    for start in range(0, resamples, at_once):
        part = means[start : start + at_once]
        drawn = rng.integers(0, len(sums), (len(part), len(sums)))
        part[:] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of some draws."""
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return float(low), float(high)
