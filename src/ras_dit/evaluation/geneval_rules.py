"""GenEval's rules (Ghosh et al. 2023): from detections to right or wrong, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST_OBJECTS = 16
POSITION_MARGIN = 0.1
_DIRECTION = 0.5
_SAME_PLACE = 1e-3


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    Attributes:
        label: Its class.
        score: Confidence in [0, 1].
        box: Left, top, right, bottom in pixels.
        mask: Pixels of the object, bool ``[H, W]``; ``None`` for all of the box.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked for.

    Attributes:
        correct: Whether every rule holds.
        reason: What does not hold, empty for a correct picture.
    """

    correct: bool
    reason: str


ColourOf = Callable[[Sequence[Detection], str], Sequence[str]]


def judge(
    rules: Mapping[str, Any], detections: Sequence[Detection], colours_of: ColourOf
) -> Verdict:
    """Check one picture.

    Args:
        rules: A line of GenEval's metadata: ``tag``, ``include`` and ``exclude`` with ``class``,
            ``count`` and, where the task has it, ``color`` and ``position``.
        detections: What was found in the picture.
        colours_of: The colour of each of some objects of a class.
    """
    found = kept_detections(detections, counting=rules.get("tag") == "counting")
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []
    for rule in rules.get("include", []):
        name, count = rule["class"], rule["count"]
        objects = found.get(name, [])[:count]
        reason = ""
        if len(objects) < count:
            reason = f"expected {count} or more of {name}, found {len(objects)}"
        elif "color" in rule:
            reason = _wrong_colour(objects, rule, colours_of)
        if not reason and "position" in rule:
            reason = _wrong_position(objects, rule, matched)
        matched.append(None if reason else objects)
        if reason:
            reasons.append(reason)
    for rule in rules.get("exclude", []):
        number = len(found.get(rule["class"], []))
        if number >= rule["count"]:
            reasons.append(
                f"expected fewer than {rule['count']} of {rule['class']}, found {number}"
            )
    return Verdict(not reasons, "; ".join(reasons))


def kept_detections(
    detections: Sequence[Detection], *, counting: bool
) -> dict[str, list[Detection]]:
    """Detections that count, by class, surest first: above the threshold, at most 16 of a class.

    Counting needs surer ones than the other tasks.
    """
    threshold = COUNTING_THRESHOLD if counting else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            found.setdefault(detection.label, []).append(detection)
    return {label: objects[:MOST_OBJECTS] for label, objects in found.items()}


def relations(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> set[str]:
    """Where the first box is as seen from the second.

    The offset of the centres counts as far as it is longer than a tenth of both boxes' sizes
    together; a direction holds within 60 degrees of its axis.
    """
    a, b = (np.reshape(np.asarray(box, dtype=np.float64), (2, 2)) for box in (first, second))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    beyond = np.maximum(np.abs(offset) - POSITION_MARGIN * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < _SAME_PLACE).all():
        return set()
    across, down = beyond / np.linalg.norm(offset)
    holds = {
        "left of": across < -_DIRECTION,
        "right of": across > _DIRECTION,
        "above": down < -_DIRECTION,
        "below": down > _DIRECTION,
    }
    return {name for name, held in holds.items() if held}


def _wrong_colour(
    objects: Sequence[Detection], rule: Mapping[str, Any], colours_of: ColourOf
) -> str:
    seen = list(colours_of(objects, rule["class"]))
    right = seen.count(rule["color"])
    if right >= rule["count"]:
        return ""
    return (
        f"expected {rule['count']} or more of {rule['color']} {rule['class']}, found {right}; seen "
        f"{', '.join(seen)}"
    )


def _wrong_position(
    objects: Sequence[Detection],
    rule: Mapping[str, Any],
    matched: Sequence[Sequence[Detection] | None],
) -> str:
    wanted, number = rule["position"]
    targets = matched[number]
    if targets is None:
        return f"nothing that {rule['class']} could be {wanted}"
    for thing in objects:
        for target in targets:
            held = relations(thing.box, target.box)
            if wanted not in held:
                seen = " and ".join(sorted(held)) or "at the place of"
                return f"expected {rule['class']} {wanted} {target.label}, found it {seen} it"
    return ""
