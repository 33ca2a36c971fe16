"""The score stage: features, statistics and numbers as files, one folder a scorer.

``scores/SCORER/ROW/00000.json`` (and ``.safetensors``) hold what was measured of one unit,
``summary.json`` (and ``.safetensors``) what was made of all of them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ras_dit.errors import RASError
from ras_dit.evaluation.files import dump, fingerprint, read_json, write_bytes, write_json
from ras_dit.evaluation.images import check_picture
from ras_dit.evaluation.scorers import (
    Measured,
    Picture,
    Scorer,
    ScorerUnavailable,
    Statistic,
    Summary,
    make_scorer,
)

if TYPE_CHECKING:
    from ras_dit.evaluation.manifest import Settings
    from ras_dit.evaluation.rows import Row

_LOG = logging.getLogger(__name__)
SCORES = "scores"


def configured_scorer(settings: Settings, name: str) -> Scorer:
    """A scorer with its settings; relative paths start from the YAML file's folder.

    Raises:
        ScorerUnavailable: If it cannot run here.
        RASError: If its settings are wrong.
    """
    given = dict(settings.scores[name])
    for key in ("weights", "reference", "detector", "clip"):
        if isinstance(given.get(key), str):
            given[key] = str(Path(settings.place) / Path(given[key]).expanduser())
    return make_scorer(name, given)


def identity_of(scorer: Scorer) -> str:
    """Fingerprint of what a scorer's numbers depend on."""
    return fingerprint(dict(scorer.identity()))


def measured_path(name: str, row: str, unit: int) -> str:
    """Path of what was measured of a unit."""
    return f"{SCORES}/{name}/{row}/{unit:05d}.json"


def measured_files(
    scorer: Scorer, name: str, row: str, unit: int, pictures: Sequence[Picture]
) -> dict[str, bytes]:
    """Measure a unit; the files of what was found.

    Raises:
        RASError: If a picture is damaged, or the scorer gives not one row per picture.
    """
    _check_files(pictures)
    measured = scorer.measure(pictures)
    if len(measured.rows) != len(pictures):
        raise RASError(f"the scorer {name} gave {len(measured.rows)} rows for {len(pictures)}")
    path = measured_path(name, row, unit)
    files = {}
    if measured.arrays:
        files[features_path(path)] = _packed(measured.arrays)
    rows = [{"picture": p.index, **r} for p, r in zip(pictures, measured.rows, strict=True)]
    record = {
        "identity": identity_of(scorer),
        "pictures": _digest(pictures),
        "arrays": bool(measured.arrays),
        "rows": rows,
    }
    return files | {path: dump(record)}


def is_measured(
    folder: Path, name: str, identity: str, row: str, unit: int, pictures: Sequence[Picture]
) -> bool:
    """Whether a unit was measured, by this scorer as it is now, on the pictures as they are.

    Pictures of an archived unit are not looked at: they may be missing, or be made again.
    """
    path = folder / measured_path(name, row, unit)
    if not path.exists():
        return False
    record = read_json(path)
    archived = all(picture.archived for picture in pictures)
    same = archived or record["pictures"] == _digest(pictures)
    return bool(record["identity"] == identity and same)


def summarise(
    folder: Path, scorer: Scorer, name: str, row: Row, units: Sequence[Sequence[Picture]]
) -> tuple[Statistic, ...]:
    """Statistics of a row from the files of its units; stored, and taken from there next time.

    Args:
        folder: The evaluation's folder.
        scorer: The scorer.
        name: Its name.
        row: The row.
        units: The pictures of its measured units, by number.
    """
    records = [read_json(folder / measured_path(name, row.name, n)) for n in range(len(units))]
    inputs = hashlib.sha256(b"".join(map(dump, records))).hexdigest()
    path = folder / SCORES / name / row.name / "summary.json"
    if path.exists():
        stored = read_json(path)
        if stored["inputs"] == inputs:
            return _statistics(stored)
    parts = [_measured(folder, name, row.name, n, record) for n, record in enumerate(records)]
    pictures = [picture for unit in units for picture in unit]
    summary = scorer.summarise(Measured.join(parts), pictures)
    _write_summary(path, summary, inputs)
    return summary.statistics


def read_summary(folder: Path, name: str, row: str) -> tuple[tuple[Statistic, ...], str]:
    """Stored statistics of a row, and the scorer's note; nothing where there are none."""
    path = folder / SCORES / name / row / "summary.json"
    if not path.exists():
        return (), ""
    data = read_json(path)
    return _statistics(data), str(data["note"])


def read_columns(folder: Path, name: str, row: str) -> Iterator[Mapping[str, Any]]:
    """What was measured of each picture of a row, in order."""
    for path in sorted((folder / SCORES / name / row).glob("[0-9]*.json")):
        yield from read_json(path)["rows"]


def try_scorers(
    settings: Settings, names: Sequence[str], on_missing: Callable[[str, str], None]
) -> dict[str, Scorer]:
    """The scorers that can run here.

    Args:
        settings: Their settings.
        names: Which.
        on_missing: Told the name and the reason of each that cannot.

    Raises:
        RASError: If the settings of one are wrong.
    """
    found = {}
    for name in names:
        try:
            found[name] = configured_scorer(settings, name)
        except ScorerUnavailable as error:
            on_missing(name, str(error))
    return found


def _digest(pictures: Sequence[Picture]) -> str:
    facts = [[p.index, p.prompt, p.sha256, p.partner_sha256, *_latents(p)] for p in pictures]
    return fingerprint({"pictures": facts})


def _latents(picture: Picture) -> list[str]:
    return [
        stored.sha256 for stored in (picture.latents, picture.partner_latents) if stored is not None
    ]


def _check_files(pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        check_picture(picture.path, picture.sha256)
        if picture.partner is not None:
            check_picture(picture.partner, picture.partner_sha256)


def _measured(folder: Path, name: str, row: str, unit: int, record: Mapping[str, Any]) -> Measured:
    arrays = {}
    if record["arrays"]:
        path = folder / features_path(measured_path(name, row, unit))
        try:
            arrays = load_arrays(path.read_bytes())
        # safetensors has an error of its own for damaged files.
        except Exception as error:
            raise RASError(
                f"the features {str(path)!r} are damaged ({error}); remove {path.stem}.json beside "
                "them, and run score again"
            ) from error
    return Measured(tuple(record["rows"]), arrays)


def _write_summary(path: Path, summary: Summary, inputs: str) -> None:
    if summary.arrays:
        write_bytes(path.with_suffix(".safetensors"), _packed(summary.arrays))
    statistics = [asdict(statistic) for statistic in summary.statistics]
    write_json(path, {"inputs": inputs, "note": summary.note, "statistics": statistics})


def _statistics(data: Mapping[str, Any]) -> tuple[Statistic, ...]:
    return tuple(Statistic(**statistic) for statistic in data["statistics"])


def _packed(arrays: Mapping[str, Any]) -> bytes:
    return bytes(save_arrays({name: np.ascontiguousarray(a) for name, a in arrays.items()}))


def features_path(path: str) -> str:
    """Path of the features beside what was measured of a unit."""
    return f"{path.removesuffix('.json')}.safetensors"
