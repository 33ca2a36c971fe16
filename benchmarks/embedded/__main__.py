"""The paper's Tables 6 to 10 with the embedded model, into docs/embedded-tables.md.

    python -m benchmarks.embedded --budget 60     # pictures and scores; goes on where it stopped
    python -m benchmarks.embedded --times         # seconds at 256 x 256: leave the machine alone

Pictures, scores and times lie in --out, one folder for each evaluation of benchmarks/embedded;
tables are made of whatever is there. Both commands write them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.embedded.page import fill
from benchmarks.embedded.tables import By, Table, answer, with_times
from benchmarks.embedded.views import VIEWS
from ras_dit.console import fail, quiet_libraries
from ras_dit.errors import RASError
from ras_dit.evaluation.comparisons import RowResult
from ras_dit.evaluation.crews import Alone, Processes
from ras_dit.evaluation.files import write_bytes
from ras_dit.evaluation.manifest import (
    Manifest,
    Settings,
    load_manifest,
    load_settings,
    plan_evaluation,
    read_evaluation,
)
from ras_dit.evaluation.plot import draw_plot
from ras_dit.evaluation.report import read_results
from ras_dit.evaluation.stages import generate_pictures, score_pictures
from ras_dit.evaluation.timing import read_conditions, time_rows
from ras_dit.evaluation.workshop import whole_unit

ROOT = Path(__file__).parents[2]
PAGE = "embedded-tables.md"
# The first one is timed; the rows of the other are among its rows.
EVALUATIONS = ("short", "detailed")
_TIMED = EVALUATIONS[0]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of benchmarks/embedded.

    Attributes:
        name: Of its file and its folder.
        folder: Where its pictures and scores are.
        manifest: What decides its pictures.
        settings: Scores and times.
    """

    name: str
    folder: Path
    manifest: Manifest
    settings: Settings

    @classmethod
    def read(cls, name: str, files: Path, out: Path) -> Evaluation:
        """The evaluation of a file."""
        data = read_evaluation(files / f"{name}.yaml")
        return cls(name, out / name, *plan_evaluation(data, files))

    def missing(self) -> float:
        """Cost of the pictures that are not there yet, in evaluations of the dense transformer."""
        return sum(
            (row.cost or 0) * len(indices)
            for row in self.manifest.rows
            for unit, indices in enumerate(self.manifest.units(row))
            if whole_unit(self.folder, row, unit) is None
        )


def make(evaluations: Sequence[Evaluation], budget: float, workers: int, say: Say) -> None:
    """Pictures and scores; pictures only as long as there is time.

    Args:
        evaluations: In this order.
        budget: Minutes after which no picture is begun.
        workers: Processes.
        say: Told how far it came and how long the rest takes.
    """
    end = time.monotonic() + 60 * budget
    crew = Alone() if workers == 1 else Processes(workers)
    for evaluation in evaluations:
        before, began = evaluation.missing(), time.monotonic()
        progress = generate_pictures(
            evaluation.folder,
            evaluation.manifest,
            evaluation.settings,
            crew=crew,
            budget=max(0.0, end - began),
        )
        left, spent = evaluation.missing(), time.monotonic() - began
        say(f"{evaluation.name}: {progress.done} of {progress.total} units of pictures\n")
        if left and left < before:
            minutes = left * spent / (before - left) / 60
            say(f"{evaluation.name}: about {minutes:.0f} more minutes at the pace of this call\n")
        scored = score_pictures(evaluation.folder, crew=crew)
        say(f"{evaluation.name}: {scored.done} of {scored.total} units are scored\n")


def measure(evaluation: Evaluation, say: Say) -> None:
    """Seconds of every row, also where there are no pictures yet."""
    if not (evaluation.folder / "manifest.json").exists():
        generate_pictures(evaluation.folder, evaluation.manifest, evaluation.settings, budget=0.0)
    rounds = time_rows(evaluation.folder, evaluation.settings)
    say(f"{evaluation.name}: timed {rounds} rounds of all rows\n")


