"""The runs behind a diagnosis: a dense one, and sparse ones that make one kind of error each.

A sparse step differs from a dense one in three ways: inactive tokens keep their old output, their
keys and values are old, and, if the text is kept, so are those of the text. Each is had alone, with
the same active tokens, on the stock pipeline or beside a stock call:

- *held outputs*: every token is computed, everything fresh, and the scheduler gets the old guided
  noise for inactive tokens;
- *stale keys and values*: the sparse step is run, active tokens attend to old keys and values of
  inactive ones, and the outputs of inactive tokens come from a second, stock call on the same
  latents;
- *kept text*: every image token is active and fresh, the text is that of the last dense step.

Shape letters: B images, R rows of the model batch, N image tokens, A active tokens.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

import ras_dit
from ras_dit.adapters import TransformerDescription
from ras_dit.config import RASConfig
from ras_dit.errors import UnsupportedError
from ras_dit.generate import Job, OnStep, generate
from ras_dit.probe import noise_of, read_latents, with_noise
from ras_dit.recording import Recording
from ras_dit.reference import MaskedReference
from ras_dit.trace import Trace

# Gets the index of the step and the guided noise; returns what the scheduler gets.
Change = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a job.

    Attributes:
        latents: The final latents, as the scheduler left them, ``[B, ...]`` on the CPU.
        images: The pictures.
        trace: The record, where RAS was enabled.
        recording: Noise and latents of every step, where they were asked for.
    """

    latents: torch.Tensor
    images: tuple[Image.Image, ...]
    trace: Trace | None = None
    recording: Recording | None = None


def recorded_run(pipeline: Any, job: Job, *, on_step: OnStep | None = None) -> Run:
    """The dense run, with everything recorded."""
    with ras_dit.enable(pipeline, RASConfig(sample_ratio=1.0), record=True) as handle:
        run = stock_run(pipeline, job, on_step=on_step)
    return replace(run, trace=handle.trace, recording=handle.recording)


def sparse_run(pipeline: Any, job: Job, config: RASConfig, *, on_step: OnStep | None = None) -> Run:
    """A run as users have it, with all of its errors; its trace has the active tokens."""
    with ras_dit.enable(pipeline, config) as handle:
        run = stock_run(pipeline, job, on_step=on_step)
    return replace(run, trace=handle.trace)


def stock_run(
    pipeline: Any, job: Job, *, change: Change | None = None, on_step: OnStep | None = None
) -> Run:
    """A run of the pipeline as it is, whatever is enabled on it.

    Args:
        pipeline: The pipeline.
        job: What to make.
        change: What happens to the guided noise on its way to the scheduler.
        on_step: As for :func:`ras_dit.generate.generate`.

    Raises:
        UnsupportedError: If the pipeline does not step its own scheduler.
    """
    with _scheduler_watched(pipeline.scheduler, change) as seen:
        images = generate(pipeline, None, job, on_step=on_step).images
    if not seen:
        raise UnsupportedError(
            f"{type(pipeline).__name__} made no step of its scheduler; expected a pipeline that "
            "calls pipe.scheduler.step"
        )
    return Run(seen[-1].cpu(), images)


def held_run(
    pipeline: Any,
    job: Job,
    trace: Trace,
    description: TransformerDescription,
    *,
    on_step: OnStep | None = None,
) -> Run:
    """Held outputs alone: see the head of this file."""
    find = functools.partial(_active_latents, description, pipeline.transformer.config)
    held: torch.Tensor | None = None

    def hold(step: int, noise_pred: torch.Tensor) -> torch.Tensor:
        nonlocal held
        active = trace.steps[step].active
        if active is not None and held is not None:
            noise_pred = torch.where(find(noise_pred, active), noise_pred, held)
        held = noise_pred.clone()
        return noise_pred

    return stock_run(pipeline, job, change=hold, on_step=on_step)


