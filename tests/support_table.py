"""Draws the table of support from the rows of the tests: `python tests/support_table.py`."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import diffusers

from family_laws import Family
from family_schedulers import accepted_schedulers
from ras_dit.adapters import DESCRIPTIONS, refused
from ras_dit.engine import COMPONENTS, denoisers
from ras_dit.entrance import uncompiled
from ras_dit.support import Support, Supported

ROOT = Path(__file__).parent.parent
DATA = ROOT / "src" / "ras_dit" / "adapters" / "support.json"
PAGE = ROOT / "docs" / "models.md"
MARK = "<!-- drawn from the tests by `make models` -->\n"


def family_rows() -> list[Family]:
    """Every row of every family module."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("families_*.py"))
    return [row for name in modules for row in importlib.import_module(name).FAMILIES]


def pipelines_with_transformers() -> dict[str, set[str]]:
    """Every pipeline class that diffusers exports with a transformer, and the transformers."""
    found = {}
    for name in dir(diffusers):
        if "Pipeline" not in name:
            continue
        kind = getattr(diffusers, name)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        parts = [str(p.annotation) for n, p in parameters.items() if "transformer" in n]
        if parts:
            words = " ".join(parts).replace("'", " ").replace(".", " ").replace(">", " ").split()
            found[name] = {
                word for word in words if "Transformer" in word or word.endswith("Model")
            }
    return found


def reason_of(pipeline: str, transformers: set[str]) -> str | None:
    """Why a pipeline class is refused; `None` where it is not."""
    if pipeline in refused.PIPELINES:
        return refused.PIPELINES[pipeline]
    reasons = [refused.TRANSFORMERS[t] for t in sorted(transformers) if t in refused.TRANSFORMERS]
    return reasons[0] if reasons else None


def one_of_each_transformer(supported: Iterable[Supported]) -> list[Family]:
    """The first main row of every class of transformers, where it makes several images at once."""
    rows = {(row.name, row.feature): row for row in family_rows() if row.is_main and row.batched}
    found: dict[str, Family] = {}
    for row in supported:
        if (row.family, row.feature) in rows:
            found.setdefault(row.transformer, rows[row.family, row.feature])
    return list(found.values())


def draw_rows() -> tuple[Supported, ...]:
    """What kinds of calls are tested now."""
    rows = []
    for family in family_rows():
        pipe = family.build()
        parts = [uncompiled(part) for part in denoisers(pipe).values()]
        transformer = type(parts[0]).__name__ if parts else COMPONENTS[0]
        assert transformer in DESCRIPTIONS, family
        rows.append(Supported(family.name, type(pipe).__name__, transformer, family.feature))
    return tuple(rows)


def draw(schedulers: Mapping[str, tuple[str, ...]] | None = None) -> Support:
    """The table of what is tested now; schedulers are tried where they are not given."""
    rows = draw_rows()
    if schedulers is None:
        schedulers = {row.name: accepted_schedulers(row) for row in one_of_each_transformer(rows)}
    reasons = {
        name: reason
        for name, transformers in pipelines_with_transformers().items()
        if (reason := reason_of(name, transformers)) is not None
    }
    return Support(diffusers.__version__, rows, reasons, schedulers)


def page(support: Support) -> str:
    """The page of the docs: what stands above the mark is written by hand."""
    above = PAGE.read_text("utf-8").split(MARK)[0]
    return above + MARK + "\n" + support.to_markdown() + "\n"


def main() -> None:
    support = draw()
    DATA.write_text(json.dumps(support.to_dict(), indent=1) + "\n", "utf-8")
    PAGE.write_text(page(support), "utf-8")
    print(f"{len(support.supported)} rows, {len(support.refused)} refused")  # noqa: T201


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
