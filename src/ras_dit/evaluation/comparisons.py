"""Does a row beat its control at equal time? Which rows are on the frontier?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ras_dit.evaluation.rows import CONTROLS, Role, Row
from ras_dit.evaluation.scorers import Better, Statistic
from ras_dit.evaluation.statistics import bootstrap, interval

Word = Literal["beats", "ties", "loses"]
_WORDS: tuple[Word, ...] = ("beats", "loses", "ties")
# A control whose time is further off than this is none of equal time.
EQUAL = 1.25
_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """All that is known of a row.

    Attributes:
        row: The row.
        pictures: Pictures that are there.
        wanted: Pictures that it should have.
        cost: Mean cost of a picture in dense steps, as run; ``None`` where nothing was run.
        seconds: Seconds per picture of the whole call, per round.
        loop_seconds: Those of the denoising loop.
        peak_bytes: Peak memory.
        tera_flops: TFLOPs of the transformer per picture.
        statistics: What the scorers say.
        columns: Per-picture numbers by column, by number of the picture.
        groups: Prompt of each picture.
        refused: Why there is nothing, where the row could not be had.
    """

    row: Row
    pictures: int = 0
    wanted: int = 0
    cost: float | None = None
    seconds: tuple[float, ...] = ()
    loop_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    tera_flops: float | None = None
    statistics: tuple[Statistic, ...] = ()
    columns: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    groups: Mapping[int, int] = field(default_factory=dict)
    refused: str = ""

    @property
    def median_seconds(self) -> float | None:
        """Median seconds per picture."""
        return float(np.median(self.seconds)) if self.seconds else None

    def statistic(self, name: str) -> Statistic | None:
        """A statistic by name."""
        return next((found for found in self.statistics if found.name == name), None)


@dataclass(frozen=True)
class Duel:
    """A row against a control: the one nearest in time, or a faster one that it is worse than.

    Attributes:
        kind: What the control is.
        control: Its name.
        time_ratio: The control's time over the row's.
        words: Verdict by name of the statistic: the 95 % interval of the difference excludes 0,
            or it does not.
        gaps: 95 % interval of the row's number minus the control's, by name of the statistic.
        is_reference: Whether the control is the reference itself.
    """

    kind: Role
    control: str
    time_ratio: float
    words: Mapping[str, Word]
    gaps: Mapping[str, tuple[float, float]]
    is_reference: bool = False

    @property
    def equal_time(self) -> bool:
        """Whether the control takes about as long."""
        return 1 / EQUAL <= self.time_ratio <= EQUAL

    @property
    def is_overtaken(self) -> bool:
        """Whether the control is faster, and the row worse in something and better in nothing."""
        return self.time_ratio < 1 and _only("loses", self.words.values())

    @property
    def verdict(self) -> str:
        """One word over all statistics."""
        words = set(self.words.values())
        if not words and self.equal_time and self.is_reference:
            return "no faster than the reference"
        # Better although faster, or worse although slower, needs no equal time.
        overtaken = self.is_overtaken or (self.time_ratio > 1 and _only("beats", words))
        if not self.equal_time and not overtaken:
            return "no control of equal time"
        if {"beats", "loses"} <= words:
            return "mixed"
        return next((word for word in _WORDS if word in words), "not scored")


def time_of(result: RowResult, *, measured: bool) -> float | None:
    """What a row's time is compared by: measured seconds, or cost in dense steps."""
    return result.median_seconds if measured else result.cost


def all_timed(results: Sequence[RowResult]) -> bool:
    """Whether seconds can be compared: every row that could be had was timed."""
    return all(result.seconds for result in results if not result.refused and result.pictures)


