"""The score stage: every scorer end to end, and the same bytes whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from evaluations import (
    PROMPTS,
    STEPS,
    Remembered,
    check_kills,
    evaluation,
    planned,
    tree,
)
from judges import clip_folder, detector_folder
from ras_dit.errors import RASError
from ras_dit.evaluation import inception
from ras_dit.evaluation.frechet import fit, frechet_distance
from ras_dit.evaluation.images import encode_png, read_batch
from ras_dit.evaluation.manifest import load_settings
from ras_dit.evaluation.scorers import (
    Measured,
    Picture,
    ScorerUnavailable,
    make_scorer,
    scorer_names,
)
from ras_dit.evaluation.scoring import read_columns, read_summary
from ras_dit.evaluation.stages import generate_pictures, score_pictures
from ras_dit.evaluation.statistics import average_statistic, bootstrap_means
from ras_dit.generate import psnr

SPARSE = f"ras-{STEPS}-0.25-std"
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    clip_folder(folder / "clip")
    detector_folder(folder / "detector")
    return folder


@pytest.fixture(scope="module")
def pictures(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a dense and a sparse row, not scored."""
    folder = tmp_path_factory.mktemp("pictures")
    generate_pictures(folder / "out", *planned(folder, evaluation(model_folder, controls=False)))
    return folder / "out"


@pytest.fixture
def made(pictures: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    shutil.copytree(pictures, tmp_path / "out")
    return tmp_path / "out"


def with_scores(model: Path, folder: Path, scores: Any, **changes: Any) -> Any:
    return planned(folder, evaluation(model, controls=False, scores=scores, **changes))[1]


def test_fidelity_to_the_picture_of_the_same_seed(made: Path) -> None:
    progress = score_pictures(made)
    assert progress.done == progress.total == 6
    own = sorted((made / "images" / SPARSE).iterdir())
    dense = sorted((made / "images" / f"dense-{STEPS}").iterdir())
    expected = [psnr(Image.open(a), Image.open(b)) for a, b in zip(own, dense, strict=True)]
    lines = list(read_columns(made, "psnr", SPARSE))
    assert [line["psnr"] for line in lines] == pytest.approx(expected, rel=1e-6)
    assert [line["picture"] for line in lines] == [0, 1, 2, 3, 4]
    (statistic,), _ = read_summary(made, "psnr", SPARSE)
    assert statistic.value == pytest.approx(np.mean(expected))
    assert statistic.low < statistic.value < statistic.high
    (similarity,), _ = read_summary(made, "ssim", SPARSE)
    assert 0 < similarity.value < 1
    assert read_summary(made, "psnr", f"dense-{STEPS}") == ((), "")


def test_equal_pictures_have_the_highest_psnr_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(Image.new("RGB", (16, 16), "red")))
    picture = Picture(0, "x", 0, 0, path, partner=path)
    assert make_scorer("psnr").measure([picture]).rows == ({"psnr": 100.0},)
    assert make_scorer("ssim").measure([picture]).rows == ({"ssim": pytest.approx(1.0)},)


def test_a_partner_of_another_size_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for side, path in zip((16, 24), paths, strict=True):
        path.write_bytes(encode_png(Image.new("RGB", (side, side))))
    with pytest.raises(RASError, match=r"b\.png' is 24 x 24 pixels and .*a\.png' 16 x 16"):
        make_scorer("psnr").measure([Picture(0, "x", 0, 0, paths[0], partner=paths[1])])


@pytest.mark.parametrize("harm", ["cut", "swap", "lose"])
def test_a_broken_picture_is_named_and_mended_by_generate(made: Path, harm: str) -> None:
    score_pictures(made)
    whole = tree(made)
    path = made / "images" / SPARSE / "000003.png"
    content = path.read_bytes()
    for scored in (made / "scores").rglob("00001.json"):
        scored.unlink()
    if harm == "lose":
        path.unlink()
        # The unit is not whole any more, so what is whole is scored.
        assert score_pictures(made).total == 2
    else:
        path.write_bytes(content[:-20] if harm == "cut" else content[:-1] + b"x")
        if harm == "swap":
            with pytest.raises(RASError, match=r"000003\.png' is not the one that was made"):
                score_pictures(made)
            path.unlink()
    generate_pictures(made)
    score_pictures(made)
    assert tree(made) == whole