def stale_run(
    pipeline: Any,
    job: Job,
    trace: Trace,
    config: RASConfig,
    description: TransformerDescription,
    *,
    on_step: OnStep | None = None,
) -> Run:
    """Stale keys and values alone: see the head of this file. Twice the work of a dense run."""
    transformer = pipeline.transformer
    find = functools.partial(_active_latents, description, transformer.config)
    signature = inspect.signature(transformer.forward)
    step = 0

    def replace_inactive(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        active = trace.steps[step].active
        if active is None:
            return output
        # Beside the call that just ended: not through the module's own call, where RAS would see
        # a further branch of guidance.
        beside = noise_of(transformer.forward(*args, **kwargs))
        latents = signature.bind(*args, **kwargs).arguments[description.latents]
        if isinstance(latents, list | tuple):
            latents = torch.stack(tuple(latents))
        mask = find(latents, active)
        mask = mask.unsqueeze(1) if mask.ndim < beside.ndim else mask
        return with_noise(output, torch.where(mask, noise_of(output), beside))

    def count(index: int, noise_pred: torch.Tensor) -> torch.Tensor:
        nonlocal step
        step = index + 1
        return noise_pred

    with ras_dit.enable(pipeline, config, replay=trace):
        # Behind RAS's own hook, so that its call is over.
        hook = transformer.register_forward_hook(replace_inactive, with_kwargs=True)
        try:
            return stock_run(pipeline, job, change=count, on_step=on_step)
        finally:
            hook.remove()


def kept_text_run(
    pipeline: Any,
    job: Job,
    trace: Trace,
    description: TransformerDescription,
    *,
    on_step: OnStep | None = None,
) -> Run:
    """Kept text alone: see the head of this file. At full length, by the masked reference.

    Raises:
        UnsupportedError: If the transformer has no text rows that could be kept, or its
            attention cannot be followed.
    """
    if description.text_arguments is None:
        raise UnsupportedError(
            f"{description.transformer} attends to its text from the outside, so no text rows "
            "could be kept"
        )
    every = torch.arange(trace.num_tokens).expand(trace.batch_size, -1)
    sets = [None if step.active is None else every for step in trace.steps]
    reference = MaskedReference(pipeline.transformer, sets, keeps_text=True)

    def end_step(_: int, noise_pred: torch.Tensor) -> torch.Tensor:
        reference.next_step()
        return noise_pred

    with reference:
        return stock_run(pipeline, job, change=end_step, on_step=on_step)


def _active_latents(
    description: TransformerDescription, model: Any, latents: torch.Tensor, active: torch.Tensor
) -> torch.Tensor:
    """Which latents belong to active tokens, bool, to be broadcast against ``latents``.

    Args:
        description: What is known of the transformer.
        model: Its configuration.
        latents: ``[R, ...]``, R a multiple of B, or anything of their form.
        active: int64 ``[B, A]``.
    """
    patch, first = description.patch(model), description.frames_first
    found = read_latents({"latents": latents}, "latents", patch, frames_first=first)
    mask = torch.zeros(active.shape[0], found.num_tokens, dtype=torch.bool)
    mask.scatter_(1, active, True)
    rows = mask.repeat(latents.shape[0] // active.shape[0], 1).to(latents.device)
    chosen = rows[:, found.tokens]
    return chosen.unsqueeze(1) if chosen.ndim < latents.ndim else chosen


@contextlib.contextmanager
def _scheduler_watched(scheduler: Any, change: Change | None) -> Iterator[list[torch.Tensor]]:
    """Change what ``scheduler.step`` gets, and keep what the last call of it returned."""
    stock = scheduler.step
    shadowed = vars(scheduler).get("step")
    signature = inspect.signature(stock)
    steps = 0
    last: list[torch.Tensor] = []

    @functools.wraps(stock)
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        bound = signature.bind(*args, **kwargs)
        if change is not None:
            noise_pred = bound.arguments["model_output"]
            bound.arguments["model_output"] = change(steps, noise_pred)
        steps += 1
        result = stock(*bound.args, **bound.kwargs)
        last[:] = [result[0]]
        return result

    vars(scheduler)["step"] = step
    try:
        yield last
    finally:
        if shadowed is None:
            del vars(scheduler)["step"]
        else:
            vars(scheduler)["step"] = shadowed
