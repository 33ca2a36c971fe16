"""Prompts from the files that people have: COCO, GenEval, ParaImage, plain text, JSON lines."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ras_dit.errors import RASError

_FIELDS = ("prompt", "caption", "text", "Prompt", "TEXT")
GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True)
class Prompt:
    """What one or several pictures are made from.

    Attributes:
        text: The prompt.
        seed: Seed of its first picture; ``None``: by the picture's number.
        metadata: What else the file says of it, JSON.
    """

    text: str
    seed: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shot:
    """One picture to be made in every row.

    Attributes:
        group: Number of its prompt.
        seed: Seed of its noise.
    """

    group: int
    seed: int


def read_prompts(
    source: str,
    file: Path | None = None,
    *,
    count: int | None = None,
    field_name: str | None = None,
    seed: int = 0,
) -> tuple[Prompt, ...]:
    """The prompts of a source, the first ``count`` of them.

    Args:
        source: ``"coco"`` (captions JSON; the first caption of each image, images by number),
            ``"geneval"`` (metadata JSON lines), ``"paraimage"`` (JSON or CSV), ``"text"`` (a line
            each, ``#`` for comments), ``"jsonl"`` (objects with ``prompt`` and, if wanted,
            ``seed``), ``"grammar"`` or ``"grammar-detailed"`` (short and long captions of the
            embedded model's world, held-out scenes; no file).
        file: The file.
        count: How many; ``None`` takes all of a file. The grammar has no end and needs it.
        field_name: Field of the prompt in JSON objects or CSV, where it is an unusual one.
        seed: Which scenes the grammar draws.

    Raises:
        RASError: If the source is unknown, the file is missing or damaged, or has too few prompts.
    """
    if count is not None and count < 1:
        raise RASError(f"count={count} prompts; expected at least 1")
    if source in GRAMMARS:
        if file is not None:
            raise RASError(f"the source {source!r} takes no file; leave file out")
        if count is None:
            raise RASError(f"the source {source!r} has no end; say how many with count")
        return _scenes(count, seed, detailed=GRAMMARS[source])
    if source not in _READERS:
        raise RASError(
            f"source={source!r} is unknown; expected one of {', '.join((*_READERS, *GRAMMARS))}"
        )
    if file is None:
        raise RASError(f"the source {source!r} needs a file; say which with file")
    return _first(tuple(_READERS[source](file, field_name)), file, count)


def read_shots(data: object, seed: int, place: Path) -> tuple[tuple[Prompt, ...], tuple[Shot, ...]]:
    """Prompts and pictures that the ``prompts`` of a YAML file ask for.

    Args:
        data: A mapping with ``source``, ``file``, ``count``, ``field``, ``per_prompt``, ``from``
            and ``seed``.
        seed: Seed of the first picture, where prompts have none of their own.
        place: Folder that relative paths start from.

    Raises:
        RASError: If it is no such mapping, or the prompts cannot be read.
    """
    if not isinstance(data, dict):
        raise RASError(f"prompts is {data!r}; expected a mapping with source, file, count, ...")
    known = ("source", "file", "count", "field", "per_prompt", "from", "seed")
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise RASError(f"prompts has {', '.join(unknown)}; expected {', '.join(known)}")
    file = data.get("file")
    try:
        prompts = read_prompts(
            str(data.get("source")),
            None if file is None else place / Path(str(file)).expanduser(),
            count=data.get("count"),
            field_name=data.get("field"),
            seed=int(data.get("seed", 0)),
        )
    except RASError as error:
        hint = f" (where to get it: {data['from']})" if data.get("from") else ""
        raise RASError(f"{error}{hint}") from error
    each = read_count(data, "per_prompt") or 1
    shots = []
    for group, prompt in enumerate(prompts):
        for number in range(each):
            first = seed + group * each if prompt.seed is None else prompt.seed
            shots.append(Shot(group, first + number))
    return prompts, tuple(shots)


def read_count(data: Mapping[str, Any], name: str) -> int | None:
    """A count of a YAML file; ``None`` where it is left out.

    Raises:
        RASError: If it is no integer of at least 1.
    """
    value = data.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise RASError(f"{name}={value!r}; expected an integer of at least 1")
    return value


def _first(prompts: tuple[Prompt, ...], file: Path, count: int | None) -> tuple[Prompt, ...]:
    for number, prompt in enumerate(prompts, 1):
        if not prompt.text.strip():
            raise RASError(f"prompt {number} of {str(file)!r} is empty")
    if not prompts:
        raise RASError(f"{str(file)!r} holds no prompt")
    if count is not None and count > len(prompts):
        raise RASError(f"{str(file)!r} has {len(prompts)} prompts; count={count} is more")
    return prompts[:count]


def _scenes(count: int, seed: int, *, detailed: bool) -> tuple[Prompt, ...]:
    from ras_dit.world import caption, sample_scene

    rng = random.Random(seed)
    scenes = [sample_scene(rng, from_held_out=True) for _ in range(count)]
    return tuple(Prompt(caption(scene, detailed=detailed)) for scene in scenes)


def _coco(file: Path, _: str | None) -> Iterator[Prompt]:
    data = _json(file)
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise RASError(
            f"{str(file)!r} is no COCO captions file: it has no list of annotations; expected "
            "captions_val2014.json or captions_val2017.json"
        )
    first: dict[int, tuple[int, str]] = {}
    for number, item in enumerate(data["annotations"], 1):
        try:
            image, identity, text = int(item["image_id"]), int(item["id"]), str(item["caption"])
        except (KeyError, TypeError, ValueError) as error:
            raise RASError(
                f"annotation {number} of {str(file)!r} has no image_id, id and caption: {error!r}"
            ) from error
        if image not in first or identity < first[image][0]:
            first[image] = identity, " ".join(text.split())
    for image in sorted(first):
        yield Prompt(first[image][1], metadata={"image_id": image, "caption_id": first[image][0]})


def _geneval(file: Path, _: str | None) -> Iterator[Prompt]:
    for number, item in _lines(file):
        place = f"line {number} of {str(file)!r}"
        if item.get("tag") not in GENEVAL_TAGS:
            raise RASError(
                f"{place} has the tag {item.get('tag')!r}; expected one of "
                f"{', '.join(GENEVAL_TAGS)}, as in GenEval's evaluation_metadata.jsonl"
            )
        clauses = [*item.get("include", []), *item.get("exclude", [])]
        if not item.get("include") or not all(
            isinstance(c, dict)
            and isinstance(c.get("class"), str)
            and isinstance(c.get("count"), int)
            for c in clauses
        ):
            raise RASError(f"{place} has no rules (include and exclude, with class and count)")
        yield Prompt(_text(item, "prompt", place), metadata=item)


def _is_clause(data: object) -> bool:
    return (
        isinstance(data, dict)
        and isinstance(data.get("class"), str)
        and isinstance(data.get("count"), int)
    )


def _paraimage(file: Path, field_name: str | None) -> Iterator[Prompt]:
    if file.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(_read(file), newline=""), strict=True)
        try:
            for number, row in enumerate(rows, 2):
                yield Prompt(_text(row, field_name, f"line {number} of {str(file)!r}"))
        except csv.Error as error:
            raise RASError(f"{str(file)!r} is damaged: {error}") from error
        return
    data = _json(file)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else list(data.values())
    if not isinstance(data, list):
        raise RASError(f"{str(file)!r} holds a {type(data).__name__}; expected a list of prompts")
    for number, item in enumerate(data, 1):
        place = f"entry {number} of {str(file)!r}"
        if isinstance(item, str):
            yield Prompt(item)
        elif isinstance(item, dict):
            yield Prompt(_text(item, field_name, place))
        else:
            raise RASError(f"{place} is a {type(item).__name__}; expected a text or an object")


def _plain(file: Path, _: str | None) -> Iterator[Prompt]:
    for line in _read(file).splitlines():
        if line.strip() and not line.startswith("#"):
            yield Prompt(line.strip())


def _jsonl(file: Path, field_name: str | None) -> Iterator[Prompt]:
    for number, item in _lines(file):
        place = f"line {number} of {str(file)!r}"
        seed = item.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise RASError(f"{place} has the seed {seed!r}; expected an integer >= 0")
        yield Prompt(_text(item, field_name, place), seed, item)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RASError(f"line {number} of {str(file)!r} is not JSON: {error}") from error
        if not isinstance(item, dict):
            raise RASError(f"line {number} of {str(file)!r} is no JSON object")
        yield number, item


def _text(item: Mapping[Any, Any], name: str | None, place: str) -> str:
    names = _FIELDS if name is None else (name,)
    for candidate in names:
        if isinstance(item.get(candidate), str):
            return str(item[candidate]).strip()
    raise RASError(
        f"{place} has no field {' or '.join(names)}; it has {', '.join(map(str, item))}; "
        "name the prompt's field with field"
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise RASError(f"{str(file)!r} is not JSON: {error}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"the prompts {str(file)!r} cannot be read: {error}") from error


_READERS: Mapping[str, Callable[[Path, str | None], Iterator[Prompt]]] = {
    "coco": _coco,
    "geneval": _geneval,
    "paraimage": _paraimage,
    "text": _plain,
    "jsonl": _jsonl,
}
GRAMMARS: Mapping[str, bool] = {"grammar": False, "grammar-detailed": True}
