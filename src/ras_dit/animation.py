"""A run as an animation: the picture at every step, and the tokens that were active in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ras_dit.errors import RASError
from ras_dit.figures import active_mask, activity
from ras_dit.sheet import Sheet, draw_active, draw_picture, fitted
from ras_dit.trace import Trace
from ras_dit.visualization import TEXT

# Inches.
_MARGIN, _GAP, _PANEL, _LEGEND, _STRIP, _HEAD = 0.15, 0.12, 2.56, 1.0, 0.5, 0.36
DOTS_PER_INCH = 100  # a panel of 256 dots
_LAST_FRAME = 8  # shown as long as this many others


def animation(
    trace: Trace,
    decoded: Sequence[Image.Image],
    index: int = 0,
    *,
    dots_per_inch: int = DOTS_PER_INCH,
) -> tuple[Image.Image, ...]:
    """One frame per step: the picture decoded there, the active tokens over it, and the schedule.

    Args:
        trace: The record of the run.
        decoded: The picture at every step of the run, in order.
        index: Which image of the run's batch.
        dots_per_inch: Resolution.

    Returns:
        RGB pictures of one size.

    Raises:
        RASError: If there is not one picture per step, or the run had no such image.
    """
    if len(decoded) != len(trace.steps):
        raise RASError(f"{len(decoded)} pictures for {len(trace.steps)} steps; expected one each")
    return tuple(
        _frame(trace, step, picture, index, dots_per_inch) for step, picture in enumerate(decoded)
    )


def save_animation(
    frames: Sequence[Image.Image], path: str | Path, *, seconds_per_step: float = 0.25
) -> None:
    """Write frames as a GIF, or as an animated PNG, that plays for ever.

    Args:
        frames: Pictures of one size.
        path: A file whose name ends in ``.gif`` or ``.png``.
        seconds_per_step: How long each frame stays; the last one stays longer.

    Raises:
        RASError: If there is no frame, the name ends otherwise, or the time is not positive.
    """
    path = Path(path)
    if not frames:
        raise RASError("there is no frame to write; an animation needs at least one")
    if path.suffix not in (".gif", ".png"):
        raise RASError(f"{path.name!r} ends in neither .gif nor .png")
    if not seconds_per_step > 0:
        raise RASError(f"seconds_per_step={seconds_per_step}; expected a number above 0")
    durations = [round(1000 * seconds_per_step)] * len(frames)
    durations[-1] *= _LAST_FRAME
    first, *others = frames
    if path.suffix == ".gif":
        # Without dithering, so that what does not change between frames is not stored again.
        first, *others = (
            frame.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            for frame in frames
        )
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _frame(
    trace: Trace, step: int, picture: Image.Image, index: int, dots_per_inch: int
) -> Image.Image:
    mask = active_mask(trace, step, index)
    width, height = fitted(picture.width / picture.height, _PANEL)
    across = 2 * _MARGIN + 2 * (width + _GAP) + _LEGEND
    sheet = Sheet(across, _HEAD + height + 0.3 + _STRIP + 0.25, dots_per_inch)
    sheet.text(_MARGIN, 0.1, activity(trace.steps[step], len(trace.steps)), fontsize=10)
    draw_picture(sheet.axes(_MARGIN, _HEAD, width, height), picture)
    left = _MARGIN + width + _GAP
    veil = draw_active(sheet.axes(left, _HEAD, width, height), mask, picture)
    sheet.swatches(left + width + _GAP, _HEAD + 0.01, veil)
    place = (_MARGIN + 0.25, _HEAD + height + 0.3, across - 2 * _MARGIN - 0.25, _STRIP)
    _draw_schedule(sheet.axes(*place), trace, step)
    return sheet.render()


def _draw_schedule(axes: Any, trace: Trace, current: int) -> None:
    """Bars of the share of active tokens per step, with the current one dark."""
    axes.set_axis_on()
    shares = [100 * step.num_active / step.num_tokens for step in trace.steps]
    colours = ["#31688e" if index == current else "#c8ced6" for index in range(len(shares))]
    axes.bar(range(len(shares)), shares, width=0.8, color=colours)
    axes.set_xlim(-0.6, len(shares) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.set_title("active tokens per step, %", fontsize=8, pad=3, loc="left", **TEXT)
    axes.tick_params(labelsize=7, length=2, pad=2, colors=TEXT["color"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
