"""The page about memory says what its code counts."""

from __future__ import annotations

import pytest

from benchmarks.memory import LARGE, PAGE, Footprint, footprint, page
from ras_dit.published import published_models


@pytest.mark.parametrize("name", ["sd3-medium", "lumina-image-2.0", "wan2.2-t2v-a14b"])
def test_the_page_has_the_rows_that_the_code_counts(name: str) -> None:
    row = footprint(published_models()[name])
    assert f"| {' | '.join(row.cells())} |" in PAGE.read_text("utf-8")


def test_the_page_has_every_published_model() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    for model in published_models().values():
        assert sum(line.startswith(f"| {model.name} |") for line in lines) == 1


def test_a_row_by_hand() -> None:
    """Stable Diffusion 3: 2.03 billion parameters; 24 layers of keys and values of 1536."""
    row = footprint(published_models()["sd3-medium"])
    assert row.weights / 2e9 == pytest.approx(2.03, abs=0.01)
    assert row.caches == 2 * 2 * (24 * 2 * 1536 * (4096 + 333) + 64 * 4096)
    assert row.packed == 2 * (24 * 2 * 1536 * (4096 + 333) * 66 // 64 + 2 * 64 * 4096)
    assert row.share(LARGE) == (row.weights + row.caches) / 80e9
    assert row.share(LARGE, packed=True) < row.share(LARGE)


def test_models_that_do_not_fit_are_named() -> None:
    small = footprint(published_models()["sd3-medium"])
    large = Footprint(
        published_models()["wan2.1-t2v-14b"],
        num_image=1,
        num_text=1,
        weights=40 * 10**9,
        caches=50 * 10**9,
        packed=30 * 10**9,
    )
    text = " ".join(page([small, large]).split())
    assert "80 GB together for Wan2.1-T2V-14B; with int8 caches, for none." in text
    assert "more than 24 GB for Wan2.1-T2V-14B." in text
