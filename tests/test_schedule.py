"""Plans: what each step does, known before the run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ras_dit import RASConfig, RASError
from ras_dit.schedule import count_active, default_warmup_steps, plan_steps


def kinds(config: RASConfig, steps: int, tokens: int = 64) -> str:
    return "".join(plan.kind[0] for plan in plan_steps(config, steps, tokens))


def test_the_papers_schedule_is_the_default_at_28_steps() -> None:
    plan = plan_steps(RASConfig(sample_ratio=0.5), 28, 4096)
    dense = [step.index for step in plan if step.kind == "dense"]
    assert dense == [0, 1, 2, 3, 12, 20]
    assert {step.num_active for step in plan if step.kind == "sparse"} == {2048}


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 1), (3, 1), (4, 1), (8, 2), (15, 3), (16, 4), (28, 4), (100, 4)]
)
def test_warm_up_shrinks_with_few_steps(steps: int, expected: int) -> None:
    assert default_warmup_steps(steps) == expected


def test_windows_and_resets() -> None:
    config = RASConfig(warmup_steps=2, stop_step=8, reset_steps=(5,))
    assert kinds(config, 10) == "ddsssdssdd"
    assert kinds(config.replace(reset_steps=()), 10) == "ddssssssdd"
    assert kinds(config.replace(reset_steps=(0.5,)), 10) == "ddsssdssdd"
    assert kinds(config.replace(stop_step=None, reset_steps=(3, 4)), 6) == "ddsdds"
    assert kinds(config.replace(reset_steps=()), 4) == "ddss"
    assert kinds(RASConfig(warmup_steps=9), 4) == "dddd"
    assert kinds(RASConfig(sample_ratio=1.0), 6) == "dddddd"


def test_a_reset_outside_the_run_is_refused() -> None:
    with pytest.raises(RASError, match=r"reset_steps=\[12, 20\] has 20, outside a run of 15"):
        plan_steps(RASConfig(reset_steps=(12, 20)), 15, 64)


@given(
    ratio=st.floats(0.001, 1.0),
    tokens=st.integers(1, 5000),
    granularity=st.integers(1, 300),
    steps=st.integers(1, 120),
)
def test_every_plan_is_sound(ratio: float, tokens: int, granularity: int, steps: int) -> None:
    config = RASConfig(sample_ratio=ratio, granularity=granularity)
    plan = plan_steps(config, steps, tokens)
    assert [step.index for step in plan] == list(range(steps))
    assert plan[0].kind == "dense"
    for step in plan:
        assert 1 <= step.num_active <= tokens
        assert (step.kind == "dense") == (step.num_active == tokens)
        assert step.num_active == tokens or step.num_active % granularity == 0
    active = count_active(ratio, tokens, granularity)
    assert active == tokens or abs(active - ratio * tokens) <= max(granularity, 1)


@pytest.mark.parametrize(("steps", "tokens"), [(0, 10), (10, 0)])
def test_nothing_to_plan_is_refused(steps: int, tokens: int) -> None:
    with pytest.raises(RASError, match="at least 1"):
        plan_steps(RASConfig(), steps, tokens)
