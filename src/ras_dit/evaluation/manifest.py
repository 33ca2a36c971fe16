"""The manifest: everything that decides the pictures of an evaluation, fixed before the first.

It fixes the work units too (which pictures are made in one batch, on how many threads), so that
neither the number of workers nor the machine that does a unit changes a byte.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ras_dit.config import RASConfig
from ras_dit.embedded import MODEL_DIR
from ras_dit.errors import RASError
from ras_dit.evaluation.files import checksum, dump, read_json, write_json
from ras_dit.evaluation.prompts import Prompt, Shot, read_count, read_shots
from ras_dit.evaluation.restoring import check_restorable, identity
from ras_dit.evaluation.rows import Row, add_controls, add_reference, read_controls, read_rows
from ras_dit.evaluation.scorers import check_scorer
from ras_dit.evaluation.time_settings import TimeSettings
from ras_dit.loading import call_defaults, locate
from ras_dit.outline import read_outline
from ras_dit.planning import plan_outline
from ras_dit.validation import parse_size

MANIFEST = "manifest.json"
SETTINGS = "settings.json"
FORMAT = 1
_PACKAGES = ("ras-dit", "torch", "diffusers", "transformers")
_WHOLE = 64 * 2**20
_KEYS = (
    *("title", "model", "dtype", "device", "size", "guidance_scale", "max_sequence_length"),
    *("prompts", "seed", "batch", "threads", "rows", "grid", "reference_steps", "controls"),
    *("latents", "scores", "time"),
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """See the module.

    Attributes:
        model: Folder or hub id; ``None`` is the embedded model.
        model_digest: Fingerprint of the model's files; empty for a hub id.
        dtype: As for ``load_pipeline``.
        device: As for ``load_pipeline``.
        width: In pixels; ``None`` is the model's own.
        height: In pixels; ``None`` is the model's own.
        guidance_scale: ``None`` is the model's own.
        max_sequence_length: ``None`` is the model's own.
        batch: Pictures in one call of the pipeline.
        threads: Threads of every worker.
        prompts: The prompts.
        shots: The pictures, in order.
        rows: The configurations.
        versions: Of what the pictures depend on.
        latents: Whether each picture's last latents are kept.
    """

    model: str | None
    model_digest: str
    dtype: str
    device: str
    width: int | None
    height: int | None
    guidance_scale: float | None
    max_sequence_length: int | None
    batch: int
    threads: int
    prompts: tuple[Prompt, ...]
    shots: tuple[Shot, ...]
    rows: tuple[Row, ...]
    versions: Mapping[str, str]
    latents: bool = False

    @property
    def reference(self) -> Row:
        """The row that the others are compared with picture by picture."""
        return next(row for row in self.rows if row.role == "reference")

    def row(self, name: str) -> Row:
        """A row by name."""
        return next(row for row in self.rows if row.name == name)

    def units(self, row: Row) -> tuple[range, ...]:
        """The work units of a row: the pictures that are made in one batch each."""
        total = min(len(self.shots), row.images or len(self.shots))
        return tuple(
            range(start, min(start + self.batch, total)) for start in range(0, total, self.batch)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        data = asdict(self) | {"format": FORMAT, "rows": [row.to_dict() for row in self.rows]}
        # Left out where nothing is kept, so that it changes no evaluation begun without it.
        return {key: value for key, value in data.items() if key != "latents" or value}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may change between runs, because no picture depends on it.

    Attributes:
        title: Heading of the report.
        scores: Settings of each scorer that is to run.
        time: Settings of ``evaluate time``.
        place: Folder that relative paths in ``scores`` start from.
    """

    title: str
    scores: Mapping[str, Mapping[str, Any]]
    time: Mapping[str, Any]
    place: str


