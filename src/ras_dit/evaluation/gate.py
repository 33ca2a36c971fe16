"""A gate for CI: are the rows faithful enough to the reference?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ras_dit.errors import RASError
from ras_dit.evaluation.manifest import load_manifest
from ras_dit.evaluation.scoring import read_summary


@dataclass(frozen=True)
class Finding:
    """One number against its bound.

    Attributes:
        row: Name of the row.
        heading: Name of the number.
        value: Its mean over the pictures.
        least: The bound.
        count: Pictures.
    """

    row: str
    heading: str
    value: float
    least: float
    count: int

    @property
    def passed(self) -> bool:
        """Whether the number reaches the bound."""
        return self.value >= self.least

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return (
            f"{verdict}: {self.row}: {self.heading} {self.value:.4g} over {self.count} pictures, "
            f"at least {self.least:g} wanted"
        )


def check_gate(
    folder: Path, least: Mapping[str, float | None], rows: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Compare means with bounds.

    Args:
        folder: The evaluation's folder, scored.
        least: The bound of each scorer; ``None`` for no bound.
        rows: Names of rows; empty for all that are neither controls nor the reference.

    Raises:
        RASError: If there is no bound, no such row, or a number is missing: a gate that has
            nothing to look at does not pass.
    """
    manifest = load_manifest(folder)
    bounds = {name: value for name, value in least.items() if value is not None}
    if not bounds:
        raise RASError(f"a gate needs a bound; give one of {', '.join('--' + n for n in least)}")
    names = [row.name for row in manifest.rows]
    unknown = [name for name in rows if name not in names]
    if unknown:
        raise RASError(f"there is no row {', '.join(unknown)}; expected one of {', '.join(names)}")
    chosen = list(rows) or [row.name for row in manifest.rows if row.role == "row"]
    if not chosen:
        raise RASError("the evaluation has no row beside controls and the reference; name one")
    findings = []
    for row in chosen:
        for scorer, bound in bounds.items():
            statistics, _ = read_summary(folder, scorer, row)
            if not statistics:
                raise RASError(
                    f"{row} has no {scorer} in {str(folder)!r}; ask for it under scores in the "
                    "YAML file, and run score"
                )
            found = statistics[0]
            findings.append(Finding(row, found.name, found.value, bound, found.count))
    return tuple(findings)
