"""``tolerance``: how many tokens a step computes for the errors that are expected."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

import ras_dit
from pipelines import sd3_inputs, sd3_pipeline
from ras_dit.chooser import Chooser
from ras_dit.reference import masked_reference
from ras_dit.schedule import count_active
from ras_dit.tokens import TokenSort


def test_planned_skips_compute_a_part_before_they_compute_all() -> None:
    """Those that have caches: the cycle's next step is sparse."""
    cycle: dict[str, Any] = {"schedule": "cycle", "cycle": (0.4, 1.0, 0.0), "warmup_steps": 2}
    at_skips = set()
    for tolerance in (1e-6, 1.2, 2.0, 2.5, 3.0, 4.0):
        pipe = sd3_pipeline()
        with ras_dit.enable(pipe, **cycle, metric="innovation", tolerance=tolerance) as handle:
            sparse = pipe(**sd3_inputs(1)).images
        trace = handle.trace
        assert trace is not None
        at_skips |= {trace.steps[index].num_active for index in (4, 7)}
        reference = masked_reference(pipe, trace, **sd3_inputs(1))
        torch.testing.assert_close(sparse, reference, atol=2e-4, rtol=0)
    assert at_skips >= {0, 12, 60}
    assert at_skips <= {0, 12, 24, 60}


@given(
    ratio=st.floats(0.01, 0.99),
    tokens=st.integers(1, 400),
    granularity=st.integers(1, 80),
    is_skipped=st.booleans(),
    wrong=st.integers(0, 400),
)
def test_as_many_tokens_as_are_wrong_in_whole_granules(
    ratio: float, tokens: int, granularity: int, is_skipped: bool, wrong: int
) -> None:
    config = ras_dit.RASConfig(sample_ratio=ratio, granularity=granularity, tolerance=0.5)
    chooser = Chooser(config, TokenSort(2), num_tokens=tokens, num_steps=9, sigmas=None)
    whole = count_active(ratio, tokens, granularity)
    errors = torch.zeros(2, tokens)
    errors[1, :wrong] = 1.0
    count = chooser.count(errors, 0 if is_skipped else whole)
    assert min(wrong, tokens) <= count <= tokens
    assert count == tokens or count % granularity == 0
    if wrong == 0:
        assert count == 0
    elif wrong <= whole / 2:
        # Half of the ratio is enough, rounded up to a granule.
        assert count <= min(tokens, whole / 2 + granularity)
    elif wrong <= whole:
        assert count <= whole
    else:
        assert count == tokens
