"""Whether a picture shows what its caption promises: one verdict a promise, with its reason.

The tasks are GenEval's (Ghosh et al., arXiv 2310.11513) as far as this world has them. As there,
one thing too many is wrong only where the caption counts, and a thing stands to the left of another
if its middle does so by more than a tenth of both sizes and mainly in that direction.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from ras_dit.evaluation.judge import Reading, SeenThing
from ras_dit.world import (
    Check,
    ColourCheck,
    ObjectCheck,
    PatternCheck,
    PositionCheck,
    Scene,
    checks,
)

Task = Literal["single", "two", "counting", "colours", "position", "pattern"]
TASKS: Final[tuple[Task, ...]] = ("single", "two", "counting", "colours", "position", "pattern")
MARGIN: Final = 0.1  # of both sizes together: nearer middles stand nowhere in particular
MAINLY: Final = 0.5  # share of the distance that points in a direction


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one promise is kept; `reason` says what was seen instead, "" where it is kept."""

    check: Check
    right: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Whether a picture passes a task; `reason` joins those of the broken promises."""

    task: Task
    right: bool
    reason: str


def _label(check: ObjectCheck) -> str:
    return check.name if check.colour is None else f"{check.colour} {check.name}"


def _seen(reading: Reading) -> str:
    counted = Counter(thing.thing.label for thing in reading.things)
    listed = ", ".join(f"{number} {label}" for label, number in counted.items())
    if listed:
        return listed
    return f"nothing for sure (perhaps {reading.best.thing.label})"


def _judge_object(check: ObjectCheck, reading: Reading, *, exactly: bool) -> Verdict:
    label = _label(check)
    number = sum(thing.thing.label == label for thing in reading.things)
    right = number == check.count if exactly else number >= check.count
    if right:
        return Verdict(check, True, "")
    return Verdict(check, False, f"expected {check.count} {label}; saw {_seen(reading)}")


def _strongest(label: str, reading: Reading) -> SeenThing | None:
    return next((thing for thing in reading.things if thing.thing.label == label), None)


def relations(first: SeenThing, second: SeenThing) -> frozenset[str]:
    """Where the first thing stands as seen from the second; nothing where they are too near."""
    margin = MARGIN * (first.size + second.size)
    across, down = (
        math.copysign(max(0.0, abs(apart) - margin), apart)
        for apart in (first.x - second.x, first.y - second.y)
    )
    length = math.hypot(across, down)
    if length == 0:
        return frozenset()
    named = {
        "left": -across,
        "right": across,
        "above": -down,
        "below": down,
    }
    return frozenset(name for name, value in named.items() if value / length > MAINLY)


def _judge_position(check: PositionCheck, reading: Reading) -> Verdict:
    first, second = (_strongest(label, reading) for label in (check.first, check.second))
    missing = [
        label for label, thing in ((check.first, first), (check.second, second)) if thing is None
    ]
    if first is None or second is None:
        return Verdict(check, False, f"no {' and no '.join(missing)}; saw {_seen(reading)}")
    found = relations(first, second)
    if check.relation in found:
        return Verdict(check, True, "")
    place = " and ".join(sorted(found)) or "in the same place"
    return Verdict(
        check, False, f"expected {check.first} {check.relation} of {check.second}; it is {place}"
    )


def _judge_colour(check: ColourCheck, reading: Reading) -> Verdict:
    background = reading.background
    lower = check.part == "bottom"
    name = background.second if lower else background.colour
    rgb = background.second_rgb if lower else background.rgb
    if check.part == "all" and background.kind == "graded":
        reason = f"expected {check.colour} all over; it changes from {background.colour} to"
        return Verdict(check, False, f"{reason} {background.second}")
    if name == check.colour:
        return Verdict(check, True, "")
    place = "background" if check.part == "all" else f"background at the {check.part}"
    return Verdict(
        check, False, f"expected {check.colour} {place}; it is {name or 'of no known colour'} {rgb}"
    )


def judge_check(check: Check, reading: Reading, *, exactly: bool = False) -> Verdict:
    """The verdict on one promise; `exactly` also refuses things too many."""
    if isinstance(check, ObjectCheck):
        return _judge_object(check, reading, exactly=exactly)
    if isinstance(check, PositionCheck):
        return _judge_position(check, reading)
    if isinstance(check, ColourCheck):
        return _judge_colour(check, reading)
    right = reading.background.kind == check.pattern
    reason = "" if right else f"expected {check.pattern}; it is {reading.background.kind}"
    return Verdict(check, right, reason)


def verdicts(scene: Scene, reading: Reading) -> tuple[Verdict, ...]:
    """The verdicts on everything that a scene's caption promises, in the order of `checks`."""
    return tuple(judge_check(c, reading, exactly=scene.count > 1) for c in checks(scene))


def tasks_of(scene: Scene) -> tuple[Task, ...]:
    """The tasks that a scene belongs to: one for its things, and those of what else it says."""
    found: list[Task] = []
    if scene.second is not None:
        found += ["two", "position"]
    else:
        found.append("single" if scene.count == 1 else "counting")
    if scene.background.kind != "none" or any(thing.colour for thing in scene.things):
        found.append("colours")
    if scene.background.kind in ("striped", "checkered"):
        found.append("pattern")
    return tuple(found)


def _matters(task: Task, check: Check) -> bool:
    """Whether a promise is part of a task."""
    match task:
        case "single" | "two" | "counting":
            return isinstance(check, ObjectCheck)
        case "position":
            return isinstance(check, ObjectCheck | PositionCheck)
        case "colours":
            coloured = isinstance(check, ObjectCheck) and check.colour is not None
            return coloured or isinstance(check, ColourCheck)
        case "pattern":
            return isinstance(check, PatternCheck)


def judge_tasks(scene: Scene, reading: Reading) -> tuple[TaskResult, ...]:
    """The result of every task that a scene belongs to."""
    found = verdicts(scene, reading)
    results = []
    for task in tasks_of(scene):
        broken = [v.reason for v in found if _matters(task, v.check) and not v.right]
        results.append(TaskResult(task, not broken, "; ".join(broken)))
    return tuple(results)


def recognised(scene: Scene, reading: Reading) -> bool | None:
    """Whether the surest thing has the right name among all names (top-1), sure or not.

    ``None`` for scenes with more than one thing.
    """
    if scene.second is not None or scene.count > 1:
        return None
    return reading.best.thing == scene.first
