"""FD-emoji: its formula, its references, and that it grows as pictures get worse."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from judge_pictures import draw
from ras_dit.errors import RASError
from ras_dit.evaluation.emoji_distance import (
    judge_checksum,
    load_reference,
    make_reference,
    save_reference,
)
from ras_dit.evaluation.frechet import fit, frechet_distance
from ras_dit.evaluation.judge import JUDGE_DIR, WEIGHTS, Judge
from ras_dit.evaluation.judge_network import FEATURES
from ras_dit.world import SHAPES, Background, Scene, Thing
from training.judge_scenes import DRAWN, blurred, noisy

SIZES = [(128, 128), (256, 256)]


def drawn_pictures(number: int, seed: int) -> list[Image.Image]:
    """Different shapes on backgrounds of other colours."""
    rng = random.Random(seed)
    found = []
    while len(found) < number:
        name = rng.choice(DRAWN)
        colour, behind = rng.choice(sorted(SHAPES[name])), rng.choice(["white", "blue", "pink"])
        if colour != behind:
            scene = Scene(Thing(name, colour), Background("plain", behind), rng.randint(1, 4))
            found.append(draw(scene, 128, 128))
    return found


def features(judge: Judge, pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([judge.read(picture).features for picture in pictures])


def spoilt(pictures: list[Image.Image], blur: float, noise: float) -> list[Image.Image]:
    found = []
    generator = torch.Generator().manual_seed(0)
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5
        image = noisy(blurred(pixels - 1, blur), noise, generator)
        array = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        found.append(Image.fromarray(array))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_the_shipped_references_are_of_the_shipped_judge(size: tuple[int, int]) -> None:
    reference = load_reference(*size)
    assert reference.gaussian.mean.shape == (FEATURES,)
    assert reference.gaussian.covariance.dtype == np.float64
    assert np.linalg.eigvalsh(reference.gaussian.covariance).min() > -1e-9
    assert reference.judge == judge_checksum()
    assert reference.gaussian.count >= 2000
    assert (JUDGE_DIR / f"reference-{size[0]}x{size[1]}.safetensors").stat().st_size < 300_000


@pytest.mark.parametrize("size", SIZES)
def test_real_scenes_score_less_the_more_there_are(size: tuple[int, int]) -> None:
    reference = load_reference(*size)
    values = [reference.real_at(count) for count in (2, 50, 77, 100, 350, 1000, 2000, 9000)]
    assert values == sorted(values, reverse=True)
    assert all(value > 0 for value in values)
    for count, value in reference.real.items():
        assert reference.real_at(count) == pytest.approx(value)
    # Half as many scenes on both sides are farther apart than so many from the whole.
    assert reference.real_at(1000) < reference.halves < reference.real_at(200)
    with pytest.raises(RASError, match="expected at least 2"):
        reference.real_at(1)


def test_the_distance_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + m for m in (0.0, 0.5))
    first, second = fit(one), fit(two)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    apart = first.mean - second.mean
    wanted = apart @ apart + np.trace(first.covariance + second.covariance - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_worse_pictures_are_farther_away() -> None:
    judge = Judge.load()
    pictures = drawn_pictures(24, 0)
    own = fit(features(judge, pictures))
    distances = [
        frechet_distance(fit(features(judge, spoilt(pictures, blur, noise))), own)
        for blur, noise in ((0.3, 0.0), (2.0, 0.05), (4.0, 0.25))
    ]
    assert distances == sorted(distances)
    assert distances[0] >= 0
    others = frechet_distance(fit(features(judge, drawn_pictures(24, 1))), own)
    assert others < distances[-1]


def test_references_are_written_and_read(tmp_path: Path) -> None:
    shutil.copy(JUDGE_DIR / WEIGHTS, tmp_path)
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(400, 16)), rng.normal(size=(200, 16))
    made = make_reference(one, two, (50, 100, 200), judge_checksum(tmp_path))
    save_reference(made, tmp_path, 64, 32)
    found = load_reference(64, 32, tmp_path)
    assert (found.gaussian.mean == made.gaussian.mean).all()
    assert (found.gaussian.covariance == made.gaussian.covariance).all()
    assert (found.halves, dict(found.real), found.gaussian.count) == (
        made.halves,
        dict(made.real),
        400,
    )
    with pytest.raises(RASError, match=r"32x64.*expected one of 64x32"):
        load_reference(32, 64, tmp_path)


def test_a_reference_of_another_judge_is_refused(tmp_path: Path) -> None:
    shutil.copy(JUDGE_DIR / WEIGHTS, tmp_path)
    data = np.random.default_rng(0).normal(size=(20, 4))
    save_reference(make_reference(data, data, (10, 20), "another"), tmp_path, 64, 64)
    with pytest.raises(RASError, match="another judge"):
        load_reference(64, 64, tmp_path)
