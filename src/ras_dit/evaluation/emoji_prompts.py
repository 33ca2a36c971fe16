"""Held-out captions of the embedded world by kind, for suites of any size."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from ras_dit.errors import RASError
from ras_dit.world import Mixture, Scene, sample_scene

# What each kind of prompt is drawn from. None is picked by looking.
KINDS: Final[dict[str, Mixture]] = {
    "single": Mixture(1, 0, 0, 0, 0, 1, 0, 0, 0),
    "shape": Mixture(1, 0, 0, 1, 0, 0.5, 0.5, 0, 0),
    "graded": Mixture(1, 0, 0, 0, 0, 0, 1, 0, 0),
    "pattern": Mixture(1, 0, 0, 0, 0, 0, 0, 1, 1),
    "pair": Mixture(0, 1, 0, 0, 0.5, 0.5, 0, 0, 0),
    "group": Mixture(0, 0, 1, 0.2, 0, 1, 0, 0, 0),
}
_PATIENCE: Final = 1000  # draws without a new scene, after which there are no more


@dataclass(frozen=True, slots=True)
class KindScene:
    """A scene and the kind of `KINDS` that it was drawn for."""

    kind: str
    scene: Scene


def suite_scenes(per_kind: int, *, seed: int = 0) -> tuple[KindScene, ...]:
    """Different held-out scenes, so many of each kind; the first n of a seed are always the same.

    Raises:
        RASError: If a kind has fewer held-out scenes.
    """
    found: list[KindScene] = []
    for kind, mixture in KINDS.items():
        rng = random.Random(f"{seed}/{kind}")
        scenes: dict[Scene, None] = {}
        idle = 0
        while len(scenes) < per_kind:
            before = len(scenes)
            scenes.setdefault(sample_scene(rng, mixture, from_held_out=True))
            idle = 0 if len(scenes) > before else idle + 1
            if idle > _PATIENCE:
                raise RASError(
                    f"{per_kind} held-out scenes of kind {kind!r} were asked for; there are about"
                    f" {len(scenes)}"
                )
        found += [KindScene(kind, scene) for scene in scenes]
    return tuple(found)
