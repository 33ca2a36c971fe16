"""The whole measurement: dense runs counted, errors of the parts, and what both come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.diagnosis import maths, runs
from ras_dit.diagnosis.fields import (
    LEAST_STEPS,
    QUANTITIES,
    Fields,
    Series,
    flow_sigmas,
    measure_fields,
    read_fields,
)
from ras_dit.errors import RASError
from ras_dit.generate import Job, check_size

RATIOS = (0.5, 0.25)
# Gets the runs that are done and all of them.
OnRun = Callable[[int, int], None]

PARTS: Mapping[str, str] = {
    "held": "held outputs alone",
    "stale": "stale keys and values alone",
    "text": "kept text alone",
    "all": "a real sparse run",
    "fewer": "fewer dense steps at its cost",
}
_PER_RATIO = ("held", "stale", "all", "fewer")


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % interval; no interval where there is one prompt only."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Part:
    """The error that one part of a sparse step makes, in a whole run.

    Attributes:
        name: A key of :data:`PARTS`.
        ratio: Share of active tokens in sparse steps; ``None`` where it makes no difference.
        cost: What the run costs in dense steps, where that is what it is about.
        errors: Per image, of the final latents, relative to the dense run's.
        estimate: Their mean.
    """

    name: str
    ratio: float | None
    cost: float | None
    errors: tuple[float, ...]
    estimate: Estimate


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Everything that was measured.

    Attributes:
        job: What was made; its prompts and seeds are those of all images.
        groups: Number of the prompt of each image.
        facts: Model, scheduler, dtype, tokens, ...: what to say of the runs.
        series: By the names of :data:`ras_dit.diagnosis.fields.QUANTITIES`.
        summary: Each of them as one number: the mean over steps, harmonic for savings.
        parts: Errors of the parts; empty where they were not wanted.
        notes: What could not be had, and why.
        rounding: How large the rounding of the velocity alone would make the second derivative,
            as a share of what was found.
        example: The first image, for a picture of it all.
        picture: That image itself.
    """

    job: Job
    groups: tuple[int, ...]
    facts: Mapping[str, Any]
    series: Mapping[str, Series]
    summary: Mapping[str, Estimate]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    rounding: float
    example: Fields
    picture: Image.Image

    def part(self, name: str, ratio: float | None = None) -> Part | None:
        """The error of one part, where it was measured."""
        found = (part for part in self.parts if part.name == name and part.ratio == ratio)
        return next(found, None)

    def by_step(self, name: str) -> list[tuple[float, Estimate]]:
        """Noise level and mean over images of one quantity, step after step."""
        series = self.series[name]
        means = zip(series.sigmas.tolist(), _estimates(series.values, self.groups), strict=True)
        return list(means)


