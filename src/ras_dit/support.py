"""What is supported, pipeline by pipeline: read from a table that is drawn from the tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Supported:
    """One kind of call of one pipeline class that the tests hold to the laws.

    Attributes:
        family: Name that people use.
        pipeline: Class of the pipeline in diffusers.
        transformer: Class of its transformer.
        feature: What is called: ``"text-to-image"``, ``"inpaint"``, ...
    """

    family: str
    pipeline: str
    transformer: str
    feature: str


@dataclass(frozen=True)
class Support:
    """The whole table.

    Attributes:
        diffusers: Version that was tested.
        supported: Tested rows.
        refused: By class of the pipeline, why it is refused.
        schedulers: By family, the kinds of schedulers that its pipeline takes; RAS works with each.
    """

    diffusers: str
    supported: tuple[Supported, ...]
    refused: Mapping[str, str]
    schedulers: Mapping[str, tuple[str, ...]]

    def by_family(self) -> list[tuple[str, str, str]]:
        """Family, pipeline and its features, one row per pipeline and family."""
        rows = sorted(self.supported, key=lambda row: (row.family.lower(), row.pipeline))
        return [
            (family, pipeline, "; ".join(row.feature for row in group))
            for (family, pipeline), group in groupby(rows, lambda r: (r.family, r.pipeline))
        ]

    def by_schedulers(self) -> list[tuple[str, str]]:
        """Families that take the same schedulers, and these, one row per set of them."""
        families: dict[str, list[str]] = {}
        for family, kinds in sorted(self.schedulers.items(), key=lambda item: item[0].lower()):
            families.setdefault("; ".join(kinds), []).append(family)
        return [(", ".join(names), kinds) for kinds, names in families.items()]

    def to_markdown(self) -> str:
        """The table as a page."""
        lines = ["| family | pipeline | tested |", "| --- | --- | --- |"]
        lines += [f"| {family} | `{p}` | {features} |" for family, p, features in self.by_family()]
        lines += ["", "| family | schedulers |", "| --- | --- |"]
        lines += [f"| {names} | {kinds} |" for names, kinds in self.by_schedulers()]
        lines += ["", "| refused | because |", "| --- | --- |"]
        lines += [f"| `{name}` | {reason} |" for name, reason in sorted(self.refused.items())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data, as :func:`read_support` reads it."""
        return {
            "diffusers": self.diffusers,
            "supported": [list(vars(row).values()) for row in self.supported],
            "refused": dict(sorted(self.refused.items())),
            "schedulers": {family: list(kinds) for family, kinds in self.schedulers.items()},
        }


@functools.cache
def read_support() -> Support:
    """The table that ships with the package."""
    text = (resources.files("ras_dit.adapters") / "support.json").read_text("utf-8")
    data = json.loads(text)
    rows = tuple(Supported(*row) for row in data["supported"])
    schedulers = {family: tuple(kinds) for family, kinds in data["schedulers"].items()}
    return Support(data["diffusers"], rows, data["refused"], schedulers)
