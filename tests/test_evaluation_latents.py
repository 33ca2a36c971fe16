"""Latents beside the pictures: those that are decoded, whatever happens, and their distance."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import ras_dit
from evaluations import STEPS, Remembered, check_kills, evaluation, planned, tree
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.evaluation.cluster import _contents, _moved
from ras_dit.evaluation.comparisons import RowResult, duels
from ras_dit.evaluation.latents import LatentScorer, encode_latents, read_latents
from ras_dit.evaluation.manifest import load_manifest, load_settings
from ras_dit.evaluation.report import read_results
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Picture, Stored, make_scorer
from ras_dit.evaluation.scoring import read_columns, read_summary
from ras_dit.evaluation.stages import finished_units, generate_pictures, score_pictures
from ras_dit.evaluation.statistics import average_statistic, bootstrap_means, bootstrap_medians
from ras_dit.evaluation.workshop import Task, job_of, threads
from ras_dit.generate import Job, _call_arguments, generate

REFERENCE = 12
SPARSE = f"ras-{STEPS}-0.25-std"
WITH_LATENTS = {
    "latents": True,
    "reference_steps": REFERENCE,
    "controls": False,
    "scores": ["latent-rmse", "psnr"],
}


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation with latents, made and scored, and what its crew remembers."""
    folder = tmp_path_factory.mktemp("made")
    manifest, settings = planned(folder, evaluation(model_folder, **WITH_LATENTS))
    crew = Remembered()
    assert generate_pictures(folder / "out", manifest, settings, crew=crew).whole
    unscored = tree(folder / "out")
    assert score_pictures(folder / "out").whole
    return folder / "out", manifest, settings, crew, unscored


def latents_of(folder: Path, row: str, index: int) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.load(folder / "latents" / row / f"{index:06d}.npy")
    return array


def test_the_latents_are_those_that_are_decoded(made: Any, model_folder: Path) -> None:
    folder, manifest, *_ = made
    pipe = StableDiffusion3Pipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    for row in manifest.rows:
        job = job_of(manifest, row, [2, 3])
        with threads(1), torch.no_grad():
            if row.sampling is not None:
                ras_dit.enable(pipe, row.sampling)
            expected = pipe(**_call_arguments(pipe, job), output_type="latent").images
            ras_dit.disable(pipe)
        for index, latents in zip((2, 3), expected, strict=True):
            stored = latents_of(folder, row.name, index)
            assert stored.dtype == np.float32
            assert np.array_equal(stored, latents.numpy())


def test_records_tell_of_latents_as_of_pictures(made: Any) -> None:
    folder, manifest, *_ = made
    for row in manifest.rows:
        pictures = [picture for unit in finished_units(folder, manifest, row) for picture in unit]
        assert len(pictures) == 5
        for picture in pictures:
            assert picture.latents is not None
            content = picture.latents.path.read_bytes()
            assert hashlib.sha256(content).hexdigest() == picture.latents.sha256
            assert encode_latents(torch.from_numpy(read_latents(picture.latents))) == content


def test_a_kill_in_any_write_changes_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, settings, crew, expected = made
    assert any(name.startswith("latents/") for name in expected)

    def make(folder: Path) -> None:
        generate_pictures(folder, manifest, settings, crew=crew)

    number = check_kills(monkeypatch, tmp_path, make, expected)
    assert number == len(expected) + 1


def test_lost_or_cut_latents_are_made_again(made: Any, tmp_path: Path) -> None:
    whole, _, _, crew, _ = made
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    files = sorted((folder / "latents").rglob("*.npy"))
    files[0].unlink()
    files[-1].write_bytes(files[-1].read_bytes()[:-4])
    crew.asked.clear()
    assert generate_pictures(folder, crew=crew).whole
    assert len(crew.asked) == 2
    assert tree(folder) == tree(whole)


def test_latents_that_are_not_those_that_were_made_are_refused(made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made[0], folder)
    path = folder / "latents" / SPARSE / "000003.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / "scores" / "latent-rmse" / SPARSE / "00001.json").unlink()
    with pytest.raises(RASError, match=r"000003\.npy' are not those that were made"):
        score_pictures(folder)


def test_the_distance_is_the_root_mean_square(made: Any) -> None:
    folder, manifest, *_ = made
    assert manifest.reference.name == f"dense-{REFERENCE}"
    for row in (f"dense-{STEPS}", SPARSE):
        expected = []
        for index in range(5):
            own, other = (
                latents_of(folder, name, index).astype(float)
                for name in (row, manifest.reference.name)
            )
            expected.append(float(np.sqrt(((own - other) ** 2).mean())))
        found = [line["latent-rmse"] for line in read_columns(folder, "latent-rmse", row)]
        assert found == pytest.approx(expected, rel=1e-12)
        assert min(found) > 0
        (median, mean), _ = read_summary(folder, "latent-rmse", row)
        assert (median.value, mean.value) == pytest.approx((np.median(found), np.mean(found)))
        assert (median.average, mean.average) == ("median", "mean")
        assert {median.better, mean.better} == {"lower"}
        assert median.low <= median.value <= median.high
    assert read_summary(folder, "latent-rmse", manifest.reference.name) == ((), "")


def test_rows_fight_by_their_latents(made: Any) -> None:
    folder, *_ = made
    results = read_results(folder, load_manifest(folder), load_settings(folder))
    own = next(result for result in results if result.row.name == SPARSE)
    duel = next(d for d in duels(own, results) if d.kind == "fewer steps")
    assert {"median latent RMSE", "mean latent RMSE"} < set(duel.gaps)


