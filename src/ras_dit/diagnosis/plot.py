"""The plots of a diagnosis, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ras_dit.diagnosis import maths
from ras_dit.diagnosis.fields import FIRST, SECOND
from ras_dit.diagnosis.measure import PARTS, Diagnosis
from ras_dit.diagnosis.verdict import LITTLE_SPREAD, MUCH_SPREAD
from ras_dit.evaluation.plot import as_png

# Colours that all common kinds of colour blindness tell apart.
_BLUE, _ORANGE, _GREEN, _GREY, _BLACK = "#0072b2", "#d55e00", "#009e73", "#888888", "#000000"
_COLOURS = {"held": _ORANGE, "stale": _BLUE, "text": _GREEN, "all": _BLACK, "fewer": _GREY}
_SIGMA = "σ (the run goes from left to right)"  # noqa: RUF001
_PANEL = (4.8, 3.5)
_SHOWN = 4
# Series of a panel: name, label, colour, line style.
_Lines = Sequence[tuple[str, str, str, str]]


def draw_spread(diagnosis: Diagnosis) -> bytes:
    """How unlike tokens are, what that is worth, and how fast the velocity changes."""
    figure, (left, middle, right) = _figure(3)
    _panel(
        left,
        diagnosis,
        "standard deviation over tokens of ln",
        [
            ("slope_spread", FIRST, _BLUE, "-"),
            ("bend_spread", SECOND, _ORANGE, "-"),
        ],
    )
    for level, word in ((LITTLE_SPREAD, "little below"), (MUCH_SPREAD, "much above")):
        left.axhline(level, color=_GREY, linewidth=0.8, linestyle=":")
        left.annotate(
            word, (0, level), xytext=(0, 2), textcoords="offset points", fontsize=7, ha="right"
        )
    left.set_ylim(bottom=0)
    _panel(
        middle,
        diagnosis,
        "cost saved at equal error, at most",
        [
            ("slope_saving", "order 1, known", _BLUE, "-"),
            ("slope_saving_3", "order 1, by 3 steps before", _BLUE, "--"),
            ("bend_saving", "order 2, known", _ORANGE, "-"),
            ("bend_saving_3", "order 2, by 3 steps before", _ORANGE, "--"),
        ],
    )
    middle.axhline(1, color=_GREY, linewidth=0.8, linestyle=":")
    _panel(
        right,
        diagnosis,
        "size, over that of v",
        [
            ("slope_size", FIRST, _BLUE, "-"),
            ("bend_size", SECOND, _ORANGE, "-"),
        ],
    )
    right.set_yscale("log")
    return as_png(figure)


def draw_order(diagnosis: Diagnosis) -> bytes:
    """How the order of tokens persists, and what it goes with."""
    figure, (left, right) = _figure(2)
    _panel(
        left,
        diagnosis,
        "rank correlation with earlier steps",
        [
            ("slope_persistence_1", f"{FIRST}, 1 step", _BLUE, "-"),
            ("slope_persistence_3", f"{FIRST}, 3 steps", _BLUE, "--"),
            ("bend_persistence_1", f"{SECOND}, 1 step", _ORANGE, "-"),
            ("bend_persistence_3", f"{SECOND}, 3 steps", _ORANGE, "--"),
        ],
    )
    _panel(
        right,
        diagnosis,
        f"correlation with {FIRST}; of neighbours",
        [
            ("slope_std", "std score", _ORANGE, "-"),
            ("slope_l2", "l2 score", _BLUE, "-"),
            ("slope_edges", "edges", _GREEN, "-"),
            ("neighbours", "innovations of neighbours", _BLACK, "--"),
        ],
    )
    for axes in (left, right):
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.set_ylim(-1, 1)
    return as_png(figure)


def draw_parts(diagnosis: Diagnosis) -> bytes:
    """Errors of the parts of a sparse step, on one logarithmic scale."""
    figure, (axes,) = _figure(1, width=1.8)
    labels = []
    for place, part in enumerate(diagnosis.parts):
        estimate = part.estimate
        low, high = estimate.low, estimate.high
        ends = None
        if low is not None and high is not None:
            ends = [[max(0.0, estimate.mean - low)], [max(0.0, high - estimate.mean)]]
        colour = _COLOURS[part.name]
        axes.errorbar(estimate.mean, place, xerr=ends, fmt="o", color=colour, capsize=3)
        ratio = "" if part.ratio is None else f", ratio {part.ratio:g}"
        labels.append(f"{PARTS[part.name]}{ratio}")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    if any(part.estimate.mean > 0 for part in diagnosis.parts):
        axes.set_xscale("log")
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_xlabel("error of the final latents, over their size")
    return as_png(figure)


def draw_maps(diagnosis: Diagnosis) -> bytes:
    """The first picture, its edges, and where its velocity changes, at a few noise levels."""
    fields, sigmas = diagnosis.example, diagnosis.example.sigmas
    shape = fields.grid.height, fields.grid.width
    sizes = maths.magnitudes(maths.slopes(fields.velocities(0), sigmas))
    figure, panels = _figure(2 + _SHOWN, width=0.42, height=0.75)
    panels[0].imshow(diagnosis.picture)
    panels[0].set_title("picture", fontsize=9)
    panels[1].imshow(fields.edges[0].view(shape).numpy(), cmap="viridis")
    panels[1].set_title("edges", fontsize=9)
    for number, axes in enumerate(panels[2:]):
        step = number * (len(sizes) - 1) // (_SHOWN - 1)
        logs = sizes[step].clamp_min(1e-12).log()
        axes.imshow((logs - logs.mean()).view(shape).numpy(), cmap="viridis")
        sigma = float(sigmas[step : step + 2].mean())
        axes.set_title(f"ln {FIRST}\nσ {sigma:.2f}, ±{float(logs.std()):.2f}", fontsize=9)  # noqa: RUF001
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    return as_png(figure)


def _figure(columns: int, *, width: float = 1.0, height: float = 1.0) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = _PANEL[0] * width * columns, _PANEL[1] * height
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False).ravel())


def _panel(axes: Any, diagnosis: Diagnosis, label: str, lines: _Lines) -> None:
    for name, meaning, colour, style in lines:
        sigmas, estimates = zip(*diagnosis.by_step(name), strict=True)
        means = [estimate.mean for estimate in estimates]
        axes.plot(sigmas, means, color=colour, linestyle=style, linewidth=1.3, label=meaning)
        if all(estimate.low is not None for estimate in estimates):
            lows, highs = zip(*((e.low, e.high) for e in estimates), strict=True)
            axes.fill_between(sigmas, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(1, 0)
    axes.set_xlabel(_SIGMA, fontsize=8)
    axes.set_ylabel(label, fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
