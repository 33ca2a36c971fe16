"""The shipped judge on pictures drawn here: what it sees, where, and what it refuses."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from judge_pictures import draw, paste
from ras_dit.errors import RASError
from ras_dit.evaluation.judge import JUDGE_DIR, WEIGHTS, Judge, Reading
from ras_dit.evaluation.judge_network import FEATURES, judged_things
from ras_dit.evaluation.judge_rules import verdicts
from ras_dit.world import Background, Thing, caption, parse
from training.judge_scenes import blurred, noisy
from training.render import Placed, backdrop

SCENES = (
    "a red heart",
    "a blue circle",
    "a green square on a yellow background",
    "a purple heart on a striped orange background",
    "a yellow circle on a checkered blue background",
    "a black square on a pink to white background",
    "a red circle to the left of a blue square",
    "a green heart to the right of an orange circle on a white background",
    "a yellow square above a purple circle on a black background",
    "a pink heart below a blue square on a green background",
    "two orange circles on a purple background",
    "three green hearts",
    "four blue squares on a yellow background",
)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def labels(found: Reading) -> list[str]:
    return sorted(thing.thing.label for thing in found.things)


def same(first: Reading, second: Reading) -> bool:
    return (
        first.things == second.things
        and first.background == second.background
        and bool((first.features == second.features).all())
    )


@pytest.mark.parametrize("size", [(256, 256), (128, 128), (256, 192), (64, 64), (150, 150)])
def test_scenes_are_read_at_every_size(judge: Judge, size: tuple[int, int]) -> None:
    for text in SCENES:
        scene = parse(text)
        found = judge.read(draw(scene, *size))
        assert [v.reason for v in verdicts(scene, found) if not v.right] == [], text
        assert len(found.things) == (2 if scene.second else scene.count), text


def test_things_stand_where_they_were_put(judge: Judge) -> None:
    rng = random.Random(0)
    for _ in range(8):
        size = rng.choice([48, 96])
        left, top = rng.randint(0, 256 - size), rng.randint(0, 256 - size)
        placed = Placed(Thing("circle", "blue"), left, top, size)
        picture = paste(backdrop(Background("plain", "yellow"), 256, 256), [placed])
        (thing,) = judge.read(picture).things
        assert thing.thing.label == "blue circle"
        assert abs(thing.x - left - size / 2) < 8
        assert abs(thing.y - top - size / 2) < 8
        assert abs(thing.size / size - 1) < 0.25


def test_blur_and_noise_change_nothing(judge: Judge) -> None:
    for text in SCENES:
        scene = parse(text)
        pixels = np.asarray(draw(scene, 256, 256), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1) * 2 - 1
        spoilt = noisy(blurred(image, 1.5), 0.05, torch.Generator().manual_seed(0))
        array = ((spoilt + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        found = judge.read(Image.fromarray(array))
        assert all(verdict.right for verdict in verdicts(scene, found)), text


@pytest.mark.parametrize("colour", ["white", "blue", "black"])
def test_nothing_is_seen_where_nothing_is(judge: Judge, colour: str) -> None:
    for kind in ("plain", "striped", "checkered"):
        pixels = backdrop(Background(kind, colour), 128, 128)
        found = judge.read(Image.fromarray((pixels * 255).astype(np.uint8)))
        assert found.things == ()
        assert (found.background.kind, found.background.colour) == (kind, colour)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert judge.read(Image.fromarray(noise)).things == ()


def test_a_picture_is_read_alone_and_always_the_same(judge: Judge) -> None:
    pictures = [draw(parse(text), 128, 128) for text in SCENES[:4]]
    together = judge.read_all(pictures)
    again = [Judge.load().read(picture) for picture in reversed(pictures)][::-1]
    assert all(same(first, second) for first, second in zip(together, again, strict=True))


def test_other_modes_of_pictures(judge: Judge) -> None:
    picture = draw(parse(SCENES[1]), 128, 128)
    assert same(judge.read(picture), judge.read(picture.convert("RGBA")))
    assert judge.read(picture.convert("L")).background.colour == "white"


def test_features_are_few_and_finite(judge: Judge) -> None:
    found = judge.read(draw(parse(SCENES[0]), 256, 256))
    assert found.features.shape == (FEATURES,)
    assert FEATURES <= 128
    assert np.isfinite(found.features).all()
    assert found.features.std() > 0
    assert (judge.features(draw(parse(SCENES[0]), 256, 256)) == found.features).all()


def test_the_weights_are_small_halves_of_this_world() -> None:
    path = JUDGE_DIR / WEIGHTS
    assert path.stat().st_size < 5_000_000
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["things"]) == [t.label for t in judged_things()]
    stored = load_file(path)
    floating = {t.dtype for name, t in stored.items() if "num_batches" not in name}
    assert floating == {torch.float16}


def test_small_pictures_are_refused(judge: Judge) -> None:
    with pytest.raises(RASError, match="16x64"):
        judge.read(Image.new("RGB", (16, 64)))


def test_weights_that_are_missing_or_of_another_world(tmp_path: Path) -> None:
    with pytest.raises(RASError, match="make train-judge"):
        Judge.load(tmp_path)
    shutil.copy(JUDGE_DIR / WEIGHTS, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"things": json.dumps(["fox"])})
    with pytest.raises(RASError, match="knows 1 things"):
        Judge.load(tmp_path)


def test_the_judge_can_tell(judge: Judge) -> None:
    """A test of the tests: the wrong caption does not pass."""
    picture = draw(parse("a red circle to the left of a blue square"), 256, 256)
    for wrong in (
        "a red circle to the right of a blue square",
        "a red circle above a blue square",
        "a blue circle to the left of a red square",
        "two red circles",
        "a red circle to the left of a blue square on a green background",
    ):
        scene = parse(wrong)
        assert caption(scene) == wrong
        assert not all(v.right for v in verdicts(scene, judge.read(picture))), wrong
    assert labels(judge.read(picture)) == ["blue square", "red circle"]
