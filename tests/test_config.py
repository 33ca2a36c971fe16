"""RASConfig: what it refuses, and where it comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ras_dit import RASConfig, RASError
from ras_dit.config_files import presets
from ras_dit.schedule import plan_steps


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("sample_ratio", 0),
        ("sample_ratio", -0.5),
        ("sample_ratio", 1.01),
        ("sample_ratio", float("nan")),
        ("sample_ratio", "half"),
        ("sample_ratio", True),
        ("warmup_steps", 0),
        ("warmup_steps", 2.5),
        ("stop_step", 0),
        ("reset_steps", (0.3, 12)),
        ("reset_steps", (1.5,)),
        ("reset_steps", (-1,)),
        ("reset_steps", "sometimes"),
        ("reset_steps", 12),
        ("reset_steps", (True,)),
        ("metric", "variance"),
        ("keep", "middle"),
        ("starvation_scale", -0.1),
        ("starvation_scale", float("inf")),
        ("max_dropped", 0),
        ("max_dropped", "never"),
        ("granularity", 0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(knob: str, value: Any) -> None:
    with pytest.raises(RASError, match=knob) as caught:
        RASConfig(**{knob: value})
    assert repr(value).strip("()").split(",")[0] in str(caught.value)


def test_an_empty_selective_window_is_refused() -> None:
    with pytest.raises(RASError, match="stop_step=4 leaves no sparse step"):
        RASConfig(warmup_steps=4, stop_step=4)


@pytest.mark.parametrize("damping", [0.5, "auto"])
def test_damping_without_a_forecast_is_refused(damping: Any) -> None:
    error = rf"forecast_damping={damping!r} damps forecasts, and there are none; .*\"linear\""
    for knobs in ({}, {"solver": "damped-ab2"}, {"forecast_keys": 0.5}):
        with pytest.raises(RASError, match=error):
            RASConfig(forecast_damping=damping, **knobs)
        with pytest.raises(RASError, match=error):
            RASConfig().replace(forecast="hold", forecast_damping=damping, **knobs)
    linear = RASConfig(forecast="linear", forecast_damping=damping)
    # Who turns forecasts off wants none of their damping either.
    assert linear.replace(forecast="hold") == RASConfig()
    assert linear.replace(solver="ab2").forecast_damping == damping
    assert RASConfig(forecast_damping=1.0, solver="damped-ab2").forecast == "hold"


@pytest.mark.parametrize("name", ["tolerance", "reset_tolerance"])
@pytest.mark.parametrize(
    "dense",
    [
        {"sample_ratio": 1.0},
        {"sample_ratio": 1.0, "schedule": "linear"},
        {"schedule": (1.0, 1.0, 1.0)},
    ],
    ids=str,
)
def test_a_tolerance_of_dense_steps_is_refused(name: str, dense: dict[str, Any]) -> None:
    RASConfig(**dense)
    with pytest.raises(RASError, match=f"{name}=0.1 is for steps that are not dense"):
        RASConfig(**dense, **{name: 0.1})


@pytest.mark.parametrize("name", ["tolerance", "reset_tolerance"])
@pytest.mark.parametrize(
    "skipping",
    [
        {"schedule": "intervals", "intervals": (2, 3)},
        {"schedule": "cycle", "cycle": (0.0, 1.0)},
        {"schedule": (1.0, 0.0, 1.0)},
        {"schedule": lambda _index, _steps: 0.5, "sample_ratio": 1.0},
    ],
    ids=["intervals", "cycle", "list", "callable"],
)
def test_a_tolerance_of_skipped_steps_is_none_of_dense_ones(
    name: str, skipping: dict[str, Any]
) -> None:
    assert RASConfig(**skipping, **{name: 0.1}).sample_ratio == 1


def test_it_is_frozen_and_compares_by_value() -> None:
    config = RASConfig(sample_ratio=0.5, reset_steps=[20, 12, 12])
    assert config == RASConfig(sample_ratio=0.5, reset_steps=(12, 20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sample_ratio = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("metric", "keep", "kept"),
    [
        ("std", "auto", "low"),
        ("l2", "auto", "high"),
        (lambda noise: noise.mean((-1, -2)), "auto", "high"),
        ("std", "high", "high"),
        ("l2", "low", "low"),
    ],
)
def test_auto_keeps_the_papers_direction(metric: Any, keep: Any, kept: str) -> None:
    assert RASConfig(metric=metric, keep=keep).kept_scores == kept


def test_the_limit_to_drops_in_a_row_follows_the_ratio() -> None:
    assert [RASConfig(sample_ratio=r).longest_drop for r in (1.0, 0.5, 0.3)] == [4, 8, 14]
    assert RASConfig(max_dropped=5).longest_drop == 5
    assert RASConfig(max_dropped=None).longest_drop is None
    assert RASConfig.microsoft().longest_drop is None
    assert RASConfig.paper("sd3", 0.5).longest_drop == 8


def test_every_preset_loads_by_its_name() -> None:
    assert set(presets()) == {"quality", "balanced", "fast", "multirate"}
    for name in presets():
        assert isinstance(RASConfig.load(name), RASConfig)


def test_presets_fit_every_number_of_steps_and_cost_what_they_say() -> None:
    """At 28 steps in tokens; with fewer they save less, but never more than one says."""
    shares = {}
    for name in presets():
        for steps in (1, 2, 4, 7, 8, 28, 50):
            plans = plan_steps(RASConfig.load(name), steps, 100)
            assert plans[0].kind == "dense"
            assert any(plan.kind == "dense" for plan in plans[-2:])
            shares[name, steps] = sum(plan.num_active for plan in plans) / 100
    assert [shares[name, 28] for name in ("quality", "balanced", "fast")] == [17, 12, 9]
    assert 15 < shares["multirate", 28] < 18
    assert [shares["quality", steps] for steps in (1, 2, 4, 8, 50)] == [1, 2, 4, 7, 28]
    assert [shares["fast", steps] for steps in (1, 2, 4, 7, 8, 50)] == [1, 2, 4, 7, 4, 15]


def test_a_ratio_that_listed_steps_contradict_is_refused() -> None:
    """The default, too, where it was given."""
    for ratio in (0.5, 0.4):
        for name in ("quality", "balanced"):
            with pytest.raises(RASError, match=f"sample_ratio={ratio} cannot be met"):
                RASConfig.load(name).replace(sample_ratio=ratio)
        with pytest.raises(RASError, match=f"sample_ratio={ratio} cannot be met"):
            RASConfig.load({"schedule": [1, 0.25], "sample_ratio": ratio})
    assert RASConfig.load("multirate").replace(sample_ratio=0.5) == RASConfig.load("multirate")
    other = RASConfig.load("balanced").replace(
        schedule="constant", intervals=None, sample_ratio=0.5
    )
    assert (other.sample_ratio, other.intervals) == (0.5, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: RASConfig(sample_ratio="fast"),
            r"'fast' is a preset, .* enable\(pipe, \"fast\"\)",
        ),
        (lambda: RASConfig(sample_ratio="1e-1"), r"this is a text, write 0\.1"),
        (lambda: RASConfig.load(0.5), r"from float; .* \(for a ratio: sample_ratio=0\.5\)"),
        (
            lambda: RASConfig().replace(preset="fast"),
            "no field preset .a preset is given by its name",
        ),
    ],
)
def test_near_misses_get_a_hint(wrong: Any, message: str) -> None:
    with pytest.raises(RASError, match=message):
        wrong()


def test_plain_data_and_yaml_round_trip(tmp_path: Path) -> None:
    config = RASConfig(sample_ratio=0.3, reset_steps=(0.25, 0.75), metric="l2", granularity=8)
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert RASConfig.load(file) == RASConfig.load(str(file)) == config
    assert RASConfig.load(config.to_dict()) == config
    assert RASConfig.load(config) is config
    assert RASConfig.load(None) == RASConfig()


def test_callables_do_not_go_into_files() -> None:
    with pytest.raises(RASError, match="callable"):
        RASConfig(metric=torch.Tensor.sum).to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_ratio: [", "not valid YAML"),
        ("- 1\n- 2", "holds a list"),
        ("ratio: 0.5", "unknown field ratio"),
        ("sample_ratio: 3", "sample_ratio=3"),
        ("metric: !!python/name:os.system", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RASError, match=message):
        RASConfig.load(file)


@pytest.mark.parametrize("source", ["fastest", "missing.yaml", 0.5])
def test_an_unknown_source_is_refused(source: Any) -> None:
    with pytest.raises(RASError):
        RASConfig.load(source)


def test_replace_validates_again() -> None:
    assert RASConfig().replace(sample_ratio=0.25).sample_ratio == 0.25
    with pytest.raises(RASError, match="sample_ratio=2"):
        RASConfig().replace(sample_ratio=2)
    with pytest.raises(RASError, match="no field ratio"):
        RASConfig().replace(ratio=0.5)
