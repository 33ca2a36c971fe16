"""Error against cost: a line for each kind of row that has several costs."""

from __future__ import annotations

from typing import Any

from benchmarks.multirate.tables import STATISTICS, Table
from ras_dit.evaluation.plot import as_png

_PANELS = STATISTICS[:3]
_FAINT = "#bbbbbb"


def draw_plot(shown: Table) -> bytes:
    """A panel per number, as PNG: controls and rows that decide in colour, the others in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS), squeeze=False)[0]
    for axes, name in zip(panels, _PANELS, strict=True):
        _panel(axes, name, shown)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    return as_png(figure)


def _panel(axes: Any, name: str, shown: Table) -> None:
    colour = 0
    for kind in dict.fromkeys(kind for kind, _ in shown.results):
        points = {
            result.cost: statistic
            for (own, _), result in shown.results.items()
            if own == kind and (statistic := result.statistic(name)) is not None
        }
        if not points:
            continue
        costs = sorted(points)
        numbers = [points[cost] for cost in costs]
        values = [n.value for n in numbers]
        if kind not in shown.main:
            axes.plot(costs, values, ".", color=_FAINT, zorder=0)
            continue
        spread = [
            [max(0.0, n.value - n.low) for n in numbers],
            [max(0.0, n.high - n.value) for n in numbers],
        ]
        axes.errorbar(costs, values, spread, fmt="o-", color=f"C{colour}", label=kind, capsize=2)
        colour += 1
    if "RMSE" in name:
        axes.set_yscale("log")
    axes.set_title(name)
    axes.set_xlabel("cost of an image, dense steps")
    axes.spines[["top", "right"]].set_visible(False)
