"""Pictures of the emoji world without the art: flat shapes on the world's own backgrounds."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ras_dit.evaluation.judge import Reading, SeenThing
from ras_dit.evaluation.judge_background import SeenBackground
from ras_dit.world import COLOURS, Background, Scene, Thing
from training.judge_scenes import flat
from training.render import Placed, backdrop, layout


def paste(pixels: np.ndarray, things: list[Placed]) -> Image.Image:
    pixels = pixels.copy()
    for placed in things:
        picture = flat(placed.thing, placed.size)
        region = pixels[
            placed.top : placed.top + placed.size, placed.left : placed.left + placed.size
        ]
        region *= 1 - picture[..., 3:]
        region += picture[..., :3]
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """A scene of circles, squares and hearts, where the world puts them."""
    return paste(backdrop(scene.background, width, height), layout(scene, width, height))


def seen(label: str, x: float, y: float, size: float = 96.0, certainty: float = 0.9) -> SeenThing:
    *colour, name = label.split()
    thing = Thing(name, colour[0] if colour else None)
    return SeenThing(thing, x, y, size, certainty, 0.9)


def measured(background: Background) -> SeenBackground:
    """What a background without a flaw measures."""
    name = background.colour or "white"
    rgb = COLOURS[name]
    if background.kind == "graded":
        second = str(background.second)
        return SeenBackground("graded", name, rgb, second, COLOURS[second], 1.0)
    kind = "plain" if background.kind == "none" else background.kind
    return SeenBackground(kind, name, rgb, name, rgb, 0.0)


def reading(
    things: list[SeenThing], background: Background | None = None, size: int = 256
) -> Reading:
    ordered = sorted(things, key=lambda thing: -thing.certainty)
    return Reading(
        width=size,
        height=size,
        things=tuple(thing for thing in ordered if thing.certainty >= 0.5),
        best=ordered[0],
        background=measured(background or Background()),
        features=np.zeros(128, dtype=np.float32),
    )


def perfect(scene: Scene, size: int = 256) -> Reading:
    """The reading of a picture that shows exactly the scene."""
    return reading(
        [
            seen(p.thing.label, p.left + p.size / 2, p.top + p.size / 2, p.size)
            for p in layout(scene, size, size)
        ],
        scene.background,
        size,
    )
