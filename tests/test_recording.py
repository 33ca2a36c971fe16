"""Recording: opt-in, exact, and of stated size."""

from __future__ import annotations

import pytest
import torch

import ras_dit
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
