"""What can be checked of a picture of a scene, as data: for judges of any kind."""

from __future__ import annotations

from dataclasses import dataclass

from ras_dit.world.objects import COLOURS
from ras_dit.world.scene import Background, Relation, Scene


@dataclass(frozen=True, slots=True)
class ObjectCheck:
    """So many of a thing are seen: an object's name, or a shape's name and its colour."""

    name: str
    colour: str | None
    count: int


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """The first named thing stands left of, right of, above or below the second."""

    first: str
    relation: Relation
    second: str


@dataclass(frozen=True, slots=True)
class ColourCheck:
    """The background has a colour in a part of the picture."""

    part: str  # "all", "top", "bottom"
    colour: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PatternCheck:
    """The background is striped or checkered."""

    pattern: str


Check = ObjectCheck | PositionCheck | ColourCheck | PatternCheck


def _background_checks(background: Background) -> list[Check]:
    colour = background.colour or "white"
    if background.kind == "graded" and background.second is not None:
        return [
            ColourCheck("top", colour, COLOURS[colour]),
            ColourCheck("bottom", background.second, COLOURS[background.second]),
        ]
    found: list[Check] = [ColourCheck("all", colour, COLOURS[colour])]
    if background.kind in ("striped", "checkered"):
        found.append(PatternCheck(background.kind))
    return found


def checks(scene: Scene) -> tuple[Check, ...]:
    """Everything that the scene's caption promises; a background unsaid is white."""
    found: list[Check] = [
        ObjectCheck(thing.name, thing.colour, scene.count) for thing in scene.things
    ]
    if scene.relation is not None and scene.second is not None:
        found.append(PositionCheck(scene.first.label, scene.relation, scene.second.label))
    return (*found, *_background_checks(scene.background))
