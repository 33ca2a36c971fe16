"""Judging a folder of pictures with captions, made by whatever program.

Captions stand in FOLDER/captions.jsonl, one line a picture: ``{"file": "a.png", "prompt": "a fox on
a blue background"}``, or in a text file beside each picture (a.png, a.txt), or in the picture: its
text ``prompt``, as ``ras-dit generate`` writes it. Written are ``results.jsonl`` (one line for each
picture and task: right or wrong, and why) and ``summary.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from ras_dit.errors import RASError
from ras_dit.evaluation.emoji_scorers import EmojiDistanceScorer, EmojiScorer
from ras_dit.evaluation.images import folder_pictures
from ras_dit.evaluation.judge import JUDGE_DIR
from ras_dit.evaluation.judge_rules import TASKS
from ras_dit.evaluation.scorers import Picture, Summary

CAPTIONS = "captions.jsonl"
# Beside a picture of `ras-dit generate`: drawings of it, and what it is compared with.
_ASIDE = re.compile(r"(?P<picture>.+)-(map|dense|compare|sheet)")


def read_captions(folder: Path, file: Path | None = None) -> tuple[Picture, ...]:
    """The pictures of a folder with their captions.

    Args:
        folder: Folder of the pictures.
        file: JSON lines with ``file`` (relative to the folder) and ``prompt``; by default
            ``captions.jsonl`` in the folder, or else a text file beside each picture, or the text
            ``prompt`` in it.

    Raises:
        RASError: If the folder, a caption or a picture is missing, or a line cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RASError(f"{str(folder)!r} {what}; give a folder of pictures")
    file = folder / CAPTIONS if file is None and (folder / CAPTIONS).is_file() else file
    found = list(_beside(folder) if file is None else _listed(folder, file))
    groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(p for _, p in found))}
    return tuple(
        Picture(
            number, prompt, groups[prompt], 0, path, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for number, (path, prompt) in enumerate(found)
    )


def _beside(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder_pictures(folder):
        text = path.with_suffix(".txt")
        aside = _ASIDE.fullmatch(path.stem)
        if text.is_file():
            yield path, text.read_text("utf-8").strip()
        elif aside is None and (prompt := _own_prompt(path)):
            yield path, prompt
        elif aside is None or not path.with_stem(aside["picture"]).is_file():
            raise RASError(
                f"{path} has no caption; expected {text.name} beside it, or {CAPTIONS} in the"
                " folder"
            )


def _own_prompt(path: Path) -> str:
    """What the picture itself says it was made from, as pictures of `ras-dit generate` do."""
    try:
        with Image.open(path) as picture:
            return str(picture.info.get("prompt", "")).strip()
    except OSError as error:
        raise RASError(f"the picture {path} cannot be read ({error})") from error


def _listed(folder: Path, file: Path) -> Iterator[tuple[Path, str]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"the captions {file} cannot be read ({error})") from error
    empty = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, prompt = str(record["file"]), str(record["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise RASError(
                f'line {number} of {file} is no caption; expected {{"file": ..., "prompt": ...}}'
            ) from error
        path = folder / name
        if not path.is_file():
            raise RASError(f"line {number} of {file} names {path}, which does not exist")
        empty = False
        yield path, prompt
    if empty:
        raise RASError(f"{file} names no picture")


def result_lines(
    rows: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]
) -> Iterator[dict[str, Any]]:
    """One record for each picture and task, as GenEval's `results.jsonl` has them."""
    for row, picture in zip(rows, pictures, strict=True):
        for task in TASKS:
            if task in row:
                yield {
                    "filename": str(picture.path),
                    "task": task,
                    "prompt": picture.prompt,
                    "correct": bool(row[task]),
                    "reason": row["reasons"].get(task, ""),
                    "recognised": row.get("recognised"),
                    "seen": row["seen"],
                    "background": row["background"],
                }


@dataclass(frozen=True)
class Judgement:
    """Rows of all pictures (as `judged_row` makes them), and the numbers of the whole folder."""

    rows: tuple[Mapping[str, Any], ...]
    summaries: tuple[Summary, ...]


def judge_folder(pictures: Sequence[Picture], out: Path, *, judge: Path = JUDGE_DIR) -> Judgement:
    """Judge pictures; write `results.jsonl` and `summary.json` into a folder.

    FD-emoji is left out, with the reason as the note, where there is no reference for the size or
    there are fewer than two pictures.
    """
    emoji, distance = EmojiScorer(judge), EmojiDistanceScorer(judge)
    measured = emoji.measure(pictures)
    summaries = [emoji.summarise(measured, pictures)]
    try:
        summaries.append(distance.summarise(distance.measure(pictures), pictures))
    except RASError as error:
        summaries.append(Summary((), note=str(error)))
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line) + "\n" for line in result_lines(measured.rows, pictures)]
    _write(out / "results.jsonl", "".join(lines))
    facts = {
        "statistics": [asdict(found) for summary in summaries for found in summary.statistics],
        "notes": [summary.note for summary in summaries if summary.note],
        "judge": dict(emoji.identity()),
    }
    _write(out / "summary.json", json.dumps(facts, indent=1) + "\n")
    return Judgement(measured.rows, tuple(summaries))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, "utf-8")
    fresh.replace(path)


def summary_table(summaries: Sequence[Summary]) -> Table:
    """The numbers with their intervals."""
    table = Table("number", "value", "95 % interval", "pictures")
    for summary in summaries:
        for found in summary.statistics:
            share = found.name.startswith("emoji")
            scale, digits = (100, 1) if share else (1, 2)
            value, low, high = (
                f"{scale * number:.{digits}f}" for number in (found.value, found.low, found.high)
            )
            unit = " %" if share else ""
            table.add_row(found.name, value + unit, f"{low} to {high}", str(found.count))
    return table
