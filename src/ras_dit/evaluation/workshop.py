"""What a worker does: one task at a time, from a manifest to the content of files.

A worker writes nothing itself. It gives the files of a task to whoever sent the task, so that a
worker can be killed at any moment, and can work on another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.errors import RASError
from ras_dit.evaluation.files import dump, read_json
from ras_dit.evaluation.images import encode_png
from ras_dit.evaluation.latents import encode_latents, latents_path
from ras_dit.evaluation.manifest import Manifest, Settings, pictures_of
from ras_dit.evaluation.rivals import counted_flops, solver, step_cache
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Picture, Scorer
from ras_dit.evaluation.scoring import configured_scorer, measured_files
from ras_dit.generate import Generated, Job, generate
from ras_dit.loading import load_pipeline
from ras_dit.oracle import foreseen_trace
from ras_dit.trace import Trace

Outcome = Literal["done", "refused"]
# In the record of a unit whose pictures are not here, but their scores are.
ARCHIVED = "archived"


@dataclass(frozen=True)
class Task:
    """One work unit.

    Attributes:
        row: Name of the row.
        unit: Number of the unit in its row.
        scorer: The scorer that looks at the unit; ``None`` makes its pictures.
        pictures: What the scorer gets.
    """

    row: str
    unit: int
    scorer: str | None = None
    pictures: tuple[Picture, ...] = ()

    @property
    def key(self) -> tuple[str, int, str | None]:
        """What tells it from other tasks."""
        return self.row, self.unit, self.scorer


@dataclass(frozen=True)
class Product:
    """What a task gave.

    Attributes:
        task: The task.
        outcome: ``"refused"`` where the row cannot be had on this model.
        reason: Why it was refused.
        files: Content by path in the evaluation's folder, in the order of writing; the last one
            says that the unit is whole.
    """

    task: Task
    outcome: Outcome
    reason: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Workshop:
    """Keeps the pipeline and the scorers between tasks."""

    def __init__(self, manifest: Manifest, settings: Settings) -> None:
        self._manifest = manifest
        self._settings = settings
        self._pipeline: Any = None
        self._scorers: dict[str, Scorer] = {}

    @property
    def pipeline(self) -> Any:
        """The model, loaded when it is first needed."""
        if self._pipeline is None:
            manifest = self._manifest
            self._pipeline = load_pipeline(
                manifest.model, dtype=manifest.dtype, device=manifest.device
            )
        return self._pipeline

    def perform(self, task: Task) -> Product:
        """Do one task.

        Raises:
            RASError: If the model cannot be loaded or a picture is damaged.
        """
        with threads(self._manifest.threads), warnings.catch_warnings():
            # A row without a sparse step says so itself; the report shows its cost.
            warnings.simplefilter("ignore")
            if task.scorer is not None:
                return Product(task, "done", files=self._score(task, task.scorer))
            row = self._manifest.row(task.row)
            indices = self._manifest.units(row)[task.unit]
            pipeline = self.pipeline
            try:
                files = self._make(pipeline, row, task.unit, indices)
            except RASError as error:
                return Product(task, "refused", str(error))
            return Product(task, "done", files=files)

    def _make(self, pipeline: Any, row: Row, unit: int, indices: Sequence[int]) -> dict[str, bytes]:
        job = job_of(self._manifest, row, indices)
        made, cost = run_row(pipeline, row, job, count=True, keep_latents=self._manifest.latents)
        pictures = {
            picture_path(row, index): encode_png(image)
            for index, image in zip(indices, made.images, strict=True)
        }
        record: dict[str, Any] = {"cost": cost, "pictures": _facts(pictures)}
        latents = {}
        if made.latents is not None:
            latents = {
                latents_path(row.name, index): encode_latents(one)
                for index, one in zip(indices, made.latents, strict=True)
            }
            record["latents"] = _facts(latents)
        return pictures | latents | {unit_path(row, unit): dump(record)}

    def _score(self, task: Task, name: str) -> dict[str, bytes]:
        if name not in self._scorers:
            self._scorers[name] = configured_scorer(self._settings, name)
        return measured_files(self._scorers[name], name, task.row, task.unit, task.pictures)


def run_row(
    pipeline: Any, row: Row, job: Job, *, count: bool = False, keep_latents: bool = False
) -> tuple[Generated, float | None]:
    """Run one job as a row says.

    Args:
        pipeline: The stock pipeline.
        row: The configuration.
        job: What to make.
        count: Whether to count the FLOPs of a step cache, which slows it down.
        keep_latents: Whether the latents after the last step are wanted.

    Returns:
        What was made, and its cost in evaluations of the dense transformer; ``None`` for a step
        cache whose FLOPs were not counted.

    Raises:
        RASError: If the row cannot be had on this pipeline.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(solver(pipeline, row.scheduler))
        stack.enter_context(step_cache(pipeline, row.cache))
        flops = None
        if row.cache is not None and count:
            flops = stack.enter_context(counted_flops(pipeline.transformer))
        replay = _foreseen(pipeline, row, job) if row.oracle else None
        made = generate(pipeline, row.sampling, job, keep_latents=keep_latents, replay=replay)
    if made.trace is not None:
        work = describe(pipeline.transformer).work(pipeline.transformer.config)
        return made, len(made.trace.steps) / trace_cost(work, made.trace).limit
    if row.cache is None:
        return made, row.cost
    return made, None if flops is None else flops.total / _dense_step(pipeline, job)


def _foreseen(pipeline: Any, row: Row, job: Job) -> Trace:
    """The active tokens that an oracle chooses for a row, from a dense run of its job."""
    dense = generate(pipeline, RASConfig(sample_ratio=1.0), job, record=True)
    assert dense.recording is not None
    assert row.sampling is not None
    return foreseen_trace(dense.recording, row.sampling)


def _dense_step(pipeline: Any, job: Job) -> float:
    """FLOPs of one dense step of a job, counted as :func:`counted_flops` does."""
    with counted_flops(pipeline.transformer) as flops:
        short = Job(**{**vars(job), "num_inference_steps": 1})
        generate(pipeline, None, short)
    return float(flops.total)


def job_of(manifest: Manifest, row: Row, indices: Sequence[int]) -> Job:
    """The job that makes some pictures of a row."""
    prompts, seeds = pictures_of(manifest, indices)
    return Job(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        num_inference_steps=row.steps,
        width=manifest.width,
        height=manifest.height,
        guidance_scale=manifest.guidance_scale,
        max_sequence_length=manifest.max_sequence_length,
    )


def _facts(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a unit's record says of its files."""
    return {
        path: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for path, data in files.items()
    }


def picture_path(row: Row, index: int) -> str:
    """Path of a picture in the evaluation's folder."""
    return f"images/{row.name}/{index:06d}.png"


def unit_path(row: Row, unit: int) -> str:
    """Path of the record that says that a unit of pictures is whole."""
    return f"units/{row.name}/{unit:05d}.json"


def whole_unit(folder: Path, row: Row, unit: int) -> Mapping[str, Any] | None:
    """The record of a unit whose files are all there; ``None`` where it is to be made.

    Of an archived unit there are scores instead.

    Raises:
        RASError: If the record is damaged.
    """
    path = folder / unit_path(row, unit)
    if not path.exists():
        return None
    record = read_json(path)
    return record if record.get(ARCHIVED) or has_files(folder, record) else None


def has_files(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether all pictures and latents of a unit's record are there."""
    files = {**record["pictures"], **record.get("latents", {})}
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == facts["bytes"]
        for name, facts in files.items()
    )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """As many threads as the manifest says: sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
