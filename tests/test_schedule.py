"""Plans: what each step does, known before the run."""

from __future__ import annotations

import itertools
from typing import Any

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


@given(fraction=st.floats(0.001, 0.999), steps=st.integers(5, 60), tail=st.integers(0, 2))
def test_a_fraction_is_always_a_reset_inside_the_window(
    fraction: float, steps: int, tail: int
) -> None:
    knobs: dict[str, Any] = {"warmup_steps": 2, "stop_step": -tail if tail else None}
    config = RASConfig(reset_steps=(fraction,), **knobs)
    window = range(2, steps - tail)
    assert len([i for i in window if kinds(config, steps)[i] == "d"]) == 1


def test_a_fraction_near_one_is_the_last_step_of_the_window() -> None:
    config = RASConfig(warmup_steps=2, reset_steps=(0.97,))
    assert kinds(config, 12) == "ddsssssssssd"
    assert kinds(config.replace(stop_step=-3), 12) == "ddssssssdddd"
    assert kinds(config, 2) == "dd"


def test_a_tail_counted_from_the_end_fits_every_number_of_steps() -> None:
    config = RASConfig(warmup_steps=2, stop_step=-2, reset_steps=())
    assert kinds(config, 8) == "ddssssdd"
    assert kinds(config, 5) == "ddsdd"
    assert kinds(config, 1) == "d"


def test_a_cycle_goes_over_and_over() -> None:
    config = RASConfig(schedule="cycle", cycle=[0.5, 1.0, 0.0], warmup_steps=2, stop_step=-1)
    counts = [step.num_active for step in plan_steps(config, 11, 80)]
    assert counts == [80, 80, 40, 80, 0, 40, 80, 0, 40, 80, 80]
    assert config.sample_ratio == 0.5
    assert RASConfig.load(config.to_dict()) == config
    # Resets stand in between; a cycle with dense steps has none of its own accord.
    sparse = RASConfig(schedule="cycle", cycle=(0.25, 0.75, 0.0), warmup_steps=1)
    counts = [step.num_active for step in plan_steps(sparse, 11, 80)]
    assert counts == [80, 20, 60, 0, 20, 60, 80, 0, 20, 60, 0]
    assert sparse.sample_ratio == 0.5
    other = sparse.replace(cycle=(0.25, 0.0))
    assert other.sample_ratio == 0.25
    assert other.replace(schedule="constant", cycle=None) == RASConfig(warmup_steps=1)


def test_dense_steps_stand_at_intervals() -> None:
    config = RASConfig(schedule="intervals", intervals=[2, 2, 3, 4])
    dense = [step.index for step in plan_steps(config, 28, 80) if step.num_active]
    assert dense == [0, 2, 4, 7, 11, 15, 19, 23, 26]
    assert {step.num_active for step in plan_steps(config, 28, 80)} == {0, 80}
    assert config.sample_ratio == 1
    assert config.may_skip
    assert RASConfig.load(config.to_dict()) == config
    # None is longer than a quarter of the run.
    dense = [step.index for step in plan_steps(config, 14, 80) if step.num_active]
    assert dense == [0, 2, 4, 7, 10, 12]
    assert kinds(config, 8) == "dsdsdsds"
    assert kinds(config, 7) == "d" * 7
    # Where dense steps follow each other in the end, all are.
    config = config.replace(intervals=(3, 1))
    assert kinds(config, 18) == "dss" + "d" * 15
    assert config.replace(schedule="constant", intervals=None) == RASConfig()