def duels(result: RowResult, results: Sequence[RowResult]) -> tuple[Duel, ...]:
    """A row against each kind of control that there is: the one nearest in time.

    The reference, which has no distance to itself, stands for its kind only where it is alone. A
    row that a faster control overtakes is shown against that one.

    Args:
        result: The row.
        results: All rows.
    """
    measured = all_timed(results)
    own = time_of(result, measured=measured)
    if own is None or result.refused:
        return ()
    found = []
    for kind in CONTROLS:
        rivals = [
            (time_of(other, measured=measured), other)
            for other in results
            if other is not result and _is_control(other.row, result.row, kind)
        ]
        timed = [(time, other) for time, other in rivals if time is not None and other.pictures]
        if not timed:
            continue
        others = [pair for pair in timed if pair[1].row.role != "reference"]
        nearest_first = sorted(others or timed, key=lambda pair: abs(np.log(pair[0] / own)))
        (time, nearest), *further = nearest_first
        duel = _duel(result, nearest, kind, time / own)
        if duel.verdict != "loses":
            faster = (_duel(result, other, kind, t / own) for t, other in further if t < own)
            duel = next((fight for fight in faster if fight.is_overtaken), duel)
        found.append(duel)
    return tuple(found)


def _duel(result: RowResult, other: RowResult, kind: Role, time_ratio: float) -> Duel:
    words, gaps = against(result, other)
    return Duel(kind, other.row.name, time_ratio, words, gaps, other.row.role == "reference")


def against(
    result: RowResult, other: RowResult
) -> tuple[dict[str, Word], dict[str, tuple[float, float]]]:
    """A row against another one, whatever their times.

    Returns:
        Verdicts and 95 % intervals of the row's number minus the other's, by name of the
        statistics that both have.
    """
    words: dict[str, Word] = {}
    gaps: dict[str, tuple[float, float]] = {}
    for own in result.statistics:
        theirs = other.statistic(own.name)
        if theirs is not None:
            gaps[own.name] = _difference(own, theirs, result, other)
            words[own.name] = _word(gaps[own.name], own.better)
    return words, gaps


def frontier(results: Sequence[RowResult], statistic: str) -> set[str]:
    """Names of the rows than which no other is both faster and better (or equal in one)."""
    measured = all_timed(results)
    points = []
    for result in results:
        found, time = result.statistic(statistic), time_of(result, measured=measured)
        if found is not None and time is not None:
            quality = found.value if found.better == "higher" else -found.value
            points.append((time, quality, result.row.name))
    return {
        name
        for time, quality, name in points
        if not any(
            other_time <= time
            and other_quality >= quality
            and (other_time, other_quality) != (time, quality)
            for other_time, other_quality, _ in points
        )
    }


def statistic_names(results: Sequence[RowResult]) -> tuple[str, ...]:
    """Names of all statistics, in the order of their first appearance."""
    return tuple(dict.fromkeys(s.name for result in results for s in result.statistics))


def _is_control(other: Row, row: Row, kind: Role) -> bool:
    if kind == "fewer steps":
        return other.is_dense and other.scheduler is None
    if kind == "second order":
        return other.is_dense and other.scheduler is not None
    own, theirs = row.sampling, other.sampling
    if own is None or theirs is None or own.metric == "random":
        return False
    by_chance = {"metric": "random", "keep": "auto", "seed": 0}
    return (
        theirs.metric == "random"
        and own.replace(**by_chance) == theirs.replace(**by_chance)
        and (other.steps, other.scheduler) == (row.steps, row.scheduler)
    )


def _only(word: Word, words: Iterable[Word]) -> bool:
    """Whether a word is among the words, with nothing but ties beside it."""
    return {word} <= set(words) <= {word, "ties"}


def _word(gap: tuple[float, float], better: Better) -> Word:
    low, high = gap
    if better == "lower":
        low, high = -high, -low
    return "beats" if low > 0 else "loses" if high < 0 else "ties"


def _difference(
    own: Statistic, theirs: Statistic, result: RowResult, other: RowResult
) -> tuple[float, float]:
    """95 % interval of own minus theirs: picture by picture where that can be."""
    if own.column is not None:
        ours, others = (r.columns.get(own.column, {}) for r in (result, other))
        shared = [index for index in ours if index in others]
        if shared:
            groups = [result.groups[index] for index in shared]
            draws = [
                bootstrap(np.array([column[index] for index in shared]), groups, own.average)
                for column in (ours, others)
            ]
            return interval(draws[0] - draws[1])
    spread = _Z * float(np.hypot(own.error or 0.0, theirs.error or 0.0))
    gap = own.value - theirs.value
    return gap - spread, gap + spread
