"""The report in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ras_dit.evaluation.comparisons import (
    EQUAL,
    Duel,
    RowResult,
    all_timed,
    frontier,
    statistic_names,
)
from ras_dit.evaluation.manifest import Manifest
from ras_dit.evaluation.rows import CONTROLS
from ras_dit.evaluation.scorers import Statistic

# What a paper calls what we measure otherwise than by a scorer.
_SECONDS = ("time/image (s)", "seconds")
_RATE = ("image/s", "images/s")
_SPEED = ("speedup", "speed-up")


def markdown_report(
    title: str,
    manifest: Manifest,
    results: Sequence[RowResult],
    found: Mapping[str, Sequence[Duel]],
    *,
    notes: Sequence[str],
    conditions: Mapping[str, Any] | None,
    plot: str,
) -> str:
    """The whole report.

    Args:
        title: Its heading.
        manifest: What was made.
        results: What was found.
        found: Each row against its controls.
        notes: What else there is to say.
        conditions: How times were measured.
        plot: File name of the plot.
    """
    parts = [
        f"# {title}",
        _setting(manifest, conditions),
        _results_table(results, found),
        f"![quality against time]({plot})",
        _duel_table(found),
        _published_table(results),
        _frontier_lines(results),
    ]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(manifest: Manifest, conditions: Mapping[str, Any] | None) -> str:
    size = "the model's size"
    if manifest.width is not None:
        size = f"{manifest.width} x {manifest.height} pixels"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    what = (
        f"{manifest.model or 'The embedded model'}, {size}, {len(manifest.shots)} pictures of "
        f"{len(manifest.prompts)} prompts, the reference is {manifest.reference.name}; {versions}."
    )
    how = (
        "Intervals are 95 %, by bootstrap over prompts. Cost is in evaluations of the dense "
        "transformer."
    )
    lines = [what, how]
    if conditions is None:
        lines.append("Times were not measured; rows are compared at equal cost.")
    else:
        lines.append(
            f"Times: {conditions['device']}, {conditions['threads']} threads, batch "
            f"{conditions['batch']}, {conditions['size'] or size}, medians of rounds in turn."
        )
    return "\n".join(lines)


def _results_table(results: Sequence[RowResult], found: Mapping[str, Sequence[Duel]]) -> str:
    names = statistic_names(results)
    timed = any(result.seconds for result in results)
    kinds = [kind for kind in CONTROLS if any(d.kind == kind for ds in found.values() for d in ds)]
    head = ["row", "pictures", "cost", "TFLOPs"]
    head += ["s/image", "image/s", "peak MiB"] if timed else []
    head += [heading(results, name) for name in names]
    head += [f"against {kind}" for kind in kinds]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for result in sorted(results, key=lambda r: -(r.cost or 0)):
        count = str(result.pictures)
        if result.pictures < result.wanted:
            count += f" of {result.wanted}"
        role = "" if result.row.role == "row" else f" ({result.row.role})"
        cells = [f"{result.row.name}{role}", count]
        cells += [number(result.cost, ".1f"), number(result.tera_flops, ".3g")]
        if timed:
            seconds = result.median_seconds
            peak = None if result.peak_bytes is None else result.peak_bytes / 2**20
            cells += [number(seconds, ".3g"), number(seconds and 1 / seconds, ".3g")]
            cells.append(number(peak, ".0f"))
        cells += [estimate(result.statistic(name)) for name in names]
        by_kind = {duel.kind: duel for duel in found[result.row.name]}
        cells += [by_kind[k].verdict if k in by_kind else "" for k in kinds]
        lines.append(cells)
    return table(lines)


def _duel_table(found: Mapping[str, Sequence[Duel]]) -> str:
    lines = [["row", "control", "its time", "beats", "ties", "loses"], ["---"] * 6]
    for name, fights in found.items():
        for duel in fights:
            sides = {
                word: ", ".join(
                    f"{s} ({gap_text(duel.gaps[s])})" for s, w in duel.words.items() if w == word
                )
                for word in ("beats", "ties", "loses")
            }
            about = "" if duel.equal_time else ", not equal"
            lines.append(
                [
                    name,
                    f"{duel.control} ({duel.kind})",
                    f"{duel.time_ratio:.2f}x{about}",
                    *sides.values(),
                ]
            )
    if len(lines) == 2:
        return ""
    return (
        "## Against the controls of equal time\n\nThe control nearest in time of each kind (the "
        "reference only where it is alone), or a faster one that the row is worse than; equal "
        f"within a factor of {EQUAL:g}. A row beats or loses where the 95 % interval of the "
        "difference (row minus control, in brackets; picture by picture where there is a number "
        "per picture) excludes 0.\n\n" + table(lines)
    )


def _published_table(results: Sequence[RowResult]) -> str:
    lines = [["row", "number", "published", "here"], ["---", "---", "---:", "---:"]]
    reference = next((r for r in results if r.row.role == "reference"), None)
    for result in results:
        for key, value in result.row.published.items():
            ours = _ours(result, key, reference)
            lines.append([result.row.name, key, f"{value:g}", ours])
    if len(lines) == 2:
        return ""
    return (
        "## Beside the published numbers\n\nOther machines, and where the model is another one, "
        "other pictures: only orders and differences between rows compare.\n\n" + table(lines)
    )


def _ours(result: RowResult, key: str, reference: RowResult | None) -> str:
    seconds = result.median_seconds
    if key.lower() in _SECONDS:
        return number(seconds, ".3g")
    if key.lower() in _RATE:
        return number(seconds and 1 / seconds, ".3g")
    if key.lower() in _SPEED:
        base = None if reference is None else reference.median_seconds
        return number(base and seconds and base / seconds, ".3g")
    return estimate(result.statistic(key))


def _frontier_lines(results: Sequence[RowResult]) -> str:
    by = "seconds" if all_timed(results) else "cost"
    lines = [
        f"- {name}: {', '.join(sorted(frontier(results, name)))}"
        for name in statistic_names(results)
    ]
    if not lines:
        return ""
    return f"## On the frontier of quality and {by}\n\n" + "\n".join(lines)


def heading(results: Sequence[RowResult], name: str) -> str:
    """A statistic's name, unit, and which way is better."""
    statistic = next(s for r in results if (s := r.statistic(name)) is not None)
    arrow = "↑" if statistic.better == "higher" else "↓"
    return f"{name}{f', {statistic.unit}' if statistic.unit else ''} {arrow}"


def estimate(statistic: Statistic | None) -> str:
    """A number with its interval; empty where there is none."""
    if statistic is None:
        return ""
    digits = ".3f" if abs(statistic.value) < 1.5 else ".2f"
    value, low, high = (f"{n:{digits}}" for n in (statistic.value, statistic.low, statistic.high))
    return f"{value} ({low} to {high})"


def gap_text(gap: tuple[float, float]) -> str:
    """An interval of a difference."""
    return f"{gap[0]:+.3g} to {gap[1]:+.3g}"


def number(value: float | None, form: str) -> str:
    """A number; empty where there is none."""
    return "" if value is None else f"{value:{form}}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown of a head, a line of rules, and rows."""
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
