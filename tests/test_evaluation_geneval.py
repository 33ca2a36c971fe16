"""GenEval's rules on hand-made detections with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ras_dit.evaluation.geneval_rules import Detection, judge, kept_detections, relations

LEFT, RIGHT = (0, 40, 20, 60), (80, 40, 100, 60)
TOP, BOTTOM = (40, 0, 60, 20), (40, 80, 60, 100)


def thing(label: str, score: float = 0.95, box: Any = (10, 10, 20, 20)) -> Detection:
    return Detection(label, score, box)


def no_colours(objects: Sequence[Detection], name: str) -> list[str]:
    raise AssertionError(f"nobody asked for the colour of {len(objects)} {name}")


def rule(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def check(rules: dict[str, Any], *found: Detection, colours: Any = no_colours) -> Any:
    return judge(rules, found, colours)


def test_single_and_two_objects() -> None:
    single = {"tag": "single_object", "include": [rule("cup")]}
    assert check(single, thing("dog"), thing("cup", 0.31)).correct
    missed = check(single, thing("dog"), thing("cup", 0.29))
    assert not missed.correct
    assert missed.reason == "expected 1 or more of cup, found 0"
    two = {"tag": "two_object", "include": [rule("cup"), rule("dog")]}
    assert check(two, thing("dog"), thing("cup")).correct
    assert check(two, thing("cup")).reason == "expected 1 or more of dog, found 0"


def test_counting_is_exact_and_wants_sure_detections() -> None:
    rules = {"tag": "counting", "include": [rule("cup", 2)], "exclude": [rule("cup", 3)]}
    assert check(rules, thing("cup"), thing("cup")).correct
    assert check(rules, thing("cup"), thing("cup"), thing("cup", 0.89)).correct
    few = check(rules, thing("cup"), thing("cup", 0.9))
    assert few.reason == "expected 2 or more of cup, found 1"
    many = check(rules, thing("cup"), thing("cup"), thing("cup"))
    assert many.reason == "expected fewer than 3 of cup, found 3"


def test_colours_of_the_surest_objects() -> None:
    rules = {"tag": "colors", "include": [rule("cup", color="red")]}
    asked: list[float] = []

    def colours(objects: Sequence[Detection], name: str) -> list[str]:
        asked.extend(detection.score for detection in objects)
        return ["red" if detection.score > 0.9 else "blue" for detection in objects]

    assert check(rules, thing("cup", 0.5), thing("cup", 0.99), colours=colours).correct
    assert asked == [0.99]
    wrong = check(rules, thing("cup", 0.5), colours=colours)
    assert wrong.reason == "expected 1 or more of red cup, found 0; seen blue"


def test_colour_attribution_wants_each_colour_at_its_object() -> None:
    rules = {
        "tag": "color_attr",
        "include": [rule("cup", color="red"), rule("dog", color="blue")],
    }

    def of(cup: str, dog: str) -> Any:
        return lambda objects, name: [{"cup": cup, "dog": dog}[name]] * len(objects)

    assert check(rules, thing("cup"), thing("dog"), colours=of("red", "blue")).correct
    swapped = check(rules, thing("cup"), thing("dog"), colours=of("blue", "red"))
    assert swapped.reason.count("expected") == 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (LEFT, RIGHT, {"left of"}),
        (RIGHT, LEFT, {"right of"}),
        (TOP, BOTTOM, {"above"}),
        (BOTTOM, TOP, {"below"}),
        ((0, 0, 20, 20), (80, 80, 100, 100), {"left of", "above"}),
        (LEFT, LEFT, set()),
        # Nearer than a tenth of both sizes: 4 pixels of 20 + 20.
        ((44, 40, 64, 60), (40, 40, 60, 60), set()),
        ((46, 40, 66, 60), (40, 40, 60, 60), set()),
        ((50, 40, 70, 60), (40, 40, 60, 60), {"right of"}),
    ],
)
def test_relations(first: Any, second: Any, expected: set[str]) -> None:
    assert relations(first, second) == expected


def test_position() -> None:
    rules = {
        "tag": "position",
        "include": [rule("cup"), rule("dog", position=["left of", 0])],
    }
    assert check(rules, thing("cup", box=RIGHT), thing("dog", box=LEFT)).correct
    wrong = check(rules, thing("cup", box=LEFT), thing("dog", box=RIGHT))
    assert wrong.reason == "expected dog left of cup, found it right of it"
    same = check(rules, thing("cup", box=LEFT), thing("dog", box=LEFT))
    assert same.reason == "expected dog left of cup, found it at the place of it"
    alone = check(rules, thing("dog", box=LEFT))
    assert "nothing that dog could be left of" in alone.reason


def test_only_the_surest_of_many_count() -> None:
    found = kept_detections([thing("cup", 0.5 + n / 100) for n in range(30)], counting=False)
    assert len(found["cup"]) == 16
    assert found["cup"][0].score == 0.79
