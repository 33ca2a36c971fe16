"""Folders of pictures with captions, and the judge as scorers of the harness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from judge_pictures import draw
from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.evaluation.emoji_scorers import emoji, fd_emoji, scene_of
from ras_dit.evaluation.judge_folder import judge_folder, read_captions
from ras_dit.evaluation.scorers import Measured, Picture, make_scorer
from ras_dit.world import parse

# What is drawn, and the caption that it is judged by.
PICTURES = (
    ("a red circle", "a red circle"),
    ("a blue square", "a green square"),
    ("a red heart to the left of a blue circle", "a red heart to the left of a blue circle"),
    ("a red heart to the left of a blue circle", "a red heart above a blue circle"),
    ("three blue squares", "two blue squares"),
    ("a red circle on a striped blue background", "a red circle on a striped blue background."),
)
RIGHT = {
    ("0.png", "single"): True,
    ("0.png", "colours"): True,
    ("1.png", "single"): False,
    ("1.png", "colours"): False,
    ("2.png", "two"): True,
    ("2.png", "position"): True,
    ("2.png", "colours"): True,
    ("3.png", "two"): True,
    ("3.png", "position"): False,
    ("3.png", "colours"): True,
    ("4.png", "counting"): False,
    # Enough blue squares for the colour; their number is another task's.
    ("4.png", "colours"): False,
    ("5.png", "single"): True,
    ("5.png", "colours"): True,
    ("5.png", "pattern"): True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for number, (shown, said) in enumerate(PICTURES):
        draw(parse(shown), 128, 128).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"file": f"{number}.png", "prompt": said}))
    (tmp_path / "captions.jsonl").write_text("\n".join([*lines, ""]))
    return tmp_path


def test_results_say_right_or_wrong_and_why(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    judge_folder(read_captions(folder), out)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = {(Path(line["filename"]).name, line["task"]): line["correct"] for line in lines}
    assert found == RIGHT
    assert all(bool(line["reason"]) is not line["correct"] for line in lines)
    facts = json.loads((out / "summary.json").read_text())
    values = {each["name"]: each["value"] for each in facts["statistics"]}
    assert values["emoji position"] == 0.5
    assert values["emoji two"] == 1.0
    assert values["emoji recognised"] == pytest.approx(2 / 3)
    assert values["emoji background colours"] == 1.0
    assert values["FD-emoji"] > 0
    assert any("real scenes score" in note for note in facts["notes"])


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "emoji position" in shown
    assert "50.0 %" in shown
    first = (folder / "results.jsonl").read_bytes()
    assert main(["judge", str(folder), "--captions", str(folder / "captions.jsonl")]) == 0
    assert (folder / "results.jsonl").read_bytes() == first
    assert not list(folder.glob("*.new"))


def test_captions_beside_pictures(tmp_path: Path) -> None:
    draw(parse("a red circle"), 128, 128).save(tmp_path / "a.png")
    with pytest.raises(RASError, match=r"a\.txt beside it"):
        read_captions(tmp_path)
    (tmp_path / "a.txt").write_text("a red circle\n")
    (picture,) = read_captions(tmp_path)
    assert picture.prompt == "a red circle"
    found = judge_folder([picture], tmp_path)
    assert found.rows[0]["kept"] == 1.0
    # One picture has no covariance: said, and everything else is there.
    assert any("at least 2" in summary.note for summary in found.summaries)


def test_what_generate_puts_beside_a_picture_needs_no_caption(tmp_path: Path) -> None:
    for name in ("fox-0", "fox-0-map", "fox-0-dense", "fox-0-compare"):
        draw(parse("a red circle"), 128, 128).save(tmp_path / f"{name}.png")
    (tmp_path / "fox-0.txt").write_text("a red circle\n")
    assert [picture.path.stem for picture in read_captions(tmp_path)] == ["fox-0"]
    # With a caption of its own it is a picture like others.
    (tmp_path / "fox-0-dense.txt").write_text("a red circle\n")
    stems = [picture.path.stem for picture in read_captions(tmp_path)]
    assert stems == ["fox-0-dense", "fox-0"]
    # So is one of such a name that stands alone.
    draw(parse("a red circle"), 128, 128).save(tmp_path / "road-map.png")
    with pytest.raises(RASError, match=r"road-map\.txt beside it"):
        read_captions(tmp_path)


def test_pictures_that_say_themselves_what_they_were_made_from(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_itxt("prompt", "a red circle")
    for name in ("fox-0", "fox-0-map", "fox-0-sheet", "toad"):
        draw(parse("a red circle"), 128, 128).save(tmp_path / f"{name}.png", pnginfo=notes)
    # A text beside it comes first.
    (tmp_path / "toad.txt").write_text("a blue circle\n")
    found = [(picture.path.stem, picture.prompt) for picture in read_captions(tmp_path)]
    assert found == [("fox-0", "a red circle"), ("toad", "a blue circle")]
    # A drawing of a picture that is not there is nothing to judge.
    (tmp_path / "fox-0.png").unlink()
    with pytest.raises(RASError, match=r"fox-0-map\.txt beside it"):
        read_captions(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(RASError, match=r"bad\.png cannot be read"):
        read_captions(tmp_path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for captions in (None, tmp_path / "captions.jsonl"):
        with pytest.raises(RASError, match=r"nowhere' does not exist; give a folder"):
            read_captions(tmp_path / "nowhere", captions)
        with pytest.raises(RASError, match="file' is a file; give a folder"):
            read_captions(tmp_path / "file", captions)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "0.png"}', "line 1 of .* is no caption"),
        ("nonsense", "line 1 of .* is no caption"),
        ('{"file": "9.png", "prompt": "a fox"}', "does not exist"),
        ("", "names no picture"),
    ],
)
def test_captions_that_cannot_be_read(folder: Path, line: str, message: str) -> None:
    (folder / "captions.jsonl").write_text(line + "\n")
    with pytest.raises(RASError, match=message):
        read_captions(folder)


def test_bad_input_is_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "captions.jsonl").write_text('{"file": "0.png", "prompt": "a spaceship"}\n')
    assert main(["judge", str(folder)]) == 2
    assert "'a spaceship'" in capsys.readouterr().err
    (folder / "captions.jsonl").write_text('{"file": "0.png", "prompt": "a fox"}\n')
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
    assert main(["judge", str(folder)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert main(["judge", str(folder / "nowhere")]) == 2


def test_an_output_that_is_no_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for place in (blocked, blocked / "below"):
        assert main(["judge", str(folder), "--out", str(place)]) == 2
        said = capsys.readouterr()
        assert f"--out {str(place)!r}" in said.err
        assert "is a file; give a folder" in said.err


def test_a_unit_of_pictures_scores_as_alone(folder: Path) -> None:
    pictures = read_captions(folder)
    for scorer in (emoji({}), fd_emoji({})):
        whole = scorer.measure(pictures)
        parts = Measured.join([scorer.measure([picture]) for picture in pictures])
        assert whole.rows == parts.rows
        json.dumps(whole.rows, allow_nan=False)
        for name, array in whole.arrays.items():
            assert (array == parts.arrays[name]).all()
        assert scorer.summarise(whole, pictures) is not None
        assert not scorer.needs_partner
        json.dumps(scorer.identity())


def test_statistics_have_intervals(folder: Path) -> None:
    pictures = read_captions(folder)
    for scorer in (emoji({}), fd_emoji({})):
        for found in scorer.summarise(scorer.measure(pictures), pictures).statistics:
            assert found.low <= found.value <= found.high
            assert found.error is not None
    names = {s.name for s in emoji({}).summarise(emoji({}).measure(pictures), pictures).statistics}
    assert {"emoji kept", "emoji single", "emoji counting", "emoji pattern"} <= names


def test_settings_that_are_unknown() -> None:
    for name in ("emoji", "fd-emoji"):
        with pytest.raises(RASError, match=f"{name} has no setting weights; it has judge"):
            make_scorer(name, {"weights": "x"})
        with pytest.raises(RASError, match="make train-judge"):
            make_scorer(name, {"judge": "/nowhere"})


def test_pictures_of_several_sizes_have_no_distance(folder: Path) -> None:
    Image.new("RGB", (256, 128), "white").save(folder / "0.png")
    pictures = read_captions(folder)
    scorer = fd_emoji({})
    with pytest.raises(RASError, match="one size"):
        scorer.summarise(scorer.measure(pictures), pictures)


def test_sizes_without_a_reference(tmp_path: Path) -> None:
    pictures = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (96, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        pictures.append(Picture(number, "a fox", number, 0, path, ""))
    scorer = fd_emoji({})
    with pytest.raises(RASError, match="160x96"):
        scorer.summarise(scorer.measure(pictures), pictures)


def test_captions_of_the_world_and_others() -> None:
    assert scene_of("a fox on a blue background. ") == parse("a fox on a blue background")
    with pytest.raises(RASError, match="expected a caption like"):
        scene_of("a photo of a fox")
