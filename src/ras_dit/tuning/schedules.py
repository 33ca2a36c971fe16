"""Schedules of one ratio per step, built and changed so that they always stay within a budget.

What a schedule may cost is a function that says yes or no. The first step is dense, and at least
one is not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ras_dit.schedule import dense_places

Schedule = tuple[float, ...]
Fits = Callable[[Schedule], bool]

# What a step may compute: nothing, a quarter of the tokens, half of them, all.
LEVELS = (0.0, 0.25, 0.5, 1.0)
# What the steps between warm-up and dense tail do, over and over.
PATTERNS: Mapping[str, Schedule] = {
    "half": (0.5,),
    "quarter": (0.25,),
    "half, quarter": (0.5, 0.25),
    "half, skip": (0.5, 0.0),
    "quarter, skip": (0.25, 0.0),
    "dense, half": (0.5, 1.0),
    "dense, quarter": (0.25, 1.0),
    "dense, skip": (0.0, 1.0),
    "dense, quarter, skip": (0.25, 0.0, 1.0),
    "dense, skip, quarter": (0.25, 1.0, 0.0),
    "dense, skip, half": (0.5, 1.0, 0.0),
    "dense, two skips": (0.0, 0.0, 1.0),
}
# Whole runs instead, without warm-up and tail: steps from each dense step to the next, as the
# package's presets have them.
INTERVALS: Mapping[str, tuple[int, ...]] = {
    "intervals to 3": (1, 1, 2, 2, 3),
    "intervals to 4": (2, 2, 3, 4),
}


@dataclass(frozen=True)
class Form:
    """What a schedule is built from.

    Attributes:
        warmup: Dense steps at the start, at least 1.
        pattern: A key of :data:`PATTERNS` or :data:`INTERVALS`.
        tail: Dense steps at the end.
        reset_every: Every so many steps in between one is dense, at least 2; 0 for none.
    """

    warmup: int
    pattern: str
    tail: int = 0
    reset_every: int = 0

    def schedule(self, middle: int) -> Schedule:
        """The schedule with so many steps between warm-up and tail."""
        if self.pattern in INTERVALS:
            count = self.warmup + middle + self.tail
            places = dense_places(INTERVALS[self.pattern], count)
            return tuple(float(place in places) for place in range(count))
        cycle = itertools.cycle(PATTERNS[self.pattern])
        every = self.reset_every
        body = [
            1.0 if every and place % every == 0 else next(cycle) for place in range(1, middle + 1)
        ]
        return (*[1.0] * self.warmup, *body, *[1.0] * self.tail)


def build(form: Form, fits: Fits, most: int) -> Schedule | None:
    """The longest schedule of a form that fits, and what is left spent on its last steps.

    Where not even one step between warm-up and tail fits, these are shortened.

    Args:
        form: What it is built from.
        fits: Whether a schedule is within the budget.
        most: The most steps.

    Returns:
        The schedule; ``None`` if the budget is too small for any.
    """
    warmup, tail = form.warmup, form.tail
    while True:
        shortened = Form(warmup, form.pattern, tail, form.reset_every)
        for middle in range(most - warmup - tail, 0, -1):
            schedule = shortened.schedule(middle)
            if min(schedule) < 1 and fits(schedule):
                return filled(schedule, fits, range(len(schedule) - 1, 0, -1))
        if tail:
            tail -= 1
        elif warmup > 1:
            warmup -= 1
        else:
            return None


def filled(schedule: Schedule, fits: Fits, places: Iterable[int]) -> Schedule:
    """A schedule whose steps are raised by a level each, in turn, where that fits."""
    for place in places:
        raised = _moved(schedule, place, 1)
        if min(raised) < 1 and fits(raised):
            schedule = raised
    return schedule


def changed(schedule: Schedule, fits: Fits, most: int, rng: random.Random) -> Schedule | None:
    """A schedule near another: two steps exchanged, or one raised, left out or added.

    What that brings over the budget is taken from other steps, what is left is spent on others.

    Returns:
        The schedule; ``None`` if nothing came of the move that was drawn.
    """
    move = rng.choice((_exchange, _exchange, _raise, _raise, _leave_out, _add))
    moved, kept = move(schedule, rng)
    if len(moved) > most or len(moved) < 2:
        return None
    return fitted(moved, fits, rng, kept)


def fitted(schedule: Schedule, fits: Fits, rng: random.Random, kept: int = 0) -> Schedule | None:
    """A schedule with steps lowered by chance until it fits, and others raised while it does.

    Args:
        schedule: The schedule.
        fits: Whether a schedule is within the budget.
        rng: Draws the steps.
        kept: A step that is not lowered; the first never is.

    Returns:
        The schedule; ``None`` if it does not fit or has no step left that is not dense.
    """
    lowered = _lowered(schedule, fits, kept, rng)
    if lowered is None or min(lowered) == 1:
        return None
    return filled(lowered, fits, _drawn(range(1, len(lowered)), rng))


def _lowered(schedule: Schedule, fits: Fits, kept: int, rng: random.Random) -> Schedule | None:
    """The schedule with steps lowered by chance, all but one of them, until it fits."""
    while not fits(schedule):
        places = [p for p in range(1, len(schedule)) if p != kept and schedule[p] > 0]
        if not places:
            return None
        schedule = _moved(schedule, rng.choice(places), -1)
    return schedule


def _exchange(schedule: Schedule, rng: random.Random) -> tuple[Schedule, int]:
    pairs = [p for p in range(1, len(schedule) - 1) if schedule[p] != schedule[p + 1]]
    if not pairs:
        return _raise(schedule, rng)
    place = rng.choice(pairs)
    steps = list(schedule)
    steps[place], steps[place + 1] = steps[place + 1], steps[place]
    return tuple(steps), place


def _raise(schedule: Schedule, rng: random.Random) -> tuple[Schedule, int]:
    place = rng.choice([p for p, ratio in enumerate(schedule) if ratio < 1])
    return _moved(schedule, place, 1), place


def _leave_out(schedule: Schedule, rng: random.Random) -> tuple[Schedule, int]:
    place = rng.randrange(1, len(schedule))
    return schedule[:place] + schedule[place + 1 :], 0


def _add(schedule: Schedule, rng: random.Random) -> tuple[Schedule, int]:
    place = rng.randint(1, len(schedule))
    return (*schedule[:place], rng.choice(LEVELS), *schedule[place:]), place


def _moved(schedule: Schedule, place: int, levels: int) -> Schedule:
    """The schedule with one step raised or lowered, as far as there are levels."""
    level = min(max(LEVELS.index(schedule[place]) + levels, 0), len(LEVELS) - 1)
    return (*schedule[:place], LEVELS[level], *schedule[place + 1 :])


def _drawn(places: Sequence[int], rng: random.Random) -> list[int]:
    return rng.sample(places, len(places))
