"""Means and medians with bootstrap intervals, resampled by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ras_dit.evaluation.scorers import Average, Better, Picture, Statistic

RESAMPLES = 2000
_LOW, _HIGH = 2.5, 97.5
_DRAWN_AT_ONCE = 2**20


def average_statistic(
    name: str,
    values: ArrayLike,
    pictures: Sequence[Picture],
    *,
    better: Better,
    average: Average = "mean",
    column: str | None = None,
    unit: str = "",
) -> Statistic:
    """An average of a per-picture number, with its 95 % interval.

    Args:
        name: Heading in the report.
        values: One number per picture.
        pictures: The pictures.
        better: Whether higher or lower is better.
        average: Of which kind.
        column: Name of the column that the numbers stand in.
        unit: For the heading.
    """
    numbers = np.asarray(values, dtype=np.float64)
    draws = bootstrap(numbers, [picture.group for picture in pictures], average)
    low, high = interval(draws)
    return Statistic(
        name=name,
        value=float(numbers.mean() if average == "mean" else np.median(numbers)),
        low=low,
        high=high,
        count=len(numbers),
        better=better,
        column=column,
        average=average,
        error=float(draws.std()),
        unit=unit,
    )


def bootstrap(
    values: NDArray[np.float64],
    groups: Sequence[int],
    average: Average,
    *,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Averages of bootstrap samples, drawn by whole groups, always the same ones.

    Args:
        values: One number per picture.
        groups: Group of each picture (its prompt): pictures of one prompt are no independent
            draws.
        average: Of which kind. Two sets of numbers with the same groups are drawn alike, so that
            differences of their averages are paired.
        resamples: Number of samples.

    Returns:
        ``[resamples]``.
    """
    make = bootstrap_means if average == "mean" else bootstrap_medians
    return make(values, groups, resamples=resamples)


def bootstrap_means(
    values: NDArray[np.float64], groups: Sequence[int], *, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """:func:`bootstrap` of means."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(member, weights=values)
    sizes = np.bincount(member)
    parts = _draws(len(sums), resamples)
    return np.concatenate([sums[drawn].sum(1) / sizes[drawn].sum(1) for drawn in parts])


def bootstrap_medians(
    values: NDArray[np.float64], groups: Sequence[int], *, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """:func:`bootstrap` of medians."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    order = np.argsort(values, kind="stable")
    ranked, owners = values[order], member[order]
    medians = []
    for drawn in _draws(count, resamples):
        numbers = drawn + count * np.arange(len(drawn))[:, None]
        times = np.bincount(numbers.ravel(), minlength=count * len(drawn))
        # How many numbers of each sample are no larger than each of the ranked ones.
        below = times.reshape(len(drawn), count)[:, owners].cumsum(axis=1)
        total = below[:, -1:]
        middle = ((below > (total - 1) // 2).argmax(1), (below > total // 2).argmax(1))
        medians.append((ranked[middle[0]] + ranked[middle[1]]) / 2)
    return np.concatenate(medians)


def _draws(count: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of groups drawn with replacement, ``[samples, count]``, part by part."""
    rng = np.random.default_rng(0)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        yield rng.integers(0, count, (min(at_once, resamples - start), count))


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of some draws."""
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return float(low), float(high)
