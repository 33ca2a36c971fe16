"""Checks of single values, with messages that name the knob, the value and the cure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

from ras_dit.config_files import presets
from ras_dit.errors import RASError

ResetSteps = Literal["auto"] | tuple[int, ...] | tuple[float, ...]


def check_number(name: str, value: object, expected: str, accept: Callable[[float], bool]) -> None:
    """Refuse what is no finite number that ``accept`` takes."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not accept(value):  # type: ignore[arg-type]
        raise RASError(f"{name}={value!r}; expected {expected}{_hint(value)}")


def _hint(value: object) -> str:
    """What a text in a number's place was meant to be."""
    if not isinstance(value, str):
        return ""
    if value in presets():
        return f'; {value!r} is a preset, given by its name alone: enable(pipe, "{value}")'
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"; this is a text, write {number:g}"


def check_int(name: str, value: object, least: int, why: str) -> None:
    """Refuse what is no integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RASError(f"{name}={value!r}; expected an integer >= {least} ({why})")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise RASError(f"{name}={value!r} is unknown; expected one of {', '.join(choices)}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise RASError(f"{name}={value!r}; expected True or False")


def parse_size(text: object, name: str = "size") -> tuple[int | None, int | None]:
    """Width and height of a text such as ``"256x256"``; ``None`` of ``None``."""
    if text is None:
        return None, None
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", str(text))
    if match is None:
        raise RASError(f"{name}={text!r} is no size; expected width and height as in 256x256")
    return int(match[1]), int(match[2])


def parse_sigmas(text: str | None, name: str = "sigmas") -> tuple[float, ...] | None:
    """Noise levels of a text such as ``"1,0.8,0.5"``, falling from 1; ``None`` of ``None``."""
    if text is None:
        return None
    try:
        levels = tuple(float(word) for word in text.strip("[] ").split(","))
    except ValueError:
        levels = ()
    falls = all(later < earlier for earlier, later in itertools.pairwise(levels))
    if not levels or not falls or not 0 < levels[-1] <= levels[0] <= 1:
        raise RASError(
            f"{name}={text!r}; expected falling noise levels in (0, 1], one per step, as in "
            "1,0.8,0.5"
        )
    return levels


def checked_resets(value: object) -> ResetSteps:
    """Reset steps sorted and without repetition, or a refusal."""
    if value == "auto":
        return "auto"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RASError(
            f'reset_steps={value!r}; expected "auto", step indices such as (12, 20), or '
            "fractions of the selective window such as (0.33, 0.67)"
        )
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
        raise RASError(f"reset_steps={value!r}; expected only integers or only floats")
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise RASError(
            f"reset_steps={value!r} mixes indices and fractions; give only integers or only floats"
        )
    if kinds == {float} and not all(0 < item < 1 for item in value):
        raise RASError(f"reset_steps={value!r}; fractions must lie strictly between 0 and 1")
    if kinds == {int} and not all(item >= 0 for item in value):
        raise RASError(f"reset_steps={value!r}; step indices must be >= 0")
    return tuple(sorted(set(value)))


def checked_ratios(value: object) -> tuple[float, ...]:
    """A ratio for each step of a run, or a refusal."""
    if not isinstance(value, Sequence) or not value:
        raise RASError(
            f'schedule={value!r}; expected "constant", "linear", "cycle", "intervals", a ratio per '
            "step or a callable"
        )
    for index, ratio in enumerate(value):
        check_number(f"schedule[{index}]", ratio, "in [0, 1]", lambda x: 0 <= x <= 1)
    if value[0] != 1:
        raise RASError(
            f"schedule[0]={value[0]}; expected 1.0, because the caches need one dense step"
        )
    return tuple(float(ratio) for ratio in value)


def checked_cycle(schedule: object, cycle: object) -> tuple[float, ...]:
    """The ratios of a cycle, or a refusal."""
    if schedule != "cycle":
        raise RASError(
            f'cycle={cycle!r} is for schedule="cycle" only, and the schedule is {schedule!r}; '
            "leave it out or make the schedule a cycle"
        )
    if isinstance(cycle, str) or not isinstance(cycle, Sequence) or not cycle:
        raise RASError(
            f'schedule="cycle" needs cycle, ratios such as (0.5, 1.0, 0.0), and it is {cycle!r}'
        )
    for index, ratio in enumerate(cycle):
        check_number(f"cycle[{index}]", ratio, "in [0, 1]", lambda x: 0 <= x <= 1)
    if not any(cycle) or min(cycle) == 1:
        raise RASError(
            f"cycle={list(cycle)} has {'dense' if any(cycle) else 'skipped'} steps only; give it "
            "others, too, or use sample_ratio=1.0 for a dense run"
        )
    return tuple(float(ratio) for ratio in cycle)


def checked_intervals(schedule: object, intervals: object) -> tuple[int, ...]:
    """The intervals between dense steps, or a refusal."""
    if schedule != "intervals":
        raise RASError(
            f'intervals={intervals!r} is for schedule="intervals" only, and the schedule is '
            f"{schedule!r}; leave it out or make the schedule one of intervals"
        )
    if isinstance(intervals, str) or not isinstance(intervals, Sequence) or not intervals:
        raise RASError(
            'schedule="intervals" needs intervals, numbers of steps such as (2, 2, 3, 4), and they '
            f"are {intervals!r}"
        )
    for index, interval in enumerate(intervals):
        check_int(f"intervals[{index}]", interval, 1, "1 makes the next step dense, too")
    if max(intervals) == 1:
        raise RASError(
            f"intervals={list(intervals)} has dense steps only; give it a longer one, or use "
            "sample_ratio=1.0 for a dense run"
        )
    return tuple(intervals)


def check_stop(stop_step: object, warmup_steps: int | None) -> None:
    """Refuse a dense tail that begins nowhere, or leaves no step before it."""
    if not isinstance(stop_step, int) or isinstance(stop_step, bool) or stop_step == 0:
        raise RASError(
            f"stop_step={stop_step!r}; expected an integer other than 0: an index, or a negative "
            "one from the end, -1 for a dense last step (use sample_ratio=1.0 for a dense run)"
        )
    if warmup_steps is not None and 0 < stop_step <= warmup_steps:
        raise RASError(
            f"stop_step={stop_step} leaves no sparse step after warmup_steps={warmup_steps}; "
            "raise stop_step or lower warmup_steps"
        )
