"""The plot of quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from ras_dit.evaluation.comparisons import (
    RowResult,
    all_timed,
    frontier,
    statistic_names,
    time_of,
)
from ras_dit.evaluation.rows import Role, Row

_MOST_PANELS = 6
# More names than that hide each other: then only those of the frontier.
_MOST_NAMES = 24
# Colours that all common kinds of colour blindness tell apart.
_LOOKS: Mapping[Role, tuple[str, str, str]] = {
    "row": ("#c25a00", "o", "rows"),
    "reference": ("#000000", "*", "reference"),
    "fewer steps": ("#1f5f99", "s", "fewer dense steps"),
    "second order": ("#5aa17f", "^", "second-order solver"),
    "random": ("#999999", "x", "random tokens"),
}


def draw_plot(title: str, results: Sequence[RowResult]) -> bytes:
    """A panel per statistic, as PNG: points with intervals, and the frontier as a line.

    Args:
        title: Heading.
        results: The rows; those without a number or a time are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = statistic_names(results)[:_MOST_PANELS]
    columns = min(3, max(1, len(names)))
    lines = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(5.2 * columns, 4 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, name, results)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(title.replace("$", r"\$"))
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
        )
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """A figure of matplotlib as a file: the same figure gives the same bytes."""
    buffer = BytesIO()
    # Without the release of matplotlib in it, equal results give equal files for longer.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _kind(row: Row) -> Role:
    """What a row is drawn as: a dense one looks the same whether it was asked for or added."""
    is_dense = row.config is None and row.scheduler is None and row.cache is None
    return "fewer steps" if row.role == "row" and is_dense else row.role


def _panel(axes: Any, name: str, results: Sequence[RowResult]) -> None:
    measured = all_timed(results)
    edge = frontier(results, name)
    shown = []
    for result in results:
        statistic, time = result.statistic(name), time_of(result, measured=measured)
        if statistic is None or time is None:
            continue
        colour, marker, label = _LOOKS[_kind(result.row)]
        below, above = statistic.value - statistic.low, statistic.high - statistic.value
        axes.errorbar(
            time,
            statistic.value,
            [[max(0, below)], [max(0, above)]],
            fmt=marker,
            color=colour,
            label=label,
            elinewidth=0.8,
            capsize=2,
        )
        if len(results) <= _MOST_NAMES or result.row.name in edge:
            axes.annotate(
                result.row.name.replace("$", r"\$"),
                (time, statistic.value),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=6,
                color=colour,
            )
        shown.append((time, statistic, result.row.name))
    best = sorted((time, s.value) for time, s, row in shown if row in edge)
    axes.plot(*zip(*best, strict=True), color="#bbbbbb", linewidth=1, zorder=0, label="frontier")
    statistic = shown[0][1]
    unit = f", {statistic.unit}" if statistic.unit else ""
    axes.set_ylabel(f"{name}{unit} ({statistic.better} is better)")
    axes.set_xlabel("seconds per image" if measured else "cost of an image, dense steps")
    axes.spines[["top", "right"]].set_visible(False)
