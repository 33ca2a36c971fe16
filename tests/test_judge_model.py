"""The command that asks whether a model has reached its bar, with a pipeline that draws here."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from judge_pictures import draw
from ras_dit.evaluation.emoji_prompts import KindScene
from ras_dit.evaluation.judge_folder import judge_folder, read_captions
from ras_dit.world import parse
from training.judge_model import bar_lines, by_kind, draw_missing, wanted_pictures

SCENES = [
    KindScene("single", parse("a red circle")),
    KindScene("single", parse("a blue square")),
    KindScene("pair", parse("a red heart above a blue circle")),
]
OPTIONS = argparse.Namespace(size=[128], steps=1, guidance=4.0, batch=2, checkpoint=None)


class Pipeline:
    """Draws what is asked for, but every blue square as a green one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seeds: list[int] = []

    def __call__(self, prompts: list[str], **call: object) -> SimpleNamespace:
        self.asked += prompts
        self.seeds += [generator.initial_seed() for generator in call["generator"]]  # type: ignore[attr-defined]
        texts = [prompt.replace("blue square", "green square") for prompt in prompts]
        return SimpleNamespace(images=[draw(parse(text), 128, 128) for text in texts])


def test_missing_pictures_are_drawn_from_their_own_seeds(tmp_path: Path) -> None:
    wanted, pipeline = wanted_pictures(SCENES), Pipeline()
    draw_missing(pipeline, wanted, tmp_path, OPTIONS)  # type: ignore[arg-type]
    assert pipeline.asked == [each.prompt for each in wanted]
    assert pipeline.seeds == [0, 1, 2]
    kept = (tmp_path / wanted[0].name).read_bytes()
    (tmp_path / wanted[2].name).unlink()
    again = Pipeline()
    draw_missing(again, wanted, tmp_path, OPTIONS)  # type: ignore[arg-type]
    assert (again.asked, again.seeds) == ([wanted[2].prompt], [2])
    assert (tmp_path / wanted[0].name).read_bytes() == kept


def test_the_bar_is_met_or_not(tmp_path: Path) -> None:
    wanted = wanted_pictures(SCENES)
    draw_missing(Pipeline(), wanted, tmp_path, OPTIONS)  # type: ignore[arg-type]
    rows = judge_folder(read_captions(tmp_path), tmp_path).rows
    found = by_kind(rows, wanted)
    assert found["single"]["recognised"] == [1.0, 0.0]
    assert found["pair"]["position"] == [1.0]
    lines = list(bar_lines(found))
    assert lines[0] == "recognised: 50.0% of 2, asked for 80%: not met"
    assert "position: 100.0% of 1, asked for 50%: met" in lines


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert list(bar_lines({})) == []
    with pytest.raises(ValueError, match="zip"):
        by_kind([{}], [])
