"""Active tokens by foresight: what choosing them without a guess could gain.

Scores guess which tokens need work. The oracle knows: it has the dense run of the same seed and
steps, follows the line of every token along that run's outputs (:mod:`ras_dit.multirate`), and
makes those tokens active whose lines are most wrong at the step to come. That costs more than a
dense run, so it is no way to sample. Replayed, its sets say how much of a method's error is the
score's. It looks one step ahead and along the dense run, so it is no proven bound.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ras_dit.config import RASConfig
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.multirate import Lines
from ras_dit.recording import Recording
from ras_dit.schedule import plan_steps
from ras_dit.tokens import PixelMap
from ras_dit.trace import Call, Trace, pack_active


def foreseen_trace(recording: Recording, config: RASConfig) -> Trace:
    """The run that a configuration would make if it foresaw the error of every token's line.

    Args:
        recording: Of the dense run, ``enable(pipe, sample_ratio=1.0, record=True)``, with a
            flow-matching Euler scheduler.
        config: Its schedule says how many tokens are active in each step, its forecast how the
            others move. Its metric, starvation and limit of drops are left aside.

    Returns:
        A trace for ``enable(pipe, config, replay=...)`` on the same call.

    Raises:
        RASError: If the recorded run was not dense, or the number of active tokens is no matter
            of the schedule alone.
        UnsupportedError: If the recorded run has no noise levels.
    """
    check_foreseeable(config)
    trace = recording.trace
    if trace.num_dense_steps < len(trace.steps):
        raise RASError(
            "the recorded run has sparse steps, whose outputs are not known; record one with "
            "sample_ratio=1.0"
        )
    levels = [step.sigma for step in trace.steps if step.sigma is not None]
    if len(levels) < len(trace.steps):
        raise UnsupportedError(
            "the recorded run's scheduler has no noise levels (sigmas) for lines to follow; "
            "record it with FlowMatchEulerDiscreteScheduler"
        )
    held = recording.noise_preds[0]
    pixels = PixelMap(held, recording.sort, trace.num_tokens)
    times = torch.tensor([*levels, 0.0])
    lines = Lines(config.line_rules, pixels, trace.num_tokens, times)
    plans = plan_steps(config, len(trace.steps), trace.num_tokens)
    steps = []
    for plan, step, noise in zip(plans, trace.steps, recording.noise_preds, strict=True):
        active = None
        if plan.kind == "sparse":
            errors = lines.errors(noise, plan.index)
            active = errors.topk(plan.num_active, dim=1).indices.sort(dim=1).values
            is_active = torch.zeros_like(errors, dtype=torch.bool).scatter_(1, active, value=True)
            held = torch.where(pixels.spread(is_active), noise, held)
        else:
            held = noise
        lines.advance(held, recording.samples[plan.index], active, plan.index)
        steps.append(
            replace(
                step,
                kind=plan.kind,
                calls=tuple(Call(call.batch, plan.num_active) for call in step.calls),
                packed=None if active is None else pack_active(active, trace.num_tokens),
            )
        )
    return replace(trace, steps=tuple(steps), keeps_text=config.text == "keep")


def check_foreseeable(config: RASConfig) -> None:
    """Refuse a configuration whose sets cannot be foreseen.

    Raises:
        RASError: If what a step computes follows from more than the schedule.
    """
    given = {
        "tolerance": config.tolerance,
        "reset_tolerance": config.reset_tolerance,
        "guidance_every": None if config.guidance_every == 1 else config.guidance_every,
        "public_code": config.public_code,
    }
    for name, value in given.items():
        if value is not None:
            raise RASError(
                f"{name}={value} cannot be had with foreseen tokens, where the schedule alone says "
                "how many are computed; leave it out"
            )