def read_evaluation(path: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of an evaluation's YAML file.

    Args:
        path: The file.
        overrides: Fields that replace those of the file.

    Raises:
        RASError: If it cannot be read or has an unknown field.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"cannot read the evaluation {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        raise RASError(
            f"{str(path)!r} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(data, dict):
        raise RASError(f"{str(path)!r} holds a {type(data).__name__}; expected a mapping")
    unknown = sorted(str(key) for key in data if key not in _KEYS)
    if unknown:
        raise RASError(
            f"{str(path)!r} has the unknown field {', '.join(unknown)}; expected {', '.join(_KEYS)}"
        )
    return data | {key: value for key, value in (overrides or {}).items() if value is not None}


def plan_evaluation(data: Mapping[str, Any], place: Path) -> tuple[Manifest, Settings]:
    """Resolve the content of a YAML file: read prompts, expand rows, add controls.

    Args:
        data: From :func:`read_evaluation`.
        place: Folder that relative paths start from.

    Raises:
        RASError: If anything in it is wrong.
    """
    model = data.get("model")
    if model is not None and (place / str(model)).is_dir():
        model = str((place / str(model)).resolve())
    defaults = call_defaults(model)
    rows_of_text = read_count(data, "max_sequence_length") or defaults.max_sequence_length
    width, height = parse_size(data.get("size"))
    guidance = data.get("guidance_scale")
    outline = read_outline(model, max_sequence_length=rows_of_text)
    layout = outline.layout(width, height)

    def cost(config: RASConfig | None, steps: int) -> float:
        evaluations = outline.num_evaluations(steps)
        if config is None:
            return float(evaluations)
        return evaluations / plan_outline(outline, config, evaluations, layout).limit

    rows = read_rows(data.get("rows"), data.get("grid"), cost)
    rows = add_reference(rows, read_count(data, "reference_steps"), cost)
    rows = add_controls(rows, read_controls(data.get("controls")), cost)
    seed = data.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**62:
        raise RASError(f"seed={seed!r}; expected an integer between 0 and 2**62")
    latents = data.get("latents", False)
    if type(latents) is not bool:
        raise RASError(f"latents={latents!r}; expected true or false")
    prompts, shots = read_shots(data.get("prompts"), seed, place)
    manifest = Manifest(
        model=None if model is None else str(model),
        model_digest=_fingerprint(model),
        dtype=str(data.get("dtype", "auto")),
        device=str(data.get("device", "auto")),
        width=width,
        height=height,
        guidance_scale=defaults.guidance_scale if guidance is None else float(guidance),
        max_sequence_length=rows_of_text,
        batch=read_count(data, "batch") or 1,
        threads=read_count(data, "threads") or 1,
        prompts=prompts,
        shots=shots,
        rows=rows,
        versions={name: version(name) for name in _PACKAGES} | {"machine": platform.machine()},
        latents=latents,
    )
    settings = read_settings(data, place)
    # Refused here, and not when all pictures are made.
    outline.layout(*parse_size(settings.time.get("size")))
    return manifest, settings


def store(folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Begin an evaluation in a folder, or check that it is the one begun there.

    It may have further rows, or fewer: no picture depends on those of other rows. A manifest that
    was lost is written anew.

    Raises:
        RASError: If another evaluation was begun in the folder, or with other versions, or scores
            ask for what is not kept.
    """
    check_scores(manifest, settings)
    path = folder / MANIFEST
    if path.exists():
        begun = load_manifest(folder)
        check_same(begun, manifest, folder)
        if manifest.rows != begun.rows:
            write_json(path, manifest.to_dict())
    else:
        check_restorable(folder, manifest, (MANIFEST, SETTINGS))
        write_json(path, manifest.to_dict())
    write_json(folder / SETTINGS, asdict(settings) | {"manifest": identity(manifest)})


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        RASError: If the folder holds no evaluation, or a damaged one.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise RASError(
            f"{str(folder)!r} holds no evaluation; begin one with `ras-dit evaluate generate`"
        )
    try:
        data = read_json(path)
    except RASError as error:
        raise RASError(
            f"{str(path)!r} is damaged; remove it and run `ras-dit evaluate generate FILE.yaml "
            f"--out {folder}` with the file that it was begun with: it is written anew, and "
            "nothing that was made is lost"
        ) from error
    return read_manifest(data, path)


def read_manifest(data: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest of a file's content.

    Raises:
        RASError: If it is damaged or of another release.
    """
    data = dict(data)
    if data.pop("format", None) != FORMAT:
        raise RASError(f"{str(path)!r} is not a file of this release (format {FORMAT})")
    try:
        return Manifest(
            **{
                **data,
                "prompts": tuple(Prompt(**prompt) for prompt in data["prompts"]),
                "shots": tuple(Shot(**shot) for shot in data["shots"]),
                "rows": tuple(Row.from_dict(row) for row in data["rows"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise RASError(f"{str(path)!r} is damaged: {error!r}; begin in a new folder") from error


def manifest_digest(folder: Path) -> str:
    """Fingerprint of a folder's manifest as it was written, by whatever release."""
    return checksum(folder / MANIFEST)


def load_settings(folder: Path) -> Settings:
    """The settings of a folder.

    Raises:
        RASError: If they are missing or damaged.
    """
    try:
        data = read_json(folder / SETTINGS)
        data.pop("manifest", None)
        return Settings(**data)
    except TypeError as error:
        raise RASError(f"{str(folder / SETTINGS)!r} is damaged: {error}") from error


def read_settings(data: Mapping[str, Any], place: Path) -> Settings:
    """What may change between runs, from the content of a YAML file.

    Raises:
        RASError: If scores or time is not what it should be, or names an unknown scorer or setting.
    """
    scores = data.get("scores", ["psnr"])
    if isinstance(scores, list):
        scores = dict.fromkeys(map(str, scores))
    time = data.get("time") or {}
    if not isinstance(scores, dict) or not isinstance(time, dict):
        raise RASError("scores is a list of scorers or a mapping of their settings, time a mapping")
    for name, settings in scores.items():
        if settings is not None and not isinstance(settings, dict):
            raise RASError(f"scores.{name} is {settings!r}; expected a mapping of its settings")
        check_scorer(str(name), settings or {})
    TimeSettings.read(time)
    return Settings(
        title=str(data.get("title", "Quality against cost")),
        scores={str(name): settings or {} for name, settings in scores.items()},
        time=time,
        place=str(place.resolve()),
    )


def check_scores(manifest: Manifest, settings: Settings) -> None:
    """Refuse scores of what the evaluation does not keep, before pictures are made without it.

    Raises:
        RASError: If latents are to be scored and none are kept.
    """
    if "latent-rmse" in settings.scores and not manifest.latents:
        raise RASError(
            "the score latent-rmse compares latents, and this evaluation keeps none; put "
            "`latents: true` into its YAML file and begin in a new folder, or leave the score out"
        )


def check_same(begun: Manifest, manifest: Manifest, place: Path) -> None:
    """Refuse to go on with another evaluation than the one that was begun in a place.

    Raises:
        RASError: If they differ in more than rows that were added or left out, naming in what.
    """
    stored, fresh = begun.to_dict(), manifest.to_dict()
    names = {row.name for row in begun.rows} & {row.name for row in manifest.rows}
    # All pictures are compared with the reference's.
    names.add(begun.reference.name)
    for data in (stored, fresh):
        kept = (row for row in data["rows"] if row["name"] in names)
        data["rows"] = sorted(kept, key=lambda row: row["name"])
    # As JSON, which knows no tuples.
    changed = [
        key
        for key in sorted({*stored, *fresh})
        if dump({"": stored.get(key)}) != dump({"": fresh.get(key)})
    ]
    if not changed:
        return
    detail = ""
    if changed == ["versions"]:
        detail = f" ({dict(begun.versions)} then, {dict(manifest.versions)} now)"
    raise RASError(
        f"{str(place)!r} holds an evaluation with other {', '.join(changed)}{detail}; go on with "
        "what it was begun with, or leave it and begin in a new place"
    )


def _fingerprint(model: object) -> str:
    """Of a folder: names, sizes and content, of large files their two ends."""
    folder = MODEL_DIR if model is None else Path(locate(str(model)))
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE))
            if size > 2 * _WHOLE:
                file.seek(-_WHOLE, 2)
            digest.update(file.read(_WHOLE))
    return digest.hexdigest()


def pictures_of(manifest: Manifest, indices: Sequence[int]) -> tuple[list[str], list[int]]:
    """Prompts and seeds of some pictures."""
    shots = [manifest.shots[index] for index in indices]
    return [manifest.prompts[shot.group].text for shot in shots], [shot.seed for shot in shots]
