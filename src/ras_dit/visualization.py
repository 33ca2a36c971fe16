"""Pictures of where the work went: the region map, and dense beside region-adaptive."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Even in lightness, so that it reads the same with and without colour vision, and in grey print.
COLOURMAP = "viridis"
_OVERLAY = 0.6
# Inches; a panel is 512 dots long, and up to twice that for large pictures.
DOTS_PER_INCH = 160
_PANEL = 3.2
_GAP = 0.12
_CAPTION = 0.42
_LEGEND = 0.85
TEXT = {"family": "DejaVu Sans", "color": "#222222"}


def region_map(trace: Trace, image: Image.Image, index: int = 0) -> Image.Image:
    """How often each token was active, over the picture in grey, with a legend.

    Args:
        trace: The record of the run that made the picture.
        image: The picture.
        index: Which image of the run's batch it is.

    Returns:
        An RGB picture with a bar that gives the number of steps per colour.

    Raises:
        RASError: If the run had no such image.
    """
    counts = counts_of(trace, index)
    canvas = _Canvas(image, panels=1)
    mappable = draw_counts(canvas.panel(0), counts, len(trace.steps), image)
    canvas.colour_bar(mappable, len(trace.steps))
    return canvas.render()


def comparison(
    dense: Image.Image,
    ras: Image.Image,
    trace: Trace,
    index: int = 0,
    captions: Sequence[str] = ("dense", "region-adaptive", "where the work went"),
) -> Image.Image:
    """The dense picture, the region-adaptive one and its region map, side by side.

    Args:
        dense: The stock pipeline's picture.
        ras: The picture made with region-adaptive sampling, of the same size.
        trace: The record of the run that made ``ras``.
        index: Which image of the run's batch it is.
        captions: One line above each of the three panels.

    Raises:
        RASError: If the pictures differ in size, there are not three captions, or the run had no
            such image.
    """
    if dense.size != ras.size:
        raise RASError(f"the pictures differ in size: {dense.size} and {ras.size} pixels")
    if len(captions) != 3:
        raise RASError(f"{len(captions)} captions for three panels")
    counts = counts_of(trace, index)
    canvas = _Canvas(ras, panels=3, captions=captions)
    for place, image in enumerate((dense, ras)):
        canvas.panel(place).imshow(np.asarray(image.convert("RGB")), interpolation="lanczos")
    mappable = draw_counts(canvas.panel(2), counts, len(trace.steps), ras)
    canvas.colour_bar(mappable, len(trace.steps))
    return canvas.render()


def counts_of(trace: Trace, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """In how many steps each token of one image was active, ``[h, w]``.

    Raises:
        RASError: If the run had no such image.
    """
    if not 0 <= index < trace.batch_size:
        raise RASError(f"index={index}; the run made {trace.batch_size} images, counted from 0")
    counts: np.ndarray[Any, np.dtype[np.int64]] = trace.active_counts()[index].numpy()
    return counts


def draw_counts(
    axes: Any, counts: np.ndarray[Any, np.dtype[np.int64]], num_steps: int, image: Image.Image
) -> Any:
    """Draw counts ``[h, w]`` over a picture on matplotlib axes; gives what a colour bar needs."""
    # Grey below, so that every hue comes from the legend; light, so that the hues stay bright.
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    extent = (0, image.width, image.height, 0)
    axes.imshow(0.5 + 0.5 * grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    low, high = min(int(counts.min()), num_steps - 1), max(int(counts.max()), 1)
    if low == high:
        # No regions: whole steps were left out. One colour out of all that there could be.
        low, high = 0, num_steps
    return axes.imshow(
        counts,
        cmap=COLOURMAP,
        vmin=low,
        vmax=high,
        alpha=_OVERLAY,
        interpolation="nearest",
        extent=extent,
    )


class _Canvas:
    """A figure of equal panels with a colour bar at the right, in inches; no global state."""

    def __init__(self, image: Image.Image, panels: int, captions: Sequence[str] = ()) -> None:
        from matplotlib.figure import Figure

        scale = _PANEL / max(image.size)
        self._width, self._height = image.width * scale, image.height * scale
        top = _CAPTION if captions else _GAP
        self._size = (
            _GAP + panels * (self._width + _GAP) + _LEGEND,
            top + self._height + _GAP,
        )
        self._captions = captions
        self._panels = panels
        enlarged = min(2.0, max(1.0, max(image.size) / (_PANEL * DOTS_PER_INCH)))
        self.figure: Figure = Figure(
            figsize=self._size, dpi=DOTS_PER_INCH * enlarged, facecolor="white"
        )

    def panel(self, place: int) -> Any:
        left = _GAP + place * (self._width + _GAP)
        axes = self._axes(left, self._width)
        axes.set_axis_off()
        if self._captions:
            axes.set_title(self._captions[place], fontsize=10, pad=6, **TEXT)
        return axes

    def colour_bar(self, mappable: Any, num_steps: int) -> None:
        axes = self._axes(_GAP + self._panels * (self._width + _GAP), 0.14)
        # Drawn with the overlay's own transparency on white: the colours that the map shows.
        bar = self.figure.colorbar(mappable, cax=axes)
        low, high = (int(limit) for limit in mappable.get_clim())
        bar.set_ticks(ticks(low, high))
        bar.ax.tick_params(labelsize=8, length=2, pad=2, colors="#222222")
        bar.set_label(f"active steps of {num_steps}", fontsize=8, **TEXT)
        bar.outline.set_visible(False)

    def render(self) -> Image.Image:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return Image.open(buffer).convert("RGB")

    def _axes(self, left: float, width: float) -> Any:
        total_width, total_height = self._size
        return self.figure.add_axes(
            (
                left / total_width,
                _GAP / total_height,
                width / total_width,
                self._height / total_height,
            )
        )


def ticks(low: int, high: int) -> list[int]:
    """Both ends, and round numbers that keep their distance from them."""
    span = max(1, high - low)
    stride = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if span / s <= 7)
    inner = range((low // stride + 1) * stride, high, stride)
    return [low, *(t for t in inner if t - low >= stride / 2 and high - t >= stride / 2), high]
