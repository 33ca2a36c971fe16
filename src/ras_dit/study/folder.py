"""The study folder: what participants may see (the manifest) and what they may not (the key)."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ras_dit.errors import RASError

Arm = Literal["a", "b"]

MANIFEST = "manifest.json"
KEY = "key.json"
IMAGES = "images"
ANSWERS = "answers.sqlite3"
FORMAT = 1
TITLE = "Text-to-Image Quality Preference Survey"

_ID = re.compile(r"[0-9a-f]{32}")
_IMAGE_NAME = re.compile(r"[0-9a-f]{32}\.png")


@dataclass(frozen=True)
class Question:
    """One pair of pictures.

    Attributes:
        id: Random, 32 hexadecimal digits.
        prompt: What both pictures were made from.
        images: Names of the two picture files, sorted: their order says nothing.
    """

    id: str
    prompt: str
    images: tuple[str, str]


@dataclass(frozen=True)
class Manifest:
    """All that serving a study needs, and nothing that tells the configurations apart.

    Attributes:
        study: Random id of the study.
        title: Heading of the page.
        consent: Paragraphs shown before the first question.
        questions: The pairs.
    """

    study: str
    title: str
    consent: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class ArmRecord:
    """One of the two configurations compared.

    Attributes:
        name: As it was given to ``study build``.
        config: Fields of its ``RASConfig``; ``None`` is the dense pipeline.
        steps: Denoising steps.
        seconds: Loop seconds of each picture, in the order of the prompts.
    """

    name: str
    config: Mapping[str, Any] | None
    steps: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Key:
    """The answer key: which configuration made which picture. Never served.

    Attributes:
        study: Id of the study it belongs to.
        secret: What the codes of static exports are derived from, 64 hexadecimal digits.
        arms: The two configurations.
        images: Configuration of each picture file.
        seeds: Seed of each question; both of its pictures were made from it.
        made_with: Model, size and the like, for the report.
    """

    study: str
    secret: str
    arms: Mapping[Arm, ArmRecord]
    images: Mapping[str, Arm]
    seeds: Mapping[str, int]
    made_with: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two pictures made from one prompt and one seed, still in memory."""

    prompt: str
    seed: int
    a: Image.Image
    b: Image.Image


def write_study(
    out: Path,
    pairs: Sequence[Pair],
    arms: Mapping[Arm, ArmRecord],
    *,
    title: str,
    consent: Sequence[str],
    made_with: Mapping[str, Any],
) -> Manifest:
    """Write a study folder. The manifest comes last, so a folder that has one is whole.

    Args:
        out: A new or empty folder.
        pairs: The pictures.
        arms: The two configurations.
        title: Heading of the page.
        consent: Paragraphs; ``{count}`` stands for the number of pairs.
        made_with: Kept in the key for the report.

    Raises:
        RASError: If the folder is in use, there are no pairs, or the pictures of a pair differ
            in size.
    """
    check_new(out)
    if not pairs:
        raise RASError("a study needs at least one pair of pictures; got none")
    for pair in pairs:
        if pair.a.size != pair.b.size:
            raise RASError(
                f"the pictures of {pair.prompt!r} are {pair.a.size} and {pair.b.size} pixels; "
                "participants would tell them apart by size, so make both in one size"
            )
    files: dict[str, Image.Image] = {}
    owner: dict[str, Arm] = {}
    questions, seeds = [], {}
    for pair in pairs:
        first, second = (f"{secrets.token_hex(16)}.png" for _ in range(2))
        files |= {first: pair.a, second: pair.b}
        owner |= {first: "a", second: "b"}
        low, high = sorted((first, second))
        questions.append(Question(secrets.token_hex(16), pair.prompt, (low, high)))
        seeds[questions[-1].id] = pair.seed
    manifest = Manifest(
        study=secrets.token_hex(16),
        title=title,
        consent=tuple(line.replace("{count}", str(len(pairs))) for line in consent),
        questions=tuple(questions),
    )
    # Sorted by name here too: neither the order nor the content of the key's lines is a pattern.
    key = Key(
        study=manifest.study,
        secret=secrets.token_hex(32),
        arms=arms,
        images=dict(sorted(owner.items())),
        seeds=seeds,
        made_with=made_with,
    )
    (out / IMAGES).mkdir(parents=True)
    for name in sorted(files):
        _write_picture(files[name], out / IMAGES / name)
    _write_private(out / KEY, _dump({"format": FORMAT, **asdict(key)}))
    (out / MANIFEST).write_text(_dump({"format": FORMAT, **asdict(manifest)}), "utf-8")
    return manifest


