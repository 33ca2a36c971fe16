"""What is searched: one table of dimensions, and the spaces of presets and of dense controls.

A space proposes candidates in two ways: from choices over its dimensions, which a sampler makes,
and as neighbours of a good one. Both keep within the budget, so that no run is wasted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ras_dit.errors import RASError
from ras_dit.tuning import schedules
from ras_dit.tuning.candidates import Candidate

Choice = str | int | float | None
Cost = Callable[[Candidate], float]
# Gets the name of a choice and its values; returns one of them.
Choose = Callable[[str, Sequence[Choice]], Any]

# What every preset has.
_BASE: Mapping[str, Any] = {"metric": "innovation"}
_SHIFTS: tuple[float | None, ...] = (None, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_WARMUPS = (1, 2, 3, 4, 5, 6)
_TAILS = (0, 1, 2, 3, 4)
_RESETS = (0, 3, 4, 6, 9)
_PATTERNS = (*schedules.PATTERNS, *schedules.INTERVALS)
_FEWER_STEPS = 3
_LEAST: schedules.Schedule = (1.0, schedules.LEVELS[1])


@dataclass(frozen=True)
class Abilities:
    """What a model allows.

    Attributes:
        is_euler: Forecasts along lines and the second-order solver.
        takes_sigmas: Other noise levels than its scheduler's own.
        keeps_text: Sparse steps without work on the text.
    """

    is_euler: bool
    takes_sigmas: bool
    keeps_text: bool


@dataclass(frozen=True)
class Dimension:
    """A field of ``RASConfig`` that is searched.

    Attributes:
        field: Its name.
        values: What it may be; the first is the field's default.
        applies: Whether it has an effect, by what the model allows and the fields chosen so far.
        for_dense: Whether dense controls have it, too.
    """

    field: str
    values: tuple[Choice, ...]
    applies: Callable[[Abilities, Mapping[str, Any]], bool]
    for_dense: bool = False


_SOLVERS = ("stock", "damped-ab2", "ab2")

DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("solver", _SOLVERS, lambda able, _: able.is_euler, for_dense=True),
    Dimension("forecast", ("hold", "linear"), lambda able, _: able.is_euler),
    Dimension(
        "forecast_damping",
        (1.0, "auto", 0.5),
        lambda _, chosen: chosen.get("forecast") == "linear",
    ),
    Dimension("text", ("fresh", "keep"), lambda able, _: able.keeps_text),
)


class Space(Protocol):
    """What candidates are drawn from."""

    @property
    def starts(self) -> Sequence[Mapping[str, Choice]]:
        """Choices that are worth trying first."""

    def choose(self, choose: Choose, budget: float) -> Candidate:
        """The candidate of some choices, made to fit the budget."""

    def neighbour(
        self, candidate: Candidate, budget: float, rng: random.Random
    ) -> Candidate | None:
        """A candidate near another; ``None`` if nothing came of the move that was drawn."""


@dataclass(frozen=True)
class SparseSpace:
    """Presets: schedules with at least one step that is not dense, and forecasts.

    Attributes:
        able: What the model allows.
        cost: Planned cost of a candidate in dense steps.
        most: The most steps.
    """

    able: Abilities
    cost: Cost
    most: int

    @property
    def starts(self) -> Sequence[Mapping[str, Choice]]:
        """Half of the tokens, held; and skipped steps on lines, as in the package's presets."""
        common: dict[str, Choice] = {"warmup": 3, "tail": 2, "reset_every": 0}
        lines = common | {
            "forecast": "linear",
            "forecast_damping": "auto",
            "solver": "damped-ab2",
        }
        return (
            common | {"pattern": "half", "forecast": "hold"},
            *(lines | {"pattern": pattern} for pattern in schedules.INTERVALS),
            lines | {"pattern": "dense, skip"},
            lines | {"pattern": "dense, skip, half"},
        )

    def least(self) -> float:
        """The cost of a dense step and a sparse one, the least that there is to choose from."""
        return self.cost(self._candidate(_LEAST, {}))

    def choose(self, choose: Choose, budget: float) -> Candidate:
        """A candidate from its form, its fields and its noise levels."""
        fields = _fields(DIMENSIONS, self.able, choose)
        form = schedules.Form(
            warmup=choose("warmup", _WARMUPS),
            pattern=choose("pattern", _PATTERNS),
            tail=choose("tail", _TAILS),
            reset_every=choose("reset_every", _RESETS),
        )
        shift = choose("shift", _SHIFTS) if self.able.takes_sigmas else None
        schedule = schedules.build(form, self._fits(budget, fields), self.most)
        return self._candidate(schedule or _LEAST, fields, shift)

    def neighbour(
        self, candidate: Candidate, budget: float, rng: random.Random
    ) -> Candidate | None:
        """Another schedule near by, or another field or shift with the schedule made to fit."""
        fields = {k: v for k, v in candidate.fields.items() if k not in {"schedule", *_BASE}}
        schedule: schedules.Schedule = candidate.fields["schedule"]
        shift = candidate.shift
        if rng.random() < 0.3:
            fields, shift = _turned(DIMENSIONS, self.able, fields, shift, rng)
            fits = self._fits(budget, fields)
            near = schedules.fitted(schedule, fits, rng)
        else:
            near = schedules.changed(schedule, self._fits(budget, fields), self.most, rng)
        return None if near is None else self._candidate(near, fields, shift)

    def _fits(self, budget: float, fields: Mapping[str, Any]) -> schedules.Fits:
        return lambda schedule: self.cost(self._candidate(schedule, fields)) <= budget

    def _candidate(
        self,
        schedule: schedules.Schedule,
        fields: Mapping[str, Any],
        shift: float | None = None,
    ) -> Candidate:
        return Candidate(len(schedule), {**_BASE, **fields, "schedule": schedule}, shift)


