"""Figures of several panels, placed in inches: the paper on which all figures are drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ras_dit.visualization import COLOURMAP, DOTS_PER_INCH, TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = np.ndarray[Any, np.dtype[Any]]

BAR = 0.12
_VEIL = 0.78
_DARK = 0.3


class Sheet:
    """A white figure whose parts are placed in inches from the top left; no global state.

    Args:
        width: In inches.
        height: In inches.
        dots_per_inch: Resolution.
    """

    def __init__(self, width: float, height: float, dots_per_inch: int = DOTS_PER_INCH) -> None:
        from matplotlib.figure import Figure

        self.size = width, height
        self.figure: Figure = Figure(figsize=self.size, dpi=dots_per_inch, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without a frame."""
        across, down = self.size
        place = (left / across, 1 - (top + height) / down, width / across, height / down)
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is given, unless ``style`` aligns it otherwise."""
        across, down = self.size
        style = {"fontsize": 9, "va": "top", "ha": "left", **TEXT, **style}
        self.figure.text(left / across, 1 - top / down, text, **style)

    def scale(
        self, left: float, top: float, height: float, mappable: Any, label: str, **bar: Any
    ) -> Any:
        """A vertical colour bar with its label; gives the bar."""
        axes = self.axes(left, top, BAR, height)
        axes.set_axis_on()
        drawn = self.figure.colorbar(mappable, cax=axes, **bar)
        drawn.ax.tick_params(labelsize=8, length=2, pad=2, colors=TEXT["color"])
        drawn.set_label(label, fontsize=8, **TEXT)
        drawn.outline.set_visible(False)
        return drawn

    def swatches(self, left: float, top: float, veil: str) -> None:
        """The legend of :func:`draw_active`, from what it gave."""
        for row, (name, colour) in enumerate({"left out": veil, "active: clear": "none"}.items()):
            axes = self.axes(left, top + 0.24 * row, 0.16, 0.16)
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[], facecolor=colour)
            axes.spines[:].set_color("#888888")
            self.text(left + 0.22, top + 0.24 * row + 0.08, name, fontsize=8, va="center")

    def render(self) -> Image.Image:
        """The figure as an RGB picture."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return Image.open(buffer).convert("RGB")


def fitted(aspect: float, longest: float) -> tuple[float, float]:
    """Width and height of a panel from its width over its height and its longest side."""
    return (longest, longest / aspect) if aspect >= 1 else (longest * aspect, longest)


def draw_picture(axes: Any, picture: Image.Image) -> None:
    """Draw a picture in its own colours."""
    axes.imshow(np.asarray(picture.convert("RGB")), interpolation="lanczos", aspect="auto")
    _frame(axes)


def draw_values(axes: Any, values: Values, ends: tuple[float, float]) -> Any:
    """Draw one value per token, ``[h, w]``, on a scale with these ends; gives what a bar needs."""
    low, high = ends
    return axes.imshow(
        values, cmap=COLOURMAP, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
    )


def draw_active(axes: Any, mask: Values, picture: Image.Image) -> str:
    """Draw a picture with the tokens veiled that are not in ``mask``, bool ``[h, w]``.

    Returns:
        The colour of the veil: the dark end of the colour map, or the light one over dark pictures.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex, to_rgb

    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    veil = to_hex(colormaps[COLOURMAP](0.0 if pixels.mean() > _DARK else 1.0))
    rows = np.arange(picture.height) * mask.shape[0] // picture.height
    columns = np.arange(picture.width) * mask.shape[1] // picture.width
    left_out = ~mask[rows][:, columns, None]
    shown = pixels + _VEIL * left_out * (np.asarray(to_rgb(veil)) - pixels)
    axes.imshow(shown, aspect="auto")
    _frame(axes)
    return veil


def _frame(axes: Any) -> None:
    """A thin line, without which a picture on white would have no edge."""
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="#bbbbbb", linewidth=0.5)
