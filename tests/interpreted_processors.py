"""Whole pipelines whose sparse steps use the kernels, in Triton's interpreter.

Run by test_kernels.py. The laws are those of the stock path: the same final latents to 1e-5, and
stock again afterwards.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import benchmarks.kernels
import ras_dit
import ras_dit.kernels.keys
import ras_dit.kernels.linear
from families import distance, lumina_inputs, lumina_pipeline
from pipelines import is_stock, processors_of, sd3_inputs, sd3_pipeline
from ras_dit.adapters import TransformerDescription, describe
from ras_dit.cache import KVCache
from ras_dit.kernels import IN_USE, survey

Write = Callable[..., None]
# 3 steps, of which 2 are sparse, so that the second reads what the first has written.
RUN = {"num_inference_steps": 3, "guidance_scale": 1.0}
CONFIG = {"sample_ratio": 0.4, "warmup_steps": 1, "reset_steps": ()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel ran."""
    counter: Counter[str] = Counter()
    for module, name in (
        (ras_dit.kernels.linear, "linear_scatter"),
        (ras_dit.kernels.keys, "norm_rope_scatter"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name), counter))
    return counter


def counted(write: Write, counter: Counter[str]) -> Write:
    def count(*args: Any) -> None:
        counter[write.__name__] += 1
        write(*args)

    return count


def without_kernels(pipe: Any) -> TransformerDescription:
    return replace(describe(pipe.transformer), fused=None)


def run(pipe: Any, call: dict[str, Any], *, kernels: bool = True, **config: Any) -> torch.Tensor:
    description = None if kernels else without_kernels(pipe)
    with ras_dit.enable(pipe, description=description, **CONFIG, **config) as handle:
        latents: torch.Tensor = pipe(**call).images
    assert handle.trace is not None
    assert [step.kind for step in handle.trace.steps[1:]] == ["sparse"] * (
        len(handle.trace.steps) - 1
    )
    return latents


def sd3_call(images: int = 1, **change: Any) -> dict[str, Any]:
    """16 image tokens, 7 text tokens."""
    return sd3_inputs(images, height=16, width=16) | RUN | change


def lumina_call(images: int = 1, **change: Any) -> dict[str, Any]:
    """6 image tokens of 64 x 96 pixels, 2 x 3 x 4."""
    return lumina_inputs(images, height=32, width=48) | RUN | change


def test_sd3(calls: Counter[str]) -> None:
    """Guidance in one batch, two images with active tokens of their own."""
    pipe = sd3_pipeline(layers=2)
    call = {"images": 2, "guidance_scale": 4.0}
    stock = run(pipe, sd3_call(**call), kernels=False)
    assert not calls
    latents = run(pipe, sd3_call(**call))
    # Keys and values of image and text, in 2 layers and 2 steps.
    assert calls == {"linear_scatter": 16}
    assert distance(latents, stock) <= 1e-5
    assert survey(pipe) == {IN_USE: 2}


def test_sd3_keeps_its_text(calls: Counter[str]) -> None:
    pipe = sd3_pipeline(layers=2)
    latents = run(pipe, sd3_call(), text="keep")
    assert calls["linear_scatter"] == 16
    assert distance(latents, run(pipe, sd3_call(), kernels=False, text="keep")) <= 1e-5


def test_sd35(calls: Counter[str]) -> None:
    """A norm of the keys, and a second attention without text."""
    pipe = sd3_pipeline(dual=True, layers=2)
    latents = run(pipe, sd3_call(2))
    assert calls == {"linear_scatter": 12, "norm_rope_scatter": 12}
    assert distance(latents, run(pipe, sd3_call(2), kernels=False)) <= 1e-5
    assert survey(pipe) == {IN_USE: 4}


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_kv_heads": None, "qk_norm": False}],
    ids=["groups and norm", "no groups and norm"],
)
def test_lumina(calls: Counter[str], settings: dict[str, Any]) -> None:
    """Grouped heads, layer norm, rotary embedding, a softmax scale of the whole sequence."""
    pipe = lumina_pipeline(num_layers=2, **settings)
    latents = run(pipe, lumina_call(2))
    assert calls == {"linear_scatter": 4, "norm_rope_scatter": 4}
    assert distance(latents, run(pipe, lumina_call(2), kernels=False)) <= 1e-5
    assert survey(pipe) == {IN_USE: 2}


