"""Making a study: equal seeds, neutral names, the key apart, prompts for each kind of model."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ras_dit.cli import main
from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.generate import Job, generate
from ras_dit.loading import load_pipeline
from ras_dit.study.build import read_configuration, read_prompts
from ras_dit.study.folder import KEY, MANIFEST, Pair, read_key, read_manifest, write_study
from ras_dit.world import parse
from studies import DENSE, SPARSE, small_study

SHORT = ["--steps", "6", "--max-sequence-length", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts, one of them twice."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("# a comment\na fox\n\n  two   foxes \na fox\n")
    return path


@pytest.fixture(scope="module")
def built(
    model_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A study made by the program, and the folder of the model."""
    out = tmp_path_factory.mktemp("built") / "study"
    words = ["--a", "dense", "--b", "0.4", "--b-steps", "5", "--seed", "7", *SHORT]
    place = ["--model", str(model_folder), "--prompts", str(prompts), "--out", str(out)]
    assert main(["study", "build", *place, *words]) == 0
    return out, model_folder


def test_both_pictures_of_a_pair_are_those_of_generate_with_one_seed(
    built: tuple[Path, Path],
) -> None:
    folder, model = built
    manifest = read_manifest(folder)
    key = read_key(folder / KEY, manifest.study)
    pipeline = load_pipeline(str(model), device="cpu")
    assert [question.prompt for question in manifest.questions] == ["a fox", "two   foxes", "a fox"]
    assert list(key.seeds.values()) == [7, 7, 8]
    configs = {"a": (None, 6), "b": (RASConfig(sample_ratio=0.4), 5)}
    for question in manifest.questions:
        assert {key.images[name] for name in question.images} == {"a", "b"}
        for name in question.images:
            config, steps = configs[key.images[name]]
            job = Job(
                prompts=(question.prompt,),
                seeds=(key.seeds[question.id],),
                num_inference_steps=steps,
                max_sequence_length=16,
            )
            expected = generate(pipeline, config, job).images[0]
            with Image.open(folder / "images" / name) as image:
                assert image.tobytes() == expected.tobytes()


def test_nothing_that_participants_get_tells_the_configurations_apart(
    built: tuple[Path, Path],
) -> None:
    folder, _ = built
    text = (folder / MANIFEST).read_text()
    for word in ("dense", "0.4", "sample_ratio", "seed", "secret", "steps", '"a"', '"b"'):
        assert word not in text
    for path in (folder / "images").iterdir():
        assert re.fullmatch(r"[0-9a-f]{32}\.png", path.name)
        assert path.stat().st_mtime == 0
        with Image.open(path) as image:
            assert image.info == {}
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600
    assert {path.name for path in folder.iterdir()} == {"images", KEY, MANIFEST}


def test_the_order_of_names_says_nothing(tmp_path: Path) -> None:
    manifest = small_study(tmp_path / "study", 60, side=8)
    key = read_key(tmp_path / "study" / KEY, manifest.study)
    first = sum(key.images[question.images[0]] == "a" for question in manifest.questions)
    # Outside with a chance below one in ten million.
    assert 10 <= first <= 50


def test_pictures_lose_what_they_carry_beside_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.info["comment"] = "made by dense"
    write_study(
        tmp_path / "study",
        [Pair("a", 0, image, image)],
        {"a": DENSE, "b": SPARSE},
        title="t",
        consent=[],
        made_with={},
    )
    for path in (tmp_path / "study" / "images").iterdir():
        assert b"dense" not in path.read_bytes()


def test_the_papers_prompts_are_the_default_for_real_models() -> None:
    prompts = read_prompts(None, embedded=False)
    assert len(prompts) == 14
    assert prompts[0] == "A massive alien spaceship that is shaped like a pretzel."
    assert prompts[13] == "A car made out of vegetables."
    assert len(set(prompts)) == 14


def test_the_embedded_models_prompts_are_of_its_world() -> None:
    prompts = read_prompts(None, embedded=True)
    assert len(set(prompts)) == 14
    for prompt in prompts:
        parse(prompt)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("dense", None),
        ("0.25", RASConfig(sample_ratio=0.25)),
        ("fast", RASConfig.load("fast")),
    ],
)
def test_configurations_have_names(text: str, config: RASConfig | None) -> None:
    assert read_configuration(text, 9).config == config
    assert read_configuration(text, 9).steps == 9


def test_a_configuration_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sample_ratio: 0.3\n")
    assert read_configuration(str(path), 4).config == RASConfig(sample_ratio=0.3)
    assert read_configuration(str(path), 4).name == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--a", "dense", "--b", "dense"], "one configuration"),
        (["--a", "dense", "--b", "1.5"], "sample_ratio=1.5"),
        (["--a", "dense", "--b", "quick"], "neither a preset"),
        (["--a", "dense", "--b", "0.5", "--size", "huge"], "--size='huge' is no size"),
        (["--a", "dense", "--b", "0.5", "--prompts", "/absent"], "cannot be read"),
        (["--a", "dense", "--b", "0.5", "--consent", "/absent"], "cannot be read"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str],
    message: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ["--model", str(model_folder), "--out", str(tmp_path / "study")]
    assert main(["study", "build", *place, *SHORT, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    small_study(tmp_path, 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RASError, match="already in use"):
        small_study(tmp_path, 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    pair = Pair("a", 0, Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9)))
    with pytest.raises(RASError, match="by size"):
        write_study(
            tmp_path / "s", [pair], {"a": DENSE, "b": SPARSE}, title="", consent=[], made_with={}
        )


@pytest.mark.parametrize("text", ["", "# only a comment\n\n", "x" * 2001])
def test_prompts_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(RASError, match="prompt"):
        read_prompts(path, embedded=True)


def damaged(data: Any, change: str) -> None:
    """Damages a manifest."""
    if change == "id":
        data["questions"][0]["id"] = "../../etc"
    elif change == "picture":
        data["questions"][0]["images"][0] = "../key.json"
    elif change == "double":
        data["questions"][1]["id"] = data["questions"][0]["id"]
    elif change == "format":
        data["format"] = 99
    else:
        del data["questions"]


@pytest.mark.parametrize("change", ["id", "picture", "double", "format", "questions"])
def test_a_damaged_manifest_is_refused(change: str, tmp_path: Path) -> None:
    small_study(tmp_path, 2)
    data = json.loads((tmp_path / MANIFEST).read_text())
    damaged(data, change)
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(RASError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_lost_picture_is_noticed(tmp_path: Path) -> None:
    manifest = small_study(tmp_path, 2)
    (tmp_path / "images" / manifest.questions[0].images[0]).unlink()
    with pytest.raises(RASError, match="lacks 1 pictures"):
        read_manifest(tmp_path)


def test_the_key_of_another_study_is_refused(tmp_path: Path) -> None:
    small_study(tmp_path / "one", 1)
    manifest = small_study(tmp_path / "two", 1)
    with pytest.raises(RASError, match="belongs to study"):
        read_key(tmp_path / "one" / KEY, manifest.study)
