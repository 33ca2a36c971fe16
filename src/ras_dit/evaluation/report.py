"""The report stage: everything that the other stages left in files, as markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ras_dit.cost import forward_flops
from ras_dit.errors import RASError
from ras_dit.evaluation.comparisons import Duel, RowResult, duels, frontier, statistic_names
from ras_dit.evaluation.files import read_json, write_bytes
from ras_dit.evaluation.manifest import Manifest, Settings, load_manifest, load_settings
from ras_dit.evaluation.markdown import markdown_report
from ras_dit.evaluation.plot import draw_plot
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Statistic
from ras_dit.evaluation.scoring import SCORES, read_columns, read_summary
from ras_dit.evaluation.stages import refusals
from ras_dit.evaluation.timing import read_conditions, read_times
from ras_dit.evaluation.workshop import unit_path
from ras_dit.outline import read_outline

REPORT = "report.md"
TABLE = "report.csv"
PLOT = "tradeoff.png"


def write_report(folder: Path, out: Path) -> tuple[Path, ...]:
    """Write the report of an evaluation, however far it came.

    Args:
        folder: The evaluation's folder.
        out: Folder for the report.

    Returns:
        The files.

    Raises:
        RASError: If the folder holds no evaluation, or one without a picture.
    """
    manifest, settings = load_manifest(folder), load_settings(folder)
    results = read_results(folder, manifest, settings)
    if not any(result.pictures for result in results):
        raise RASError(f"{str(folder)!r} has no pictures yet; run generate first")
    found = {
        result.row.name: duels(result, results) if result.row.role == "row" else ()
        for result in results
    }
    text = markdown_report(
        settings.title,
        manifest,
        results,
        found,
        notes=_notes(folder, settings, results),
        conditions=read_conditions(folder),
        plot=PLOT,
    )
    write_bytes(out / REPORT, text.encode())
    write_bytes(out / TABLE, csv_report(results, found).encode())
    write_bytes(out / PLOT, draw_plot(settings.title, results))
    return out / REPORT, out / TABLE, out / PLOT


def read_results(folder: Path, manifest: Manifest, settings: Settings) -> tuple[RowResult, ...]:
    """All that the stages found of every row."""
    refused = refusals(folder)
    step = _dense_step(manifest)
    groups = {index: shot.group for index, shot in enumerate(manifest.shots)}
    results = []
    for row in manifest.rows:
        units = manifest.units(row)
        costs, pictures = _made(folder, manifest, row)
        cost = float(np.mean(costs)) if costs else None
        times = [time for time in read_times(folder, row.name) if "seconds" in time]
        statistics, columns = _scores(folder, settings, row)
        results.append(
            RowResult(
                row=row,
                pictures=pictures,
                wanted=sum(map(len, units)),
                cost=cost,
                seconds=tuple(time["seconds"] / time["batch"] for time in times),
                loop_seconds=tuple(time["loop_seconds"] / time["batch"] for time in times),
                peak_bytes=max((time["peak_bytes"] or 0 for time in times), default=0) or None,
                tera_flops=None if cost is None else cost * step / 1e12,
                statistics=statistics,
                columns=columns,
                groups=groups,
                refused=refused.get(row.name, ""),
            )
        )
    return tuple(results)


def csv_report(results: Sequence[RowResult], found: Mapping[str, Sequence[Duel]]) -> str:
    """One line per row, every number at full precision."""
    names = statistic_names(results)
    edges = {name: frontier(results, name) for name in names}
    headings = dict.fromkeys(key for result in results for key in result.row.published)
    lines = []
    for result in results:
        row = result.row
        line: dict[str, Any] = {
            "row": row.name,
            "role": row.role,
            "steps": row.steps,
            "sample_ratio": row.sampling and row.sampling.sample_ratio,
            "metric": row.sampling and row.sampling.metric,
            "scheduler": row.scheduler,
            "cache": None if row.cache is None else row.cache["name"],
            "pictures": result.pictures,
            "wanted": result.wanted,
            "cost_dense_steps": result.cost,
            "tera_flops": result.tera_flops,
            "seconds": result.median_seconds,
            "seconds_low": min(result.seconds, default=None),
            "seconds_high": max(result.seconds, default=None),
            "images_per_second": None if not result.seconds else 1 / _median(result),
            "peak_bytes": result.peak_bytes,
            "refused": result.refused,
        }
        for name in names:
            statistic = result.statistic(name)
            line[name] = statistic and statistic.value
            line[f"{name} low"] = statistic and statistic.low
            line[f"{name} high"] = statistic and statistic.high
            line[f"{name} frontier"] = row.name in edges[name]
        for duel in found[row.name]:
            line[f"against {duel.kind}"] = duel.verdict
            line[f"control {duel.kind}"] = duel.control
            line[f"time ratio {duel.kind}"] = duel.time_ratio
            for name, (low, high) in duel.gaps.items():
                line[f"{name} minus {duel.kind} low"] = low
                line[f"{name} minus {duel.kind} high"] = high
        line |= {f"published {key}": row.published.get(key) for key in headings}
        lines.append(line)
    fields = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _made(folder: Path, manifest: Manifest, row: Row) -> tuple[list[float], int]:
    """Cost of each picture that is there, and how many there are."""
    costs: list[float] = []
    pictures = 0
    for unit, indices in enumerate(manifest.units(row)):
        path = folder / unit_path(row, unit)
        if path.exists():
            pictures += len(indices)
            cost = read_json(path)["cost"]
            costs += [] if cost is None else [cost] * len(indices)
    return costs, pictures


def _scores(
    folder: Path, settings: Settings, row: Row
) -> tuple[tuple[Statistic, ...], dict[str, dict[int, float]]]:
    statistics: list[Statistic] = []
    columns: dict[str, dict[int, float]] = {}
    for name in settings.scores:
        found, _ = read_summary(folder, name, row.name)
        statistics += found
        wanted = {statistic.column for statistic in found} - {None}
        if not wanted:
            continue
        for line in read_columns(folder, name, row.name):
            for column in wanted:
                value = line.get(str(column))
                if isinstance(value, int | float) and math.isfinite(value):
                    columns.setdefault(str(column), {})[line["picture"]] = float(value)
    return tuple(statistics), columns


def _notes(folder: Path, settings: Settings, results: Sequence[RowResult]) -> list[str]:
    notes = []
    for name in settings.scores:
        path = folder / SCORES / name / "unavailable.json"
        if path.exists():
            notes.append(f"no {name}: {read_json(path)['reason']}")
        said = (read_summary(folder, name, result.row.name)[1] for result in results)
        notes += dict.fromkeys(note for note in said if note)
    notes += [f"{r.row.name} could not be had: {r.refused}" for r in results if r.refused]
    return notes


def _dense_step(manifest: Manifest) -> int:
    """FLOPs of the transformer in one dense step of one picture."""
    outline = read_outline(manifest.model, max_sequence_length=manifest.max_sequence_length)
    layout = outline.layout(manifest.width, manifest.height)
    count = layout.grid.num_tokens + layout.num_references
    unguided = manifest.guidance_scale is not None and manifest.guidance_scale <= 1
    return forward_flops(
        outline.work,
        batch=1 if unguided else outline.branches,
        num_tokens=count,
        num_active=count,
        num_text_tokens=layout.num_text,
    )


def _median(result: RowResult) -> float:
    assert result.median_seconds is not None
    return result.median_seconds
