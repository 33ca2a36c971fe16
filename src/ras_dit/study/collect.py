"""All votes of a study in one list, resolved with the key: from the server and from files."""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ras_dit.errors import RASError
from ras_dit.study.assignment import assignment
from ras_dit.study.folder import ANSWERS, Arm, Key, Manifest
from ras_dit.study.store import StoredAnswer, read_answers
from ras_dit.study.tokens import ANSWERS_FORMAT, participant_code, signature

_LARGEST_FILE = 2_000_000


@dataclass(frozen=True)
class Vote:
    """One answer in terms of the configurations.

    Attributes:
        participant: Number of the participant, from 1; it says nothing about the person.
        question: Id of the question.
        left: The configuration that was shown on the left.
        level: 1 (A is obviously better) to 5 (B is obviously better), A and B being the
            configurations and not the sides.
    """

    participant: int
    question: str
    left: Arm
    level: int


@dataclass(frozen=True)
class Refused:
    """A file that is not counted, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """What there is to analyse.

    Attributes:
        votes: Every vote, sorted by participant and in the manifest's order.
        complete: Participants who answered every question.
        partial: Participants who answered some.
        served: Participants with answers from the server.
        from_files: Participants with answers from files.
        refused: Files that are not counted.
    """

    votes: tuple[Vote, ...]
    complete: frozenset[int]
    partial: frozenset[int]
    served: int
    from_files: int
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class _File:
    name: str
    person: str
    revision: int
    answers: tuple[StoredAnswer, ...]


class _RefusedError(Exception):
    """Why a file is not counted."""


def collect(folder: Path, manifest: Manifest, key: Key, files: Sequence[Path] = ()) -> Collection:
    """Gather the votes of a study.

    Of several files with one participant's code the one with the most changes counts; files that
    contradict each other at the same number of changes are all refused.

    Args:
        folder: The study folder, for the server's answers.
        manifest: Its manifest.
        key: Its answer key.
        files: Answer files of static exports.

    Raises:
        RASError: If the server's answers are damaged or do not belong to the study.
    """
    served = read_answers(folder / ANSWERS, manifest.study)
    accepted, refused = [], []
    for path in files:
        try:
            accepted.append(_read_file(path, manifest, key))
        except _RefusedError as reason:
            refused.append(Refused(path.name, str(reason)))
    kept, doubles = _without_doubles(accepted)
    return _resolve(served, kept, (*refused, *doubles), manifest, key)


def _resolve(
    served: Iterable[StoredAnswer],
    files: Iterable[_File],
    refused: tuple[Refused, ...],
    manifest: Manifest,
    key: Key,
) -> Collection:
    by_person: dict[str, list[StoredAnswer]] = defaultdict(list)
    for answer in served:
        by_person[answer.participant].append(answer)
    num_served = len(by_person)
    for file in files:
        by_person[file.person].extend(file.answers)
    order = {question.id: index for index, question in enumerate(manifest.questions)}
    pictures = {question.id: set(question.images) for question in manifest.questions}
    votes: list[Vote] = []
    complete: set[int] = set()
    partial: set[int] = set()
    for number, person in enumerate(sorted(by_person), 1):
        answers = by_person[person]
        if any({a.left, a.right} != pictures.get(a.question) for a in answers):
            raise RASError(
                "the stored answers name pictures that the manifest does not have; the folder "
                "mixes two studies"
            )
        for answer in sorted(answers, key=lambda a: order[a.question]):
            left = key.images[answer.left]
            level = answer.choice if left == "a" else 6 - answer.choice
            votes.append(Vote(number, answer.question, left, level))
        (complete if len(answers) == len(order) else partial).add(number)
    return Collection(
        votes=tuple(votes),
        complete=frozenset(complete),
        partial=frozenset(partial),
        served=num_served,
        from_files=len(by_person) - num_served,
        refused=refused,
    )


def _without_doubles(files: Iterable[_File]) -> tuple[list[_File], list[Refused]]:
    by_person: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        by_person[file.person].append(file)
    kept, refused = [], []
    for same in by_person.values():
        newest = max(file.revision for file in same)
        latest = [file for file in same if file.revision == newest]
        if len({file.answers for file in latest}) > 1:
            names = ", ".join(file.name for file in latest)
            reason = f"one participant's code, but different answers: {names}"
            refused += [Refused(file.name, reason) for file in same]
            continue
        kept.append(latest[0])
        refused += [
            Refused(file.name, f"superseded: {latest[0].name} is of the same participant")
            for file in same
            if file is not latest[0]
        ]
    return kept, refused


def _read_file(path: Path, manifest: Manifest, key: Key) -> _File:
    data = _load(path)
    if data.get("format") != ANSWERS_FORMAT:
        raise _RefusedError("not a file of answers from `ras-dit study export`")
    if data.get("study") != manifest.study:
        raise _RefusedError("foreign: it belongs to another study")
    export, number, revision = data.get("export"), data.get("participant"), data.get("revision")
    if not isinstance(export, str) or not _is_count(number) or not _is_count(revision):
        raise _RefusedError("damaged: it does not say which participant of which export it is of")
    answers = _answers(data.get("answers"), manifest)
    code = participant_code(key.secret, key.study, export, number)
    rows = [(a["question"], a["left"], a["right"], a["choice"]) for a in answers]
    expected = signature(code, manifest.study, export, number, revision, rows)
    given = data.get("signature")
    if not isinstance(given, str) or not hmac.compare_digest(
        given.encode("utf-8", "replace"), expected.encode()
    ):
        raise _RefusedError("forged or damaged: the signature does not fit the answers")
    sides = {
        item.question: (item.left, item.right) for item in assignment(code, manifest.questions)
    }
    if any(sides[question] != (left, right) for question, left, right, _ in rows):
        raise _RefusedError("forged: the sides are not those that this participant was shown")
    person = f"{export}/{number}"
    stored = (StoredAnswer(person, *row) for row in sorted(rows))
    return _File(path.name, person, revision, tuple(stored))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _RefusedError(f"larger than {_LARGEST_FILE} bytes")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _RefusedError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError("not JSON") from error
    if not isinstance(data, dict):
        raise _RefusedError("not a file of answers from `ras-dit study export`")
    return data


def _answers(items: object, manifest: Manifest) -> list[Mapping[str, Any]]:
    if not isinstance(items, list) or not items:
        raise _RefusedError("it holds no answers")
    pictures = {question.id: set(question.images) for question in manifest.questions}
    seen = set()
    for item in items:
        fields = item if isinstance(item, dict) else {}
        question, left, right = (fields.get(name) for name in ("question", "left", "right"))
        if not all(isinstance(value, str) for value in (question, left, right)):
            raise _RefusedError("damaged: an answer lacks its question or pictures")
        if question not in pictures:
            raise _RefusedError("damaged: it answers a question that this study does not have")
        if {left, right} != pictures[question]:
            raise _RefusedError("damaged: an answer names pictures of another question")
        if not _is_count(fields.get("choice")) or fields["choice"] > 5:
            raise _RefusedError("damaged: a choice is not a whole number from 1 to 5")
        if question in seen:
            raise _RefusedError("damaged: it answers one question twice")
        seen.add(question)
    return items


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value < 2**53