def test_a_kill_in_any_write_changes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Remembered()
    whole = made.parent / "whole"
    shutil.copytree(made, whole)
    score_pictures(whole, crew=crew)
    expected = tree(whole)

    def score(folder: Path) -> None:
        if not folder.exists():
            shutil.copytree(made, folder)
        score_pictures(folder, crew=crew)

    assert check_kills(monkeypatch, made.parent, score, expected) > 10


def test_a_killed_process_loses_nothing(made: Path) -> None:
    command = [sys.executable, "-m", "ras_dit", "evaluate", "score", str(made)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not list(made.glob("scores/*/*/*.json")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    half = tree(made, "scores")
    score_pictures(made)
    killed = tree(made)
    assert half.items() <= killed.items() or len(half) < len(tree(made, "scores"))
    for path in sorted((made / "scores").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    score_pictures(made)
    assert tree(made) == killed


def test_nothing_is_scored_twice_unless_it_changed(
    made: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Remembered()
    score_pictures(made, crew=crew)
    assert len(crew.asked) == 6
    score_pictures(made, crew=crew)
    assert len(crew.asked) == 6
    monkeypatch.setattr("ras_dit.evaluation.pixels.MOST_DECIBELS", 15.0)
    fresh = Remembered()
    score_pictures(made, crew=fresh)
    assert [key[2] for key in fresh.asked] == ["psnr"] * 3
    (statistic,), _ = read_summary(made, "psnr", SPARSE)
    assert statistic.value <= 15


def test_clip_and_pick_score(made: Path, model_folder: Path, weights: Path) -> None:
    scores = {name: {"weights": str(weights / "clip")} for name in ("clip", "pickscore")}
    settings = with_scores(model_folder, made.parent, scores)
    score_pictures(made, settings)
    arrays = load_file(made / "scores" / "clip" / SPARSE / "00000.safetensors")
    cosines = (arrays["image"] * arrays["text"]).sum(axis=-1)
    assert np.linalg.norm(arrays["image"], axis=-1) == pytest.approx(1, abs=1e-5)
    clip = [line["clip"] for line in read_columns(made, "clip", SPARSE)]
    assert clip[:2] == pytest.approx(np.maximum(0, 100 * cosines), abs=1e-3)
    pick = [line["pickscore"] for line in read_columns(made, "pickscore", SPARSE)]
    scale = np.exp(2.6592)
    assert pick[:2] == pytest.approx(scale * cosines, rel=1e-3)
    (statistic,), _ = read_summary(made, "clip", f"dense-{STEPS}")
    assert (statistic.name, statistic.count) == ("CLIP score", 5)


def test_clip_looks_at_the_picture_and_reads_the_prompt(made: Path, weights: Path) -> None:
    scorer = make_scorer("clip", {"weights": str(weights / "clip")})
    paths = sorted((made / "images" / SPARSE).iterdir())

    def vectors(prompt: str, path: Path) -> Measured:
        return scorer.measure([Picture(0, prompt, 0, 0, path)])

    first, second = vectors("a fox", paths[0]), vectors("an owl", paths[0])
    assert (first.arrays["image"] == second.arrays["image"]).all()
    assert (first.arrays["text"] != second.arrays["text"]).any()
    assert (vectors("a fox", paths[1]).arrays["image"] != first.arrays["image"]).any()
    long = "words without end " * 50
    assert np.isfinite(vectors(long, paths[0]).rows[0]["clip"])


def test_geneval_with_a_real_detector(model_folder: Path, weights: Path, tmp_path: Path) -> None:
    rules = [
        {"tag": tag, "prompt": f"a {tag}", "include": [{"class": "dog", "count": 1, **more}]}
        for tag, more in zip(
            TASKS, ({}, {}, {}, {"color": "red"}, {}, {"color": "blue"}), strict=True
        )
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rules)))
    data = evaluation(
        model_folder,
        controls=False,
        rows=[{"steps": 2}],
        prompts={"source": "geneval", "file": "metadata.jsonl", "per_prompt": 2},
        scores={"geneval": {"detector": str(weights / "detector"), "clip": str(weights / "clip")}},
    )
    manifest, settings = planned(tmp_path, data)
    generate_pictures(tmp_path / "out", manifest, settings)
    score_pictures(tmp_path / "out")
    lines = list(read_columns(tmp_path / "out", "geneval", "dense-2"))
    assert [line["tag"] for line in lines] == [tag for tag in TASKS for _ in range(2)]
    for line in lines:
        assert line["correct"] == (line["reason"] == "")
        assert all(0.3 < detail[1] <= 1 for detail in line["details"])
    assert any(line["details"] for line in lines)
    statistics, note = read_summary(tmp_path / "out", "geneval", "dense-2")
    assert [s.name for s in statistics] == [*(f"GenEval {t}" for t in TASKS), "GenEval overall"]
    assert statistics[-1].value == pytest.approx(np.mean([s.value for s in statistics[:-1]]))
    assert note == ""


def test_geneval_wants_geneval_prompts(made: Path, weights: Path) -> None:
    scorer = make_scorer(
        "geneval", {"detector": str(weights / "detector"), "clip": str(weights / "clip")}
    )
    path = next((made / "images" / SPARSE).iterdir())
    with pytest.raises(RASError, match="picture 7 has no rules of GenEval"):
        scorer.measure([Picture(7, "a fox", 0, 0, path)])


class SmallInception(torch.nn.Module):
    """What the scorer needs of an Inception network, small: a branch to hook, and features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.Mixed_6d = torch.nn.Module()
        self.Mixed_6d.branch1x1 = torch.nn.Conv2d(3, 192, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = torch.nn.functional.interpolate(x.float() / 255, (5, 5))
        return (self.Mixed_6d.branch1x1(x).mean(dim=(2, 3))[:, :12],)


def test_frechet_distances_to_a_folder(
    made: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "_release", lambda: "0")
    loads: list[int] = []

    def load(self: Any) -> Any:
        loads.append(1)
        return SmallInception().eval()

    monkeypatch.setattr(inception.InceptionScorer, "_loaded", load)
    reference = made.parent / "real" / "deeper"
    reference.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        shape = (20 + number // 2, 30, 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(reference / f"{number}.png")
    (made.parent / "inception.pth").write_bytes(b"weights")
    scores = {"fid": {"reference": "real", "weights": "inception.pth", "resamples": 5}}
    score_pictures(made, with_scores(model_folder, made.parent, scores))
    (pool, spatial), note = read_summary(made, "fid", SPARSE)
    assert (pool.name, spatial.name) == ("FID", "sFID")
    assert "to 6 pictures" in note
    own = load_file(made / "scores" / "fid" / SPARSE / "00000.safetensors")
    assert own["pool"].shape == (2, 12)
    assert own["spatial"].shape == (2, 7 * 5 * 5)
    # By hand, from the files.
    scorer = make_scorer(
        "fid",
        load_settings(made).scores["fid"]
        | {"reference": str(made.parent / "real"), "weights": str(made.parent / "inception.pth")},
    )
    real = scorer.features(sorted(reference.iterdir()))
    ours = scorer.features(sorted((made / "images" / SPARSE).iterdir()))
    for name, statistic in (("pool", pool), ("spatial", spatial)):
        expected = frechet_distance(fit(ours[name]), fit(real[name]))
        assert statistic.value == pytest.approx(expected, rel=1e-5)
    # The statistics of the reference are stored beside it, and taken from there.
    again = make_scorer(
        "fid",
        {"reference": str(made.parent / "real"), "weights": str(made.parent / "inception.pth")},
    )
    loads.clear()
    assert again.reference("pool").count == 6
    assert not loads
    (reference / "7.png").write_bytes(encode_png(Image.new("RGB", (8, 8))))
    more = make_scorer(
        "fid",
        {"reference": str(made.parent / "real"), "weights": str(made.parent / "inception.pth")},
    )
    assert more.reference("pool").count == 7
    assert loads
    assert more.identity() != again.identity()


def test_a_damaged_reference_picture_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "_release", lambda: "0")
    monkeypatch.setattr(inception.InceptionScorer, "_loaded", lambda _: SmallInception())
    folder = made.parent / "real"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no picture")
    weights = made.parent / "w.pth"
    weights.write_bytes(b"")
    scorer = make_scorer("fid", {"reference": str(folder), "weights": str(weights)})
    with pytest.raises(RASError, match=r"a\.jpg' is damaged"):
        scorer.reference("pool")  # type: ignore[attr-defined]


def test_what_is_missing_is_said_and_the_others_run(made: Path, model_folder: Path) -> None:
    scores = ["fid", "lpips", "clip", "pickscore", "geneval", "psnr"]
    settings = with_scores(model_folder, made.parent, scores)
    progress = score_pictures(made, settings)
    assert progress.done == 3
    assert set(progress.refused) == set(scores) - {"psnr"}
    for reason, part in {
        "fid": "needs torch",
        "lpips": "needs torchvision",
        "clip": "openai/clip-vit-base-patch32",
        "pickscore": "yuvalkirstain/PickScore_v1",
        "geneval": "mask2former",
    }.items():
        assert part in progress.refused[reason], progress.refused[reason]
        stored = json.loads((made / "scores" / reason / "unavailable.json").read_text())
        assert stored["reason"] == progress.refused[reason]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("beauty", {}, "there is no scorer 'beauty'; expected one of clip, "),
        ("psnr", {"weights": "x"}, "psnr has no setting weights; it has none"),
        ("clip", {"model": "x"}, "clip has no setting model"),
        ("geneval", {"model": "x"}, "geneval has no setting model"),
        ("fid", {"folder": "x"}, "fid has no setting folder"),
        ("lpips", {"net": "bert"}, "scores.lpips.net='bert'; expected one of alex, "),
        ("fid", {"count": "all"}, "scores.fid.count='all'; expected an integer"),
        ("clip", {"weights": 3}, "scores.clip.weights=3; expected a text"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: Any, message: str) -> None:
    with pytest.raises(RASError, match=message) as caught:
        make_scorer(name, settings)
    assert not isinstance(caught.value, ScorerUnavailable)


def test_damaged_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RASError, match=r"the CLIP model .* cannot be loaded"):
        make_scorer("clip", {"weights": str(tmp_path / "clip")})


def test_only_scorers_that_are_asked_for(made: Path) -> None:
    assert score_pictures(made, only=["ssim"]).total == 3
    assert not (made / "scores" / "psnr").exists()
    with pytest.raises(RASError, match="does not ask for the scorer fid; it has psnr, ssim"):
        score_pictures(made, only=["fid"])
    assert {"psnr", "ssim", "lpips", "fid", "clip", "pickscore", "geneval"} <= set(scorer_names())


def test_half_an_evaluation_is_scored_as_far_as_it_is(made: Path) -> None:
    (made / "units" / f"dense-{STEPS}" / "00001.json").unlink()
    assert score_pictures(made, only=["psnr"]).total == 1
    (statistic,), _ = read_summary(made, "psnr", SPARSE)
    assert statistic.count == 2


def test_intervals_are_drawn_by_prompt() -> None:
    rng = np.random.default_rng(3)
    by_prompt = np.repeat(rng.standard_normal(50), 4)
    pictures = [Picture(n, PROMPTS[0], n // 4, n, Path("x")) for n in range(200)]
    statistic = average_statistic("x", by_prompt, pictures, better="higher")
    alone = bootstrap_means(by_prompt, range(200))
    # Four equal pictures of a prompt say no more than one: half the root of the sample size.
    assert statistic.error == pytest.approx(2 * alone.std(), rel=0.1)
    assert statistic.high - statistic.low == pytest.approx(2 * 1.96 * statistic.error, rel=0.1)
    assert statistic == average_statistic("x", by_prompt, pictures, better="higher")


def test_batches_are_uint8_channels_first(made: Path) -> None:
    batch = read_batch(sorted((made / "images" / SPARSE).iterdir()))
    assert (batch.shape, batch.dtype) == ((5, 3, 32, 32), torch.uint8)
