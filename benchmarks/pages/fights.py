"""Numbers of a row against those of a control: in words, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

By = Literal["cost", "time"]


@dataclass(frozen=True)
class Fight:
    """One number of a row against that of a control.

    Attributes:
        row: Name of the row.
        kind: What the control is.
        control: Its name.
        statistic: The number.
        by: What is equal.
        ratio: The control's cost or time over the row's.
        gap: 95 % interval of the row's number minus the control's.
        verdict: ``"beats"``, ``"ties"``, ``"loses"``, or why there is no telling.
    """

    row: str
    kind: str
    control: str
    statistic: str
    by: By
    ratio: float
    gap: tuple[float, float]
    verdict: str


def said(fights: Iterable[Fight]) -> str:
    """For each verdict the numbers that have it."""
    names: dict[str, list[str]] = {}
    for fight in fights:
        names.setdefault(fight.verdict, []).append(fight.statistic)
    return "; ".join(f"{verdict}: {', '.join(which)}" for verdict, which in names.items())


def fights_csv(fights: Iterable[Fight]) -> str:
    """Every fight, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["row", "control", "kind", "statistic", "equal", "ratio", "low", "high", "verdict"]
    )
    for f in fights:
        writer.writerow([f.row, f.control, f.kind, f.statistic, f.by, f.ratio, *f.gap, f.verdict])
    return buffer.getvalue()
