"""The paper's public code, reproduced: plans, choice, and final latents that it computed itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ras_dit
from families import lumina_inputs, lumina_pipeline
from pipelines import sd3_inputs, sd3_pipeline
from ras_dit import RASConfig, RASError
from ras_dit.schedule import plan_steps
from ras_dit.selection import choose_as_public_code, count_drops, l2_score

# Final latents of microsoft/RAS at a9c5ec8fb2147ef450a7e3b5ec3b7bdd0006de3f, run unmodified with
# diffusers 0.42.1 and torch 2.13.0 (CPU, float32) on the tests' pipelines (weights of seed 0; call
# of seed `number`; `side` x `side` tokens): every 37th value, mean, deviation.
# fmt: off
RECORDED: list[tuple[str, int, int, int, dict[str, Any], list[float], float, float]] = [
    ("sd3", 0, 12, 8, {"error_reset_steps": (7, 9)},
     [2.513444, 5.017393, 1.312693, 3.108398, 4.667866, -1.128583, 4.394595, -2.147033],
     0.742480, 3.764882),
    ("sd3", 1, 12, 8, {"error_reset_steps": (7,), "metric": "l2norm"},
     [-2.475298, 4.072892, 0.769544, 6.665496, 3.122938, 0.649097, 2.854453, 3.242275],
     0.384324, 3.628365),
    ("sd3", 2, 12, 8, {"error_reset_steps": (7,), "high_ratio": 0.3},
     [4.272422, 2.014511, 4.534322, 1.805571, -4.860436, -1.180396, -3.583375, -5.434538],
     -0.659418, 4.994219),
    ("sd3", 3, 12, 8, {"error_reset_steps": (7,), "scheduler_end_step": 9},
     [0.967382, 1.856944, 5.22511, -1.106977, -0.295973, -0.612825, -1.658304, -3.438248],
     1.555018, 4.184296),
    ("sd3", 4, 16, 16, {"error_reset_steps": (9,), "skip_num_step": 64,
                        "skip_num_step_length": 4},
     [6.189042, 1.691317, 0.062456, 3.547181, 3.8927, 3.161821, 4.292755, -6.332593],
     -0.576651, 6.594810),
    ("sd3", 5, 12, 8, {"error_reset_steps": (6,), "sample_ratio": 0.25,
                       "scheduler_start_step": 3},
     [-7.268013, 3.667087, -1.128228, 5.769661, 0.013629, 0.711139, -1.035482, 1.011185],
     -1.291268, 3.466157),
    ("lumina", 0, 12, 8, {"error_reset_steps": (7,)},
     [-1.248654, -0.452672, -0.082272, 2.191585, 0.813907, -1.751887, 0.715645, -0.963453],
     -0.227267, 2.181506),
    ("lumina", 1, 16, 16, {"error_reset_steps": (9,), "skip_num_step": 64,
                           "skip_num_step_length": 4},
     [0.058689, 2.739843, 3.773899, 4.920323, -5.426396, 2.295481, 3.192506, -6.279936],
     -0.322237, 2.994824),
    ("lumina", 2, 12, 8, {"error_reset_steps": (8,), "metric": "l2norm", "sample_ratio": 0.25},
     [-3.881364, -4.598099, -0.928179, -5.339632, 3.259326, 4.338575, 3.386668, 0.089922],
     -0.125317, 2.538430),
]
# fmt: on


def pipeline_and_call(family: str, seed: int, side: int) -> tuple[Any, Callable[[], Any]]:
    if family == "sd3":
        size = 4 * side
        return sd3_pipeline(), lambda: sd3_inputs(1, seed=seed, height=size, width=size)
    size = 16 * side
    pipe = lumina_pipeline(sample_size=2 * side)
    return pipe, lambda: lumina_inputs(1, seed=seed, height=size, width=size)


@pytest.mark.parametrize("row", RECORDED, ids=[f"{row[0]}-{row[4]}" for row in RECORDED])
def test_final_latents_are_those_of_the_public_code(row: Any) -> None:
    family, seed, steps, side, knobs, values, mean, deviation = row
    pipe, call = pipeline_and_call(family, seed, side)
    stock = pipe(**call() | {"num_inference_steps": steps}).images
    with ras_dit.enable(pipe, RASConfig.microsoft(**{"scheduler_end_step": steps} | knobs)):
        latents = pipe(**call() | {"num_inference_steps": steps}).images
    torch.testing.assert_close(latents.flatten()[::37][:8], torch.tensor(values), atol=1e-4, rtol=0)
    assert latents.mean().item() == pytest.approx(mean, abs=1e-4)
    assert latents.std().item() == pytest.approx(deviation, abs=1e-4)
    assert (latents - stock).abs().max() > 1


def counts(config: RASConfig, steps: int, tokens: int = 4096) -> list[int]:
    return [plan.num_active for plan in plan_steps(config, steps, tokens)]


def test_active_tokens_per_step_of_the_four_presets() -> None:
    """The paper, and the public code's own defaults, SD3 script and Lumina script."""
    full, half = 4096, 2048
    paper = counts(RASConfig.paper("sd3", 0.5), 28)
    falling = [3072 - round(2048 * place / 21) for place in range(22)]
    expected = iter(falling)
    assert paper == [
        full if index in (0, 1, 2, 3, 12, 20) else next(expected) for index in range(28)
    ]
    assert sum(falling) / 22 == pytest.approx(half, abs=1)
    lumina = counts(RASConfig.paper("lumina", 0.5), 30)
    assert [index for index, count in enumerate(lumina) if count == full] == [0, 1, 2, 3, 12, 20]

    defaults = counts(RASConfig.microsoft(), 30)
    assert defaults == [full] * 4 + [half] * 8 + [full] + [half] * 9 + [full] + [half] * 7
    sd3 = counts(
        RASConfig.microsoft(error_reset_steps=(12, 20), scheduler_end_step=28, high_ratio=0.3), 28
    )
    # 0.7 and 0.3 of 2048 tokens, each rounded down: 2047 are dropped.
    assert sd3 == [full] * 4 + [2049] * 8 + [full] + [2049] * 7 + [full] + [2049] * 7
    script = counts(RASConfig.microsoft(skip_num_step=256, skip_num_step_length=4), 30)
    # Dropped: 2048 + 256 * (s // 4 - 4).
    assert script == (
        [full] * 4 + [2816] * 4 + [2560] * 4 + [full] + [2304] * 3 + [2048] * 4
        + [1792] * 2 + [full] + [1792] + [1536] * 4 + [1280] * 2
    )  # fmt: skip


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"high_ratio": 0.0}, "at least one from the highest"),
        ({"high_ratio": 1.5}, "high_ratio=1.5"),
        ({"skip_num_step": 4096, "skip_num_step_length": 4}, "would drop"),
        ({"error_reset_steps": (12, 40)}, "outside a run of 30"),
        ({"skip_num_step_length": -1}, "skip_num_step_length=-1"),
        ({"metric": "l2"}, "std and l2norm"),
    ],
)
def test_where_the_public_code_fails_there_is_a_reason(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(RASError, match=message):
        plan_steps(RASConfig.microsoft(**knobs), 30, 4096)


def test_the_option_without_effect_is_named() -> None:
    with pytest.warns(ras_dit.RASWarning, match="starvation_scale=1.0 has no effect"):
        config = RASConfig.microsoft(starvation_scale=1.0)
    assert config.starvation_scale == 0.1


def test_it_makes_one_image_at_a_time() -> None:
    pipe = sd3_pipeline()
    config = RASConfig.microsoft(error_reset_steps=(6,), scheduler_end_step=10)
    with ras_dit.enable(pipe, config), pytest.raises(RASError, match="one image at a time"):
        pipe(**sd3_inputs(2))


def test_files_hold_it() -> None:
    config = RASConfig.microsoft(high_ratio=0.3)
    assert RASConfig.load(config.to_dict()) == config
    with pytest.raises(RASError, match="public_code in the mapping"):
        RASConfig.load({"public_code": {"low_ratio": 1}})


def test_starvation_works_backwards_at_its_default() -> None:
    """On scores that never change, half of the tokens are dropped in every sparse step."""
    noise = torch.linspace(1, 2, 4096).view(1, 4096, 1, 1)
    drops, refreshed = torch.zeros(1, 4096), torch.zeros(1, 4096)
    for _ in range(22):
        active = choose_as_public_code(noise, torch.tensor(-0.04), drops - 29, 0, 2048, l2_score)
        refreshed.scatter_(1, active, 1)
        drops = count_drops(drops, active)
    assert (refreshed == 0).sum() == 2048
