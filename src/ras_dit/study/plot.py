"""The plot of a study: what was preferred, prompt by prompt and in all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ras_dit.study.analyse import Analysis

# From blue to orange: told apart by all common kinds of colour blindness.
_COLOURS = ("#1f5f99", "#8db8dd", "#d9d9d9", "#f3b37a", "#c25a00")
_LONGEST_LABEL = 46


def write_plot(analysis: Analysis, path: Path) -> None:
    """Write stacked bars of the five answers, centred on "similar", as PNG.

    Args:
        analysis: The results.
        path: The PNG file.

    Raises:
        OSError: If the file cannot be written.
    """
    names = {arm: _short(analysis.key.arms[arm].name, 20) for arm in ("a", "b")}
    legend = (
        f"A ({names['a']}) obviously",
        "A slightly",
        "similar",
        "B slightly",
        f"B ({names['b']}) obviously",
    )
    bars = [("all prompts", analysis.overall)]
    bars += [
        (f"{number}. {_short(result.prompt, _LONGEST_LABEL)}", result.tally)
        for number, result in enumerate(analysis.prompts, 1)
    ]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # A gap between the sum and its parts.
    heights = [0.0, *(row + 1.5 for row in range(len(bars) - 1))]
    for height, (_, tally) in zip(heights, bars, strict=True):
        left = -100 * (tally.a.count + tally.similar.count / 2) / max(1, tally.total)
        for level, count in enumerate(tally.levels):
            width = 100 * count / max(1, tally.total)
            label = legend[level] if height == 0 else None
            axes.barh(height, width, 0.75, left, color=_COLOURS[level], label=label)
            if width >= 7:
                ink = "white" if level in (0, 4) else "black"
                at = left + width / 2
                axes.text(at, height, f"{width:.0f}", ha="center", va="center", color=ink, size=8)
            left += width
    # Behind the bars, so that it does not cross their numbers.
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_yticks(heights, [label for label, _ in bars])
    axes.invert_yaxis()
    widest = max(abs(limit) for limit in axes.get_xlim())
    axes.set_xlim(-widest, widest)
    ticks = [tick for tick in range(-100, 101, 25) if abs(tick) <= widest]
    axes.set_xticks(ticks, [f"{abs(tick)}" for tick in ticks])
    axes.set_xlabel("% of votes: prefer A to the left, prefer B to the right")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False
    )
    figure.savefig(path, format="png", dpi=150)


def _short(text: str, most: int) -> str:
    # Matplotlib reads what is between two dollar signs as mathematics.
    flat = " ".join(text.split())
    cut = flat if len(flat) <= most else flat[: most - 1].rstrip() + "…"
    return cut.replace("$", r"\$")
