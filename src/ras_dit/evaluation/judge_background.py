"""What is behind the things, measured from pixels: colours, and stripes, checks or a change.

Nothing here is learned. The picture is averaged over cells of a quarter of the world's stripes (4
pixels at 128, 8 at 256); cells that things cover are left out; the others are fitted with a change
from top to bottom and with stripes and checks of several widths and phases, and the fit that
explains them best decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ras_dit.world import COLOURS

Floats = NDArray[np.float64]
SeenKind = Literal["plain", "graded", "striped", "checkered"]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

GRAIN: Final = 4  # pixels: the world's stripes and checks are multiples of it
BANDS: Final = 8  # stripes, or rows of checks, along the picture's shorter side
# A share of the variance that a fit must explain, and the least distance of its two colours.
EXPLAINED: Final = 0.5
CONTRAST: Final = 0.07  # in RGB of 0 to 1
NEAR: Final = 22.0  # CIE 1976 difference up to which a colour still has its name
_OUTLIER = 0.15
_ROUNDS = 3
_LIGHT = (0.6, 0.4)  # the second colour of a pattern: so much of the first, so much white
_LIGHT_OF_WHITE = 0.8


@dataclass(frozen=True, slots=True)
class SeenBackground:
    """What was measured behind the things.

    Attributes:
        kind: What fits best.
        colour: Name of its (upper, or main) colour; ``None`` where no colour of the world is near.
        rgb: That colour as measured, 0 to 255.
        second: Name of the lower colour of a graded background; else as `colour`.
        second_rgb: The lower, or the pattern's other colour as measured; else as `rgb`.
        explained: Share of the variance that the fit explains; 0 for a plain background.
    """

    kind: SeenKind
    colour: str | None
    rgb: tuple[int, int, int]
    second: str | None
    second_rgb: tuple[int, int, int]
    explained: float


def lab(rgb: Floats) -> Floats:
    """CIE L*a*b* (D65) of sRGB colours of 0 to 1, [..., 3]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    small = xyz <= (6 / 29) ** 3
    root = np.where(small, xyz / (3 * (6 / 29) ** 2) + 4 / 29, np.cbrt(xyz))
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_NAMES: Final = tuple(COLOURS)
_FIRST: Final = np.array([COLOURS[name] for name in _NAMES], dtype=np.float64) / 255
_SECOND: Final = np.where(
    np.array([name == "white" for name in _NAMES])[:, None],
    _FIRST * _LIGHT_OF_WHITE,
    _FIRST * _LIGHT[0] + _LIGHT[1],
)


def colour_name(rgb: Floats) -> str | None:
    """The world's colour that is nearest to an RGB colour of 0 to 1; None if none is near."""
    differences = np.linalg.norm(lab(rgb) - lab(_FIRST), axis=-1)
    best = int(differences.argmin())
    return _NAMES[best] if differences[best] <= NEAR else None


def _pattern_colour(levels: Floats) -> tuple[str | None, int]:
    """Name of a pattern's main colour, and which of its two levels [2, 3] that is."""
    seen = lab(levels)
    first, second = lab(_FIRST), lab(_SECOND)
    apart = np.stack(
        [
            np.linalg.norm(seen[main] - first, axis=-1)
            + np.linalg.norm(seen[1 - main] - second, axis=-1)
            for main in (0, 1)
        ]
    )
    main, best = np.unravel_index(int(apart.argmin()), apart.shape)
    return (_NAMES[best] if apart[main, best] <= 2 * NEAR else None), int(main)


