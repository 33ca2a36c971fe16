"""The few statistics of the study, exact where that is possible, each with its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Proportion:
    """A share of votes with its Wilson interval.

    Attributes:
        count: Votes of this kind.
        total: All votes.
    """

    count: int
    total: int

    @property
    def share(self) -> float:
        """Count over total; not a number if there are no votes."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927) at 95 %; all of [0, 1] if there are no votes."""
        return wilson(self.count, self.total)


def wilson(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction.

    Args:
        count: Votes of one kind.
        total: All votes.
        confidence: Coverage, in (0, 1).
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half = z * spread / (1 + z * z / total)
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == total else min(1.0, middle + half)
    return low, high


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p-value of "both are as likely": the binomial test at one half.

    Ties are to be left out beforehand. Without votes it is 1.
    """
    total = first + second
    tail, term, all_ways = 0, 1, 1 << total
    for count in range(min(first, second) + 1):
        tail += term
        term = term * (total - count) // (count + 1)
    # Whole numbers up to here, so the quotient is the only rounding.
    return min(1.0, 2 * tail / all_ways)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many, by Holm's step-down method (1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def fleiss_kappa(table: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa (1971): agreement beyond chance of many raters who all rate everything.

    Args:
        table: A row per question with the number of votes for each category; every row has the
            same sum.

    Returns:
        1 for full agreement, 0 for chance; ``None`` where it is not defined: fewer than two
        raters, or all votes of all questions in one category.
    """
    raters = sum(table[0]) if table else 0
    if raters < 2:
        return None
    assert all(sum(row) == raters for row in table)
    votes = raters * len(table)
    by_category = [sum(column) for column in zip(*table, strict=True)]
    if max(by_category) == votes:
        return None
    pairs = sum(count * (count - 1) for row in table for count in row)
    observed: float = pairs / (votes * (raters - 1))
    chance: float = sum(count * count for count in by_category) / (votes * votes)
    return (observed - chance) / (1 - chance)
