"""What one participant is shown: the order of the questions, and which picture is on the left.

All of it follows from the participant's seed, by a rule simple enough to be written twice: here
and in ``page/offline.js``, where there is no server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ras_dit.study.folder import Question


@dataclass(frozen=True)
class Shown:
    """One question as one participant sees it.

    Attributes:
        question: Id of the question.
        prompt: What the pictures were made from.
        left: Name of the picture shown on the left, as "A".
        right: Name of the picture shown on the right, as "B".
    """

    question: str
    prompt: str
    left: str
    right: str


def assignment(seed: str, questions: Sequence[Question]) -> tuple[Shown, ...]:
    """The questions in the order, and with the sides, that belong to a seed.

    Args:
        seed: Any text; equal seeds give equal assignments.
        questions: The questions of the study, in any order.
    """
    ordered = sorted(questions, key=lambda question: _digest(seed, "order", question.id))
    return tuple(_sides(seed, question) for question in ordered)


def _sides(seed: str, question: Question) -> Shown:
    left, right = question.images
    if int(_digest(seed, "side", question.id)[0], 16) % 2:
        left, right = right, left
    return Shown(question.id, question.prompt, left, right)


def _digest(seed: str, purpose: str, question: str) -> str:
    return hashlib.sha256(f"{seed}/{purpose}/{question}".encode()).hexdigest()
