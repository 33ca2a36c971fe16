"""Tables of an evaluation: every row, its controls, and which of the two is better."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.embedded.views import View
from benchmarks.pages.fights import By, Fight, fights_csv, said
from ras_dit.evaluation.comparisons import RowResult, all_timed, duels, statistic_names
from ras_dit.evaluation.markdown import estimate, gap_text, heading, number, table
from ras_dit.evaluation.report import csv_report
from ras_dit.evaluation.rows import CONTROLS, Role

_ANSWERED = ("emoji kept", "FD-emoji", "PSNR")
_OF_ROWS = ("row", "reference")


def with_times(results: Sequence[RowResult], timed: Sequence[RowResult]) -> tuple[RowResult, ...]:
    """Rows with the seconds of the rows of the same recipe in another evaluation."""
    known = {result.row.recipe: result for result in timed}
    return tuple(
        replace(
            result,
            seconds=known[result.row.recipe].seconds,
            loop_seconds=known[result.row.recipe].loop_seconds,
            peak_bytes=known[result.row.recipe].peak_bytes,
        )
        if result.row.recipe in known
        else result
        for result in results
    )


def fights(
    results: Sequence[RowResult], statistics: Sequence[str], by: By, rows: Collection[str]
) -> tuple[Fight, ...]:
    """Every sparse row against its controls, number by number.

    A number that few rows have (the distance, of 1,000 pictures) is compared among those.

    Args:
        results: All rows of an evaluation.
        statistics: The numbers.
        by: ``"time"`` compares at equal seconds and gives nothing where a row was not timed.
        rows: Names of the rows that are compared.
    """
    if by == "time" and not all_timed(results):
        return ()
    return tuple(fight for name in statistics for fight in _fights(results, name, by, rows))


def _fights(
    results: Sequence[RowResult], name: str, by: By, rows: Collection[str]
) -> Iterator[Fight]:
    having = []
    for result in results:
        statistic = result.statistic(name)
        if statistic is not None:
            seconds = result.seconds if by == "time" else ()
            having.append(replace(result, statistics=(statistic,), seconds=seconds))
    for result in having:
        if result.row.config is None or result.row.name not in rows:
            continue
        for duel in duels(result, having):
            yield Fight(
                row=result.row.name,
                kind=duel.kind,
                control=duel.control,
                statistic=name,
                by=by,
                ratio=duel.time_ratio,
                gap=duel.gaps[name],
                verdict=duel.verdict,
            )


@dataclass(frozen=True)
class Table:
    """What a view shows of an evaluation.

    Attributes:
        view: The view.
        results: Its rows and their controls.
        fights: Of its rows.
    """

    view: View
    results: tuple[RowResult, ...]
    fights: tuple[Fight, ...]

    @classmethod
    def of(cls, view: View, results: Sequence[RowResult]) -> Table:
        """The table of a view, from all rows of its evaluation."""
        own = {result.row.name for result in results if view.has(result.row)}
        fought = tuple(
            fight for by in ("cost", "time") for fight in fights(results, view.statistics, by, own)
        )
        shown = own | {fight.control for fight in fought}
        kept = tuple(
            replace(
                result,
                statistics=tuple(s for s in result.statistics if s.name in view.statistics),
            )
            for result in results
            if result.row.name in shown
        )
        return cls(view, kept, fought)

    def markdown(self) -> str:
        """The rows, costly ones first, with a column for each kind of control of equal cost."""
        names = [name for name in self.view.statistics if name in statistic_names(self.results)]
        kinds = [k for k in CONTROLS if any(fight.kind == k for fight in self.fights)]
        timed = any(result.seconds for result in self.results)
        head = ["row", "pictures", "cost", *(["s/image"] if timed else [])]
        head += [heading(self.results, name) for name in names]
        head += [f"beats {kind} of equal cost" for kind in kinds]
        lines = [head, ["---", *("---:" for _ in head[1:])]]
        for result in sorted(self.results, key=lambda result: -(result.cost or 0)):
            row = result.row
            count = f"{result.pictures}"
            if result.pictures < result.wanted:
                count += f" of {result.wanted}"
            role = "" if row.role in _OF_ROWS else f" ({row.role})"
            seconds = [number(result.median_seconds, ".3g")] if timed else []
            cells = [f"{row.name}{role}", count, number(result.cost, ".1f"), *seconds]
            cells += [estimate(result.statistic(name)) for name in names]
            cells += [self._words(row.name, kind, "cost") for kind in kinds]
            lines.append(cells)
        return table(lines)

    def details(self, by: By) -> str:
        """Every fight in a line; empty where there is none."""
        lines = [
            ["row", "control", "number", f"control's {by}", "difference, 95 %", "the row"],
            ["---"] * 6,
        ]
        lines += [
            [
                fight.row,
                f"{fight.control} ({fight.kind})",
                fight.statistic,
                f"{fight.ratio:.2f}x",
                gap_text(fight.gap),
                fight.verdict,
            ]
            for fight in self.fights
            if fight.by == by
        ]
        return table(lines) if len(lines) > 2 else ""

    def csv(self) -> str:
        """Every number of every row."""
        return csv_report(self.results, {result.row.name: () for result in self.results})

    def fights_csv(self) -> str:
        """Every fight, at full precision."""
        return fights_csv(self.fights)

    def _words(self, row: str, kind: Role, by: By) -> str:
        """For each verdict the numbers that have it."""
        return said(f for f in self.fights if (f.row, f.kind, f.by) == (row, kind, by))


def answer(shown: Table, by: By) -> str:
    """Does a row beat fewer dense steps? Steps against ratios, for each number and score.

    Args:
        shown: The table that has all steps and ratios.
        by: What is equal.

    Returns:
        Markdown; empty where nothing can be compared.
    """
    rows = {result.row.name: result.row for result in shown.results}
    cells: dict[tuple[str, int, float], list[str]] = {}
    for fight in shown.fights:
        row = rows[fight.row]
        sampling = row.sampling
        if fight.by == by and fight.kind == "fewer steps" and sampling is not None:
            place = (fight.statistic, row.steps, sampling.sample_ratio)
            cells.setdefault(place, []).append(f"{sampling.metric} {fight.verdict}")
    parts = []
    for name in _ANSWERED:
        if not any(place[0] == name for place in cells):
            continue
        ratios = shown.view.ratios
        lines = [["steps", *(f"{ratio:.3g}" for ratio in ratios)], ["---"] * (1 + len(ratios))]
        lines += [
            [str(steps), *(", ".join(cells.get((name, steps, ratio), ())) for ratio in ratios)]
            for steps in shown.view.steps
            if any((name, steps, ratio) in cells for ratio in ratios)
        ]
        parts.append(f"{name}, at equal {by}:\n\n{table(lines)}")
    return "\n\n".join(parts)
