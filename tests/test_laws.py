"""The laws of region-adaptive sampling, on real pipelines, against the masked reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)

import ras_dit
from pipelines import sd3_inputs, sd3_pipeline, take
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cache import KVCache
from ras_dit.reference import masked_reference
from ras_dit.schedule import StepPlan
from ras_dit.session import Session

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}
MODELS = [pytest.param(False, id="sd3"), pytest.param(True, id="sd35")]


def flow(kind: type, **settings: Any) -> Any:
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler stochastic": lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
    "unipc": lambda: flow(UniPCMultistepScheduler, flow_shift=3.0),
    "dpm++ 2m": lambda: flow(DPMSolverMultistepScheduler, flow_shift=3.0),
    "dpm++ sde": lambda: flow(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
}


def run(pipe: Any, config: dict[str, Any], **call: Any) -> tuple[torch.Tensor, ras_dit.Trace]:
    torch.manual_seed(0)  # stochastic schedulers draw from the global generator
    with ras_dit.enable(pipe, **config) as handle:
        latents = pipe(**call).images
    assert handle.trace is not None
    return latents, handle.trace


@pytest.mark.parametrize("dual", MODELS)
def test_a_sparse_run_equals_the_masked_reference(dual: bool) -> None:
    """Three different prompts, 6 x 10 tokens, guidance in one batch, ratio 0.4."""
    pipe = sd3_pipeline(dual=dual)
    latents, trace = run(pipe, SPARSE, **sd3_inputs(3))
    sets = [step.active for step in trace.steps if step.active is not None]
    assert len(sets) == 7
    assert all(active.shape == (3, 24) for active in sets)
    assert not torch.equal(sets[0][0], sets[0][1])
    reference = masked_reference(pipe, trace, **sd3_inputs(3))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)
    stock = pipe(**sd3_inputs(3)).images
    assert (latents - stock).abs().max() > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 1.0},
        {"height": 40, "width": 24},
        {"height": 32, "width": 32},
        {"num_inference_steps": 4},
    ],
    ids=["no guidance", "portrait", "square", "few steps"],
)
def test_other_calls_equal_the_reference(change: dict[str, Any]) -> None:
    pipe = sd3_pipeline()
    config = {"sample_ratio": 0.4}
    latents, trace = run(pipe, config, **sd3_inputs(2) | change)
    assert any(step.kind == "sparse" for step in trace.steps)
    reference = masked_reference(pipe, trace, **sd3_inputs(2) | change)
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_equals_the_reference(name: str) -> None:
    pipe = sd3_pipeline(scheduler=SCHEDULERS[name]())
    torch.manual_seed(0)
    stock = pipe(**sd3_inputs(1)).images
    dense, _ = run(pipe, {"sample_ratio": 1.0}, **sd3_inputs(1))
    assert torch.equal(dense, stock)
    latents, trace = run(pipe, SPARSE, **sd3_inputs(1))
    assert len(trace.steps) == (19 if name == "heun" else 10)
    torch.manual_seed(0)
    reference = masked_reference(pipe, trace, **sd3_inputs(1))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "metric", ["std", "l2", "random", lambda noise: noise.abs().amax((-1, -2))]
)
def test_every_metric_equals_the_reference(metric: Any) -> None:
    pipe = sd3_pipeline()
    latents, trace = run(pipe, SPARSE | {"metric": metric}, **sd3_inputs(2))
    reference = masked_reference(pipe, trace, **sd3_inputs(2))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_near_the_reference(dtype: torch.dtype) -> None:
    pipe = sd3_pipeline().to(dtype)
    inputs = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value
        for name, value in sd3_inputs(2).items()
    }
    latents, trace = run(pipe, SPARSE, **inputs)
    assert latents.dtype == dtype
    assert trace.dtype == str(dtype).removeprefix("torch.")
    inputs["generator"] = sd3_inputs(2)["generator"]
    reference = masked_reference(pipe, trace, **inputs)
    error = (latents.float() - reference.float()).abs().mean() / reference.float().abs().mean()
    assert error < 0.05


@pytest.mark.parametrize("dual", MODELS)
def test_a_batch_equals_its_images_one_by_one(dual: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    with ras_dit.enable(pipe, **SPARSE) as handle:
        batch = pipe(**sd3_inputs(3)).images
        assert handle.trace is not None
        together = [step.active for step in handle.trace.steps]
        for image in range(3):
            single = pipe(**take(sd3_inputs(3), image)).images
            torch.testing.assert_close(single, batch[image : image + 1], atol=1e-4, rtol=0)
            for step, active in zip(handle.trace.steps, together, strict=True):
                if active is not None:
                    assert step.active is not None
                    assert torch.equal(step.active[0], active[image])


def test_several_images_of_one_prompt_have_their_own_active_tokens(model_folder: Path) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)

    def call() -> dict[str, Any]:
        return {
            "prompt": ["a cat", "a dog"],
            "num_images_per_prompt": 2,
            "num_inference_steps": 6,
            "max_sequence_length": 8,
            "generator": [torch.Generator().manual_seed(i) for i in range(4)],
            "output_type": "latent",
        }

    latents, trace = run(pipe, {"sample_ratio": 0.4}, **call())
    active = trace.steps[-1].active
    assert active is not None
    assert active.shape[0] == 4
    assert len({tuple(row.tolist()) for row in active}) == 4
    reference = masked_reference(pipe, trace, **call())
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dual", MODELS)
@pytest.mark.parametrize(
    "config",
    [{"sample_ratio": 1.0}, {"sample_ratio": 0.4, "reset_steps": tuple(range(10))}],
    ids=["ratio 1", "every step a reset"],
)
def test_dense_is_stock_bitwise(dual: bool, config: dict[str, Any]) -> None:
    pipe = sd3_pipeline(dual=dual)
    stock = pipe(**sd3_inputs(2)).images
    with warnings.catch_warnings(), ras_dit.enable(pipe, **config):
        warnings.simplefilter("ignore", ras_dit.RASWarning)
        first = pipe(**sd3_inputs(2)).images
        second = pipe(**sd3_inputs(2)).images
    assert torch.equal(first, stock)
    assert torch.equal(second, stock)


def test_dense_steps_that_fill_caches_are_stock_bitwise() -> None:
    pipe = sd3_pipeline(dual=True)
    seen: list[torch.Tensor] = []

    def remember(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return tensors

    call = sd3_inputs(2) | {"callback_on_step_end": remember}
    pipe(**call)
    stock, seen[:] = list(seen), []
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=5, reset_steps=()):
        pipe(**sd3_inputs(2) | {"callback_on_step_end": remember})
    assert all(torch.equal(a, b) for a, b in zip(seen[:5], stock[:5], strict=True))
    assert not torch.equal(seen[5], stock[5])


@pytest.mark.parametrize("dual", MODELS)
def test_disable_restores_bitwise(dual: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    stock = pipe(**sd3_inputs(2)).images
    run(pipe, SPARSE, **sd3_inputs(2))
    assert torch.equal(pipe(**sd3_inputs(2)).images, stock)


def test_a_second_run_equals_the_first() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE | {"metric": "random"}):
        first = pipe(**sd3_inputs(2)).images
        pipe(**sd3_inputs(1, seed=5) | {"height": 40})
        assert torch.equal(pipe(**sd3_inputs(2)).images, first)


def test_the_images_noise_does_not_depend_on_random_selection() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE | {"metric": "random"}):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        pipe(**sd3_inputs(1))
    assert torch.equal(torch.rand(4), expected)


def transformer_call(pipe: Any, latents: torch.Tensor, sigma: float) -> torch.Tensor:
    inputs = sd3_inputs(latents.shape[0])
    with torch.no_grad():
        output: torch.Tensor = pipe.transformer(
            hidden_states=latents,
            encoder_hidden_states=inputs["prompt_embeds"],
            pooled_projections=inputs["pooled_prompt_embeds"],
            timestep=torch.full((latents.shape[0],), 1000 * sigma),
            return_dict=False,
        )[0]
    return output


def by_token(latents: torch.Tensor) -> torch.Tensor:
    return (
        latents.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    )


@pytest.mark.parametrize("dual", MODELS)
def test_the_same_input_again_and_only_active_tokens_change(dual: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    latents = torch.randn(2, 4, 12, 20)
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=1, reset_steps=()) as handle:
        pipe.scheduler.set_timesteps(3)
        dense = transformer_call(pipe, latents, 1.0)
        pipe.scheduler.step(dense, pipe.scheduler.timesteps[0], latents)
        again = transformer_call(pipe, latents, 1.0)
        torch.testing.assert_close(again, dense, atol=5e-6, rtol=0)
        pipe.scheduler.step(dense, pipe.scheduler.timesteps[1], latents)
        other = transformer_call(pipe, latents + 1, 0.5)
        pipe.scheduler.step(other, pipe.scheduler.timesteps[2], latents)
    assert handle.trace is not None
    active = handle.trace.steps[2].active
    assert active is not None
    for image in range(2):
        changed = (by_token(other) != by_token(again))[image].any(-1).nonzero().flatten()
        assert torch.equal(changed, active[image])


def test_the_order_of_active_tokens_is_irrelevant(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd3_pipeline()
    expected, _ = run(pipe, SPARSE, **sd3_inputs(2))
    select = Session._select

    def shuffled(self: Session, noise: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        active = select(self, noise, plan)
        return active[
            :, torch.randperm(plan.num_active, generator=torch.Generator().manual_seed(1))
        ]

    monkeypatch.setattr(Session, "_select", shuffled)
    latents, _ = run(pipe, SPARSE, **sd3_inputs(2))
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


# Each way of breaking the engine has to show against the reference.


@contextmanager
def wrong_token_order(_monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    right = DESCRIPTIONS["SD3Transformer2DModel"]
    yield {"description": replace(right, token_order="text_first")}


@contextmanager
def one_layer_not_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    merge, first = KVCache.merge, []

    def lazy(self: KVCache, key: Any, value: Any, fresh: Any) -> Any:
        first.append(self)
        if self is not first[0]:
            return merge(self, key, value, fresh)
        return self._key.whole, self._value.whole

    monkeypatch.setattr(KVCache, "merge", lazy)
    yield {}


@contextmanager
def active_set_shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    fresh = Session._fresh_rows

    def shared(self: Session, *call: Any) -> Any:
        assert self._active is not None
        own, self._active = self._active, self._active[:1].expand_as(self._active)
        result = fresh(self, *call)
        self._active = own
        return result

    monkeypatch.setattr(Session, "_fresh_rows", shared)
    yield {}


@pytest.mark.parametrize("breakage", [wrong_token_order, one_layer_not_written, active_set_shared])
def test_a_broken_engine_is_found(breakage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd3_pipeline()
    with breakage(monkeypatch) as broken:
        latents, trace = run(pipe, SPARSE | broken, **sd3_inputs(3))
    reference = masked_reference(pipe, trace, **sd3_inputs(3))
    assert (latents - reference).abs().max() > 1e-2
