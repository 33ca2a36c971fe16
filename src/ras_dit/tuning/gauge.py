"""The errors of candidates on some pictures, against many dense steps from the same noise."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from ras_dit.diagnosis.runs import Run, sparse_run, stock_run
from ras_dit.engine import is_flow_euler
from ras_dit.errors import RASError
from ras_dit.generate import Job, check_size, psnr, takes_sigmas
from ras_dit.model_outline import outline_of
from ras_dit.planning import plan_outline
from ras_dit.tuning.candidates import Candidate

REFERENCE_STEPS = 112
# Pictures on which a candidate is judged first.
FIRST = 2
# Of what the numbers depend on.
_PACKAGES = ("ras-dit", "torch", "diffusers")


@dataclass(frozen=True)
class Measured:
    """What a candidate came to, picture by picture.

    Attributes:
        errors: Root mean square error of the final latents.
        psnr: Of the pictures, in dB; infinite where they are equal.
    """

    errors: tuple[float, ...] = ()
    psnr: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median error of the latents."""
        return statistics.median(self.errors)

    @property
    def mean(self) -> float:
        """Mean error of the latents."""
        return statistics.fmean(self.errors)

    @property
    def median_psnr(self) -> float:
        """Median PSNR in dB."""
        return statistics.median(self.psnr)

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.errors + other.errors, self.psnr + other.psnr)


class Gauge:
    """Measures candidates on a pipeline.

    Its references are made once, when they are first needed, and stay in memory: the latents and
    pictures of ``reference_steps`` dense steps of the stock pipeline.

    Args:
        pipeline: A loaded diffusers pipeline on which RAS is not enabled.
        job: What to make: prompts, seeds, size, guidance. Its number of steps does not count.
        reference_steps: Dense steps of a reference.
        batch: Pictures made at a time.

    Raises:
        RASError: If the job does not fit the pipeline, or a number is below 1.
        UnsupportedError: If the pipeline is not supported.
    """

    def __init__(
        self,
        pipeline: Any,
        job: Job,
        *,
        reference_steps: int = REFERENCE_STEPS,
        batch: int = 4,
    ) -> None:
        for name, value in (("reference_steps", reference_steps), ("batch", batch)):
            if value < 1:
                raise RASError(f"{name}={value}; expected at least 1")
        check_size(pipeline, job)
        outline = outline_of(pipeline, max_sequence_length=job.max_sequence_length)
        if outline.scheduler_order != 1:
            raise RASError(
                f"{type(pipeline.scheduler).__name__} makes {outline.scheduler_order} steps of "
                "each denoising step, and a preset names every step; give the pipeline a "
                "scheduler of order 1"
            )
        self.pipeline = pipeline
        self.job = job
        self.reference_steps = reference_steps
        self._parts = _parts(len(job.prompts), batch)
        self._references: list[Run] = []
        self._outline = outline
        self._layout = outline.layout(job.width, job.height)

    @property
    def num_pictures(self) -> int:
        """Pictures of the job."""
        return len(self.job.prompts)

    @property
    def num_parts(self) -> int:
        """Parts in which they are measured, one after the other; the first is small."""
        return len(self._parts)

    @property
    def is_euler(self) -> bool:
        """Whether forecasts along lines and the second-order solver have an effect."""
        return is_flow_euler(self.pipeline.scheduler)

    @property
    def takes_sigmas(self) -> bool:
        """Whether the pipeline takes other noise levels than its scheduler's own."""
        return self.is_euler and takes_sigmas(self.pipeline)

    def cost(self, candidate: Candidate) -> float:
        """Planned cost of a picture in dense steps.

        Raises:
            RASError: If the candidate's schedule does not fit its steps.
        """
        config, steps = candidate.config, candidate.steps
        if config is None:
            return float(steps)
        return steps / plan_outline(self._outline, config, steps, self._layout).limit

    def measure(self, candidate: Candidate) -> Measured:
        """All pictures of a candidate."""
        measured = Measured()
        for part in range(self.num_parts):
            measured += self.measure_part(candidate, part)
        return measured

    def measure_part(self, candidate: Candidate, part: int) -> Measured:
        """One part of its pictures."""
        reference = self._reference(part)
        job = replace(self._job(part), num_inference_steps=candidate.steps, sigmas=candidate.sigmas)
        config = candidate.config
        if config is None:
            run = stock_run(self.pipeline, job)
        else:
            run = sparse_run(self.pipeline, job, config)
        errors = _distances(run.latents, reference.latents)
        if not all(map(math.isfinite, errors)):
            # What blew up is worse than anything, and no reason to stop a search.
            errors = [error if math.isfinite(error) else math.inf for error in errors]
        found = map(psnr, run.images, reference.images)
        return Measured(tuple(errors), tuple(found))

    def fingerprint(self) -> str:
        """Something of the transformer's weights, the same wherever they are."""
        parameters = self.pipeline.transformer.parameters()
        sums = (float(p.detach().sum(dtype=torch.float64)) for p in parameters)
        return f"{math.fsum(sums):.6g}"

    def surroundings(self) -> dict[str, Any]:
        """What else decides the numbers: the scheduler's settings and the versions of packages."""
        config = dict(getattr(self.pipeline.scheduler, "config", {}))
        # Names with an underscore are diffusers' own notes, some in another order each time.
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
        return {
            "scheduler settings": json.dumps(settings, sort_keys=True, default=_plain),
            "versions": {name: version(name) for name in _PACKAGES},
        }

    def facts(self) -> dict[str, Any]:
        """What decides the numbers: pipeline, tokens, pictures and references."""
        job, pipeline = self.job, self.pipeline
        return {
            "pipeline": type(pipeline).__name__,
            "transformer": self._outline.transformer,
            "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
            "scheduler": type(pipeline.scheduler).__name__,
            "tokens": list(self._layout.grid.shape),
            "guidance": job.guidance_scale,
            "text rows": self._layout.num_text,
            "prompts": list(job.prompts),
            "seeds": list(job.seeds),
            "reference steps": self.reference_steps,
            "parts": [part.stop - part.start for part in self._parts],
        }

    def _job(self, part: int) -> Job:
        job, pictures = self.job, self._parts[part]
        return replace(job, prompts=job.prompts[pictures], seeds=job.seeds[pictures])

    def _reference(self, part: int) -> Run:
        while len(self._references) <= part:
            job = replace(
                self._job(len(self._references)), num_inference_steps=self.reference_steps
            )
            self._references.append(stock_run(self.pipeline, job))
        return self._references[part]


def _plain(setting: Any) -> Any:
    """A setting that JSON does not know, such as an array of betas."""
    return setting.tolist() if hasattr(setting, "tolist") else str(setting)


def _parts(pictures: int, batch: int) -> list[slice]:
    """Some pictures to judge a candidate by first, then the rest, a batch at a time."""
    ends = list(range(min(FIRST, batch, pictures), pictures, batch))
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, pictures], strict=True)]


def _distances(latents: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """Root mean square distance of each picture's latents."""
    moved = latents.double() - reference.double()
    found: list[float] = moved.square().flatten(1).mean(1).sqrt().tolist()
    return found