def check_new(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        RASError: If ``out`` is a file or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RASError(f"{str(out)!r} is already in use; give a new folder for the study")


def read_manifest(folder: Path) -> Manifest:
    """Read and check what ``study build`` wrote for participants.

    Raises:
        RASError: If the folder holds no study, a damaged one, or one whose pictures are missing.
    """
    path = folder / MANIFEST
    data = _load(path, f"{str(folder)!r} holds no study; make one with `ras-dit study build`")
    try:
        manifest = Manifest(
            study=_matching(_ID, data["study"]),
            title=str(data["title"]),
            consent=tuple(map(str, data["consent"])),
            questions=tuple(_question(item) for item in data["questions"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RASError(f"{str(path)!r} is damaged: {error!r}; build the study again") from error
    names = [name for question in manifest.questions for name in question.images]
    if not names or len({q.id for q in manifest.questions}) < len(manifest.questions):
        raise RASError(f"{str(path)!r} has no or repeated questions; build the study again")
    missing = [name for name in names if not (folder / IMAGES / name).is_file()]
    if missing:
        raise RASError(
            f"{str(folder / IMAGES)!r} lacks {len(missing)} pictures, {missing[0]} among them; "
            "restore the folder or build the study again"
        )
    return manifest


def read_key(path: Path, study: str) -> Key:
    """Read the answer key.

    Raises:
        RASError: If there is none, it is damaged, or it belongs to another study.
    """
    data = _load(path, f"there is no answer key {str(path)!r}; give its place with --key")
    try:
        key = Key(
            study=_matching(_ID, data["study"]),
            secret=_matching(re.compile(r"[0-9a-f]{64}"), data["secret"]),
            arms={arm: _arm_record(data["arms"][arm]) for arm in ("a", "b")},
            images={_matching(_IMAGE_NAME, n): _arm(arm) for n, arm in data["images"].items()},
            seeds={str(question): int(seed) for question, seed in data["seeds"].items()},
            made_with=dict(data["made_with"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RASError(f"the answer key {str(path)!r} is damaged: {error!r}") from error
    if key.study != study:
        raise RASError(
            f"the answer key {str(path)!r} belongs to study {key.study[:8]}, not to "
            f"{study[:8]}; give the key that was written with this study"
        )
    return key


def _question(data: Mapping[str, Any]) -> Question:
    first, second = (_matching(_IMAGE_NAME, name) for name in data["images"])
    return Question(_matching(_ID, data["id"]), str(data["prompt"]), (first, second))


def _arm_record(data: Mapping[str, Any]) -> ArmRecord:
    config = data["config"]
    return ArmRecord(
        name=str(data["name"]),
        config=None if config is None else dict(config),
        steps=int(data["steps"]),
        seconds=tuple(map(float, data["seconds"])),
    )


def _arm(value: object) -> Arm:
    if value == "a" or value == "b":  # noqa: PLR1714  (mypy narrows only this)
        return value
    raise ValueError(f"{value!r} is no configuration")


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{value!r} does not look like {pattern.pattern}")
    return value


def _load(path: Path, absent: str) -> Any:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RASError(absent) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RASError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RASError(f"{str(path)!r} is not a file of this release (format {FORMAT})")
    return data


def _write_picture(image: Image.Image, path: Path) -> None:
    # A copy of the pixels alone: what a picture carries beside them could name its maker. All
    # get the same date, because the order of writing would be a pattern too.
    clean = Image.new("RGB", image.size)
    clean.paste(image.convert("RGB"))
    clean.save(path, format="PNG")
    os.utime(path, (0, 0))


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
