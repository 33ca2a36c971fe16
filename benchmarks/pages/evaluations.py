"""Evaluations of a benchmark: made as far as a budget goes, timed, and read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ras_dit.evaluation.archive import archived_units, pack_scores, pack_times, unpack
from ras_dit.evaluation.comparisons import RowResult
from ras_dit.evaluation.crews import Alone, Processes
from ras_dit.evaluation.manifest import (
    Manifest,
    Settings,
    load_manifest,
    load_settings,
    plan_evaluation,
    read_evaluation,
)
from ras_dit.evaluation.report import read_results
from ras_dit.evaluation.stages import generate_pictures, score_pictures
from ras_dit.evaluation.timing import read_conditions, time_rows
from ras_dit.evaluation.workshop import whole_unit

Say = Callable[[str], object]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a benchmark.

    Attributes:
        name: Of its file and its folder.
        folder: Where its pictures and scores are.
        manifest: What decides its pictures.
        settings: Scores and times.
        measured: Folder of the archives of what was measured before, elsewhere perhaps.
    """

    name: str
    folder: Path
    manifest: Manifest
    settings: Settings
    measured: Path

    @classmethod
    def read(cls, name: str, files: Path, out: Path) -> Evaluation:
        """The evaluation of a file."""
        data = read_evaluation(files / f"{name}.yaml")
        return cls(name, out / name, *plan_evaluation(data, files), files / "measured")

    def take_over(self) -> None:
        """Go on from the archives of scores and times."""
        for path in (*self._archives(), self._times):
            if path.exists():
                unpack(path, self.folder, self.manifest, self.settings)

    def keep_scores(self) -> Path | None:
        """A further archive, of the units that are in none yet; ``None`` if there is no such."""
        archives = self._archives()
        known = {place for path in archives for place in archived_units(path)}
        path = self.measured / f"{self.name}-{len(archives):02d}.tar.xz"
        return path if pack_scores(self.folder, path, known=known) else None

    def keep_times(self) -> Path:
        """The archive of times, made anew."""
        pack_times(self.folder, self._times)
        return self._times

    @property
    def _times(self) -> Path:
        return self.measured / f"{self.name}-times.tar.xz"

    def _archives(self) -> list[Path]:
        return sorted(self.measured.glob(f"{self.name}-[0-9][0-9].tar.xz"))

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
        evaluation.take_over()
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
        if path := evaluation.keep_scores():
            say(f"{evaluation.name}: new scores are kept in {path}\n")


def measure(evaluation: Evaluation, say: Say) -> None:
    """Seconds of every row, also where there are no pictures yet."""
    evaluation.take_over()
    if not (evaluation.folder / "manifest.json").exists():
        generate_pictures(evaluation.folder, evaluation.manifest, evaluation.settings, budget=0.0)
    rounds = time_rows(evaluation.folder, evaluation.settings)
    say(f"{evaluation.name}: timed {rounds} rounds of all rows\n")
    say(f"{evaluation.name}: times are kept in {evaluation.keep_times()}\n")


def read_found(out: Path, names: Sequence[str]) -> tuple[dict[str, tuple[RowResult, ...]], str]:
    """What was found in each evaluation that was begun.

    Args:
        out: The folder of the evaluations.
        names: Theirs.

    Returns:
        Rows by evaluation, and a list in markdown of how much there is.
    """
    found: dict[str, tuple[RowResult, ...]] = {}
    facts = []
    for name in names:
        folder = out / name
        if not (folder / "manifest.json").exists():
            continue
        manifest = load_manifest(folder)
        found[name] = read_results(folder, manifest, load_settings(folder))
        facts.append(_facts(name, manifest, found[name], read_conditions(folder)))
    return found, "\n".join(facts)


def _facts(name: str, manifest: Manifest, results: Sequence[RowResult], conditions: Any) -> str:
    """How much of an evaluation there is, and what made it."""
    pictures, wanted = (sum(getattr(r, key) for r in results) for key in ("pictures", "wanted"))
    versions = ", ".join(f"{key} {value}" for key, value in manifest.versions.items())
    text = (
        f"- {name}: {pictures} of {wanted} pictures of {len(results)} rows; model "
        f"{manifest.model_digest[:12]}; {versions}."
    )
    if conditions is not None:
        size = conditions["size"] or f"{manifest.width}x{manifest.height}"
        text += (
            f" Seconds: {conditions['device']}, {conditions['threads']} threads, "
            f"{size}, batch {conditions['batch']}."
        )
    return text
