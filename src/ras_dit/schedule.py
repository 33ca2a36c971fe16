"""The plan of a run: what every step will do, known before step 0. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ras_dit.config import RASConfig
from ras_dit.errors import RASError

StepKind = Literal["dense", "sparse"]

_STEPS_PER_AUTO_RESET = 9


@dataclass(frozen=True)
class StepPlan:
    """What one call of ``scheduler.step`` and the transformer calls before it will do.

    Attributes:
        index: Number of scheduler steps before this one.
        kind: ``"dense"`` (all tokens) or ``"sparse"`` (the active tokens only).
        num_active: Image tokens that go through the transformer, per image.
        fills_caches: Whether the step is dense and a sparse step follows it, so that its keys,
            values and outputs have to be kept.
    """

    index: int
    kind: StepKind
    num_active: int
    fills_caches: bool = False


def default_warmup_steps(num_evaluations: int) -> int:
    """Dense steps at the start where none are given: 4 from 16 steps on, fewer below."""
    return max(1, min(4, num_evaluations // 4))


def count_active(sample_ratio: float, num_tokens: int, granularity: int = 1) -> int:
    """Number of active tokens for a ratio.

    Returns:
        The multiple of ``granularity`` nearest to ``sample_ratio * num_tokens``, at least one
        granule and at most ``num_tokens``.
    """
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
        RASError: If a reset lies outside the run, or the run has no step or no token.
    """
    if num_evaluations < 1 or num_tokens < 1:
        raise RASError(
            f"cannot plan {num_evaluations} steps of {num_tokens} tokens; both must be at least 1"
        )
    start = (
        default_warmup_steps(num_evaluations)
        if config.warmup_steps is None
        else config.warmup_steps
    )
    stop = num_evaluations if config.stop_step is None else min(config.stop_step, num_evaluations)
    resets = reset_indices(config, start, stop, num_evaluations)
    active = count_active(config.sample_ratio, num_tokens, config.granularity)
    counts = [
        active if start <= index < stop and index not in resets else num_tokens
        for index in range(num_evaluations)
    ]
    return tuple(
        StepPlan(
            index=index,
            kind="sparse" if count < num_tokens else "dense",
            num_active=count,
            fills_caches=count == num_tokens
            and any(c < num_tokens for c in counts[index + 1 :][:1]),
        )
        for index, count in enumerate(counts)
    )


def reset_indices(config: RASConfig, start: int, stop: int, num_evaluations: int) -> frozenset[int]:
    """Indices of the dense steps that refresh the caches inside the window ``[start, stop)``.

    Raises:
        RASError: If a given index lies outside the run.
    """
    resets = config.reset_steps
    window = max(0, stop - start)
    if resets == "auto":
        number = window // _STEPS_PER_AUTO_RESET
        return frozenset(start + round(window * (i + 1) / (number + 1)) for i in range(number))
    outside = [step for step in resets if step >= num_evaluations]
    if outside:
        raise RASError(
            f"reset_steps={list(resets)} has {outside[0]}, outside a run of {num_evaluations} "
            f'scheduler steps (0 to {num_evaluations - 1}); use fractions or "auto" for a '
            "configuration that fits every number of steps"
        )
    return frozenset(
        int(step) if isinstance(step, int) else start + int(step * window) for step in resets
    )
