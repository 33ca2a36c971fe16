"""The time stage: seconds and memory of every row, measured in one process, in turn, when warm.

Times say something of a machine, not of pictures, so they are kept in files of their own:
``times/ROW/00.json``, one per round.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ras_dit.errors import RASError
from ras_dit.evaluation.files import locked, read_json, sweep, write_json
from ras_dit.evaluation.manifest import (
    Manifest,
    Settings,
    load_manifest,
    load_settings,
    manifest_digest,
    store,
)
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.time_settings import TimeSettings
from ras_dit.evaluation.workshop import job_of, run_row, threads
from ras_dit.generate import Generated
from ras_dit.loading import load_pipeline
from ras_dit.validation import parse_size

TIMES = "times"


def time_rows(
    folder: Path,
    settings: Settings | None = None,
    *,
    device: str | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> int:
    """Measure what is not measured yet.

    Args:
        folder: The evaluation's folder.
        settings: Replaces the settings stored there.
        device: In place of the manifest's.
        on_run: Called with (runs done, all runs of this call).

    Returns:
        Rounds that every row has.

    Raises:
        RASError: If the folder holds no evaluation, or times of another machine or setting.
    """
    manifest = load_manifest(folder)
    with locked(folder):
        if settings is not None:
            store(folder, manifest, settings)
        chosen = TimeSettings.read(load_settings(folder).time)
        sweep(folder)
        pipeline = load_pipeline(
            manifest.model, dtype=manifest.dtype, device=device or manifest.device
        )
        count = chosen.threads or manifest.threads
        _check_conditions(folder, chosen, pipeline, count)
        missing = {
            row.name: [n for n in range(chosen.runs) if not _path(folder, row.name, n).exists()]
            for row in manifest.rows
        }
        rows = [row for row in manifest.rows if missing[row.name]]
        total = len(rows) + sum(map(len, missing.values()))
        done = 0
        with threads(count):
            for number in range(-1, chosen.runs):
                for row in rows:
                    if number >= 0 and number not in missing[row.name]:
                        continue
                    _time_once(folder, manifest, chosen, pipeline, row, number)
                    done += 1
                    if on_run is not None:
                        on_run(done, total)
    return chosen.runs


def read_times(folder: Path, row: str) -> list[Mapping[str, Any]]:
    """The rounds of a row: ``seconds`` of the whole call, ``loop_seconds``, ``batch``, ..."""
    return [read_json(path) for path in sorted((folder / TIMES / row).glob("[0-9]*.json"))]


def read_conditions(folder: Path) -> Mapping[str, Any] | None:
    """Where and how times were measured; ``None`` where they were not."""
    path = folder / TIMES / "conditions.json"
    return read_json(path) if path.exists() else None


def _time_once(
    folder: Path,
    manifest: Manifest,
    chosen: TimeSettings,
    pipeline: Any,
    row: Row,
    number: int,
) -> None:
    width, height = parse_size(chosen.size)
    job = job_of(manifest, row, range(min(chosen.batch, len(manifest.shots))))
    if chosen.size is not None:
        job = replace(job, width=width, height=height)
    path = _path(folder, row.name, number)
    try:
        with _peak(pipeline) as peak:
            made, _ = run_row(pipeline, row, job)
    except RASError as error:
        if number >= 0:
            write_json(path, {"refused": str(error)})
        return
    if number >= 0:
        write_json(path, _facts(made, len(job.prompts), peak()))


def _facts(made: Generated, batch: int, peak: int | None) -> dict[str, Any]:
    return {
        "batch": batch,
        "loop_seconds": made.loop_seconds,
        "seconds": made.total_seconds,
        "peak_bytes": peak,
    }


@contextlib.contextmanager
def _peak(pipeline: Any) -> Any:
    """Peak memory of a block: CUDA's allocations, or what the process holds; weights included."""
    device = pipeline.transformer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device))
        return
    # Linux forgets the highest mark when it is told to; other systems have no such thing.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield _resident_peak


def _resident_peak() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return None if match is None else 1024 * int(match[1])


def _check_conditions(folder: Path, chosen: TimeSettings, pipeline: Any, count: int) -> None:
    device = pipeline.transformer.device
    conditions = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "dtype": str(pipeline.transformer.dtype),
        "threads": count,
        "batch": chosen.batch,
        "size": chosen.size,
        "manifest": manifest_digest(folder),
    }
    stored = read_conditions(folder)
    if stored is None:
        write_json(folder / TIMES / "conditions.json", conditions)
    elif stored != conditions:
        changed = sorted(key for key in conditions if stored.get(key) != conditions[key])
        raise RASError(
            f"{str(folder / TIMES)!r} holds times with another {', '.join(changed)}; times compare "
            "only under one condition: remove that folder to measure anew"
        )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    name = platform.processor() or platform.machine() if match is None else match[1].strip()
    return f"{name}, {len(os.sched_getaffinity(0)) if _counts_cores() else os.cpu_count()} cores"


def _counts_cores() -> bool:
    return hasattr(os, "sched_getaffinity")


def _path(folder: Path, row: str, number: int) -> Path:
    return folder / TIMES / row / f"{number:02d}.json"