def row_with(name: str, values: list[float], **row: Any) -> RowResult:
    pictures = [Picture(n, "x", n, n, Path("x")) for n in range(len(values))]
    statistic = average_statistic(
        "M", values, pictures, better="lower", column="m", average="median"
    )
    return RowResult(
        row=Row(name=name, steps=8, **row),
        pictures=len(values),
        cost=4.0,
        statistics=(statistic,),
        columns={"m": dict(enumerate(values))},
        groups={n: n for n in range(len(values))},
    )


def test_medians_fight_picture_by_picture_and_ignore_a_jump() -> None:
    rng = np.random.default_rng(0)
    base = list(1 + 0.3 * rng.random(41))
    worse = [value + 0.05 for value in base]
    jumped = [value - 0.05 for value in base]
    jumped[0] += 100.0
    own = row_with("own", base, config={})
    (duel,) = duels(own, [own, row_with("dense-4", worse)])
    # All differences are the same, and so are those of the medians: no spread of the pictures.
    assert duel.gaps["M"] == pytest.approx((-0.05, -0.05))
    assert duel.verdict == "beats"
    (duel,) = duels(own, [own, row_with("dense-4", jumped)])
    assert duel.verdict == "loses"


def test_medians_are_resampled_by_prompt() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0])
    groups = [0, 0, 1, 2, 2, 2]
    rng = np.random.default_rng(0)
    members = [values[:2], values[2:3], values[3:]]
    samples = [np.concatenate([members[g] for g in rng.integers(0, 3, 3)]) for _ in range(300)]
    found = bootstrap_medians(values, groups, resamples=300)
    assert found == pytest.approx([np.median(sample) for sample in samples])
    means = bootstrap_means(values, groups, resamples=300)
    assert means == pytest.approx([sample.mean() for sample in samples])


def test_an_evaluation_without_latents_says_so(model_folder: Path, tmp_path: Path) -> None:
    without = {**WITH_LATENTS, "latents": False}
    manifest, settings = planned(tmp_path, evaluation(model_folder, **without))
    assert "latents" not in manifest.to_dict()
    with pytest.raises(RASError, match=r"latent-rmse compares latents.*`latents: true`"):
        generate_pictures(tmp_path / "out", manifest, settings, budget=0)
    plain = planned(tmp_path, evaluation(model_folder, **{**without, "scores": ["psnr"]}))
    generate_pictures(tmp_path / "out", *plain, budget=0)
    with pytest.raises(RASError, match="this evaluation keeps none"):
        score_pictures(tmp_path / "out", settings)
    other, _ = planned(tmp_path, evaluation(model_folder, **WITH_LATENTS))
    with pytest.raises(RASError, match="holds an evaluation with other latents;"):
        generate_pictures(tmp_path / "out", other, plain[1])
    with pytest.raises(RASError, match="latents='yes'"):
        planned(tmp_path, evaluation(model_folder, latents="yes"))
    picture = Picture(0, "x", 0, 0, Path("x"), partner=Path("y"))
    with pytest.raises(RASError, match="this evaluation kept none"):
        LatentScorer().measure([picture])
    with pytest.raises(RASError, match="latent-rmse has no setting net"):
        make_scorer("latent-rmse", {"net": "alex"})


def test_latents_of_two_sizes_do_not_compare(tmp_path: Path) -> None:
    stored = []
    for side in (4, 6):
        path = tmp_path / f"{side}.npy"
        content = encode_latents(torch.zeros(2, side, side, dtype=torch.bfloat16))
        path.write_bytes(content)
        stored.append(Stored(path, hashlib.sha256(content).hexdigest()))
    picture = Picture(0, "x", 0, 0, Path("x"), latents=stored[0], partner_latents=stored[1])
    with pytest.raises(RASError, match=r"4\.npy' has the shape \(2, 4, 4\) and"):
        LatentScorer().measure([picture])


def test_another_machine_gets_the_latents_too(made: Any, tmp_path: Path) -> None:
    folder, manifest, *_ = made
    scorer = LatentScorer()
    own, reference = (
        finished_units(folder, manifest, manifest.row(name))[0]
        for name in (SPARSE, manifest.reference.name)
    )
    pictures = tuple(
        Picture(
            **{
                **vars(a),
                "partner": b.path,
                "partner_sha256": b.sha256,
                "partner_latents": b.latents,
            }
        )
        for a, b in zip(own, reference, strict=True)
    )
    task = Task(SPARSE, 0, "latent-rmse", pictures)
    moved = _moved(task, _contents(task), tmp_path)
    assert all(path.parent == tmp_path for picture in moved.pictures for path in picture.files)
    assert len(list(tmp_path.iterdir())) == 4 * len(pictures)
    assert scorer.measure(moved.pictures) == scorer.measure(pictures)


class Secretive(StableDiffusion3Pipeline):
    """A pipeline that shows its callbacks nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, callback_on_step_end_tensor_inputs=[], **kwargs)


def test_a_pipeline_that_hands_no_latents_over_is_refused(model_folder: Path) -> None:
    pipe = Secretive.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    job = Job(prompts=("a fox",), seeds=(0,), num_inference_steps=1, width=32, height=32)
    assert generate(pipe, None, job).latents is None
    with pytest.raises(UnsupportedError, match="Secretive hands no latents"):
        generate(pipe, None, job, keep_latents=True)
