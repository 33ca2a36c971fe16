"""The plan of a run: what every step will do, known before step 0. No tensors here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ras_dit.config import RASConfig
from ras_dit.errors import RASError

StepKind = Literal["dense", "sparse"]

_STEPS_PER_AUTO_RESET = 9
# At least: the longest interval between dense steps is the run's length over this.
_INTERVALS_PER_RUN = 4


@dataclass(frozen=True)
class StepPlan:
    """What one call of ``scheduler.step`` and the transformer calls before it will do.

    Attributes:
        index: Number of scheduler steps before this one.
        kind: ``"dense"`` (all tokens) or ``"sparse"`` (the active tokens only).
        num_active: Image tokens that go through the transformer, per image; 0 in a skipped step,
            which does not call it.
        repeats_active: Whether the step takes over the active tokens of the step before it (a
            quirk of the public code's last sparse step).
        halves_guidance: Whether only one of two guidance branches goes through the transformer.
    """

    index: int
    kind: StepKind
    num_active: int
    repeats_active: bool = False
    halves_guidance: bool = False


def default_warmup_steps(num_evaluations: int) -> int:
    """Dense steps at the start where none are given: 4 from 16 steps on, fewer below."""
    return max(1, min(4, num_evaluations // 4))


def count_active(sample_ratio: float, num_tokens: int, granularity: int = 1) -> int:
    """Number of active tokens for a ratio.

    Returns:
        The multiple of ``granularity`` nearest to ``sample_ratio * num_tokens``, at least one
        granule and at most ``num_tokens``; 0 for a ratio of 0, a skipped step.
    """
    if sample_ratio == 0:
        return 0
    granules = max(1, int(sample_ratio * num_tokens / granularity + 0.5))
    return min(num_tokens, granules * granularity)


def plan_steps(config: RASConfig, num_evaluations: int, num_tokens: int) -> tuple[StepPlan, ...]:
    """Plan a whole run.

    Args:
        config: The configuration.
        num_evaluations: Calls of ``scheduler.step`` that the run will make.
        num_tokens: Image tokens N per image.

    Returns:
        One plan per step.

    Raises:
        RASError: If a reset or a list of ratios does not fit the run, or the run has no step or
            no token.
    """
    if num_evaluations < 1 or num_tokens < 1:
        raise RASError(
            f"cannot plan {num_evaluations} steps of {num_tokens} tokens; both must be at least 1"
        )
    counts = _counts(config, num_evaluations, num_tokens)
    halves = _halves(config, counts, num_tokens)
    stop = config.stop_step
    return tuple(
        StepPlan(
            index=index,
            kind="sparse" if count < num_tokens else "dense",
            num_active=count,
            repeats_active=config.public_code is not None
            and stop is not None
            and index == stop - 1,
            halves_guidance=halves[index],
        )
        for index, count in enumerate(counts)
    )


def _halves(config: RASConfig, counts: list[int], num_tokens: int) -> list[bool]:
    """Which steps run one of two guidance branches only.

    All but every ``guidance_every``-th, counted from the last one that ran both. These run both
    whatever the count: the warm-up, in which the difference changes fast; a dense step next to
    sparse ones, because it is there to refresh every cache; and the last step, whose error
    nothing corrects any more.
    """
    warmup, _ = selective_window(config, len(counts))
    called = [index for index, count in enumerate(counts) if count]
    halves = [False] * len(counts)
    last = 0
    for place, index in enumerate(called):
        around = called[max(0, place - 1) : place + 2]
        is_sparse = [counts[other] < num_tokens for other in around]
        refreshes_caches = counts[index] == num_tokens and any(is_sparse)
        is_due = index - last >= config.guidance_every
        if index < max(1, warmup) or is_due or refreshes_caches or place == len(called) - 1:
            last = index
        else:
            halves[index] = True
    return halves


def adapted(
    plans: tuple[StepPlan, ...], index: int, num_active: int, num_tokens: int
) -> tuple[StepPlan, ...]:
    """The plan of a run one step of which computes another number of tokens than planned.

    A step that became dense refreshes all; what one that is skipped had to refresh, the next does.

    Args:
        plans: The plan.
        index: The step.
        num_active: Its image tokens; 0 skips it.
        num_tokens: Image tokens N.
    """
    plan = plans[index]
    kind: StepKind = "dense" if num_active == num_tokens else "sparse"
    halves = plan.halves_guidance and 0 < num_active < num_tokens
    changed = replace(plan, kind=kind, num_active=num_active, halves_guidance=halves)
    rest = plans[index + 1 :]
    if num_active == 0 and not plan.halves_guidance and rest:
        rest = (replace(rest[0], halves_guidance=False), *rest[1:])
    return (*plans[:index], changed, *rest)


def selective_window(config: RASConfig, num_evaluations: int) -> tuple[int, int]:
    """First step that may be sparse, and the first of the dense tail after it."""
    start = config.warmup_steps
    if start is None:
        start = default_warmup_steps(num_evaluations)
    stop = num_evaluations if config.stop_step is None else config.stop_step
    if stop < 0:
        stop = max(0, num_evaluations + stop)
    return start, min(stop, num_evaluations)


def _counts(config: RASConfig, num_evaluations: int, num_tokens: int) -> list[int]:
    """Active tokens of every step."""
    schedule, granularity = config.schedule, config.granularity
    if isinstance(schedule, tuple):
        if len(schedule) != num_evaluations:
            raise RASError(
                f"schedule names {len(schedule)} steps, and the run makes {num_evaluations} calls "
                f"of scheduler.step; run the pipeline with num_inference_steps={len(schedule)} "
                "(for a scheduler of one call per step), or give one ratio per call"
            )
        return [count_active(ratio, num_tokens, granularity) for ratio in schedule]
    if config.intervals is not None:
        places = dense_places(config.intervals, num_evaluations)
        return [num_tokens if index in places else 0 for index in range(num_evaluations)]
    start, stop = selective_window(config, num_evaluations)
    resets = reset_indices(config, start, stop, num_evaluations)
    selective = [index for index in range(start, stop) if index not in resets]
    counts = [num_tokens] * num_evaluations
    for index, ratio in zip(selective, _ratios(config, selective, num_evaluations), strict=True):
        counts[index] = count_active(ratio, num_tokens, granularity)
    if config.public_code is not None:
        for index in selective:
            counts[index] = config.public_code.count_active(
                index, config.sample_ratio, start, num_evaluations, num_tokens
            )
    return counts


def dense_places(intervals: Sequence[int], num_evaluations: int) -> frozenset[int]:
    """Indices of the dense steps of a schedule of intervals.

    Args:
        intervals: Steps from each to the next; the last one over and over.
        num_evaluations: Steps of the run, at least 1.

    Returns:
        The first step among them. Where intervals are longer than 1 in the end, the last is the
        last but one of the run: from there on a line is as good, and the step before it shorter.
    """
    longest = max(1, num_evaluations // _INTERVALS_PER_RUN)
    ends_skipping = min(intervals[-1], longest) > 1
    last = num_evaluations - 2 if ends_skipping else num_evaluations - 1
    places = [0]
    for interval in itertools.chain(intervals, itertools.repeat(intervals[-1])):
        place = places[-1] + min(interval, longest)
        if place >= last:
            break
        places.append(place)
    return frozenset((*places, last))


def _ratios(config: RASConfig, selective: list[int], num_evaluations: int) -> list[float]:
    """Ratio of every selective step."""
    if callable(config.schedule):
        ratios = [config.schedule(index, num_evaluations) for index in selective]
        for index, ratio in zip(selective, ratios, strict=True):
            if not 0 <= ratio <= 1:
                raise RASError(
                    f"schedule({index}, {num_evaluations}) returned {ratio!r}; expected a ratio in "
                    "[0, 1]"
                )
        return ratios
    if config.schedule == "linear" and len(selective) > 1:
        first, last = config.ratio_range
        slope = (last - first) / (len(selective) - 1)
        return [first + slope * place for place in range(len(selective))]
    cycle = config.cycle or (config.sample_ratio,)
    return [cycle[place % len(cycle)] for place in range(len(selective))]


def reset_indices(config: RASConfig, start: int, stop: int, num_evaluations: int) -> frozenset[int]:
    """Indices of the dense steps that refresh the caches inside the window ``[start, stop)``.

    Raises:
        RASError: If a given index lies outside the run.
    """
    resets = config.reset_steps
    window = max(0, stop - start)
    if resets == "auto":
        if config.cycle is not None and 1.0 in config.cycle:
            return frozenset()
        number = window // _STEPS_PER_AUTO_RESET
        return frozenset(start + round(window * (i + 1) / (number + 1)) for i in range(number))
    outside = [step for step in resets if step >= num_evaluations]
    if outside:
        raise RASError(
            f"reset_steps={list(resets)} has {outside[0]}, outside a run of {num_evaluations} "
            f'scheduler steps (0 to {num_evaluations - 1}); use fractions or "auto" for a '
            "configuration that fits every number of steps"
        )
    last = max(0, window - 1)  # a fraction near 1 must not round out of the window
    return frozenset(
        step if isinstance(step, int) else start + min(int(step * window + 0.5), last)
        for step in resets
    )
