"""Recording: opt-in, exact, and of stated size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from families_cogvideox import FAMILIES as COGVIDEOX
from families_flux import FAMILIES as FLUX
from families_ltx import FAMILIES as LTX
from families_qwen_edit import FAMILIES as QWEN_EDIT
from families_sd3 import FAMILIES as SD3
from families_wan import FAMILIES as WAN
from family_laws import Family, run
from pipelines import sd3_inputs, sd3_pipeline


def test_a_recording_holds_every_step() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.4) as handle:
        expected = pipe(**sd3_inputs(2)).images
        assert handle.recording is None
    with ras_dit.enable(pipe, sample_ratio=0.4, record=True) as handle:
        latents = pipe(**sd3_inputs(2)).images
        with pytest.raises(ras_dit.RASError, match="record=True"):
            ras_dit.enable(pipe, sample_ratio=0.4)
    recording, trace = handle.recording, handle.trace
    assert recording is not None
    assert trace is not None
    assert torch.equal(latents, expected)
    assert recording.nbytes == 2 * 10 * latents.nbytes
    sigmas = [*(step.sigma or 0.0 for step in trace.steps), 0.0]
    for step in range(9):
        moved = (
            recording.samples[step]
            + (sigmas[step + 1] - sigmas[step]) * recording.noise_preds[step]
        )
        torch.testing.assert_close(moved, recording.samples[step + 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recording.predicted_latents(9), latents, atol=1e-4, rtol=1e-4)


def test_scores_are_those_that_chose_the_active_tokens() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(
        pipe, sample_ratio=0.4, starvation_scale=0, record=True, warmup_steps=2
    ) as handle:
        pipe(**sd3_inputs(2))
    recording, trace = handle.recording, handle.trace
    assert recording is not None
    assert trace is not None
    for step in range(1, 9):
        lowest = recording.scores(step).flatten(1).topk(24, largest=False).indices.sort().values
        active = trace.steps[step + 1].active
        if active is not None:
            assert torch.equal(lowest, active)
    assert recording.scores(3, "l2").shape == (2, 6, 10)
    with pytest.raises(ras_dit.RASError, match="metric='random' has no map"):
        recording.scores(3, "random")
    with pytest.raises(ras_dit.RASError, match="step=10; the run has steps 0 to 9"):
        recording.predicted_latents(10)


# Maps of pixels, packed latents, references beside them, videos with either order of dimensions.
KINDS = [SD3[0], FLUX[0], QWEN_EDIT[0], WAN[0], COGVIDEOX[0]]


@pytest.mark.parametrize("family", KINDS, ids=str)
@pytest.mark.parametrize("metric", ["std", "l2"])
def test_scores_have_the_shape_of_the_grid_whatever_the_latents(
    family: Family, metric: Any
) -> None:
    pipe = family.build()
    knobs: dict[str, Any] = {"metric": metric, "starvation_scale": 0, "max_dropped": None}
    with ras_dit.enable(pipe, sample_ratio=0.5, warmup_steps=1, record=True, **knobs) as handle:
        run(pipe, family.call(2))
    recording, trace = handle.recording, handle.trace
    assert recording is not None
    assert trace is not None
    sparse = [step for step in trace.steps if step.active is not None]
    assert sparse
    for step in sparse:
        scores = recording.scores(step.index - 1, metric)
        assert scores.shape == (trace.batch_size, *trace.grid.shape)
        best = scores.flatten(1).topk(step.num_active, largest=metric == "l2").indices
        assert torch.equal(best.sort().values, step.active)


def test_given_frames_that_the_scheduler_does_not_get_have_no_score() -> None:
    family = next(each for each in LTX if str(each) == "LTX-Video image-to-video")
    pipe = family.build()
    with ras_dit.enable(pipe, sample_ratio=0.5, record=True) as handle:
        run(pipe, family.call(1))
    assert handle.recording is not None
    scores = handle.recording.scores(2)
    assert scores.shape == (1, *handle.recording.trace.grid.shape)
    assert scores[:, 0].isnan().all()
    assert scores[:, 1:].isfinite().all()
