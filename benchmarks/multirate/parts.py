"""What each part of the method is worth: rows that decide against rows with one part changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from benchmarks.multirate.tables import COSTS, Table, fights_between
from benchmarks.pages.fights import Fight, fights_csv
from ras_dit.evaluation.markdown import gap_text, table

# By kind of the rows that decide: what they are compared with, and in which way it is another.
CHANGED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "skips": {
            "multirate": "with regions",
            "oracle": "with regions, by their true errors",
            "held-skips": "outputs held, Euler steps",
            "undamped-skips": "lines and AB2 without damping",
            "unipc": "dense steps of UniPC",
            "dpmpp": "dense steps of DPM++ 2M",
        },
        "multirate": {
            "by-chance": "tokens by chance",
            "by-std": "tokens by the paper's score",
            "oracle": "tokens by their true errors",
            "held": "outputs held, Euler steps",
            "held-damped-ab2": "outputs held",
            "linear": "Euler steps",
            "undamped": "lines and AB2 without damping",
            "corrected": "with corrected long steps",
            "innovation": "one ratio throughout, outputs held, Euler steps",
        },
    }
)
# Comparable at every cost, unlike the errors themselves.
SHOWN = "PSNR"


def fights_of(shown: Table) -> Iterator[Fight]:
    """Every row that decides against the rows of its cost that :data:`CHANGED` names."""
    for whole, changes in CHANGED.items():
        for kind in changes:
            for cost in COSTS:
                if (whole, cost) in shown.results and (kind, cost) in shown.results:
                    own, other = shown.results[whole, cost], shown.results[kind, cost]
                    yield from fights_between(own, kind, other)


def markdown(shown: Table) -> str:
    """A line for each change, a column for each cost, in dB; empty where nothing was changed."""
    fought = {(f.row, f.kind): f for f in fights_of(shown) if f.statistic == SHOWN}
    costs = [c for c in COSTS if any(row.endswith(f"-{c:g}") for row, _ in fought)]
    head = ["row", "against", *(f"at {cost:g}" for cost in costs)]
    lines = [head, ["---"] * len(head)]
    for whole, changes in CHANGED.items():
        for kind, what in changes.items():
            found = [fought.get((f"{whole}-{cost:g}", kind)) for cost in costs]
            if any(found):
                cells = [f"{f.verdict} ({gap_text(f.gap)})" if f else "" for f in found]
                lines.append([whole, f"`{kind}`: {what}", *cells])
    return table(lines) if fought else ""


def csv(shown: Table) -> str:
    """Every comparison, of every number, at full precision."""
    return fights_csv(fights_of(shown))
