"""The kernels: what is in their way, and their laws in processes with Triton's interpreter.

A process decides once, before it imports Triton, whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import benchmarks.kernels
import ras_dit
import ras_dit.kernels
from families import lumina_pipeline
from families_flux import flux_pipeline
from pipelines import processors_of, sd3_pipeline
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.attention import stock as stock_of
from ras_dit.kernels import eligibility, fused_processor, survey
from ras_dit.kernels.specification import Norm

ROOT = Path(__file__).parents[1]
LIKE = torch.empty(1)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is made for Linux"
)


@needs_triton
def test_the_laws_hold_in_the_interpreter() -> None:
    files = ["tests/interpreted_kernels.py", "tests/interpreted_processors.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


def test_the_benchmark_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "argv", ["kernels"])
    monkeypatch.setattr(benchmarks.kernels, "machine_obstacle", lambda: "there is no CUDA device")
    assert benchmarks.kernels.main(said.append) == 1
    assert said == ["Nothing was measured: there is no CUDA device.\n"]


# -- what is in the way ----------------------------------------------------------------------------


@pytest.mark.parametrize("obstacle", [None, "there is no CUDA device"])
def test_where_kernels_cannot_run_processors_are_as_ever(
    monkeypatch: pytest.MonkeyPatch, obstacle: str | None
) -> None:
    monkeypatch.setattr(ras_dit.kernels, "machine_obstacle", lambda: obstacle)
    pipe = sd3_pipeline(layers=1)
    with ras_dit.enable(pipe, sample_ratio=0.5, warmup_steps=1):
        (bound,) = processors_of(pipe.transformer)
        assert hasattr(type(bound).__call__, "__wrapped__") == (obstacle is None)
        # diffusers asks for the names of the parameters before it calls.
        own, theirs = (inspect.signature(each.__call__) for each in (bound, stock_of(bound)))
        assert list(own.parameters) == list(theirs.parameters)


def test_a_machine_without_triton_or_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = eligibility.machine_obstacle.__wrapped__
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "triton is not installed" in obstacle()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert obstacle() == "there is no CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert obstacle() is None


def test_tensors_that_are_none_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU, whose tensors are asked about one by one."""
    gpu, half = torch.device("cuda"), torch.float16
    capability = [(9, 0)]
    monkeypatch.setattr(eligibility, "machine_obstacle", lambda: None)
    monkeypatch.setattr(eligibility, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability[0])
    obstacle = eligibility.tensor_obstacle
    assert obstacle(gpu, half) is None
    assert obstacle(gpu, torch.bfloat16) is None
    assert "float32" in str(obstacle(gpu, torch.float32))
    assert obstacle(torch.device("cpu"), half) == "the model is on cpu"
    capability[0] = 7, 5
    assert "older" in str(obstacle(gpu, half))
    capability[0] = 8, 0
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _kind: True)
    assert "autocast" in str(obstacle(gpu, half))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda _module, _args: None)
    return layer


def patched(layer: Any) -> nn.Module:
    """As offloading and layerwise casting do."""
    layer.forward = type(layer).forward.__get__(layer)
    return layer


class Codes(torch.Tensor):
    """A weight that is stored otherwise."""


def quantised(layer: nn.Linear) -> nn.Module:
    codes = layer.weight.detach().as_subclass(Codes)
    layer.weight = nn.Parameter(codes, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(4, 4), None),
        (nn.Linear(4, 4, bias=False), None),
        (nn.Identity(), "not a plain Linear"),
        (nn.Bilinear(4, 4, 4), "not a plain Linear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "not a plain Linear"),
        (hooked(nn.Linear(4, 4)), "has hooks"),
        (patched(nn.Linear(4, 4)), "has hooks"),
        (quantised(nn.Linear(4, 4)), "are Codes"),
        (nn.Linear(4, 4).half(), "are float16"),
        (nn.Linear(4, 4, device="meta"), "on meta"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_projections_that_are_not_plain(layer: nn.Module, reason: str | None) -> None:
    found = eligibility.linear_obstacle("to_k", layer, LIKE)
    assert found is None if reason is None else reason in str(found)


def test_norms_that_the_kernel_has() -> None:
    from diffusers.models.normalization import FP32LayerNorm, RMSNorm

    def obstacle(norm: nn.Module | None, *shape: int) -> str | None:
        return eligibility.norm_obstacle("norm_k", norm, shape, LIKE)

    assert obstacle(None, 8) is None
    for norm in (nn.LayerNorm(8), RMSNorm(8, 1e-6), nn.RMSNorm(8, eps=1e-6)):
        assert obstacle(norm, 8) is None
        assert "other channels" in str(obstacle(norm, 16))
    assert "FP32LayerNorm" in str(obstacle(FP32LayerNorm(8), 8))
    assert "no eps" in str(obstacle(nn.RMSNorm(8), 8))
    assert "are float16" in str(obstacle(nn.LayerNorm(8).half(), 8))
    layer, rms = nn.LayerNorm(8, eps=1e-3), RMSNorm(8, 1e-6)
    assert eligibility.norm_of(layer, across=True) == Norm(
        "layer", across=True, eps=1e-3, weight=layer.weight, bias=layer.bias
    )
    assert eligibility.norm_of(rms, across=False) == Norm(
        "rms", across=False, eps=1e-6, weight=rms.weight
    )
    assert eligibility.norm_of(None, across=False) is None


def test_caches_that_keys_do_not_fit() -> None:
    def obstacle(cache: torch.Tensor) -> str | None:
        tokens = torch.empty(2, 3, 16, device=cache.device)
        return eligibility.cache_obstacle(cache, 4, 8, tokens)

    assert obstacle(torch.empty(2, 9, 4, 8)) is None
    assert "holds" in str(obstacle(torch.empty(1, 9, 4, 8)))
    assert "holds" in str(obstacle(torch.empty(2, 9, 8, 4)))
    assert "float16" in str(obstacle(torch.empty(2, 9, 4, 8).half()))
    assert "too large" in str(obstacle(torch.empty(2, 2**27, 4, 8, device="meta")))
    assert eligibility.width_obstacle(38, 64) is None
    assert "5 channels" in str(eligibility.width_obstacle(2, 5))
    assert "300 heads" in str(eligibility.width_obstacle(300, 128))


def test_the_survey_says_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    eligibility.machine_obstacle.cache_clear()
    try:
        (reason,) = survey(sd3_pipeline(dual=True))
        assert survey(sd3_pipeline(dual=True)) == {reason: 5}
        assert survey(lumina_pipeline()) == {reason: 3}
    finally:
        eligibility.machine_obstacle.cache_clear()
    assert survey(flux_pipeline()).popitem()[0].startswith("there is no kernel for Flux")


def test_descriptions_name_kernels_that_there_are() -> None:
    named = {row.transformer: row.fused for row in DESCRIPTIONS.values() if row.fused}
    assert named == {"SD3Transformer2DModel": "joint", "LuminaNextDiT2DModel": "lumina"}
    for name in named.values():
        assert name is not None
        assert fused_processor(name).replaces.endswith("AttnProcessor2_0")
    with pytest.raises(ras_dit.UnsupportedError, match=r"no kernels of the name 'other'.*joint"):
        fused_processor("other")