def write_tables(out: Path, docs: Path) -> tuple[Path, ...]:
    """Tables, plots and the page, of all that is there.

    Args:
        out: The folder of the evaluations.
        docs: Folder of the page, with ``embedded/`` beside it for the files.

    Returns:
        The files.

    Raises:
        RASError: If there are no pictures, or the page lacks a place.
    """
    found: dict[str, tuple[RowResult, ...]] = {}
    facts = []
    for name in EVALUATIONS:
        folder = out / name
        if not (folder / "manifest.json").exists():
            continue
        manifest = load_manifest(folder)
        results = read_results(folder, manifest, load_settings(folder))
        found[name] = with_times(results, found.get(_TIMED, ()))
        facts.append(_facts(name, manifest, results, read_conditions(folder)))
    if not any(result.pictures for results in found.values() for result in results):
        raise RASError(f"{str(out)!r} has no pictures yet; give more --budget")
    parts, written = {"made": "\n".join(facts)}, []
    for view in VIEWS:
        made = [result for result in found.get(view.source, ()) if result.pictures]
        shown = Table.of(view, made)
        if not shown.results:
            parts[view.name] = "No pictures yet."
            continue
        place = docs / "embedded"
        files = {
            f"{view.name}.csv": shown.csv().encode(),
            f"{view.name}-controls.csv": shown.fights_csv().encode(),
            f"{view.name}.md": _whole(shown).encode(),
            f"{view.name}.png": draw_plot(view.title, shown.results),
        }
        for name, content in files.items():
            write_bytes(place / name, content)
            written.append(place / name)
        parts[view.name] = (
            f"{shown.markdown()}\n\n![quality against cost](embedded/{view.name}.png)\n\n"
            f"[Every comparison with its interval](embedded/{view.name}.md), "
            f"[rows](embedded/{view.name}.csv) and "
            f"[comparisons](embedded/{view.name}-controls.csv) as CSV."
        )
        if view is VIEWS[-1]:
            parts["answer"] = (
                f"{answer(shown, 'cost')}\n\n{answer(shown, 'time')}".strip()
                or "No sparse row and control of one number yet."
            )
    parts.setdefault("answer", "No pictures yet.")
    fill(docs / PAGE, parts)
    return (*written, docs / PAGE)


def _whole(shown: Table) -> str:
    parts = [f"# {shown.view.title}", shown.markdown()]
    by: By
    for by in get_args(By):
        if details := shown.details(by):
            parts += [f"## At equal {by}", details]
    return "\n\n".join(parts) + "\n"


def _facts(name: str, manifest: Manifest, results: Sequence[RowResult], conditions: Any) -> str:
    """How much of an evaluation there is, and what made it."""
    pictures, wanted = (sum(getattr(r, key) for r in results) for key in ("pictures", "wanted"))
    versions = ", ".join(f"{key} {value}" for key, value in manifest.versions.items())
    text = (
        f"- {name} captions: {pictures} of {wanted} pictures of {len(results)} rows; model "
        f"{manifest.model_digest[:12]}; {versions}."
    )
    if conditions is not None:
        text += (
            f" Seconds: {conditions['device']}, {conditions['threads']} threads, "
            f"{conditions['size']}, batch {conditions['batch']}."
        )
    return text


def main(arguments: Sequence[str] | None = None, say: Say = sys.stdout.write) -> int:
    """Run the command.

    Args:
        arguments: Words after the command; ``None`` reads the command line.
        say: Where messages go.

    Returns:
        The exit status: 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--times", action="store_true", help="measure seconds instead")
    parser.add_argument("--only", nargs="+", choices=EVALUATIONS, default=list(EVALUATIONS))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "embedded")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where tables go")
    parser.add_argument("--evaluations", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    try:
        with quiet_libraries(verbose=False):
            if options.times:
                measure(Evaluation.read(_TIMED, options.evaluations, options.out), say)
            else:
                chosen = [
                    Evaluation.read(name, options.evaluations, options.out)
                    for name in EVALUATIONS
                    if name in options.only
                ]
                make(chosen, options.budget, options.workers, say)
            for path in write_tables(options.out, options.docs):
                say(f"wrote {path}\n")
    except RASError as error:
        return fail(str(error), 2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
