"""Scene records: what a picture of the world shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ras_dit.world.objects import COLOURS, OBJECTS, SHAPES

Relation = Literal["left", "right", "above", "below"]
Backdrop = Literal["none", "plain", "graded", "striped", "checkered"]

RELATIONS: Final[tuple[Relation, ...]] = ("left", "right", "above", "below")
BACKDROPS: Final[tuple[Backdrop, ...]] = ("none", "plain", "graded", "striped", "checkered")
MAX_COUNT: Final = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """An object ("fox"), or a shape with a colour ("heart", "red")."""

    name: str
    colour: str | None = None

    def __post_init__(self) -> None:
        """Refuse what has no picture."""
        if self.colour is None:
            if self.name not in OBJECTS:
                raise ValueError(f"unknown object: {self.name!r}")
        elif self.colour not in SHAPES.get(self.name, {}):
            raise ValueError(f"no picture of: {self.colour!r} {self.name!r}")

    @property
    def picture(self) -> str:
        """Code point of the picture."""
        if self.colour is None:
            return OBJECTS[self.name]
        return SHAPES[self.name][self.colour]

    @property
    def label(self) -> str:
        """Name with its colour: "fox", "red heart"."""
        return self.name if self.colour is None else f"{self.colour} {self.name}"


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the things; `second` is the lower colour of a graded background."""

    kind: Backdrop = "none"
    colour: str | None = None
    second: str | None = None

    def __post_init__(self) -> None:
        """Refuse colours that are missing, unknown, too many or equal."""
        if self.kind not in BACKDROPS:
            raise ValueError(f"unknown kind of background: {self.kind!r}")
        if (self.colour is None) != (self.kind == "none"):
            raise ValueError(f"a {self.kind} background and the colour {self.colour!r}")
        if (self.second is None) == (self.kind == "graded"):
            raise ValueError(f"a {self.kind} background and the second colour {self.second!r}")
        for colour in (self.colour, self.second):
            if colour is not None and colour not in COLOURS:
                raise ValueError(f"unknown colour: {colour!r}")
        if self.colour is not None and self.colour == self.second:
            raise ValueError(f"graded from {self.colour!r} to itself")


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing `count` times, or two different things and where the first stands."""

    first: Thing
    background: Background = Background()
    count: int = 1
    relation: Relation | None = None
    second: Thing | None = None

    def __post_init__(self) -> None:
        """Refuse half a pair, a pair of equals and counts out of range."""
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count out of 1 to {MAX_COUNT}: {self.count}")
        if (self.relation is None) != (self.second is None):
            raise ValueError("a pair needs a relation and a second thing")
        if self.relation is not None:
            if self.relation not in RELATIONS:
                raise ValueError(f"unknown relation: {self.relation!r}")
            if self.count != 1:
                raise ValueError("a pair has no count")
            if self.second == self.first:
                raise ValueError("a pair is of two different things")

    @property
    def things(self) -> tuple[Thing, ...]:
        """The different things in the scene."""
        return (self.first,) if self.second is None else (self.first, self.second)
