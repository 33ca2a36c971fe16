"""The one way in which every command makes pictures: (pipeline, configuration, job) to result."""

from __future__ import annotations

import contextlib
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

import ras_dit
from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.model_outline import outline_of
from ras_dit.recording import Recording
from ras_dit.trace import Trace

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make. All pictures of a job are made in one batch.

    Attributes:
        prompts: One prompt per picture.
        seeds: One seed per picture. Every picture has a generator of its own, on the CPU, so that
            neither the batch nor the device changes its noise.
        num_inference_steps: Denoising steps.
        height: Height in pixels; ``None`` is the pipeline's own.
        width: Width in pixels; ``None`` is the pipeline's own.
        guidance_scale: Strength of guidance; ``None`` is the pipeline's own.
        max_sequence_length: Text rows of the long text encoder; ``None`` is the pipeline's own,
            and so it is for pipelines that take no such argument.
        sigmas: Noise levels of the steps, falling from 1, before the scheduler's own shift;
            ``None`` leaves them to the scheduler.

    Raises:
        RASError: If there is no prompt, an empty one, not one seed per prompt, or a number that
            is out of range.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    num_inference_steps: int = 28
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    max_sequence_length: int | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise RASError("a prompt is empty; describe the picture in words")
        if len(self.seeds) != len(self.prompts):
            raise RASError(
                f"{len(self.prompts)} prompts and {len(self.seeds)} seeds; expected one each"
            )
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise RASError(f"seeds={self.seeds}; expected integers between 0 and 2**63 - 1")
        for name in ("num_inference_steps", "height", "width", "max_sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RASError(f"{name}={value}; expected at least 1")
        if self.sigmas is not None and len(self.sigmas) != self.num_inference_steps:
            raise RASError(
                f"{len(self.sigmas)} sigmas for num_inference_steps={self.num_inference_steps}; "
                "expected one per step"
            )
        scale = self.guidance_scale
        if scale is not None and not (math.isfinite(scale) and scale >= 0):
            raise RASError(f"guidance_scale={scale}; expected a number >= 0")


@dataclass(frozen=True)
class Generated:
    """What one job gave.

    Attributes:
        images: One picture per prompt.
        loop_seconds: Seconds of the denoising loop only: from the first call of the transformer
            to the end of the last step.
        total_seconds: Seconds of the whole pipeline call, text encoders and autoencoder included.
        trace: What was done in each step; ``None`` for a dense run.
        recording: Noise and latents of every step, where they were asked for.
        latents: Latents after the last step as the pipeline holds them, ``[B, ...]``, where they
            were asked for.
    """

    images: tuple[Image.Image, ...]
    loop_seconds: float
    total_seconds: float
    trace: Trace | None
    recording: Recording | None = None
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """Dense and region-adaptive runs of one job, timed in turn.

    Attributes:
        dense: A dense run.
        ras: A region-adaptive run.
        dense_seconds: Loop seconds of each dense run.
        ras_seconds: Loop seconds of each region-adaptive run.
        limit: FLOP limit of the loop: the speed-up if FLOPs were all that takes time.
        psnr: Per picture, in dB, between dense and region-adaptive; infinite where equal.
    """

    dense: Generated
    ras: Generated
    dense_seconds: tuple[float, ...]
    ras_seconds: tuple[float, ...]
    limit: float
    psnr: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """Median dense loop time over median region-adaptive loop time."""
        return statistics.median(self.dense_seconds) / statistics.median(self.ras_seconds)

    @property
    def limit_share(self) -> float:
        """Share of the FLOP limit that was reached."""
        return self.speedup / self.limit

    @property
    def trace(self) -> Trace:
        """The trace of the region-adaptive run."""
        assert self.ras.trace is not None
        return self.ras.trace


def generate(
    pipeline: Any,
    config: RASConfig | None,
    job: Job,
    *,
    on_step: OnStep | None = None,
    record: bool = False,
    replay: Trace | None = None,
    keep_latents: bool = False,
) -> Generated:
    """Make the pictures of a job.

    Args:
        pipeline: A loaded diffusers pipeline on which RAS is not enabled.
        config: How to sample; ``None`` runs the pipeline dense, as it is.
        job: Prompts, seeds and call arguments.
        on_step: Called after each step with (steps done, all steps).
        record: Keep every step's noise and latents for figures, in CPU memory; see
            :class:`ras_dit.Recording` for its size. A dense run has no recording.
        replay: A run whose active tokens are taken over.
        keep_latents: Keep the latents after the last step.

    Raises:
        RASError: If the job does not fit the pipeline, or RAS cannot be applied to it.
        UnsupportedError: If latents are to be kept and the pipeline does not hand them over.
    """
    check_size(pipeline, job)
    with contextlib.ExitStack() as stack:
        handle = None
        if config is not None:
            enabled = ras_dit.enable(pipeline, config, record=record, replay=replay)
            handle = stack.enter_context(enabled)
        clock = stack.enter_context(_loop_clock(pipeline, on_step, keep_latents=keep_latents))
        started = clock.now()
        images = _run(pipeline, job, clock)
        total = clock.now() - started
    trace, recording = (None, None) if handle is None else (handle.trace, handle.recording)
    return Generated(images, clock.seconds, total, trace, recording, clock.latents)


def compare(
    pipeline: Any,
    config: RASConfig,
    job: Job,
    *,
    runs: int = 3,
    on_step: OnStep | None = None,
) -> Comparison:
    """Time dense and region-adaptive runs of a job in turn, after one warm-up run of each.

    Args:
        pipeline: A loaded diffusers pipeline on which RAS is not enabled.
        config: How to sample.
        job: Prompts, seeds and call arguments.
        runs: Timed runs of each kind.
        on_step: Called after each step of each run with (steps done, all steps of that run).

    Raises:
        RASError: If ``runs`` is below 1, or from :func:`generate`.
    """
    if runs < 1:
        raise RASError(f"runs={runs}; expected at least 1")
    dense_runs, ras_runs = [], []
    for _ in range(runs + 1):
        dense_runs.append(generate(pipeline, None, job, on_step=on_step))
        ras_runs.append(generate(pipeline, config, job, on_step=on_step))
    dense, ras = dense_runs[-1], ras_runs[-1]
    assert ras.trace is not None
    work = describe(pipeline.transformer).work(pipeline.transformer.config)
    return Comparison(
        dense=dense,
        ras=ras,
        dense_seconds=tuple(run.loop_seconds for run in dense_runs[1:]),
        ras_seconds=tuple(run.loop_seconds for run in ras_runs[1:]),
        limit=trace_cost(work, ras.trace).limit,
        psnr=tuple(map(psnr, dense.images, ras.images)),
    )


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size; infinite where equal."""
    pixels = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (first, second))
    error = float(np.mean(np.square(np.subtract(*pixels))))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def seeds_for(prompts: Sequence[str], seed: int) -> tuple[int, ...]:
    """A seed per prompt: ``seed``, and the next ones where a prompt is given again."""
    return tuple(seed + list(prompts[:index]).count(p) for index, p in enumerate(prompts))


def check_size(pipeline: Any, job: Job) -> None:
    """Refuse a size that the pipeline would refuse, round or replace.

    Raises:
        RASError: If height or width does not fit.
        UnsupportedError: If the pipeline makes videos, or a size of its own.
    """
    sizes = outline_of(pipeline).sizes
    if sizes.is_video:
        raise UnsupportedError(
            f"{sizes.pipeline} makes videos, and jobs make pictures; call it from Python between "
            "ras_dit.enable(pipe) and handle.disable(), and plan it with ras-dit plan --frames"
        )
    sizes.size(job.width, job.height)


def takes_sigmas(pipeline: Any) -> bool:
    """Whether a pipeline's call and its scheduler take noise levels."""
    calls = pipeline.__call__, pipeline.scheduler.set_timesteps
    return all("sigmas" in inspect.signature(call).parameters for call in calls)


def _run(pipeline: Any, job: Job, clock: _LoopClock) -> tuple[Image.Image, ...]:
    try:
        output = pipeline(**_call_arguments(pipeline, job), callback_on_step_end=clock.end_step)
    except RASError:
        raise
    except ValueError as error:
        if clock.started:
            raise
        # Pipelines check their arguments before they call the transformer.
        raise RASError(f"{type(pipeline).__name__} refuses this job: {error}") from error
    return tuple(output.images)


def _call_arguments(pipeline: Any, job: Job) -> dict[str, Any]:
    given: dict[str, Any] = {
        "num_inference_steps": job.num_inference_steps,
        "height": job.height,
        "width": job.width,
        "guidance_scale": job.guidance_scale,
        "generator": [torch.Generator().manual_seed(seed) for seed in job.seeds],
    }
    if "max_sequence_length" in inspect.signature(pipeline.__call__).parameters:
        given["max_sequence_length"] = job.max_sequence_length
    if job.sigmas is not None:
        if not takes_sigmas(pipeline):
            raise RASError(
                f"{type(pipeline).__name__} with {type(pipeline.scheduler).__name__} takes no "
                "sigmas; leave them to the scheduler"
            )
        given["sigmas"] = list(job.sigmas)
    return {"prompt": list(job.prompts)} | {k: v for k, v in given.items() if v is not None}


class _LoopClock:
    """Times one denoising loop; synchronises a CUDA device at its two ends only."""

    def __init__(self, pipeline: Any, on_step: OnStep | None, *, keep_latents: bool) -> None:
        self._pipeline = pipeline
        self._on_step = on_step
        self._keep_latents = keep_latents
        self.latents: torch.Tensor | None = None
        self._started: float | None = None
        self.seconds = 0.0

    @property
    def started(self) -> bool:
        return self._started is not None

    def now(self) -> float:
        if torch.cuda.is_available() and self._pipeline.transformer.device.type == "cuda":
            torch.cuda.synchronize(self._pipeline.transformer.device)
        return time.perf_counter()

    def begin(self, *_: object) -> None:
        if self._started is None:
            self._started = self.now()

    def end_step(self, _: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        total = self._pipeline.num_timesteps
        if step == total - 1 and self._started is not None:
            self.seconds = self.now() - self._started
            if self._keep_latents:
                self.latents = _copied(self._pipeline, tensors)
        if self._on_step is not None:
            self._on_step(step + 1, total)
        return tensors


def _copied(pipeline: Any, tensors: Mapping[str, Any]) -> torch.Tensor:
    latents = tensors.get("latents")
    if not isinstance(latents, torch.Tensor):
        raise UnsupportedError(
            f"{type(pipeline).__name__} hands no latents to callback_on_step_end, so they cannot "
            "be kept; leave latents out"
        )
    # Pipelines may scale them in place on the way to the decoder.
    return latents.detach().clone()


@contextlib.contextmanager
def _loop_clock(
    pipeline: Any, on_step: OnStep | None, *, keep_latents: bool = False
) -> Iterator[_LoopClock]:
    clock = _LoopClock(pipeline, on_step, keep_latents=keep_latents)
    # In front of every other hook, so that gathering the active tokens counts as loop time.
    hook = pipeline.transformer.register_forward_pre_hook(clock.begin, prepend=True)
    try:
        yield clock
    finally:
        hook.remove()