@dataclass
class _Collected:
    """What grows from batch to batch."""

    series: dict[str, list[Series]] = field(default_factory=dict)
    errors: dict[tuple[str, float | None], list[float]] = field(default_factory=dict)
    costs: dict[tuple[str, float | None], float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def diagnose(
    pipeline: Any,
    job: Job,
    *,
    groups: Sequence[int] | None = None,
    batch: int = 4,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    on_run: OnRun | None = None,
) -> Diagnosis:
    """Measure what region-adaptive and multirate sampling can gain on a pipeline.

    Args:
        pipeline: A loaded diffusers pipeline on which RAS is not enabled.
        job: What to make: all prompts and seeds, size and steps.
        groups: Number of the prompt of each image; by default equal prompts go together.
        batch: Images made at a time.
        ratios: Shares of active tokens at which the parts of a sparse step are measured; none
            leaves them out.
        seed: Of the random active tokens.
        on_run: Called after each run of a batch.

    Raises:
        RASError: If there are too few steps or tokens, or an argument is out of range.
        UnsupportedError: If the scheduler has no noise levels of flow matching, the pipeline
            makes no pictures, or its transformer is not supported.
    """
    _check(pipeline, job, groups, batch, ratios)
    if groups is None:
        names = list(dict.fromkeys(job.prompts))
        groups = [names.index(prompt) for prompt in job.prompts]
    collected, example, trace = _Collected(), None, None
    jobs = list(_batches(job, batch))
    count = len(jobs) * (1 + (len(_PER_RATIO) * len(ratios) + 1 if ratios else 0))
    report = _counter(on_run, count)
    description = describe(pipeline.transformer)
    rounding = 0.0
    for part in jobs:
        dense = runs.recorded_run(pipeline, part)
        assert dense.recording is not None
        trace = dense.recording.trace
        fields = read_fields(
            dense.recording, dense.images, description, pipeline.transformer.config
        )
        for name, found in measure_fields(fields).items():
            collected.series.setdefault(name, []).append(found)
        if example is None:
            example = fields, dense.images[0]
            rounding = _rounding(dense.recording.noise_preds[0].dtype, collected, fields)
        report()
        if ratios:
            _measure_parts(pipeline, part, dense.latents, ratios, seed, collected, report)
    assert example is not None
    assert trace is not None
    series = {
        name: Series(found[0].sigmas, torch.cat([one.values for one in found]))
        for name, found in collected.series.items()
    }
    return Diagnosis(
        job=job,
        groups=tuple(groups),
        facts={
            "pipeline": type(pipeline).__name__,
            "scheduler": type(pipeline.scheduler).__name__,
            "transformer": trace.transformer,
            "dtype": trace.dtype,
            "tokens": [trace.grid.height, trace.grid.width],
            "text_tokens": trace.num_text_tokens,
        },
        series=series,
        summary={q.name: _overall(series[q.name], groups, q.is_saving) for q in QUANTITIES},
        parts=tuple(
            Part(*key, collected.costs.get(key), tuple(errors), _estimate(errors, groups))
            for key, errors in sorted(collected.errors.items(), key=_place)
        ),
        notes=tuple(collected.notes),
        rounding=rounding,
        example=example[0],
        picture=example[1],
    )


def _check(
    pipeline: Any, job: Job, groups: Sequence[int] | None, batch: int, ratios: Sequence[float]
) -> None:
    """Refuse before the first run what can be refused then."""
    if job.num_inference_steps < LEAST_STEPS:
        raise RASError(
            f"{job.num_inference_steps} steps are too few for second derivatives and how they "
            f"persist; give --steps {LEAST_STEPS} or more (56 tell most)"
        )
    if batch < 1:
        raise RASError(f"batch={batch}; expected at least 1")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise RASError(f"ratio={ratio}; expected a share of active tokens in (0, 1)")
    if len(set(ratios)) < len(ratios):
        raise RASError(f"ratios={list(ratios)} has one of them twice; give each ratio once")
    if groups is not None and len(groups) != len(job.prompts):
        raise RASError(
            f"groups={list(groups)} has {len(groups)} numbers, and the job makes "
            f"{len(job.prompts)} images; give one for each image, or leave groups out"
        )
    check_size(pipeline, job)
    if getattr(pipeline.scheduler, "sigmas", None) is None:
        flow_sigmas([None])  # refuses before the first run


def _measure_parts(
    pipeline: Any,
    job: Job,
    dense: torch.Tensor,
    ratios: Sequence[float],
    seed: int,
    collected: _Collected,
    report: Callable[[], None],
) -> None:
    """The parts of a sparse step on one batch, all with the same random active tokens."""
    description = describe(pipeline.transformer)
    work = description.work(pipeline.transformer.config)

    def keep(name: str, ratio: float | None, run: runs.Run, cost: float | None = None) -> None:
        key = name, ratio
        collected.errors.setdefault(key, []).extend(maths.relative_error(run.latents, dense))
        if cost is not None:
            collected.costs[key] = cost
        report()

    for ratio in ratios:
        config = RASConfig(sample_ratio=ratio, metric="random", seed=seed)
        sparse = runs.sparse_run(pipeline, job, config)
        trace = sparse.trace
        assert trace is not None
        cost = len(trace.steps) / trace_cost(work, trace).limit
        keep("all", ratio, sparse, cost)
        keep("held", ratio, runs.held_run(pipeline, job, trace, description))
        keep("stale", ratio, runs.stale_run(pipeline, job, trace, config, description))
        steps = max(1, round(cost))
        fewer = runs.stock_run(pipeline, replace(job, num_inference_steps=steps))
        keep("fewer", ratio, fewer, float(steps))
        if ratio == ratios[0]:
            # Which steps are dense does not depend on the ratio.
            try:
                keep("text", None, runs.kept_text_run(pipeline, job, trace, description))
            except RASError as error:
                collected.note(f"{PARTS['text']}: {error}")
                report()


def _batches(job: Job, batch: int) -> Iterator[Job]:
    for start in range(0, len(job.prompts), batch):
        part = slice(start, start + batch)
        yield replace(job, prompts=job.prompts[part], seeds=job.seeds[part])


def _counter(on_run: OnRun | None, total: int) -> Callable[[], None]:
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if on_run is not None:
            on_run(done, total)

    return report


def _rounding(dtype: torch.dtype, collected: _Collected, fields: Fields) -> float:
    """See :attr:`Diagnosis.rounding`: errors of half a unit at most, in three values."""
    unit = torch.finfo(dtype).eps / 2 / math.sqrt(3)
    step = float(fields.sigmas.diff().abs().mean())
    size = float(collected.series["bend_size"][0].values.mean())
    return min(1.0, unit * math.sqrt(6) / max(size * step**2, unit))


def _overall(series: Series, groups: Sequence[int], is_saving: bool) -> Estimate:
    per_image = maths.harmonic_mean(series.values, 1) if is_saving else series.values.mean(1)
    return _estimates(per_image[:, None], groups)[0]


def _estimate(errors: Sequence[float], groups: Sequence[int]) -> Estimate:
    return _estimates(torch.tensor(errors, dtype=torch.float64)[:, None], groups)[0]


def _estimates(values: torch.Tensor, groups: Sequence[int]) -> list[Estimate]:
    """Of ``[K, m]``, one per column."""
    columns = zip(
        *(part.tolist() for part in maths.mean_with_interval(values, groups)), strict=True
    )
    return [
        Estimate(mean, *(None if math.isnan(end) else end for end in ends))
        for mean, *ends in columns
    ]


def _place(item: tuple[tuple[str, float | None], Any]) -> tuple[float, int]:
    (name, ratio), _ = item
    return -(2.0 if ratio is None else ratio), list(PARTS).index(name)
