"""Captions: `caption` writes a scene as a sentence, `parse` reads it back, exactly."""

from __future__ import annotations

from typing import Final

from ras_dit.world.objects import COLOURS, OBJECTS, SHAPES, article, plural
from ras_dit.world.scene import Background, Relation, Scene, Thing

NUMBERS: Final[dict[int, str]] = {2: "two", 3: "three", 4: "four"}

_PHRASES: Final[dict[Relation, str]] = {
    "left": " to the left of ",
    "right": " to the right of ",
    "above": " above ",
    "below": " below ",
}
_PLACES: Final[dict[Relation, tuple[str, str]]] = {
    "left": (" on the left side and ", " on the right side of the image"),
    "right": (" on the right side and ", " on the left side of the image"),
    "above": (" in the upper half and ", " in the lower half of the image"),
    "below": (" in the lower half and ", " in the upper half of the image"),
}
_OPENING: Final = "a detailed picture of "
_ALONE: Final = ("one single ", " in the middle of the image")
_GROUP: Final = ("exactly ", " together in the image")
_FRONT: Final = " in front of "


def _counts() -> dict[str, int]:
    return {word: number for number, word in NUMBERS.items()}


def _things(several: bool) -> dict[str, Thing]:
    """Every phrase that names a thing, without its article."""
    found = {(plural(name) if several else name): Thing(name) for name in OBJECTS}
    for shape, colours in SHAPES.items():
        for colour in colours:
            found[f"{colour} {plural(shape) if several else shape}"] = Thing(shape, colour)
    return found


_ONE: Final = _things(several=False)
_SEVERAL: Final = _things(several=True)


def _with_article(phrase: str) -> str:
    return f"{article(phrase)} {phrase}"


def _several(thing: Thing) -> str:
    name = plural(thing.name)
    return name if thing.colour is None else f"{thing.colour} {name}"


def _short_background(background: Background) -> str:
    match background.kind:
        case "none":
            return ""
        case "plain":
            phrase = f"{background.colour}"
        case "graded":
            phrase = f"{background.colour} to {background.second}"
        case kind:
            phrase = f"{kind} {background.colour}"
    return f" on {_with_article(phrase)} background"


def _detailed_background(background: Background) -> str:
    colour = background.colour
    match background.kind:
        case "none":
            return ""
        case "plain":
            phrase = f"a plain {colour} background that fills the whole image"
        case "graded":
            phrase = (
                f"a background that changes from {colour} at the top"
                f" to {background.second} at the bottom"
            )
        case "striped":
            phrase = f"{_with_article(str(colour))} background with vertical stripes"
        case "checkered":
            phrase = f"{_with_article(str(colour))} background with a checkered pattern"
    return _FRONT + phrase


def caption(scene: Scene, *, detailed: bool = False) -> str:
    """The sentence for a scene; `detailed` says the same in more words."""
    first = _with_article(scene.first.label)
    if scene.relation is not None and scene.second is not None:
        second = _with_article(scene.second.label)
        if detailed:
            middle, end = _PLACES[scene.relation]
            body = first + middle + second + end
        else:
            body = first + _PHRASES[scene.relation] + second
    elif scene.count > 1:
        body = f"{NUMBERS[scene.count]} {_several(scene.first)}"
        if detailed:
            body = body.join(_GROUP)
    else:
        body = scene.first.label.join(_ALONE) if detailed else first
    if detailed:
        return _OPENING + body + _detailed_background(scene.background)
    return body + _short_background(scene.background)


def _backgrounds(detailed: bool) -> dict[str, Background]:
    """Every ending that names a background."""
    kinds = [Background()]
    for colour in COLOURS:
        kinds.append(Background("plain", colour))
        kinds.append(Background("striped", colour))
        kinds.append(Background("checkered", colour))
        kinds.extend(Background("graded", colour, other) for other in COLOURS if other != colour)
    write = _detailed_background if detailed else _short_background
    return {write(background): background for background in kinds}


_ENDINGS: Final = {detailed: _backgrounds(detailed) for detailed in (False, True)}


def _thing(text: str) -> Thing:
    """The thing that a phrase with its article names."""
    name = text.partition(" ")[2]
    if name not in _ONE or _with_article(name) != text:
        raise ValueError(f"not a thing of this world: {text!r}")
    return _ONE[name]


def _several_things(text: str) -> tuple[int, Thing]:
    number, _, name = text.partition(" ")
    counts = _counts()
    if number not in counts or name not in _SEVERAL:
        raise ValueError(f"not a number of things of this world: {text!r}")
    return counts[number], _SEVERAL[name]


def _parse_short(body: str, background: Background) -> Scene:
    for relation, phrase in _PHRASES.items():
        if phrase in body:
            first, second = body.split(phrase, 1)
            return Scene(_thing(first), background, relation=relation, second=_thing(second))
    if body.partition(" ")[0] in _counts():
        count, thing = _several_things(body)
        return Scene(thing, background, count)
    return Scene(_thing(body), background)


def _parse_detailed(body: str, background: Background) -> Scene:
    for relation, (middle, end) in _PLACES.items():
        if middle in body and body.endswith(end):
            first, second = body.removesuffix(end).split(middle, 1)
            return Scene(_thing(first), background, relation=relation, second=_thing(second))
    for opening, end in (_GROUP, _ALONE):
        if body.startswith(opening) and body.endswith(end):
            inner = body[len(opening) : len(body) - len(end)]
            if opening == _GROUP[0]:
                count, thing = _several_things(inner)
                return Scene(thing, background, count)
            if inner in _ONE:
                return Scene(_ONE[inner], background)
    raise ValueError(f"not a scene of this world: {body!r}")


def parse(text: str) -> Scene:
    """The scene that a short or a detailed caption describes; ValueError for anything else."""
    detailed = text.startswith(_OPENING)
    body = text.removeprefix(_OPENING) if detailed else text
    front = _FRONT if detailed else " on "
    at = body.find(front)
    # Only the detailed form has another " on ": it is cut at its own " in front of ".
    ending = body[at:] if at >= 0 else ""
    background = _ENDINGS[detailed].get(ending)
    if background is None:
        raise ValueError(f"not a background of this world: {ending!r}")
    body = body.removesuffix(ending) if ending else body
    return _parse_detailed(body, background) if detailed else _parse_short(body, background)


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted."""
    texts = [*_ONE, *_SEVERAL, *NUMBERS.values(), *_PHRASES.values(), "a an", _OPENING, _FRONT]
    texts += [part for places in _PLACES.values() for part in places]
    texts += [*_ALONE, *_GROUP, *_ENDINGS[False], *_ENDINGS[True]]
    return tuple(sorted({word for text in texts for word in text.split()}))