@given(
    intervals=st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda x: max(x) > 1),
    steps=st.integers(1, 120),
)
def test_no_interval_is_longer_than_wanted_or_than_a_quarter_of_the_run(
    intervals: list[int], steps: int
) -> None:
    config = RASConfig(schedule="intervals", intervals=tuple(intervals))
    plan = plan_steps(config, steps, 64)
    dense = [step.index for step in plan if step.kind == "dense"]
    assert dense[0] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(dense)]
    wanted = [min(gap, max(1, steps // 4)) for gap in intervals]
    wanted += [wanted[-1]] * len(gaps)
    assert gaps[:-1] == wanted[: len(gaps)][:-1]
    assert not gaps or 1 <= gaps[-1] <= wanted[len(gaps) - 1]
    assert dense[-1] == steps - (2 if min(intervals[-1], steps // 4) > 1 else 1)


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


@pytest.mark.parametrize("ratio", [0.125, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("first", [None, 0.9, 0.1])
@pytest.mark.parametrize("granularity", [1, 64])
def test_a_linear_schedule_has_its_mean(
    ratio: float, first: float | None, granularity: int
) -> None:
    if first is not None and not 0 < 2 * ratio - first <= 1:
        with pytest.raises(RASError, match="would end at"):
            RASConfig(sample_ratio=ratio, schedule="linear", first_ratio=first)
        return
    config = RASConfig(
        sample_ratio=ratio, schedule="linear", first_ratio=first, granularity=granularity
    )
    plan = plan_steps(config, 28, 4096)
    window = [step.num_active for step in plan if step.index >= 4 and step.index not in (12, 20)]
    assert abs(sum(window) / len(window) - ratio * 4096) <= granularity
    assert abs(window[0] - config.ratio_range[0] * 4096) <= granularity
    falling = config.ratio_range[0] > ratio
    assert window == sorted(window, reverse=falling)


def test_a_list_names_every_step() -> None:
    ratios = (1.0, 1.0, 0.5, 0.25, 1.0, 0.75)
    config = RASConfig(schedule=ratios)
    assert config.sample_ratio == 0.5
    assert [step.num_active for step in plan_steps(config, 6, 64)] == [64, 64, 32, 16, 64, 48]
    assert RASConfig.load(config.to_dict()) == config
    with pytest.raises(RASError, match="names 6 steps, and the run makes 7"):
        plan_steps(config, 7, 64)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"schedule": (0.5, 0.5)}, r"schedule\[0\]=0.5; expected 1.0"),
        ({"schedule": (1.0, -0.1)}, r"schedule\[1\]=-0.1; expected in \[0, 1\]"),
        ({"schedule": (1.0, 1.5)}, r"schedule\[1\]=1.5"),
        ({"schedule": ()}, "schedule=()"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown"),
        ({"schedule": 3}, "schedule=3"),
        ({"schedule": (1.0, 0.5), "warmup_steps": 2}, "names every step"),
        ({"schedule": (1.0, 0.5), "sample_ratio": 0.3}, "sample_ratio=0.3 cannot be met"),
        ({"first_ratio": 0.7}, "first_ratio=0.7 is for schedule"),
        ({"schedule": "linear", "first_ratio": 2.0}, "first_ratio=2.0"),
        ({"schedule": "cycle"}, "needs cycle"),
        ({"cycle": (0.5, 0.0)}, "is for schedule=\"cycle\" only, and the schedule is 'constant'"),
        ({"schedule": "cycle", "cycle": 0.5}, "it is 0.5"),
        ({"schedule": "cycle", "cycle": (0.5, 1.5)}, r"cycle\[1\]=1.5; expected in \[0, 1\]"),
        ({"schedule": "cycle", "cycle": (1.0,)}, "dense steps only"),
        ({"schedule": "cycle", "cycle": (0.0, 0.0)}, "skipped steps only"),
        (
            {"schedule": "cycle", "cycle": (0.5, 0.0), "sample_ratio": 0.3},
            r"sample_ratio=0.3 cannot be met: cycle=\[0.5, 0.0\]",
        ),
        ({"schedule": "intervals"}, "needs intervals"),
        ({"intervals": (2,)}, "is for schedule=\"intervals\" only, and the schedule is 'constant'"),
        ({"schedule": "intervals", "intervals": 3}, "they are 3"),
        ({"schedule": "intervals", "intervals": (2, 0)}, r"intervals\[1\]=0; expected an integer"),
        ({"schedule": "intervals", "intervals": (1, 1)}, "dense steps only"),
        (
            {"schedule": "intervals", "intervals": (2,), "stop_step": -2},
            r"intervals=\[2\] names every step; leave out warmup_steps, .* say it with intervals",
        ),
        (
            {"schedule": "intervals", "intervals": (2,), "sample_ratio": 0.3},
            r"sample_ratio=0.3 cannot be met: intervals=\[2\]",
        ),
        ({"starvation": "never"}, "starvation='never'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(RASError, match=message):
        RASConfig(**knobs)


def test_a_callable_gives_the_ratio_of_selective_steps() -> None:
    config = RASConfig(
        schedule=lambda index, steps: index / steps, warmup_steps=2, reset_steps=(4,)
    )
    counts = [step.num_active for step in plan_steps(config, 8, 80)]
    assert counts == [80, 80, 20, 30, 80, 50, 60, 70]
    with pytest.raises(RASError, match=r"schedule\(4, 28\) returned 1.5"):
        plan_steps(RASConfig(schedule=lambda _index, _steps: 1.5), 28, 80)
    skipping = RASConfig(schedule=lambda index, _: index % 2 / 2, warmup_steps=2, reset_steps=())
    assert [plan.num_active for plan in plan_steps(skipping, 6, 80)] == [80, 80, 0, 40, 0, 40]
    with pytest.raises(RASError, match="callable"):
        config.to_dict()


def test_the_paper_keeps_its_resets_for_other_numbers_of_steps() -> None:
    plan = plan_steps(RASConfig.paper("sd3", 0.25), 14, 4096)
    assert [step.index for step in plan if step.kind == "dense"] == [0, 1, 2, 3, 7, 11]
    with pytest.raises(RASError, match="model='flux'"):
        RASConfig.paper("flux", 0.5)  # type: ignore[arg-type]
