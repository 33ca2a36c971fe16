"""Verdicts on readings made by hand, with known answers."""

from __future__ import annotations

import random

import pytest

from judge_pictures import perfect, reading, seen
from ras_dit.errors import RASError
from ras_dit.evaluation.emoji_prompts import KINDS, suite_scenes
from ras_dit.evaluation.judge import Reading
from ras_dit.evaluation.judge_rules import (
    judge_tasks,
    recognised,
    relations,
    tasks_of,
    verdicts,
)
from ras_dit.world import Background, Mixture, caption, held_out, parse, sample_scene


def passed(text: str, found: Reading) -> dict[str, bool]:
    return {result.task: result.right for result in judge_tasks(parse(text), found)}


def reason(text: str, task: str, found: Reading) -> str:
    return next(r.reason for r in judge_tasks(parse(text), found) if r.task == task)


def test_a_perfect_picture_keeps_every_promise() -> None:
    rng = random.Random(0)
    for size in (128, 256):
        for _ in range(100):
            scene = sample_scene(rng)
            found = verdicts(scene, perfect(scene, size))
            assert all(verdict.right and not verdict.reason for verdict in found), caption(scene)


def test_the_picture_of_another_scene_breaks_one() -> None:
    rng = random.Random(1)
    for _ in range(100):
        scene, other = sample_scene(rng), sample_scene(rng, Mixture(group=0))
        if other != scene:
            found = verdicts(scene, perfect(other))
            broken = [verdict for verdict in found if not verdict.right]
            # A picture may show more than was said: an apple left of a cat shows an apple.
            assert broken or set(scene.things) <= set(other.things)
            assert all(verdict.reason for verdict in broken)


def test_single() -> None:
    fox, cat = seen("fox", 60, 128), seen("cat", 190, 128)
    assert passed("a fox", reading([fox])) == {"single": True}
    assert passed("a fox", reading([cat])) == {"single": False}
    # As in GenEval, something else beside it is no fault.
    assert passed("a fox", reading([fox, cat])) == {"single": True}
    assert reason("a fox", "single", reading([cat])) == "expected 1 fox; saw 1 cat"


def test_an_unsure_thing_is_recognised_but_not_seen() -> None:
    found = reading([seen("fox", 128, 128, certainty=0.4)])
    assert passed("a fox", found) == {"single": False}
    assert recognised(parse("a fox"), found) is True
    assert recognised(parse("a cat"), found) is False
    assert recognised(parse("two foxes"), found) is None
    assert reason("a fox", "single", found).endswith("nothing for sure (perhaps fox)")


@pytest.mark.parametrize(("number", "right"), [(1, False), (2, False), (3, True), (4, False)])
def test_counting_is_exact(number: int, right: bool) -> None:
    found = reading([seen("bee", 40 + 50 * place, 60, 48) for place in range(number)])
    assert passed("three bees", found) == {"counting": right}


def test_two_and_position() -> None:
    text = "a fox to the left of a cat"
    both = [seen("fox", 64, 128), seen("cat", 192, 128)]
    assert passed(text, reading(both)) == {"two": True, "position": True}
    swapped = reading([seen("fox", 192, 128), seen("cat", 64, 128)])
    assert passed(text, swapped) == {"two": True, "position": False}
    assert reason(text, "position", swapped) == "expected fox left of cat; it is right"
    alone = reading(both[:1])
    assert passed(text, alone) == {"two": False, "position": False}
    assert "no cat" in reason(text, "position", alone)


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ((64, 128), (192, 128), {"left"}),
        ((192, 128), (64, 128), {"right"}),
        ((128, 64), (128, 192), {"above"}),
        ((128, 192), (128, 64), {"below"}),
        # As far down as to the side is both; nearer than a tenth of both sizes is neither.
        ((64, 64), (192, 192), {"left", "above"}),
        ((120, 128), (136, 128), set()),
        ((60, 110), (192, 146), {"left"}),
    ],
)
def test_relations(
    first: tuple[float, float], second: tuple[float, float], found: set[str]
) -> None:
    assert relations(seen("fox", *first), seen("cat", *second)) == found


def test_colours_and_patterns() -> None:
    text = "a green heart on a striped pink background"
    right = reading([seen("green heart", 128, 128)], Background("striped", "pink"))
    assert passed(text, right) == {"single": True, "colours": True, "pattern": True}
    other = reading([seen("blue heart", 128, 128)], Background("plain", "pink"))
    assert passed(text, other) == {"single": False, "colours": False, "pattern": False}
    assert reason(text, "pattern", other) == "expected striped; it is plain"
    behind = reading([seen("green heart", 128, 128)], Background("striped", "red"))
    assert passed(text, behind) == {"single": True, "colours": False, "pattern": True}
    assert "expected pink background; it is red" in reason(text, "colours", behind)


def test_graded_backgrounds() -> None:
    text = "a fox on a blue to green background"
    fox = [seen("fox", 128, 128)]
    assert passed(text, reading(fox, Background("graded", "blue", "green")))["colours"]
    upside_down = reading(fox, Background("graded", "green", "blue"))
    assert not passed(text, upside_down)["colours"]
    assert "at the bottom" in reason(text, "colours", upside_down)
    plain = "a fox on a blue background"
    changing = reading(fox, Background("graded", "blue", "green"))
    assert "changes from blue to green" in reason(plain, "colours", changing)


def test_without_a_background_there_is_no_task_of_colours() -> None:
    assert tasks_of(parse("a fox")) == ("single",)
    assert tasks_of(parse("two foxes on a red background")) == ("counting", "colours")


def test_suites_are_held_out_different_and_grow_at_the_end() -> None:
    few, more = suite_scenes(5), suite_scenes(9)
    assert len({each.scene for each in more}) == 9 * len(KINDS)
    for kind in KINDS:
        first = [each.scene for each in few if each.kind == kind]
        assert first == [each.scene for each in more if each.kind == kind][:5]
    assert all(held_out(each.scene) for each in more)
    assert suite_scenes(5, seed=1) != few


def test_a_suite_has_an_end() -> None:
    with pytest.raises(RASError, match="there are about"):
        suite_scenes(2000)