@dataclass(frozen=True)
class DenseSpace:
    """Dense controls: their steps, solver and noise levels.

    Attributes:
        able: What the model allows.
        most: The most steps.
        any_steps: Whether few steps are searched, too, and not only about as many as may be.
    """

    able: Abilities
    most: int
    any_steps: bool = False

    @property
    def starts(self) -> Sequence[Mapping[str, Choice]]:
        """Both solvers with as many steps as may be."""
        return tuple({"solver": solver, "fewer": 0, "shift": None} for solver in _SOLVERS)

    def choose(self, choose: Choose, budget: float) -> Candidate:
        """A candidate from its fields, its noise levels and how many steps are left out."""
        most = min(int(budget), self.most)
        fields = _fields(_DENSE, self.able, choose)
        # The budget has its own choice where there is no fixed one.
        fewer = 0 if self.any_steps else choose("fewer", tuple(range(_FEWER_STEPS)))
        shift = choose("shift", _SHIFTS) if self.able.takes_sigmas else None
        return self._candidate(max(1, most - fewer), fields, shift)

    def neighbour(
        self, candidate: Candidate, budget: float, rng: random.Random
    ) -> Candidate | None:
        """One step more or less, or another field or shift."""
        most = min(int(budget), self.most)
        fields = {k: v for k, v in candidate.fields.items() if k != "sample_ratio"}
        steps, shift = min(candidate.steps, most), candidate.shift
        if rng.random() < 0.5:
            steps += rng.choice((-1, 1))
        else:
            fields, shift = _turned(_DENSE, self.able, fields, shift, rng)
        return self._candidate(steps, fields, shift) if 1 <= steps <= most else None

    def _candidate(self, steps: int, fields: Mapping[str, Any], shift: float | None) -> Candidate:
        return Candidate(steps, {"sample_ratio": 1.0, **fields} if fields else {}, shift)


_DENSE = tuple(dimension for dimension in DIMENSIONS if dimension.for_dense)


def dimensions() -> dict[str, Sequence[Choice]]:
    """All that is chosen from, by name."""
    named: dict[str, Sequence[Choice]] = {d.field: d.values for d in DIMENSIONS}
    forms = {"warmup": _WARMUPS, "tail": _TAILS, "reset_every": _RESETS, "shift": _SHIFTS}
    return {**named, **forms, "pattern": _PATTERNS}


def check_budget(space: SparseSpace, budget: float) -> None:
    """Refuse a budget that leaves nothing to choose.

    Raises:
        RASError: If it is below every run, or a dense run of the most steps is within it.
    """
    least = space.least()
    if budget < least:
        raise RASError(
            f"cost={budget:g} dense steps is below the cheapest run: a dense step and one with a "
            f"quarter of the tokens cost {least:.2f} here; raise it"
        )
    if budget >= space.most:
        raise RASError(
            f"cost={budget:g} pays for {space.most} dense steps, the most that a run may have, so "
            "nothing is left to choose; lower it, or raise the most steps (--most-steps)"
        )


def _fields(dimensions: Sequence[Dimension], able: Abilities, choose: Choose) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    chosen: dict[str, Any] = {}
    for dimension in dimensions:
        if dimension.applies(able, chosen):
            value = choose(dimension.field, dimension.values)
            if value != dimension.values[0]:
                chosen[dimension.field] = value
    return chosen


def _turned(
    dimensions: Sequence[Dimension],
    able: Abilities,
    fields: Mapping[str, Any],
    shift: float | None,
    rng: random.Random,
) -> tuple[dict[str, Any], float | None]:
    """Fields and shift with one of them changed, and what no longer has an effect left out."""
    named = {d.field: d for d in dimensions if d.applies(able, fields)}
    turns = [*named, "shift"] if able.takes_sigmas else list(named)
    turned = rng.choice(turns) if turns else ""
    if turned == "shift":
        place = _SHIFTS.index(shift)
        near = [p for p in (place - 1, place + 1) if 0 <= p < len(_SHIFTS)]
        shift = _SHIFTS[rng.choice(near)]

    def keep_but_one(name: str, values: Sequence[Choice]) -> Choice:
        value: Choice = fields.get(name, values[0])
        return value if name != turned else rng.choice([v for v in values if v != value])

    return _fields(dimensions, able, keep_but_one), shift
