"""Scenes by chance: for training, and a fixed list of held-out ones for evaluation."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Final

from ras_dit.world.grammar import caption
from ras_dit.world.objects import COLOURS, OBJECTS, SHAPES
from ras_dit.world.scene import RELATIONS, Background, Scene, Thing

_HELD_OUT_ONE_IN: Final = 8
_TRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often each kind of scene and of background is drawn (weights, any scale)."""

    alone: float = 0.5
    pair: float = 0.3
    group: float = 0.2
    shape: float = 0.2
    none: float = 0.25
    plain: float = 0.5
    graded: float = 0.15
    striped: float = 0.05
    checkered: float = 0.05


def held_out(scene: Scene) -> bool:
    """Whether training never sees the scene.

    A pair is held out by its two things, whatever their order, relation and background;
    another scene by things, count and background together; without a background, never.
    """
    if scene.second is not None:
        key = " and ".join(sorted(thing.label for thing in scene.things))
    elif scene.background.kind == "none":
        return False
    else:
        key = caption(scene)
    return zlib.crc32(key.encode()) % _HELD_OUT_ONE_IN == 0


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _thing(rng: random.Random, shape: float) -> Thing:
    if rng.random() < shape:
        name = rng.choice(sorted(SHAPES))
        return Thing(name, rng.choice(sorted(SHAPES[name])))
    return Thing(rng.choice(sorted(OBJECTS)))


def _background(rng: random.Random, mixture: Mixture, kinds: tuple[str, ...]) -> Background:
    kind = _weighted(rng, {name: getattr(mixture, name) for name in kinds})
    colour, second = rng.sample(sorted(COLOURS), 2)
    match kind:
        case "none":
            return Background()
        case "graded":
            return Background("graded", colour, second)
        case "striped":
            return Background("striped", colour)
        case "checkered":
            return Background("checkered", colour)
        case _:
            return Background("plain", colour)


def _clashes(scene: Scene) -> bool:
    """Whether a coloured shape would drown in a background of its own colour."""
    behind = {scene.background.colour, scene.background.second}
    if scene.background.kind == "none":
        behind = {"white"}
    return any(thing.colour is not None and thing.colour in behind for thing in scene.things)


def _draw(rng: random.Random, mixture: Mixture) -> Scene:
    kind = _weighted(rng, {name: getattr(mixture, name) for name in ("alone", "pair", "group")})
    first = _thing(rng, mixture.shape)
    if kind == "pair":
        # A pair has no pattern behind it.
        background = _background(rng, mixture, ("none", "plain"))
        second = first
        while second == first:
            second = _thing(rng, mixture.shape)
        return Scene(first, background, relation=rng.choice(RELATIONS), second=second)
    kinds = ("none", "plain", "graded", "striped", "checkered")
    background = _background(rng, mixture, kinds)
    return Scene(first, background, rng.randint(2, 4) if kind == "group" else 1)


def sample_scene(
    rng: random.Random, mixture: Mixture | None = None, *, from_held_out: bool = False
) -> Scene:
    """A scene by chance: one that training may see, or with `from_held_out` one it never sees."""
    mixture = Mixture() if mixture is None else mixture
    for _ in range(_TRIES):
        scene = _draw(rng, mixture)
        if not _clashes(scene) and held_out(scene) == from_held_out:
            return scene
    raise ValueError(f"no such scene: {mixture}")


def evaluation_scenes() -> tuple[Scene, ...]:
    """The 24 held-out scenes of the contact sheet, from seed 0, none picked by looking."""
    rng = random.Random(0)
    alone = Mixture(alone=1, pair=0, group=0, shape=0, none=0, graded=0, striped=0, checkered=0)
    parts = (
        (8, alone),
        (2, Mixture(1, 0, 0, 0, 0, 0, 1, 0, 0)),
        (2, Mixture(1, 0, 0, 0, 0, 0, 0, 1, 1)),
        (2, Mixture(1, 0, 0, 1, 0, 1, 0, 0, 0)),
        (6, Mixture(0, 1, 0, 0, 0.5, 0.5, 0, 0, 0)),
        (4, Mixture(0, 0, 1, 0.2, 0, 1, 0, 0, 0)),
    )
    scenes: list[Scene] = []
    for number, mixture in parts:
        wanted = len(scenes) + number
        while len(scenes) < wanted:
            scene = sample_scene(rng, mixture, from_held_out=True)
            if scene not in scenes:
                scenes.append(scene)
    return tuple(scenes)


def evaluation_prompts() -> tuple[str, ...]:
    """Captions of `evaluation_scenes`."""
    return tuple(caption(scene) for scene in evaluation_scenes())
