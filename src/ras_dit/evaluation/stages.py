"""The stages that make files: generate and score. Both go on where they were stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ras_dit.errors import RASError
from ras_dit.evaluation.crews import Alone, Crew
from ras_dit.evaluation.files import locked, read_json, sweep, write_bytes, write_json
from ras_dit.evaluation.latents import stored_latents
from ras_dit.evaluation.manifest import (
    MANIFEST,
    SETTINGS,
    Manifest,
    Settings,
    check_scores,
    load_manifest,
    load_settings,
    store,
)
from ras_dit.evaluation.remade import keep_archived
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Picture, Scorer
from ras_dit.evaluation.scoring import (
    SCORES,
    identity_of,
    is_measured,
    summarise,
    try_scorers,
)
from ras_dit.evaluation.workshop import (
    ARCHIVED,
    Product,
    Task,
    has_files,
    picture_path,
    threads,
    whole_unit,
)

REFUSED = "refused"
OnUnit = Callable[[int, int], None]


@dataclass(frozen=True)
class Progress:
    """How far a stage came.

    Attributes:
        done: Units finished, those of earlier runs included.
        total: All units.
        refused: Why each refused row (or scorer) cannot be had, by name.
    """

    done: int
    total: int
    refused: Mapping[str, str]

    @property
    def whole(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done == self.total


@dataclass(frozen=True)
class RowUnits:
    """Pictures of a row that a scorer can look at.

    Attributes:
        scorer: Name of the scorer.
        row: The row.
        units: Pictures of its finished units, by number.
    """

    scorer: str
    row: Row
    units: Sequence[tuple[Picture, ...]]


def generate_pictures(
    folder: Path,
    manifest: Manifest | None = None,
    settings: Settings | None = None,
    *,
    crew: Crew | None = None,
    budget: float | None = None,
    on_unit: OnUnit | None = None,
) -> Progress:
    """Make the pictures that are not there yet.

    Units of all rows take turns, so that a run that is stopped early has the same share of each.

    Args:
        folder: The evaluation's folder.
        manifest: What to make; ``None`` goes on with what was begun in the folder.
        settings: Stored for the later stages.
        crew: Who makes them; this process by default.
        budget: Seconds after which no further unit is begun; ``None`` for no end.
        on_unit: Called with (units done, all units).

    Raises:
        RASError: If the folder holds another evaluation, or the model cannot be loaded.
        DiskFullError: If the disk is full; nothing that was finished is lost.
    """
    if manifest is not None and not manifest.rows:
        raise RASError("the evaluation has no rows")
    was_there = folder.exists()
    with locked(folder), _beginning(folder, was_there=was_there):
        if manifest is not None and settings is not None:
            store(folder, manifest, settings)
        manifest, settings = load_manifest(folder), load_settings(folder)
        sweep(folder)
        for path in (folder / REFUSED).glob("*.json"):
            path.unlink()
        refused: dict[str, str] = {}
        waiting = _missing_units(folder, manifest)
        total = sum(len(manifest.units(row)) for row in manifest.rows)
        done = total - len(waiting)
        for product in _within(
            crew or Alone(), manifest, settings, _still_wanted(waiting, refused), budget
        ):
            if product.outcome == "refused":
                refused[product.task.row] = product.reason
                _refuse(folder, product.task.row, product.reason)
                continue
            _write(folder, keep_archived(folder, manifest.row(product.task.row), product))
            done += 1
            if on_unit is not None:
                on_unit(done, total)
        lost = sum(len(manifest.units(manifest.row(name))) for name in refused)
        return Progress(done, total - lost, refused)


def score_pictures(
    folder: Path,
    settings: Settings | None = None,
    *,
    only: Sequence[str] = (),
    crew: Crew | None = None,
    on_unit: OnUnit | None = None,
) -> Progress:
    """Score the pictures that are there, where that was not done yet.

    Args:
        folder: The evaluation's folder.
        settings: Replaces the settings stored there.
        only: Names of scorers; empty for all.
        crew: Who looks at the pictures; this process by default.
        on_unit: Called with (units done, all units).

    Raises:
        RASError: If the folder holds no evaluation, a picture is damaged, or settings are wrong.
        DiskFullError: If the disk is full; nothing that was finished is lost.
    """
    manifest = load_manifest(folder)
    with locked(folder):
        if settings is not None:
            store(folder, manifest, settings)
        settings = load_settings(folder)
        check_scores(manifest, settings)
        sweep(folder)
        names = _chosen(settings, only)
        refused: dict[str, str] = {}
        for name in names:
            (folder / SCORES / name / "unavailable.json").unlink(missing_ok=True)

        def unavailable(name: str, reason: str) -> None:
            refused[name] = reason
            write_json(folder / SCORES / name / "unavailable.json", {"reason": reason})

        scorers = try_scorers(settings, names, unavailable)
        for name, scorer in scorers.items():
            write_json(folder / SCORES / name / "identity.json", scorer.identity())
        measurable = measurable_units(folder, manifest, scorers)
        waiting = [
            Task(part.row.name, unit, part.scorer, pictures)
            for part in measurable
            for unit, pictures in enumerate(part.units)
            if not is_measured(
                folder,
                part.scorer,
                identity_of(scorers[part.scorer]),
                part.row.name,
                unit,
                pictures,
            )
        ]
        total = sum(len(part.units) for part in measurable)
        done = total - len(waiting)
        for product in (crew or Alone()).run(manifest, settings, iter(waiting)):
            _write(folder, product)
            done += 1
            if on_unit is not None:
                on_unit(done, total)
        with threads(manifest.threads):
            for part in measurable:
                summarise(folder, scorers[part.scorer], part.scorer, part.row, part.units)
        return Progress(done, total, refused)


@contextlib.contextmanager
def _beginning(folder: Path, *, was_there: bool) -> Iterator[None]:
    """Where a run fails before anything is made, leave nothing that keeps a corrected one out."""
    began = not (folder / MANIFEST).exists()
    try:
        yield
    except (Exception, KeyboardInterrupt):
        own = [folder / name for name in (MANIFEST, SETTINGS, ".lock")]
        if began and all(item in own for item in folder.iterdir()):
            for path in own:
                path.unlink(missing_ok=True)
            if not was_there:
                folder.rmdir()
        raise


def finished_units(folder: Path, manifest: Manifest, row: Row) -> list[tuple[Picture, ...]]:
    """The pictures of the units of a row that are whole, up to the first one that is not."""
    found = []
    for unit, indices in enumerate(manifest.units(row)):
        record = whole_unit(folder, row, unit)
        if record is None:
            break
        found.append(tuple(_picture(folder, manifest, row, index, record) for index in indices))
    return found


def _picture(
    folder: Path, manifest: Manifest, row: Row, index: int, record: Mapping[str, Any]
) -> Picture:
    shot = manifest.shots[index]
    prompt = manifest.prompts[shot.group]
    name = picture_path(row, index)
    return Picture(
        index=index,
        prompt=prompt.text,
        group=shot.group,
        seed=shot.seed,
        path=folder / name,
        sha256=record["pictures"][name]["sha256"],
        metadata=prompt.metadata,
        latents=stored_latents(folder, record, row.name, index),
        archived=bool(record.get(ARCHIVED)),
    )


def refusals(folder: Path) -> dict[str, str]:
    """Rows that could not be had, with the reason."""
    return {
        path.stem: str(read_json(path)["reason"])
        for path in sorted((folder / REFUSED).glob("*.json"))
    }


def _chosen(settings: Settings, only: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in only if name not in settings.scores]
    if unknown:
        raise RASError(
            f"the evaluation does not ask for the scorer {', '.join(unknown)}; it has "
            f"{', '.join(settings.scores)}: add it under scores in the YAML file"
        )
    return tuple(only or settings.scores)


def _missing_units(folder: Path, manifest: Manifest) -> list[Task]:
    waiting = []
    for place, row in enumerate(manifest.rows):
        count = len(manifest.units(row))
        waiting += [
            (unit / count, place, Task(row.name, unit))
            for unit in range(count)
            if whole_unit(folder, row, unit) is None
        ]
    reference = manifest.reference
    count = len(manifest.units(reference))
    for unit in sorted({task.unit for _, _, task in waiting}):
        record = whole_unit(folder, reference, unit) if unit < count else None
        if record is not None and not has_files(folder, record):
            # Archived, and others are still to be compared with it.
            waiting.append((unit / count, -1, Task(reference.name, unit)))
    return [task for _, _, task in sorted(waiting, key=lambda entry: entry[:2])]


def measures(scorer: Scorer, name: str, row: Row) -> bool:
    """Whether a scorer looks at the pictures of a row at all."""
    return name not in row.without and not (scorer.needs_partner and row.role == "reference")


def measurable_units(
    folder: Path, manifest: Manifest, scorers: Mapping[str, Scorer]
) -> list[RowUnits]:
    """What each scorer can look at: the pictures of the finished units of each row."""
    finished = {row.name: finished_units(folder, manifest, row) for row in manifest.rows}
    reference = [picture for unit in finished[manifest.reference.name] for picture in unit]
    found = []
    for name, scorer in scorers.items():
        for row in manifest.rows:
            if not measures(scorer, name, row):
                continue
            units = finished[row.name]
            if scorer.needs_partner:
                units = _with_partners(units, reference)
            if units:
                found.append(RowUnits(name, row, units))
    return found


def _with_partners(
    units: Sequence[tuple[Picture, ...]], reference: Sequence[Picture]
) -> list[tuple[Picture, ...]]:
    """The units of which every picture has its partner."""
    return [
        tuple(
            replace(
                picture,
                partner=reference[picture.index].path,
                partner_sha256=reference[picture.index].sha256,
                partner_latents=reference[picture.index].latents,
            )
            for picture in unit
        )
        for unit in units
        if unit[-1].index < len(reference)
    ]


def _still_wanted(tasks: Sequence[Task], refused: Mapping[str, str]) -> Iterator[Task]:
    for task in tasks:
        if task.row not in refused:
            yield task


def _within(
    crew: Crew,
    manifest: Manifest,
    settings: Settings,
    tasks: Iterator[Task],
    budget: float | None,
) -> Iterator[Product]:
    """Products of the tasks that can be begun in the budget."""
    end = None if budget is None else time.monotonic() + budget

    def in_time() -> Iterator[Task]:
        for task in tasks:
            if end is not None and time.monotonic() >= end:
                return
            yield task

    yield from crew.run(manifest, settings, in_time())


def _write(folder: Path, product: Product) -> None:
    for name, content in product.files.items():
        write_bytes(folder / name, content)


def _refuse(folder: Path, name: str, reason: str) -> None:
    write_json(folder / REFUSED / f"{name}.json", {"reason": reason})
