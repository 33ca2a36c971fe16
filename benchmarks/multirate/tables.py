"""Rows of one cost beside each other, and each of them against the controls of that cost.

A row is called KIND-COST. Its cost is within 3 % of the one it is named after; a dense row, which
has whole steps, has the next whole number of them, so that it never has less work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from benchmarks.pages.fights import Fight, fights_csv, said
from ras_dit.evaluation.comparisons import RowResult, against, statistic_names
from ras_dit.evaluation.markdown import estimate, gap_text, heading, number, table
from ras_dit.evaluation.report import csv_report
from ras_dit.evaluation.rows import Row

# In evaluations of the dense transformer, a picture.
COSTS = (17.0, 14.0, 11.5, 10.0, 8.75, 7.0)
# What a row is to beat, by kind.
CONTROLS: Mapping[str, str] = MappingProxyType(
    {
        "paper-std": "(a) the paper's RAS",
        "euler": "(b) dense Euler",
        "ab2": "(c) dense AB2",
        "damped-ab2": "(d) dense damped AB2",
    }
)
STATISTICS = ("median latent RMSE", "mean latent RMSE", "PSNR", "emoji kept", "FD-emoji")


def place_of(row: Row) -> tuple[str, float] | None:
    """Kind and cost that a row is named after; ``None`` for the reference."""
    kind, _, text = row.name.rpartition("-")
    try:
        cost = float(text)
    except ValueError:
        return None
    return (kind, cost) if kind and cost in COSTS else None


def settings_of(row: Row) -> str:
    """How a row samples, in words."""
    words = [f"{row.steps} steps"]
    if row.scheduler is not None:
        words.append(row.scheduler)
    if row.oracle:
        words.append("tokens by their true errors")
    for name, value in (row.config or {}).items():
        words.append(f"{name.replace('_', ' ')} {_short(value)}")
    return ", ".join(words)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_short(item) for item in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """The rows of an evaluation by kind and cost.

    Attributes:
        results: Those that have pictures.
        fights: Each against the controls of its cost.
    """

    results: Mapping[tuple[str, float], RowResult]
    fights: tuple[Fight, ...]

    @classmethod
    def of(cls, results: Sequence[RowResult]) -> Table:
        """The table of all rows of an evaluation."""
        placed = {
            place: replace(
                result, statistics=tuple(s for s in result.statistics if s.name in STATISTICS)
            )
            for result in results
            if result.pictures and (place := place_of(result.row)) is not None
        }
        fights = [
            fight
            for (kind, cost), result in placed.items()
            for control in CONTROLS
            if control != kind and (control, cost) in placed
            for fight in fights_between(result, control, placed[control, cost])
        ]
        return cls(placed, tuple(fights))

    @property
    def main(self) -> frozenset[str]:
        """Kinds with all pictures at some cost."""
        return frozenset(
            kind for (kind, _), result in self.results.items() if result.row.images is None
        )

    def markdown(self) -> str:
        """A table for each cost."""
        parts = []
        for cost in COSTS:
            shown = {kind: r for (kind, own), r in self.results.items() if own == cost}
            if shown:
                parts.append(f"### {cost:g} dense steps\n\n{self._of_cost(shown)}")
        return "\n\n".join(parts)

    def _of_cost(self, shown: Mapping[str, RowResult]) -> str:
        results = tuple(shown.values())
        names = [name for name in STATISTICS if name in statistic_names(results)]
        timed = any(result.seconds for result in results)
        controls = [kind for kind in CONTROLS if kind in shown]
        head = ["row", "pictures", "cost", *(["s/image"] if timed else [])]
        head += [heading(results, name) for name in names]
        head += [f"against {CONTROLS[kind]}" for kind in controls] + ["settings"]
        lines = [head, ["---", *("---:" for _ in head[1:])]]
        for kind, result in shown.items():
            count = f"{result.pictures}"
            if result.pictures < result.wanted:
                count += f" of {result.wanted}"
            cells = [kind, count, number(result.cost, ".2f")]
            cells += [number(result.median_seconds, ".3g")] if timed else []
            cells += [estimate(result.statistic(name)) for name in names]
            cells += [self._said(result.row.name, control) for control in controls]
            lines.append([*cells, settings_of(result.row)])
        return table(lines)

    def _said(self, row: str, control: str) -> str:
        return said(f for f in self.fights if (f.row, f.kind) == (row, control))

    def csv(self) -> str:
        """Every number of every row."""
        results = tuple(self.results.values())
        return csv_report(results, {result.row.name: () for result in results})

    def fights_csv(self) -> str:
        """Every fight, at full precision."""
        return fights_csv(self.fights)


def fights_between(result: RowResult, kind: str, control: RowResult) -> list[Fight]:
    """Every number that a row and a control have; ``kind`` says what the control is."""
    words, gaps = against(result, control)
    assert result.cost is not None
    assert control.cost is not None
    return [
        Fight(
            row=result.row.name,
            kind=kind,
            control=control.row.name,
            statistic=name,
            by="cost",
            ratio=control.cost / result.cost,
            gap=gaps[name],
            verdict=word,
        )
        for name, word in words.items()
    ]


def decides(row: Row) -> bool:
    """Whether a row has all pictures and is no control itself."""
    place = place_of(row)
    own = place is not None and place[0] not in CONTROLS
    return own and row.images is None and row.sampling is not None


def answer(shown: Table) -> str:
    """Does a row that decides beat each control of its cost, by each number?

    Returns:
        Markdown; empty where nothing can be compared.
    """
    names = [n for n in STATISTICS if any(fight.statistic == n for fight in shown.fights)]
    lines = [["row", "against", *names], ["---"] * (2 + len(names))]
    for result in shown.results.values():
        if not decides(result.row):
            continue
        for kind, label in CONTROLS.items():
            fought = {
                fight.statistic: f"{fight.verdict} ({gap_text(fight.gap)})"
                for fight in shown.fights
                if (fight.row, fight.kind) == (result.row.name, kind)
            }
            if fought:
                cells = [fought.get(name, "") for name in names]
                lines.append([result.row.name, label, *cells])
    return table(lines) if len(lines) > 2 else ""
