"""The roofline model: a step by hand, the laws of any speed-up, and the page that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prediction import (
    A100,
    H100,
    Card,
    Operation,
    Reach,
    Shape,
    operations,
    speedup,
    step_seconds,
)
from benchmarks.roofline import (
    DOCS,
    RATIOS,
    TABLE_3,
    USUAL,
    counts_of,
    draw,
    flop_limit,
    measured,
    operations_table,
    page,
    predictions_table,
    shapes,
)
from ras_dit.adapters import Work
from ras_dit.cost import forward_flops

# One layer of width 4 that attends to 8 image and 2 text tokens, and a card with round numbers.
TINY = Shape(
    name="tiny",
    work=Work(
        per_sample=100,
        per_embedded_token=10,
        per_image_token=1000,
        per_text_token=500,
        joint_pair=16,
        joint_kv=8,
        output=4,
    ),
    rows=2,
    num_image=8,
    num_text=2,
    layers=1,
    width=4,
    joint=True,
    linear=64,
    pointwise=120,
)
CARD = Card("any", flops=1000.0, bandwidth=100.0)
WHOLE = Reach(compute=1.0, bandwidth=1.0)


def test_a_sparse_step_by_hand() -> None:
    """3 of 8 image tokens and 2 of text pass, in two rows, with 2 bytes an element."""
    made = {each.name: (each.flops, each.nbytes) for each in operations(TINY, 3)}
    assert made == {
        "conditioning": (200, 100),
        "embedding": (160, 10 + 2 * 8 * 4 * 2),
        "linear layers": (2 * (3 * 1000 + 2 * 500), 1000 + 500 + 2 * 5 * 64 * 2),
        "attention": (2 * 16 * 5 * 10, 2 * 2 * (8 * 5 + 8 * 10)),
        "norms and sums": (0, 2 * 5 * 120 * 2),
        "scatter of keys and values": (0, 2 * 2 * 2 * 8 * 5),
        "gather, merge and choice": (0, 2 * 2 * (2 * 3 * 4 + 3 * 8 * 4)),
    }
    # Conditioning 1, embedding 1.38, linear layers 27.8, attention 4.8, norms 24, scatter 3.2,
    # gather 4.8 seconds: all bound by memory.
    assert step_seconds(TINY, CARD, WHOLE, 3) == pytest.approx(
        1 + 1.38 + 27.8 + 4.8 + 24 + 3.2 + 4.8
    )


def test_an_operation_takes_what_is_longer() -> None:
    assert Operation("any", flops=500, nbytes=10).seconds(CARD, WHOLE) == 0.5
    assert Operation("any", flops=500, nbytes=80).seconds(CARD, WHOLE) == 0.8
    assert Operation("any", flops=500, nbytes=10).seconds(CARD, Reach(compute=0.5)) == 1.0
    # The host bounds a step whatever the card does.
    assert step_seconds(TINY, CARD, Reach(host=1e6), 3) == 1e6


def test_kept_text_is_left_out() -> None:
    fresh = {each.name: each for each in operations(TINY, 3)}
    kept = {each.name: each for each in operations(TINY, 3, keeps_text=True)}
    assert kept["linear layers"].flops == 2 * 3 * 1000
    assert kept["attention"].flops == 2 * 16 * 3 * 10
    assert kept["norms and sums"].nbytes == fresh["norms and sums"].nbytes * 3 / 5


@pytest.mark.parametrize("name", list(shapes()))
def test_the_operations_have_the_flops_of_the_model(name: str) -> None:
    shape, _ = shapes()[name]
    for active in (512, 2048, None):
        for keeps in (False, True):
            made = operations(shape, active, keeps_text=keeps)
            assert sum(each.flops for each in made) == forward_flops(
                shape.work,
                batch=shape.rows,
                num_tokens=shape.num_image,
                num_active=active or shape.num_image,
                num_text_tokens=shape.num_text,
                keeps_text=keeps,
            )


@pytest.mark.parametrize("card", [A100, H100], ids=lambda card: card.name)
@pytest.mark.parametrize("name", list(shapes()))
def test_a_lower_ratio_is_faster_and_never_above_the_limit(name: str, card: Card) -> None:
    shape, outline = shapes()[name]
    steps = outline.num_inference_steps
    values = [
        speedup(shape, counts_of(name, ratio, steps, shape.num_image), card, USUAL)
        for ratio in RATIOS
    ]
    assert values == sorted(values)
    limits = [flop_limit(shape, name, ratio, steps) for ratio in RATIOS]
    assert all(1 < value < limit for value, limit in zip(values, limits, strict=True))
    # With all tokens active in every step nothing is gained, and nothing is lost.
    assert counts_of(name, 1.0, steps, shape.num_image) == (shape.num_image,) * steps
    assert speedup(shape, (shape.num_image,) * steps, card, USUAL) == 1


def test_bytes_that_cost_nothing_leave_the_flop_limit() -> None:
    shape, outline = shapes()["SD3-medium"]
    steps = outline.num_inference_steps
    counts = counts_of(shape.name, 0.25, steps, shape.num_image)
    free = Card("any", flops=1e12, bandwidth=1e30)
    expected = flop_limit(shape, shape.name, 0.25, steps)
    assert speedup(shape, counts, free, WHOLE) == pytest.approx(expected)


def test_the_papers_numbers_are_those_of_its_tables() -> None:
    assert measured("SD3-medium") == {1.0: 0.26, 0.75: 0.33, 0.5: 0.42, 0.25: 0.55, 0.125: 0.63}
    assert measured("Lumina-Next-SFT")[0.125] == 0.31
    # What the page says of ratios of a half and more.
    for name, rates in ((name, measured(name)) for name in TABLE_3):
        shape, outline = shapes()[name]
        for ratio in (0.75, 0.5):
            counts = counts_of(name, ratio, outline.num_inference_steps, shape.num_image)
            predicted = speedup(shape, counts, A100, USUAL)
            given = {rates[ratio] / rates[1.0], TABLE_3[name].get(ratio, predicted)}
            assert all(abs(predicted / value - 1) < 0.07 for value in given)


def test_the_page_says_what_the_code_reckons() -> None:
    text = (DOCS / "roofline.md").read_text("utf-8")
    assert text == page()
    assert predictions_table() in text
    assert operations_table() in text


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "roofline.png"
    draw(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
