"""``ras-dit diagnose``: planted fields, the verdict's words, files, and clear errors."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

import ras_dit
from pipelines import sd3_inputs, sd3_pipeline
from ras_dit.adapters import describe
from ras_dit.cli import main
from ras_dit.diagnosis import measure, verdict
from ras_dit.diagnosis.fields import (
    QUANTITIES,
    Fields,
    flow_sigmas,
    measure_fields,
    read_fields,
)
from ras_dit.diagnosis.measure import Diagnosis, Estimate, Part
from ras_dit.generate import Job
from ras_dit.loading import load_pipeline
from ras_dit.tokens import TokenGrid

GRID = TokenGrid(20, 30)
SIGMAS = torch.tensor([1.0, 0.97, 0.9, 0.7, 0.65, 0.4, 0.38, 0.25, 0.1], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(curve: Callable[[torch.Tensor], torch.Tensor], spread: float) -> Fields:
    """Fields of two images whose tokens move along one curve in sigma, by log-normal amounts."""
    directions = torch.nn.functional.normalize(drawn(2, 600, 8), dim=-1)
    amounts = (spread * drawn(2, 600, 1, seed=1)).exp()
    moved = (amounts * directions) * curve(SIGMAS).view(-1, 1, 1, 1)
    still = drawn(2, 600, 8, seed=2)
    noise = (moved + still).view(9, 2, 600, 4, 2)
    return Fields(GRID, SIGMAS, noise, amounts[..., 0])


def test_a_straight_field_is_read_as_it_was_planted() -> None:
    found = measure_fields(planted(lambda sigma: 3 * sigma, 0.7))
    assert set(found) == {quantity.name for quantity in QUANTITIES}
    spread = found["slope_spread"].values
    assert spread.shape == (2, 8)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.7), atol=0.05, rtol=0)
    saving = found["slope_saving"].values
    formula = torch.full_like(saving, math.exp(2 * 0.7**2 / 3))
    torch.testing.assert_close(saving, formula, rtol=0.1, atol=0)
    # The same tokens move in every step, and their edges say which.
    for name in ("slope_persistence_1", "slope_persistence_3", "slope_edges"):
        torch.testing.assert_close(found[name].values, torch.ones_like(found[name].values))
    torch.testing.assert_close(found["slope_saving_3"].values, saving[:, 3:])
    assert float(found["bend_size"].values.max()) < 1e-9 * float(found["slope_size"].values.max())
    torch.testing.assert_close(
        found["slope_spread"].sigmas, (SIGMAS[1:] + SIGMAS[:-1]) / 2, atol=1e-12, rtol=0
    )


def test_a_bent_field_has_its_spread_in_the_second_derivative() -> None:
    found = measure_fields(planted(torch.square, 0.5))
    spread = found["bend_spread"].values
    torch.testing.assert_close(spread, torch.full_like(spread, 0.5), atol=0.05, rtol=0)
    saving = found["bend_saving"].values
    formula = torch.full_like(saving, math.exp(0.4 * 0.5**2))
    torch.testing.assert_close(saving, formula, rtol=0.05, atol=0)
    assert float(found["neighbours"].values.abs().max()) < 0.15
    torch.testing.assert_close(found["neighbours"].sigmas, SIGMAS[2:])


def test_an_order_that_changes_at_every_step_cannot_be_foretold() -> None:
    moved = (0.7 * drawn(9, 2, 600, 1)).exp() * drawn(2, 600, 8, seed=1)
    steps = SIGMAS.diff(prepend=SIGMAS[:1]).view(-1, 1, 1, 1)
    fields = planted(torch.square, 0.5)
    found = measure_fields(replace(fields, noise=(moved * steps).cumsum(0).view(9, 2, 600, 4, 2)))
    own = moved.norm(dim=-1).log().var() - 0.7**2  # what a token's direction has for good
    assert float(own) < 0.1
    for lag in (1, 3):
        assert float(found[f"slope_persistence_{lag}"].values.abs().max()) < 0.35
        assert float(found[f"slope_saving_{lag}"].values.max()) < 1
    assert float(found["slope_saving"].values.min()) > 1.2


def test_neighbours_are_those_of_the_grid() -> None:
    fields = planted(torch.square, 0.0)
    bends = drawn(2, 20, 1, 8).expand(-1, -1, 30, -1).reshape(2, 600, 4, 2)
    moved = bends * SIGMAS.square().view(-1, 1, 1, 1, 1)
    alike = measure_fields(replace(fields, noise=moved))["neighbours"].values
    # Rows are constant, and one row tells nothing of the next.
    torch.testing.assert_close(alike, torch.full_like(alike, 580 / 1150), atol=0.1, rtol=0)


def test_scores_are_held_against_the_change_that_follows() -> None:
    fields = planted(lambda sigma: 3 * sigma, 0.7)
    noise = fields.noise.clone()
    # Before one step only, noise is large where the change to come is large.
    noise[4] *= fields.edges[:, :, None, None] / noise[4].norm(dim=-1, keepdim=True)
    moved = (noise[5] - noise[4]).flatten(2).norm(dim=-1)
    found = measure_fields(replace(fields, noise=noise))
    edges = found["slope_l2"].values
    assert edges.shape == (2, 8)
    norms = noise[4].norm(dim=-1).mean(-1)
    ordered = norms.argsort().argsort().double(), moved.argsort().argsort().double()
    expected = [
        float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*ordered, strict=True)
    ]
    assert edges[:, 4].tolist() == pytest.approx(expected)


def test_velocities_are_sorted_by_token() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=1.0, record=True) as handle:
        pipe(**sd3_inputs(2))
    recording, config = handle.recording, pipe.transformer.config
    assert recording is not None
    pictures = tuple(Image.new("RGB", (40, 24), colour) for colour in ("red", "blue"))
    fields = read_fields(recording, pictures, describe(pipe.transformer), config)
    assert fields.noise.shape == (10, 2, 60, 4, 4)
    # Token 23 is the fourth of the third row.
    patch = recording.noise_preds[7][1, :, 4:6, 6:8]
    torch.testing.assert_close(fields.noise[7, 1, 23], patch.permute(1, 2, 0).reshape(4, 4))
    assert float(fields.edges.abs().max()) == 0
    broken = replace(
        recording, noise_preds=(recording.noise_preds[0] / 0, *recording.noise_preds[1:])
    )
    with pytest.raises(ras_dit.RASError, match=r"not finite in float32; load .* --dtype float32"):
        read_fields(broken, pictures, describe(pipe.transformer), config)


def test_noise_levels_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ras_dit.UnsupportedError, match="has no noise levels"):
        flow_sigmas([None] * 9)
    with pytest.raises(ras_dit.RASError, match=r"7 steps are too few .* --steps 8"):
        flow_sigmas([1 - i / 8 for i in range(7)])
    with pytest.raises(ras_dit.UnsupportedError, match=r"begin at 14.6; expected .* flow matching"):
        flow_sigmas([14.6, *(1 - i / 8 for i in range(8))])
    with pytest.raises(ras_dit.UnsupportedError, match="several evaluations at one noise level"):
        flow_sigmas([1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6])


# -- the verdict ---------------------------------------------------------------------------------


def told(
    parts: dict[str, float] | None = None, *, rounding: float = 0.0, **means: float
) -> verdict.Verdict:
    """The verdict on some means over the run."""
    return verdict.judge(diagnosis(parts, rounding=rounding, **means))


def diagnosis(
    parts: dict[str, float] | None = None, *, rounding: float = 0.0, **means: float
) -> Diagnosis:
    """A diagnosis with some means over the run, all others being 0 or 1."""
    usual = {q.name: 1.0 if q.is_saving else 0.0 for q in QUANTITIES}
    errors = [
        Part(name, None if name == "text" else 0.25, 7.0, (error,), Estimate(error, None, None))
        for name, error in (parts or {}).items()
    ]
    return Diagnosis(
        job=Job(prompts=("a",), seeds=(0,)),
        groups=(0,),
        facts={"dtype": "bfloat16"},
        series={},
        summary={n: Estimate(m, None, None) for n, m in (usual | means).items()},
        parts=tuple(errors),
        notes=(),
        rounding=rounding,
        example=planted(torch.square, 0.5),
        picture=Image.new("RGB", (8, 8)),
    )


@pytest.mark.parametrize(
    ("spread", "past", "words"),
    [
        (0.49, 1.2, "Little to win"),
        (0.5, 1.2, "Something to win .* known, 1.20x by what was seen three"),
        (0.8, 1.2, "Much to win"),
        (0.8, 1.04, "Much to win by selecting tokens in theory"),
    ],
)
def test_the_headline_follows_the_spread(spread: float, past: float, words: str) -> None:
    for name in ("slope_spread", "bend_spread"):
        assert re.match(words, told(**{name: spread, "bend_saving_3": past}).headline)


def test_the_paper_keeps_low_std_and_high_l2() -> None:
    right = " ".join(told(slope_std=-0.3, slope_l2=0.3).reasons)
    assert "std (-0.30) points the right way and l2 (+0.30) points the right way" in right
    wrong = " ".join(told(slope_std=0.3, slope_l2=-0.3).reasons)
    assert "std (+0.30) points the wrong way and l2 (-0.30) points the wrong way" in wrong
    assert "std (+0.19) says little" in " ".join(told(slope_std=0.19).reasons)


@pytest.mark.parametrize(
    ("held", "stale", "text", "real", "words"),
    [
        (0.1, 0.02, 0.02, 0.1, "outputs comes first.*not what spoils.*loses to 7 dense"),
        (0.02, 0.1, 0.1, 0.01, "old keys and values come first.*compute it anew.*beats 7 dense"),
        (0.02, 0.02, 0.02, 0.05, "both matter alike.*about as much.*ties with 7 dense"),
    ],
)
def test_parts_are_compared(
    held: float, stale: float, text: float, real: float, words: str
) -> None:
    parts = {"held": held, "stale": stale, "text": text, "all": real, "fewer": 0.04}
    assert re.search(words, " ".join(told(parts).reasons))


def test_parts_are_judged_at_the_smallest_ratio() -> None:
    wide = Estimate(0.9, None, None)
    found = diagnosis({"held": 0.1, "stale": 0.02, "all": 0.1, "fewer": 0.04})
    others = tuple(replace(part, ratio=0.5, estimate=wide) for part in found.parts)
    assert verdict.judge(replace(found, parts=others + found.parts)) == verdict.judge(found)


def test_rounding_is_told_where_it_matters() -> None:
    assert "Rounding" not in " ".join(told(rounding=0.1).reasons)
    assert "in bfloat16, rounding of the velocity makes 30 %" in told(rounding=0.3).reasons[-1]


# -- the program ---------------------------------------------------------------------------------


@pytest.fixture
def run(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``ras-dit diagnose`` on the small model."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")

    def call(*words: str, base: tuple[str, ...] = ("--prompts", str(prompts))) -> Any:
        usual = ["--device", "cpu", "--steps", "8", "--max-sequence-length", "16"]
        folder = str(tmp_path / "out")
        status = main(["diagnose", str(model_folder), *base, *usual, "--out", folder, *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_everything_is_written(run: Any, tmp_path: Path) -> None:
    status, out, err = run("--per-prompt", "2", "--batch", "3", "--size", "40x24", "--ratio", ".4")
    assert (status, err) == (0, "")
    folder = tmp_path / "out"
    plots = {"spread.png", "order.png", "maps.png", "parts.png"}
    files = {"diagnosis.md", "diagnosis.json", "diagnosis.csv"}
    assert {path.name for path in folder.iterdir()} == plots | files
    data = json.loads((folder / "diagnosis.json").read_text())
    assert data["runs"]["prompts"] == ["a fox", "a fox", "an owl", "an owl"]
    assert data["runs"]["seeds"] == [0, 1, 2, 3]
    assert data["runs"]["groups"] == [0, 0, 1, 1]
    assert data["runs"]["tokens"] == [6, 10]
    assert set(data["summary"]) == set(data["by_step"]) == {q.name for q in QUANTITIES}
    spread = data["by_step"]["slope_spread"]
    by_image = torch.tensor(data["by_image"]["slope_spread"])
    assert by_image.shape == (4, 7)
    assert [step["mean"] for step in spread] == pytest.approx(by_image.mean(0).tolist())
    assert all(step["low"] <= step["mean"] <= step["high"] for step in spread)
    mean = float(by_image.mean())
    assert data["summary"]["slope_spread"]["mean"] == pytest.approx(mean)
    savings = torch.tensor(data["by_image"]["bend_saving"], dtype=torch.float64)
    harmonic = savings.shape[1] / (1 / savings).sum(1)
    assert data["summary"]["bend_saving"]["mean"] == pytest.approx(float(harmonic.mean()))
    parts = {(part["name"], part["ratio"]): part for part in data["parts"]}
    assert set(parts) == {("text", None), *((n, 0.4) for n in ("held", "stale", "all", "fewer"))}
    assert all(len(part["errors"]) == 4 and min(part["errors"]) > 0 for part in data["parts"])
    assert 1 < parts["all", 0.4]["cost"] < 8
    assert parts["fewer", 0.4]["cost"] == round(parts["all", 0.4]["cost"])
    page = (folder / "diagnosis.md").read_text()
    assert data["verdict"]["headline"] in page
    assert data["verdict"]["headline"] in out
    assert all(f"({name})" in page for name in plots)
    rows = list(csv.DictReader((folder / "diagnosis.csv").read_text().splitlines()))
    lengths = sum(len(steps) for steps in data["by_step"].values())
    assert len(rows) == lengths + len(parts)
    assert [float(row["mean"]) for row in rows if row["quantity"] == "slope_spread"] == [
        step["mean"] for step in spread
    ]
    for name in plots:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200


def test_batches_make_no_difference_to_dense_runs(model_folder: Path) -> None:
    pipe = load_pipeline(model_folder, device="cpu")
    job = Job(prompts=("a fox", "an owl", "a fox"), seeds=(0, 0, 1), num_inference_steps=8)
    whole = measure.diagnose(pipe, job, ratios=())
    single = measure.diagnose(pipe, job, ratios=(), batch=1)
    assert whole.groups == single.groups == (0, 1, 0)
    assert not whole.parts
    for name in ("slope_spread", "bend_saving", "neighbours"):
        torch.testing.assert_close(
            whole.series[name].values, single.series[name].values, atol=1e-3, rtol=1e-3
        )


def test_runs_are_announced(model_folder: Path) -> None:
    pipe, seen = load_pipeline(model_folder, device="cpu"), []
    job = Job(prompts=("a fox",), seeds=(0,), num_inference_steps=8)
    measure.diagnose(
        pipe, job, ratios=(0.5,), on_run=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("groups", [(0,), (0, 1, 2)])
def test_groups_of_other_images_are_refused_before_the_first_run(
    model_folder: Path, groups: tuple[int, ...]
) -> None:
    pipe, seen = load_pipeline(model_folder, device="cpu"), []
    job = Job(prompts=("a fox", "an owl"), seeds=(0, 0), num_inference_steps=8)
    error = rf"has {len(groups)} numbers, and the job makes 2 images"
    with pytest.raises(ras_dit.RASError, match=error):
        measure.diagnose(pipe, job, groups=groups, on_run=lambda *done: seen.append(done))
    assert not seen


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--steps", "7"), "7 steps are too few for second derivatives .* --steps 8 or more"),
        (("--size", "40"), "--size='40' is no size; expected width and height"),
        (("--size", "41x24"), "41"),
        (("--size", "12x40", "--no-parts"), r"10 x 3 tokens are too small .* 4 x 4"),
        (("--ratio", "1"), "ratio=1.0; expected a share of active tokens"),
        (("--ratio", ".5", "--ratio", "0.5"), r"ratios=\[0.5, 0.5\] has one of them twice"),
        (("--count", "3"), "has 2 prompts; count=3 is more"),
        (("--prompts", "no-such-file.txt"), "no-such-file"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, tmp_path: Path, words: tuple[str, ...], error: str
) -> None:
    status, _, err = run(*words)
    assert status == 2
    assert re.search(error, err)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = run("--out", str(tmp_path / "file"))
    assert (status, err.count("\n")) == (2, 1)
    assert "is a file; give a folder" in err


def test_another_model_needs_prompts(run: Any) -> None:
    status, _, err = run(base=())
    assert status == 2
    assert "say what to make with --prompts FILE" in err


@pytest.mark.parametrize(
    ("scheduler", "error"),
    [
        (FlowMatchHeunDiscreteScheduler, "several evaluations at one noise level"),
        (DDIMScheduler, r"no noise levels \(sigmas\)"),
    ],
)
def test_schedulers_that_cannot_be_diagnosed_are_refused(
    model_folder: Path, scheduler: Any, error: str
) -> None:
    pipe = load_pipeline(model_folder, device="cpu")
    pipe.scheduler = scheduler()
    job = Job(prompts=("a fox",), seeds=(0,), num_inference_steps=8)
    with pytest.raises(ras_dit.RASError, match=error):
        measure.diagnose(pipe, job, ratios=())


def test_the_embedded_model_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--count 1 --steps 8 --size 64x64 --no-parts --device cpu --out"
    assert main(["diagnose", *words.split(), str(tmp_path)]) == 0
    data = json.loads((tmp_path / "diagnosis.json").read_text())
    assert data["runs"]["model"] == "the embedded model"
    assert data["runs"]["tokens"] == [8, 8]
    # One prompt says nothing of how prompts differ.
    assert data["summary"]["bend_spread"]["low"] is None
    assert 0 < data["summary"]["bend_spread"]["mean"] < 2
    assert "to win by selecting tokens" in capsys.readouterr().out
