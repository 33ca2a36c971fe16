"""Backgrounds measured from pixels: every kind and colour, with noise, things and other sizes."""

from __future__ import annotations

import numpy as np
import pytest

from ras_dit.evaluation.judge_background import colour_name, lab, measure_background
from ras_dit.world import COLOURS, Background
from training.render import backdrop

NAMES = sorted(COLOURS)
SINGLE = [(kind, name) for kind in ("plain", "striped", "checkered") for name in NAMES]
THING = (80.0, 80.0, 176.0, 176.0)


def pixels_of(background: Background, width: int, height: int, *, noise: float = 0.0) -> np.ndarray:
    pixels = backdrop(background, width, height).astype(np.float64)
    return (pixels + np.random.default_rng(0).normal(0, noise, pixels.shape)).clip(0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "name"), SINGLE)
def test_one_colour(kind: str, name: str, noise: float) -> None:
    found = measure_background(pixels_of(Background(kind, name), 128, 128, noise=noise), [])
    assert (found.kind, found.colour, found.second) == (kind, name, name)
    assert (
        np.abs(np.subtract(found.rgb, COLOURS[name])).max() <= 12
    )  # clipped noise shifts a little


@pytest.mark.parametrize("size", [(64, 64), (128, 256), (256, 256), (200, 136)])
def test_two_colours_at_every_size(size: tuple[int, int]) -> None:
    for upper, lower in zip(NAMES, [*NAMES[3:], *NAMES[:3]], strict=True):
        found = measure_background(pixels_of(Background("graded", upper, lower), *size), [])
        assert (found.kind, found.colour, found.second) == ("graded", upper, lower)


@pytest.mark.parametrize("kind", ["plain", "striped", "checkered"])
def test_what_a_thing_covers_does_not_count(kind: str) -> None:
    pixels = pixels_of(Background(kind, "blue"), 256, 256)
    clean = measure_background(pixels, [THING])
    pixels[80:176, 80:176] = np.random.default_rng(1).random((96, 96, 3))
    assert measure_background(pixels, [THING]) == clean
    assert clean.kind == kind


def test_a_thing_that_was_missed_does_little() -> None:
    pixels = pixels_of(Background("plain", "green"), 256, 256)
    pixels[80:176, 80:176] = (1.0, 0.0, 0.0)
    found = measure_background(pixels, [])
    assert (found.kind, found.colour) == ("plain", "green")


def test_stripes_may_begin_anywhere() -> None:
    pixels = pixels_of(Background("striped", "purple"), 128, 128)
    for shift in (0, 4, 8, 12):
        found = measure_background(np.roll(pixels, shift, axis=1), [])
        assert (found.kind, found.colour) == ("striped", "purple")


def test_stripes_across_are_none() -> None:
    pixels = pixels_of(Background("striped", "purple"), 128, 128)
    assert measure_background(pixels.swapaxes(0, 1), []).kind == "plain"


def test_boxes_over_everything_are_ignored() -> None:
    pixels = pixels_of(Background("plain", "pink"), 128, 128)
    assert measure_background(pixels, [(0.0, 0.0, 128.0, 128.0)]).colour == "pink"


def test_a_slight_change_is_one_colour() -> None:
    down = np.linspace(-0.06, 0.06, 128)[:, None, None]
    pixels = (pixels_of(Background("plain", "blue"), 128, 128) + down).clip(0, 1)
    assert measure_background(pixels, []).kind == "plain"


def test_names_of_colours() -> None:
    for name, rgb in COLOURS.items():
        assert colour_name(np.array(rgb) / 255) == name
    for nameless in ((0.5, 0.5, 0.5), (0.0, 1.0, 1.0), (0.2, 0.2, 0.0)):
        assert colour_name(np.array(nameless)) is None


def test_lab_of_known_colours() -> None:
    assert lab(np.array([1.0, 1.0, 1.0])) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab(np.array([1.0, 0.0, 0.0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