def _cells(pixels: Floats, boxes: Sequence[Box], cell: int) -> tuple[Floats, Floats, Floats]:
    """Mean colours [n, 3] of the cells outside the boxes, and their middles x [n], y [n]."""
    height, width = (side // cell for side in pixels.shape[:2])
    cut = pixels[: height * cell, : width * cell]
    means = cut.reshape(height, cell, width, cell, 3).mean(axis=(1, 3))
    y, x = ((np.indices((height, width)) + 0.5) * cell).astype(np.float64)
    free = np.ones((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        half = cell / 2
        covered = (x > left - half) & (x < right + half) & (y > top - half) & (y < bottom + half)
        if (free & ~covered).sum() >= free.size // 50:
            free &= ~covered
    return means[free], x[free], y[free]


def _templates(
    x: Floats, y: Floats, height: int, usual: int, cell: int
) -> Iterator[tuple[SeenKind, Floats]]:
    """Every fit that is tried, as numbers of 0 to 1 for each cell."""
    yield "graded", y / height
    for band in sorted(
        {max(cell, round(usual * share / cell) * cell) for share in (0.75, 1, 1.25)}
    ):
        phases = np.arange(0, band, cell)
        across = [np.floor((x + phase) / band) % 2 for phase in phases]
        yield from (("striped", columns) for columns in across)
        for phase in phases:
            rows = np.floor((y + phase) / band) % 2
            yield from (("checkered", (columns + rows) % 2) for columns in across)


def _fit(colours: Floats, kept: NDArray[np.bool_], template: Floats) -> tuple[float, Floats]:
    """Share of the variance that a template explains, and its colours [2, 3] at 0 and at 1."""
    inside, wanted = template[kept], colours[kept]
    middle, mean = inside.mean(), wanted.mean(axis=0)
    moved, spread = inside - middle, wanted - mean
    norm = float(moved @ moved)
    if norm < 1e-9:
        return 0.0, np.stack([mean, mean])
    slope = moved @ spread / norm
    explained = norm * float(slope @ slope) / max(float((spread**2).sum()), 1e-12)
    return explained, np.stack([mean - middle * slope, mean + (1 - middle) * slope])


def measure_background(pixels: Floats, boxes: Sequence[Box]) -> SeenBackground:
    """Measure what is behind the things.

    Args:
        pixels: RGB ``[height, width, 3]`` of 0 to 1, at least 8 pixels each way.
        boxes: What things cover; a box that would leave next to nothing to see is ignored.
    """
    height, width = pixels.shape[:2]
    band = max(GRAIN, round(min(width, height) / BANDS / GRAIN) * GRAIN)
    cell = max(GRAIN, band // 4 // GRAIN * GRAIN)
    colours, x, y = _cells(pixels, boxes, cell)
    templates = list(_templates(x, y, height, band, cell))
    usual: Floats = np.median(colours, axis=0)
    kept = np.ones(len(colours), dtype=bool)
    kind: SeenKind = "plain"
    explained, levels = 0.0, np.stack([usual, usual])
    for _ in range(_ROUNDS):
        fits = [(*_fit(colours, kept, template), name, template) for name, template in templates]
        explained, levels, kind, template = max(fits, key=lambda fit: fit[0])
        if explained < EXPLAINED or np.linalg.norm(levels[1] - levels[0]) < CONTRAST:
            kind, explained, levels = "plain", 0.0, np.stack([usual, usual])
            template = np.zeros_like(x)
        found = levels[0] + template[:, None] * (levels[1] - levels[0])
        inliers = np.linalg.norm(colours - found, axis=1) < _OUTLIER
        if inliers.mean() < 0.5 or bool((inliers == kept).all()):
            break
        kept = inliers
        usual = np.median(colours[kept], axis=0)
    return _named(kind, np.clip(levels, 0, 1), explained)


def _named(kind: SeenKind, levels: Floats, explained: float) -> SeenBackground:
    main = 0
    if kind in ("striped", "checkered"):
        name, main = _pattern_colour(levels)
        second = name
    else:
        name, second = colour_name(levels[0]), colour_name(levels[1])
        if kind == "graded" and name is not None and name == second:
            # One colour that is a little lighter at one end is still one colour.
            kind, explained = "plain", 0.0
            levels = np.repeat(levels.mean(axis=0, keepdims=True), 2, axis=0)
    first_rgb, second_rgb = (
        (round(r), round(g), round(b)) for r, g, b in levels[[main, 1 - main]] * 255
    )
    return SeenBackground(kind, name, first_rgb, second, second_rgb, round(explained, 4))
