"""The world's laws: captions and scenes are each other's inverse, held-out means held out."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ras_dit.world import (
    COLOURS,
    OBJECTS,
    SHAPES,
    Background,
    ColourCheck,
    Mixture,
    ObjectCheck,
    PatternCheck,
    PositionCheck,
    Scene,
    Thing,
    caption,
    checks,
    evaluation_prompts,
    evaluation_scenes,
    held_out,
    parse,
    sample_scene,
    vocabulary,
)
from ras_dit.world.scene import RELATIONS

things = st.one_of(
    st.sampled_from(sorted(OBJECTS)).map(Thing),
    st.sampled_from([(s, c) for s in sorted(SHAPES) for c in sorted(SHAPES[s])]).map(
        lambda pair: Thing(*pair)
    ),
)
two_colours = st.permutations(sorted(COLOURS)).map(lambda colours: colours[:2])
backgrounds = st.one_of(
    st.just(Background()),
    st.builds(
        Background,
        st.sampled_from(["plain", "striped", "checkered"]),
        st.sampled_from(sorted(COLOURS)),
    ),
    two_colours.map(lambda two: Background("graded", *two)),
)
single = st.builds(Scene, things, backgrounds, st.integers(1, 4))
pairs = (
    st.tuples(things, things, st.sampled_from(RELATIONS), backgrounds)
    .filter(lambda parts: parts[0] != parts[1])
    .map(lambda parts: Scene(parts[0], parts[3], relation=parts[2], second=parts[1]))
)
scenes = st.one_of(single, pairs)


@given(scenes, st.booleans())
def test_parse_inverts_caption(scene: Scene, detailed: bool) -> None:
    """What is written can be read back, in both forms, and in the vocabulary's words only."""
    text = caption(scene, detailed=detailed)
    assert parse(text) == scene
    assert set(text.split()) <= set(vocabulary())


@given(scenes, scenes)
def test_captions_differ(one: Scene, other: Scene) -> None:
    """Different scenes have different captions."""
    assert (caption(one) == caption(other)) == (one == other)


def test_captions_as_they_are() -> None:
    """A few sentences by heart: this is what users write."""
    fox, heart = Thing("fox"), Thing("heart", "orange")
    assert caption(Scene(fox)) == "a fox"
    assert caption(Scene(fox, Background("plain", "blue"))) == "a fox on a blue background"
    assert caption(Scene(heart, count=2)) == "two orange hearts"
    pair = Scene(fox, Background("plain", "orange"), relation="left", second=heart)
    assert caption(pair) == "a fox to the left of an orange heart on an orange background"
    graded = Scene(Thing("apple"), Background("graded", "blue", "green"))
    assert caption(graded) == "an apple on a blue to green background"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "fox",
        "an fox",
        "a foxes",
        "two fox",
        "five foxes",
        "a pink square",
        "a fox on a blue background ",
        "a fox on a blue to blue background",
        "a fox above a fox",
        "a fox above a cat above a dog",
        "A fox",
        "a detailed picture of a fox",
        "a detailed picture of exactly one single fox together in the image",
    ],
)
def test_parse_refuses(text: str) -> None:
    """Whatever no scene's caption is, is refused."""
    with pytest.raises(ValueError, match=r"of this world|different things"):
        parse(text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": 0},
        {"count": 5},
        {"relation": "left"},
        {"second": Thing("cat")},
        {"relation": "left", "second": Thing("fox")},
        {"relation": "left", "second": Thing("cat"), "count": 2},
        {"relation": "beside", "second": Thing("cat")},
    ],
)
def test_scenes_that_cannot_be(arguments: dict[str, object]) -> None:
    """A scene record is whole or is not made."""
    with pytest.raises(ValueError):  # noqa: PT011
        Scene(Thing("fox"), **arguments)  # type: ignore[arg-type]


def test_size_of_the_world() -> None:
    """As many things as promised."""
    assert len(OBJECTS) >= 100
    assert len(COLOURS) == 10
    assert set(SHAPES) == {"heart", "circle", "square", "book"}


@given(st.integers())
def test_training_never_sees_held_out(seed: int) -> None:
    """Sampling gives what it is asked for."""
    rng = random.Random(seed)
    assert not held_out(sample_scene(rng))
    assert held_out(sample_scene(rng, from_held_out=True))


@given(pairs)
def test_pairs_are_held_out_whole(scene: Scene) -> None:
    """Neither order, nor relation, nor background lets a held-out pair into training."""
    assert scene.relation is not None
    assert scene.second is not None
    for relation in RELATIONS:
        other = Scene(scene.second, relation=relation, second=scene.first)
        assert held_out(other) == held_out(scene)


def test_sampling_is_by_seed_and_mixture() -> None:
    """The same seed gives the same scenes; a mixture gives only its kinds."""
    one, other = random.Random(3), random.Random(3)
    assert [sample_scene(one) for _ in range(50)] == [sample_scene(other) for _ in range(50)]
    only = Mixture(
        alone=0, pair=0, group=1, shape=1, none=0, plain=0, graded=1, striped=0, checkered=0
    )
    for _ in range(50):
        scene = sample_scene(one, only)
        assert scene.count > 1
        assert scene.first.colour is not None
        assert scene.background.kind == "graded"


@pytest.fixture(scope="module")
def other_process() -> list[str]:
    """What a process that imports the world alone finds: heavy modules, then the prompts."""
    code = (
        "import sys, types; p = types.ModuleType('ras_dit'); import importlib.util as u;"
        "p.__path__ = u.find_spec('ras_dit').submodule_search_locations;"
        "sys.modules['ras_dit'] = p; from ras_dit.world import evaluation_prompts;"
        "print(*{'torch', 'PIL', 'numpy'} & set(sys.modules));"
        "print(*evaluation_prompts(), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def test_evaluation_is_fixed_and_held_out(other_process: list[str]) -> None:
    """24 different held-out prompts, the same in every process."""
    prompts = evaluation_prompts()
    assert len(set(prompts)) == 24
    assert all(held_out(scene) for scene in evaluation_scenes())
    assert prompts[0] == "a camera on a blue background"
    assert tuple(other_process[1:]) == prompts


def test_the_world_needs_no_torch(other_process: list[str]) -> None:
    """Importing it, and making its prompts, imports no torch and no picture library."""
    assert other_process[0] == ""


def test_checks_of_a_pair_and_of_backgrounds() -> None:
    """Names, colours, counts, positions and the background come out as data."""
    pair = parse("a fox below a red heart on a blue background")
    assert checks(pair) == (
        ObjectCheck("fox", None, 1),
        ObjectCheck("heart", "red", 1),
        PositionCheck("fox", "below", "red heart"),
        ColourCheck("all", "blue", COLOURS["blue"]),
    )
    graded = checks(parse("three cats on a red to blue background"))
    assert ObjectCheck("cat", None, 3) in graded
    assert ColourCheck("top", "red", COLOURS["red"]) in graded
    assert ColourCheck("bottom", "blue", COLOURS["blue"]) in graded
    assert PatternCheck("striped") in checks(parse("a cat on a striped red background"))
    assert ColourCheck("all", "white", COLOURS["white"]) in checks(parse("a cat"))
