"""Codes and signatures of static exports.

Each participant of an export has a code, derived from the study's secret, that only the people
who run the study and this participant know. The page signs the answers with it. So nobody can
answer for someone else or invent participants. A participant's own answers are theirs to give:
no signature made in a browser could say how they came about.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

ANSWERS_FORMAT = "ras-dit-study-answers/1"
# Crockford's base 32: no I, L, O and U.
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_LETTERS = 16


def participant_code(secret: str, study: str, export: str, participant: int) -> str:
    """The code of one participant: 16 letters and digits, 80 random bits."""
    text = f"{study}/{export}/{participant}"
    digest = hmac.digest(bytes.fromhex(secret), text.encode(), "sha256")
    bits = int.from_bytes(digest, "big") >> (256 - 5 * _CODE_LETTERS)
    return "".join(_LETTERS[bits >> (5 * i) & 31] for i in reversed(range(_CODE_LETTERS)))


def spaced(code: str) -> str:
    """A code as people type it, in groups of four."""
    return "-".join(code[i : i + 4] for i in range(0, len(code), 4))


def code_digest(study: str, export: str, code: str) -> str:
    """What the page knows of a code: enough to recognise it, not to guess it."""
    return hashlib.sha256(f"{study}/{export}/{code}".encode()).hexdigest()[:32]


def signature(
    code: str,
    study: str,
    export: str,
    participant: int,
    revision: int,
    answers: Iterable[tuple[str, str, str, int]],
) -> str:
    """The signature of an answers file, as ``page/offline.js`` makes it.

    Args:
        code: The participant's code.
        study: Id of the study.
        export: Id of the export.
        participant: Number of the participant.
        revision: How often an answer was given or changed.
        answers: (question, left, right, choice), in any order.
    """
    lines = [ANSWERS_FORMAT, study, export, str(participant), str(revision)]
    lines += [f"{q} {left} {right} {choice}" for q, left, right, choice in sorted(answers)]
    return hmac.new(code.encode(), "\n".join(lines).encode(), "sha256").hexdigest()
