"""Runs that make one kind of error: each against what it is said to be, built in another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import ras_dit
from pipelines import hooks_of
from ras_dit import RASConfig
from ras_dit.adapters import describe
from ras_dit.diagnosis import runs
from ras_dit.generate import Job
from ras_dit.loading import load_pipeline
from ras_dit.reference import MaskedReference
from ras_dit.trace import Trace, pack_active

RATIO = RASConfig(sample_ratio=0.4, metric="random")
JOB = Job(prompts=("a fox", "an owl"), seeds=(3, 4), num_inference_steps=8, width=40, height=24)
CALL = {"num_inference_steps": 8, "width": 40, "height": 24}


def call() -> dict[str, Any]:
    """The arguments of the job, with fresh generators."""
    generators = [torch.Generator().manual_seed(seed) for seed in JOB.seeds]
    return {"prompt": list(JOB.prompts), "generator": generators, **CALL}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Any:
    return load_pipeline(model_folder, device="cpu")


@pytest.fixture(scope="module")
def dense(pipe: Any) -> runs.Run:
    return runs.recorded_run(pipe, JOB)


@pytest.fixture(scope="module")
def trace(pipe: Any) -> Trace:
    found = runs.sparse_run(pipe, JOB, RATIO).trace
    assert found is not None
    assert [step.kind for step in found.steps].count("sparse") == 6
    return found


def pixels(active: torch.Tensor, rows: int) -> torch.Tensor:
    """Which latents ``[rows, 1, H, W]`` active tokens of 6 x 10 with 2 x 2 patches have."""
    mask = torch.zeros(active.shape[0], 60).scatter_(1, active, 1).view(-1, 1, 6, 10)
    large = torch.nn.functional.interpolate(mask, scale_factor=2) > 0
    return large.repeat(rows // active.shape[0], 1, 1, 1)


def embeddings_of(pipe: Any) -> dict[str, Any]:
    """The same with texts encoded already, so that the transformer alone makes attention."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    names += tuple(f"{sort}_pooled_prompt_embeds".removeprefix("_") for sort in ("", "negative"))
    values = pipe.encode_prompt(
        prompt=list(JOB.prompts),
        prompt_2=None,
        prompt_3=None,
        negative_prompt=["", ""],
        do_classifier_free_guidance=True,
    )
    arguments = {name: value for name, value in call().items() if name != "prompt"}
    return arguments | dict(zip(names, values, strict=True))


def is_clean(pipe: Any) -> bool:
    return hooks_of(pipe.transformer) == 0 and "step" not in vars(pipe.scheduler)


def test_a_dense_run_is_the_stock_pipelines(pipe: Any, dense: runs.Run) -> None:
    stock = pipe(**call(), output_type="latent").images
    assert torch.equal(dense.latents, stock)
    assert torch.equal(runs.stock_run(pipe, JOB).latents, stock)
    assert dense.recording is not None
    assert len(dense.recording.samples) == 8
    assert is_clean(pipe)


def test_a_sparse_run_is_the_users(pipe: Any, trace: Trace) -> None:
    with ras_dit.enable(pipe, RATIO):
        expected = pipe(**call(), output_type="latent").images
    assert torch.equal(runs.sparse_run(pipe, JOB, RATIO).latents, expected)


