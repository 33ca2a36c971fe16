"""Runs that repeat the active tokens of a recorded one."""

from __future__ import annotations

import torch

from ras_dit.calls import RunShape
from ras_dit.errors import RASError
from ras_dit.schedule import StepPlan
from ras_dit.trace import Trace


def replayed_plans(trace: Trace, shape: RunShape) -> tuple[StepPlan, ...]:
    """The plan of a run that repeats the active tokens of a recorded one.

    Raises:
        RASError: If the run has another transformer, grid or number of steps.
    """
    recorded = trace.transformer, trace.grid, len(trace.steps)
    current = shape.transformer, shape.grid, shape.num_evaluations
    if recorded != current:
        raise RASError(
            "the replayed trace does not fit this run: it is of a {} with {} and {} steps, and "
            "this is a {} with {} and {} steps; use the recorded model, size and "
            "num_inference_steps".format(*recorded, *current)
        )
    return tuple(
        StepPlan(
            step.index,
            "dense" if step.kind == "dense" else "sparse",
            step.num_active,
            halves_guidance=step.is_halved,
        )
        for step in trace.steps
    )


def replayed_set(trace: Trace, step: int, noise_pred: torch.Tensor) -> torch.Tensor:
    """The active tokens of a recorded step, int64 ``[B, A]``.

    Args:
        trace: The record.
        step: Index of the step, a sparse one.
        noise_pred: The guided noise prediction of the run that repeats it, ``[B, ...]``.

    Raises:
        RASError: If the run makes another number of images.
    """
    active = trace.steps[step].active
    assert active is not None
    if active.shape[0] != noise_pred.shape[0]:
        raise RASError(
            f"the replayed trace has {active.shape[0]} images, and this run makes "
            f"{noise_pred.shape[0]}; give as many prompts as the recorded run had"
        )
    return active.to(noise_pred.device, non_blocking=True)
