"""The measurements measure what they say, at sizes that take no time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import ras_dit
from benchmarks.__main__ import PARTS, page
from benchmarks.bookkeeping import PARTS as BOOKKEEPING
from benchmarks.bookkeeping import VARIANTS, clocks, sparse_step
from benchmarks.bookkeeping import main as bookkeeping
from benchmarks.settings import Model, Setting, Size
from benchmarks.step import load, measure
from benchmarks.timing import interleaved, median_ratio
from ras_dit.hooks import TransformerHooks


def small(model: Model = "sd3") -> Size:
    return Size(model=model, heads=4, layers=1, height=4, width=6, text=5)


def test_rounds_are_interleaved_and_the_first_one_is_warm_up() -> None:
    order: list[str] = []

    def variant(name: str) -> Any:
        def run() -> tuple[float]:
            order.append(name)
            return (float(len(order)),)

        return run

    seconds = interleaved({"a": variant("a"), "b": variant("b")}, 2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [(3.0,), (5.0,)], "b": [(4.0,), (6.0,)]}
    assert median_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0


@pytest.mark.parametrize("model", ["sd3", "lumina"])
def test_steps_are_sparse_and_stand_beside_another_implementation(model: Model) -> None:
    ratios: list[float] = []

    @contextmanager
    def other(transformer: Any, scheduler: Any, ratio: float) -> Iterator[None]:
        ratios.append(ratio)
        assert transformer is not None
        assert scheduler is not None
        yield

    lines = measure(small(model), [0.5, 0.25], 1, other).splitlines()
    assert ratios == [0.5, 0.25] * 2
    assert lines[0].count("share") == 2
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0.5", "| 0.25"]


def test_an_implementation_that_is_not_there_is_refused() -> None:
    assert load("benchmarks.step:load") is load
    with pytest.raises(ras_dit.RASError, match=r"expected package\.module:function"):
        load("benchmarks.nothing:load")


def test_the_limit_is_that_of_what_runs() -> None:
    setting = Setting(small())
    assert setting.limit(1.0) == 1.0
    assert 1 < setting.limit(0.5) < setting.limit(0.25) < setting.limit(0.25, keeps_text=True)


def test_clocks_see_every_step_and_leave_nothing_behind() -> None:
    setting, before = Setting(small()), TransformerHooks._before_transformer
    with torch.inference_mode(), clocks() as seconds:
        setting.accelerated([0.5, 0.5])
    assert set(seconds) == set(BOOKKEEPING)
    assert all(len(values) == 4 for values in seconds.values())
    assert TransformerHooks._before_transformer is before


def test_bookkeeping_has_a_row_for_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    words = ["bookkeeping", "--grid", "4", "--layers", "1", "--steps", "6", "--share"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("benchmarks.bookkeeping.sparse_step", lambda grid: sparse_step(grid, 1, 1))
    bookkeeping(said.append)
    lines = said[-1].splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(VARIANTS)
    assert lines[0].endswith("| together | of a sparse step |")
    assert all(line.endswith("% |") for line in lines[2:])


def test_the_page_has_what_was_measured() -> None:
    text = page({"loop": {"command": "loop --rounds 1", "output": "| a |\n"}})
    assert PARTS["loop"][0] in text
    assert "`python -m benchmarks.loop --rounds 1`" in text
    assert PARTS["growth"][0] not in text
