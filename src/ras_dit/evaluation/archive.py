"""Scores without their pictures: an evaluation goes on in another folder, on another machine.

An archive is a ``.tar.xz`` of the manifest, and of the records of finished units with what all
scorers measured of them, or of times. Where it is unpacked, those units are neither made nor
measured again. Only pictures of the reference are, where others are still to be compared with them.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ras_dit.errors import RASError
from ras_dit.evaluation.files import dump, locked, write_bytes
from ras_dit.evaluation.manifest import (
    MANIFEST,
    Manifest,
    Settings,
    check_same,
    load_manifest,
    load_settings,
    read_manifest,
    store,
)
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scoring import (
    features_path,
    identity_of,
    is_measured,
    measured_path,
    try_scorers,
)
from ras_dit.evaluation.stages import measurable_units, measures
from ras_dit.evaluation.timing import TIMES
from ras_dit.evaluation.workshop import ARCHIVED, unit_path, whole_unit

# A row and the number of a unit.
Place = tuple[str, int]
_UNIT = re.compile(r"units/(?P<row>[^/]+)/(?P<unit>[0-9]{5})\.json")


def pack_scores(folder: Path, path: Path, *, known: Collection[Place] = ()) -> int:
    """Write an archive of the units that were made and measured by every scorer.

    Args:
        folder: The evaluation's folder.
        path: The archive.
        known: Units that are left out, as those of earlier archives. Without any other there is
            no archive.

    Returns:
        How many units it has.

    Raises:
        RASError: If the folder holds no evaluation.
        DiskFullError: If the disk is full.
    """
    with locked(folder):
        manifest = load_manifest(folder)
        scored = _scored(folder, manifest, load_settings(folder))
        units = [place for place in scored if place not in known]
        if not units:
            return 0
        _write(folder, path, [name for place in units for name in scored[place]])
    return len(units)


def pack_times(folder: Path, path: Path) -> None:
    """Write an archive of the times of an evaluation.

    Raises:
        RASError: If the folder holds no evaluation.
        DiskFullError: If the disk is full.
    """
    with locked(folder):
        load_manifest(folder)
        times = sorted((folder / TIMES).rglob("*.json"))
        _write(folder, path, [file.relative_to(folder).as_posix() for file in times])


def archived_units(path: Path) -> set[Place]:
    """The units of an archive.

    Raises:
        RASError: If it is damaged.
    """
    return set(_Archive.read(path).places)


def unpack(path: Path, folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Take over an archive's units, as far as they are of these scorers and not there yet.

    Times are taken over where there are none.

    Args:
        path: The archive.
        folder: The evaluation's folder; begun if it is new.
        manifest: The evaluation.
        settings: Its scorers.

    Raises:
        RASError: If the archive is damaged or of another evaluation.
    """
    archive = _Archive.read(path)
    check_same(archive.manifest, manifest, path)
    with locked(folder):
        if not (folder / MANIFEST).exists():
            # As it was written: times are bound to it.
            write_bytes(folder / MANIFEST, archive.files[MANIFEST])
        store(folder, manifest, settings)
        scorers = try_scorers(settings, tuple(settings.scores), lambda _name, _reason: None)
        # Of some scorers a file of weights is hashed.
        identities = {name: identity_of(scorer) for name, scorer in scorers.items()}
        rows = {row.name: row for row in manifest.rows}
        for name, unit in archive.places:
            row = rows.get(name)
            if row is None or whole_unit(folder, row, unit) is not None:
                continue
            wanted = [name for name, scorer in scorers.items() if measures(scorer, name, row)]
            scores = archive.scores(row, unit, {name: identities[name] for name in wanted})
            if scores is None:
                continue
            for file, content in scores.items():
                write_bytes(folder / file, content)
            # Last: it says that the unit is whole.
            record = {**archive.json(unit_path(row, unit)), ARCHIVED: True}
            write_bytes(folder / unit_path(row, unit), dump(record))
        if not (folder / TIMES).exists():
            for file, content in archive.times(rows):
                write_bytes(folder / file, content)


@dataclass(frozen=True)
class _Archive:
    path: Path
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> _Archive:
        try:
            content = lzma.decompress(path.read_bytes())
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                files = {}
                for entry in archive:
                    file = archive.extractfile(entry)
                    if file is not None:
                        files[entry.name] = file.read()
        except (OSError, tarfile.TarError, lzma.LZMAError) as error:
            raise RASError(f"the archive {str(path)!r} is damaged ({error}); remove it") from error
        if MANIFEST not in files:
            raise RASError(f"{str(path)!r} holds no evaluation; remove it")
        return cls(path, files)

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.json(MANIFEST), self.path)

    @property
    def places(self) -> list[Place]:
        found = filter(None, map(_UNIT.fullmatch, self.files))
        return [(match["row"], int(match["unit"])) for match in found]

    def json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads(self.files[name])
        except (KeyError, ValueError) as error:
            raise RASError(
                f"{name} in {str(self.path)!r} is damaged ({error!r}); remove the archive"
            ) from error
        assert isinstance(data, dict)
        return data

    def scores(self, row: Row, unit: int, identities: Mapping[str, str]) -> dict[str, bytes] | None:
        """What these scorers measured of a unit; ``None`` if one has not, or was another then."""
        found: dict[str, bytes] = {}
        for name, identity in identities.items():
            path = measured_path(name, row.name, unit)
            if path not in self.files or self.json(path)["identity"] != identity:
                return None
            files = path, features_path(path)
            found |= {file: self.files[file] for file in files if file in self.files}
        return found

    def times(self, rows: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name, content in self.files.items():
            folder, _, rest = name.partition("/")
            row, _, file = rest.partition("/")
            is_round = row in rows and re.fullmatch(r"[0-9]+\.json", file) is not None
            if folder == TIMES and (rest == "conditions.json" or is_round):
                yield name, content


def _write(folder: Path, path: Path, names: Sequence[str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.PAX_FORMAT) as archive:
        for name in (MANIFEST, *names):
            content = (folder / name).read_bytes()
            # Without dates and owners: the same units give the same bytes.
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_bytes(path, buffer.getvalue())


def _scored(folder: Path, manifest: Manifest, settings: Settings) -> dict[Place, list[str]]:
    """Files of the units that all scorers have measured, archived ones included."""
    scorers = try_scorers(settings, tuple(settings.scores), lambda _name, _reason: None)
    measured: dict[Place, list[str]] = defaultdict(list)
    counts: dict[Place, int] = defaultdict(int)
    for part in measurable_units(folder, manifest, scorers):
        identity = identity_of(scorers[part.scorer])
        for unit, pictures in enumerate(part.units):
            place = part.row.name, unit
            if is_measured(folder, part.scorer, identity, *place, pictures):
                counts[place] += 1
                path = measured_path(part.scorer, *place)
                files = path, features_path(path)
                measured[place] += [name for name in files if (folder / name).exists()]
    found = {}
    for row in manifest.rows:
        wanted = sum(measures(scorer, name, row) for name, scorer in scorers.items())
        for unit in range(len(manifest.units(row))):
            place = row.name, unit
            if counts[place] == wanted and whole_unit(folder, row, unit) is not None:
                found[place] = [unit_path(row, unit), *measured[place]]
    return found