def test_half_precision(calls: Counter[str]) -> None:
    pipe = sd3_pipeline(layers=2).to(torch.bfloat16)

    def call() -> dict[str, Any]:
        return {
            name: value.bfloat16() if isinstance(value, torch.Tensor) else value
            for name, value in sd3_call().items()
        }

    latents = run(pipe, call())
    assert calls["linear_scatter"] == 16
    assert latents.dtype == torch.bfloat16
    stock = run(pipe, call(), kernels=False)
    full = run(sd3_pipeline(layers=2), sd3_call())
    # No farther from the stock path than that is from single precision, or little more.
    assert distance(latents, stock) <= 2 * distance(stock.float(), full)


def test_wrong_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd3_pipeline(layers=2)
    right = ras_dit.kernels.linear.linear_scatter

    def shifted(cache: torch.Tensor, *operands: Any) -> None:
        *others, rows = operands
        right(cache, *others, (rows + 1) % cache.shape[1])

    stock = run(pipe, sd3_call(), kernels=False)
    monkeypatch.setattr(ras_dit.kernels.linear, "linear_scatter", shifted)
    assert distance(run(pipe, sd3_call()), stock) > 1e-2


def test_disable_restores() -> None:
    pipe = sd3_pipeline(layers=2)
    processors = processors_of(pipe.transformer)
    stock = pipe(**sd3_call()).images
    run(pipe, sd3_call())
    assert is_stock(pipe, processors)
    assert torch.equal(pipe(**sd3_call()).images, stock)


def test_dense_calls_are_stock(calls: Counter[str]) -> None:
    pipe = sd3_pipeline(layers=2)
    stock = pipe(**sd3_call()).images
    config = {"sample_ratio": 0.4, "warmup_steps": 1, "reset_steps": (1, 2)}
    with pytest.warns(ras_dit.RASWarning), ras_dit.enable(pipe, **config):
        assert torch.equal(pipe(**sd3_call()).images, stock)
    assert not calls


class Low(nn.Linear):
    """A projection that is more than a product, like those of LoRA."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) + tokens.mean()


def test_layers_that_are_not_plain_keep_the_torch_path(calls: Counter[str]) -> None:
    pipe = sd3_pipeline(layers=2)
    first, second = (block.attn for block in pipe.transformer.transformer_blocks)
    other = Low(first.to_v.in_features, first.to_v.out_features)
    other.load_state_dict(first.to_v.state_dict())
    first.to_v = other
    assert survey(pipe) == {IN_USE: 1, "to_v is Low, not a plain Linear": 1}
    latents = run(pipe, sd3_call())
    assert calls == {"linear_scatter": 8}
    assert distance(latents, run(pipe, sd3_call(), kernels=False)) <= 1e-5
    second.to_k.register_forward_hook(lambda _module, _args, output: output + 1)
    assert survey(pipe) == {"to_v is Low, not a plain Linear": 1, "to_k has hooks": 1}
    calls.clear()
    latents = run(pipe, sd3_call())
    assert not calls
    assert distance(latents, run(pipe, sd3_call(), kernels=False)) == 0


def test_caches_stored_otherwise_keep_the_torch_path(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KVCache, "by_token", lambda _self: None)
    pipe = sd3_pipeline(layers=2)
    latents = run(pipe, sd3_call())
    assert not calls
    assert torch.equal(latents, run(pipe, sd3_call(), kernels=False))


def test_a_compiled_transformer_keeps_the_torch_path(calls: Counter[str]) -> None:
    pipe = sd3_pipeline(layers=1)
    stock = run(pipe, sd3_call(), kernels=False)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert list(survey(pipe)) == [
        "the transformer is compiled, and the compiler makes its own kernels"
    ]
    counters.clear()
    latents = run(pipe, sd3_call())
    assert not calls
    assert not counters["graph_break"]
    assert distance(latents, stock) <= 1e-5


def test_the_benchmark_measures_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "--grid 2 --heads 1 --layers 1 --text 2 --batch 1 --ratios 0.5 --rounds 1"
    said: list[str] = []
    monkeypatch.setattr(sys, "argv", ["kernels", *sizes.split()])
    assert benchmarks.kernels.main(said.append) == 0
    rows = [line for line in "".join(said).splitlines() if line.startswith("| 0.5 |")]
    assert len(rows) == 2
    assert all(float(row.split("|")[-2]) <= 1e-2 for row in rows)
