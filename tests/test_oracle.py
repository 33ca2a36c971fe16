"""Foreseen tokens: those whose lines are most wrong, found once more in the slow way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ras_dit
from evaluations import STEPS, evaluation, planned
from ras_dit import RASConfig
from ras_dit.diagnosis import runs
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.evaluation.workshop import job_of, run_row
from ras_dit.generate import Job, generate
from ras_dit.loading import load_pipeline
from ras_dit.oracle import foreseen_trace
from ras_dit.recording import Recording

JOB = Job(prompts=("a fox", "an owl"), seeds=(3, 4), num_inference_steps=10, width=40, height=24)
HELD = RASConfig(sample_ratio=0.3, warmup_steps=3, reset_steps=(7,))
LINES = RASConfig(
    schedule="cycle", cycle=(0.3, 0.0, 0.5, 1.0), warmup_steps=3, forecast="linear", text="keep"
)


AGED = LINES.replace(forecast_age=2, cycle=(0.3, 0.3, 0.3, 0.2))


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Any:
    return load_pipeline(model_folder, device="cpu")


@pytest.fixture(scope="module")
def recording(pipe: Any) -> Recording:
    found = runs.recorded_run(pipe, JOB).recording
    assert found is not None
    return found


def outputs(recording: Recording) -> torch.Tensor:
    """``[steps, B, N, 16]``: 6 x 10 tokens of 2 x 2 pixels in 4 channels, cut one by one."""
    stacked = torch.stack(recording.noise_preds)
    cut = [
        stacked[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(2)
        for row in range(6)
        for column in range(10)
    ]
    return torch.stack(cut, dim=2)


@pytest.mark.parametrize("config", [HELD, LINES, AGED], ids=["held", "linear", "aged"])
def test_the_tokens_whose_lines_are_most_wrong_are_active(
    pipe: Any, recording: Recording, config: RASConfig
) -> None:
    trace = foreseen_trace(recording, config)
    values = outputs(recording).double()
    times = [step.sigma for step in recording.trace.steps]
    refreshes: dict[tuple[int, int], list[int]] = {}
    sparse = 0
    for index, step in enumerate(trace.steps):
        for image in range(2):
            errors = []
            for token in range(60):
                seen = refreshes.get((image, token), [])
                if not seen:
                    errors.append(0.0)
                    continue
                forecast = values[seen[-1], image, token]
                if config.forecast == "linear" and len(seen) > 1:
                    first, last = times[seen[-2]], times[seen[-1]]
                    slope = (forecast - values[seen[-2], image, token]) / (last - first)
                    until = min(index, seen[-1] + (config.forecast_age or index))
                    forecast = forecast + slope * (times[until] - last)
                errors.append(float((values[index, image, token] - forecast).square().mean()))
            active = list(range(60))
            if step.active is not None:
                sparse += 1
                active = step.active[image].tolist()
                worst = sorted(range(60), key=lambda token: -errors[token])[: len(active)]
                assert active == sorted(worst)
            for token in active:
                refreshes.setdefault((image, token), []).append(index)
    assert sparse > 6


@pytest.mark.parametrize("config", [HELD, LINES], ids=["held", "linear"])
def test_what_was_foreseen_is_replayed(pipe: Any, recording: Recording, config: RASConfig) -> None:
    trace = foreseen_trace(recording, config)
    with ras_dit.enable(pipe, config) as handle:
        runs.stock_run(pipe, JOB)
    own = handle.trace
    assert own is not None
    made = generate(pipe, config, JOB, replay=trace)
    assert made.trace is not None
    for found, wanted, chosen in zip(made.trace.steps, trace.steps, own.steps, strict=True):
        assert (
            (found.kind, found.calls) == (wanted.kind, wanted.calls) == (chosen.kind, chosen.calls)
        )
        assert (found.active is None) == (wanted.active is None)
        if found.active is not None and wanted.active is not None:
            assert torch.equal(found.active, wanted.active)
    # Other tokens than the score's.
    assert made.trace.to_json() != own.to_json()


def test_what_cannot_be_foreseen_is_refused(pipe: Any, recording: Recording) -> None:
    for field, value in (
        ("tolerance", 0.1),
        ("reset_tolerance", 0.1),
        ("guidance_every", 2),
    ):
        with pytest.raises(RASError, match=f"{field}={value} cannot be had with foreseen tokens"):
            foreseen_trace(recording, HELD.replace(**{field: value}))
    with pytest.raises(RASError, match=r"public_code=.* cannot be had"):
        foreseen_trace(recording, RASConfig.microsoft(scheduler_end_step=9, error_reset_steps=()))
    sparse = foreseen_trace(recording, HELD)
    with pytest.raises(RASError, match=r"has sparse steps.*record one with sample_ratio=1\.0"):
        foreseen_trace(replace(recording, trace=sparse), HELD)
    levels = tuple(replace(step, sigma=None) for step in recording.trace.steps)
    without = replace(recording, trace=replace(recording.trace, steps=levels))
    with pytest.raises(UnsupportedError, match=r"no noise levels.*FlowMatchEulerDiscreteScheduler"):
        foreseen_trace(without, HELD)


def test_a_row_with_an_oracle_costs_as_much_and_has_other_pictures(
    model_folder: Path, tmp_path: Path
) -> None:
    row = {"steps": STEPS, "sample_ratio": 0.25, "warmup_steps": 2, "metric": "innovation"}
    rows = [row, {**row, "oracle": True}]
    data = evaluation(model_folder, rows=rows, controls={"fewer_steps": False})
    manifest, _ = planned(tmp_path, data)
    names = [row.name for row in manifest.rows]
    plain, oracle = f"ras-{STEPS}-0.25-innovation", f"ras-{STEPS}-0.25-oracle"
    assert {plain, oracle} < set(names)
    assert [row.name for row in manifest.rows if row.role == "random"] == ["random-8-0.25"]
    pipe = load_pipeline(model_folder, device="cpu")
    job = job_of(manifest, manifest.row(plain), range(2))
    made = {name: run_row(pipe, manifest.row(name), job) for name in (plain, oracle)}
    assert made[oracle][1] == made[plain][1] == pytest.approx(manifest.row(oracle).cost)
    first, second = (made[name][0].images[0].tobytes() for name in (plain, oracle))
    assert first != second
    again, _ = run_row(pipe, manifest.row(oracle), job)
    assert again.images[0].tobytes() == second


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"oracle": True}, "row 1 has an oracle, which chooses tokens of a region-adaptive row"),
        ({"oracle": True, "metric": "l2", "scheduler": "unipc"}, "and no scheduler"),
        ({"oracle": 1, "metric": "l2"}, "oracle=1; expected true or false"),
        ({"oracle": True, "tolerance": 0.1}, r"row 1: tolerance=0\.1 cannot be had"),
    ],
)
def test_what_is_wrong_with_an_oracle_is_said(
    model_folder: Path, tmp_path: Path, row: Any, message: str
) -> None:
    with pytest.raises(RASError, match=message):
        planned(tmp_path, evaluation(model_folder, rows=[{"steps": STEPS, **row}]))
