"""Pictures of scenes, drawn from the emoji art with PIL and numpy."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ras_dit.world import COLOURS, Background, Scene, Thing

Pixels = npt.NDArray[np.float32]  # [height, width, channels], 0 to 1

WHITE = (255, 255, 255)
GRAIN = 4  # things stand on multiples of one latent pixel
FILL = 0.75  # share of its cell that a thing takes
LARGEST = 96  # pixels: a thing has one size wherever there is room, and is learnt once


@dataclass
class Art:
    """The emoji pictures of a folder, scaled and kept."""

    folder: Path
    _kept: dict[tuple[str, int], Pixels] = field(default_factory=dict)

    def picture(self, thing: Thing, size: int) -> Pixels:
        """The thing as premultiplied RGBA, `size` pixels wide and high."""
        key = (thing.picture, size)
        if key not in self._kept:
            image = Image.open(self.folder / f"{thing.picture}.webp").convert("RGBA")
            scaled = image.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
            self._kept[key] = np.asarray(scaled, dtype=np.float32) / 255
        return self._kept[key]


@dataclass(frozen=True)
class Placed:
    """A thing with its place: left, top and size in pixels."""

    thing: Thing
    left: int
    top: int
    size: int


def _place(thing: Thing, cell: tuple[float, float, float, float], fill: float) -> Placed:
    """The thing in the middle of a cell (left, top, width, height)."""
    left, top, width, height = cell
    size = max(GRAIN, round(min(LARGEST, fill * min(width, height)) / GRAIN) * GRAIN)
    x = round((left + (width - size) / 2) / GRAIN) * GRAIN
    y = round((top + (height - size) / 2) / GRAIN) * GRAIN
    return Placed(thing, int(x), int(y), int(size))


def layout(scene: Scene, width: int, height: int) -> list[Placed]:
    """Where each thing of the scene stands."""
    w, h = width / 2, height / 2
    halves = {
        "left": (0.0, 0.0, w, float(height)),
        "right": (w, 0.0, w, float(height)),
        "above": (0.0, 0.0, float(width), h),
        "below": (0.0, h, float(width), h),
    }
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    if scene.relation is not None and scene.second is not None:
        return [
            _place(scene.first, halves[scene.relation], FILL),
            _place(scene.second, halves[opposite[scene.relation]], FILL),
        ]
    if scene.count == 1:
        return [_place(scene.first, (0.0, 0.0, float(width), float(height)), FILL)]
    cells = {
        2: [halves["left"], halves["right"]],
        3: [(w / 2, 0.0, w, h), (0.0, h, w, h), (w, h, w, h)],
        4: [(0.0, 0.0, w, h), (w, 0.0, w, h), (0.0, h, w, h), (w, h, w, h)],
    }
    return [_place(scene.first, cell, FILL) for cell in cells[scene.count]]


def _colour(name: str | None, shift: float) -> Pixels:
    rgb = WHITE if name is None else COLOURS[name]
    return np.clip((np.asarray(rgb, dtype=np.float32) + shift) / 255, 0, 1)


def backdrop(background: Background, width: int, height: int, shift: float = 0.0) -> Pixels:
    """The background alone; `shift` moves its brightness (0 to 255 scale)."""
    first = _colour(background.colour, 0.0 if background.kind == "none" else shift)
    if background.kind == "graded":
        second = _colour(background.second, shift)
        down = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None, None]
        return np.broadcast_to(first * (1 - down) + second * down, (height, width, 3)).copy()
    pixels = np.empty((height, width, 3), dtype=np.float32)
    pixels[:] = first
    if background.kind in ("striped", "checkered"):
        grey = background.colour == "white"
        other = first * 0.8 if grey else first * 0.6 + 0.4
        band = max(GRAIN, round(min(width, height) / 8 / GRAIN) * GRAIN)
        odd = np.broadcast_to((np.arange(width) // band % 2)[None, :], (height, width))
        if background.kind == "checkered":
            odd = odd ^ (np.arange(height) // band % 2)[:, None]
        pixels[odd == 1] = other
    return pixels


def render(
    art: Art,
    scene: Scene,
    width: int,
    height: int,
    rng: random.Random | None = None,
    jitter: int = 0,
) -> Pixels:
    """The scene in RGB; with `rng`, a little different each time.

    `jitter` is how many steps of 8 pixels a thing may stand beside its place.
    """
    shift = rng.uniform(-8, 8) if rng else 0.0
    pixels = backdrop(scene.background, width, height, shift)
    for placed in layout(scene, width, height):
        left, top, size = placed.left, placed.top, placed.size
        if rng and jitter:
            left += 8 * rng.randint(-jitter, jitter)
            top += 8 * rng.randint(-jitter, jitter)
            left = min(max(left, 0), width - size)
            top = min(max(top, 0), height - size)
        picture = art.picture(placed.thing, size)
        region = pixels[top : top + size, left : left + size]
        region *= 1 - picture[..., 3:]
        region += picture[..., :3]
    return np.clip(pixels, 0, 1)
