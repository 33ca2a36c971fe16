"""Prompt files as people have them, whole, damaged and missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ras_dit.errors import RASError
from ras_dit.evaluation.prompts import read_prompts
from ras_dit.world import held_out, parse

RULES = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "x"}


def stored(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco_gives_the_first_caption_of_each_image_by_number(tmp_path: Path) -> None:
    captions = [
        {"image_id": 9, "id": 5, "caption": "A later one."},
        {"image_id": 9, "id": 4, "caption": "A dog\n runs. "},
        {"image_id": 2, "id": 7, "caption": "A cat."},
    ]
    file = stored(tmp_path, "captions_val2014.json", {"images": [], "annotations": captions})
    prompts = read_prompts("coco", file)
    assert [prompt.text for prompt in prompts] == ["A cat.", "A dog runs."]
    assert prompts[1].metadata == {"image_id": 9, "caption_id": 4}
    assert read_prompts("coco", file, count=1) == prompts[:1]


def test_geneval_keeps_the_rules(tmp_path: Path) -> None:
    file = stored(tmp_path, "metadata.jsonl", json.dumps(RULES) + "\n\n" + json.dumps(RULES))
    prompts = read_prompts("geneval", file)
    assert len(prompts) == 2
    assert prompts[0].metadata == RULES


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", ["one, two", "three"]),
        ("b.json", [{"prompt": "one, two"}, {"caption": "three"}]),
        ("c.json", {"7": "one, two", "9": "three"}),
        ("d.json", {"version": 1, "data": [{"text": "one, two"}, "three"]}),
        ("e.csv", 'id,caption\n1,"one, two"\n2,three\n'),
        ("f.csv", '\ufeffprompt\n"one, two"\nthree\n'),
    ],
)
def test_paraimage_files_of_every_shape(tmp_path: Path, name: str, content: Any) -> None:
    prompts = read_prompts("paraimage", stored(tmp_path, name, content))
    assert [prompt.text for prompt in prompts] == ["one, two", "three"]


def test_an_unusual_field_can_be_named(tmp_path: Path) -> None:
    file = stored(tmp_path, "x.csv", "long,short\nmany words,few\n")
    with pytest.raises(RASError, match=r"line 2 .* no field prompt .* it has long, short"):
        read_prompts("paraimage", file)
    assert read_prompts("paraimage", file, field_name="long")[0].text == "many words"


def test_text_and_lines(tmp_path: Path) -> None:
    text = stored(tmp_path, "p.txt", "# comment\na fox\n\n  an owl \n")
    assert [prompt.text for prompt in read_prompts("text", text)] == ["a fox", "an owl"]
    lines = stored(tmp_path, "p.jsonl", '{"prompt": "a\u2028b", "seed": 7}\n{"prompt": "c"}\n')
    assert [(p.text, p.seed) for p in read_prompts("jsonl", lines)] == [
        ("a\u2028b", 7),
        ("c", None),
    ]


def test_the_grammar_gives_held_out_scenes_short_and_long() -> None:
    short = read_prompts("grammar", count=6)
    long = read_prompts("grammar-detailed", count=6)
    assert short == read_prompts("grammar", count=6)
    assert short[:3] == read_prompts("grammar", count=3)
    assert short != read_prompts("grammar", count=6, seed=1)
    for brief, detailed in zip(short, long, strict=True):
        assert parse(brief.text) == parse(detailed.text)
        assert held_out(parse(brief.text)) or parse(brief.text).background.kind == "none"
        assert len(detailed.text) > len(brief.text)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("coco", "{", "is not JSON"),
        ("coco", [], "is no COCO captions file"),
        ("coco", {"annotations": [{"image_id": 1}]}, "annotation 1 .* has no image_id"),
        ("coco", {"annotations": []}, "holds no prompt"),
        ("geneval", '{"tag": "single_object"', "line 1 .* is not JSON"),
        ("geneval", '{"tag": "shape", "prompt": "x"}', "line 1 .* has the tag 'shape'"),
        ("geneval", '{"tag": "colors", "prompt": "x"}', "line 1 .* has no rules"),
        ("paraimage", "3", "holds a int; expected a list"),
        ("paraimage", [3], "entry 1 .* is a int"),
        ("text", "\n# only this\n", "holds no prompt"),
        ("jsonl", "[1]", "line 1 .* is no JSON object"),
        ("jsonl", '{"prompt": "x", "seed": -1}', "line 1 .* has the seed -1"),
        ("jsonl", '{"prompt": "x"}\n{"prompt": " "}', "prompt 2 .* is empty"),
        ("jsonl", '{"prompt": "x"}', "has 1 prompts; count=2 is more"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, source: str, content: Any, message: str
) -> None:
    file = stored(tmp_path, "prompts.json", content)
    with pytest.raises(RASError, match=message):
        read_prompts(source, file, count=2 if "count=2" in message else None)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    for source, file, message in (
        ("text", tmp_path / "none.txt", "cannot be read"),
        ("text", tmp_path / "latin.txt", "cannot be read"),
        ("text", tmp_path, "cannot be read"),
        ("text", None, "needs a file"),
        ("words", None, "source='words' is unknown"),
        ("grammar", None, "has no end; say how many"),
        ("grammar", tmp_path / "x", "takes no file"),
    ):
        with pytest.raises(RASError, match=message):
            read_prompts(source, file)
    with pytest.raises(RASError, match="count=0"):
        read_prompts("grammar", count=0)