def test_held_outputs_are_the_last_ones_of_inactive_tokens_and_nothing_else(
    pipe: Any, dense: runs.Run, trace: Trace
) -> None:
    given, fresh = [], []

    def spy(_: Any, _args: Any, output: Any) -> None:
        uncond, cond = output[0].chunk(2)
        fresh.append(uncond + pipe.guidance_scale * (cond - uncond))

    hook, stock = pipe.transformer.register_forward_hook(spy), pipe.scheduler.step

    def step(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(model_output.clone())
        return stock(model_output, *args, **kwargs)

    pipe.scheduler.step = step
    try:
        held = runs.held_run(pipe, JOB, trace, describe(pipe.transformer))
        assert pipe.scheduler.step is step
    finally:
        hook.remove()
        del pipe.scheduler.step
    for index, record in enumerate(trace.steps):
        expected = fresh[index]
        if record.active is not None:
            assert index > 0
            expected = torch.where(pixels(record.active, 2), expected, given[index - 1])
        torch.testing.assert_close(given[index], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(held.latents, dense.latents, atol=1e-2)
    assert is_clean(pipe)


def test_stale_keys_are_those_of_the_reference_with_stock_outputs_for_inactive_tokens(
    pipe: Any, dense: runs.Run, trace: Trace
) -> None:
    stale = runs.stale_run(pipe, JOB, trace, RATIO, describe(pipe.transformer))
    assert is_clean(pipe)
    step = 0

    def merge(transformer: Any, args: Any, kwargs: Any, output: Any) -> Any:
        active = trace.steps[step].active
        if active is None:
            return None
        (beside,) = transformer.forward(*args, **kwargs)
        return (torch.where(pixels(active, 4), output[0], beside),)

    def end_step(_pipe: Any, index: int, _timestep: Any, tensors: Any) -> Any:
        nonlocal step
        step = index + 1
        reference.next_step()
        return tensors

    with MaskedReference(pipe.transformer, trace) as reference:
        hook = pipe.transformer.register_forward_hook(merge, with_kwargs=True)
        expected = pipe(**call(), output_type="latent", callback_on_step_end=end_step).images
        hook.remove()
    torch.testing.assert_close(stale.latents, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(stale.latents, dense.latents, atol=1e-2)
    sparse = runs.sparse_run(pipe, JOB, RATIO).latents
    assert not torch.allclose(stale.latents, sparse, atol=1e-2)


class _OldText(TorchFunctionMode):
    """Gives every attention of a sparse step the text keys and values of the last dense one."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.steps, self.step, self.operation = trace.steps, 0, 0
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention or args[1].shape[2] <= 60:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        if self.steps[self.step].kind == "dense":
            self.kept.append((key[:, :, 60:], value[:, :, 60:]))
        else:
            old_key, old_value = self.kept[self.operation]
            key = torch.cat([key[:, :, :60], old_key], 2)
            value = torch.cat([value[:, :, :60], old_value], 2)
        self.operation += 1
        return func(query, key, value, *args[3:], **(kwargs or {}))

    def end_step(self, _pipe: Any, index: int, _timestep: Any, tensors: Any) -> Any:
        self.step, self.operation = index + 1, 0
        if self.step < len(self.steps) and self.steps[self.step].kind == "dense":
            self.kept.clear()
        return tensors


def test_kept_text_is_that_of_the_last_dense_step_beside_a_fresh_image(
    pipe: Any, dense: runs.Run, trace: Trace
) -> None:
    kept = runs.kept_text_run(pipe, JOB, trace, describe(pipe.transformer))
    assert is_clean(pipe)
    embeddings = embeddings_of(pipe)
    with _OldText(trace) as mode:
        expected = pipe(
            **embeddings, output_type="latent", callback_on_step_end=mode.end_step
        ).images
    torch.testing.assert_close(kept.latents, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(kept.latents, dense.latents, atol=1e-2)


def test_where_text_is_seen_from_outside_nothing_of_it_can_be_kept(pipe: Any, trace: Trace) -> None:
    description = replace(describe(pipe.transformer), text_arguments=None)
    with pytest.raises(ras_dit.UnsupportedError, match="no text rows could be kept"):
        runs.kept_text_run(pipe, JOB, trace, description)


@pytest.mark.parametrize("kind", ["held", "stale"])
def test_with_every_token_active_there_is_no_error(
    pipe: Any, dense: runs.Run, trace: Trace, kind: str
) -> None:
    packed = pack_active(torch.arange(60).expand(2, -1), 60)
    steps = [s if s.kind == "dense" else replace(s, packed=packed) for s in trace.steps]
    whole, description = replace(trace, steps=tuple(steps)), describe(pipe.transformer)
    if kind == "held":
        run = runs.held_run(pipe, JOB, whole, description)
    else:
        run = runs.stale_run(pipe, JOB, whole, RATIO, description)
    torch.testing.assert_close(run.latents, dense.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["held", "stale", "text"])
def test_a_run_that_fails_leaves_the_pipeline_stock(pipe: Any, trace: Trace, kind: str) -> None:
    description = describe(pipe.transformer)
    make: dict[str, Callable[..., runs.Run]] = {
        "held": lambda **more: runs.held_run(pipe, JOB, trace, description, **more),
        "stale": lambda **more: runs.stale_run(pipe, JOB, trace, RATIO, description, **more),
        "text": lambda **more: runs.kept_text_run(pipe, JOB, trace, description, **more),
    }

    def fail(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make[kind](on_step=fail)
    assert is_clean(pipe)


def test_a_pipeline_without_steps_of_its_scheduler_is_refused(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "generate", lambda *_, **__: SimpleNamespace(images=()))
    with pytest.raises(ras_dit.UnsupportedError, match="made no step of its scheduler"):
        runs.stock_run(pipe, JOB)
    assert is_clean(pipe)
