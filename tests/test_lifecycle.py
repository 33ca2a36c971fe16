"""Nothing is left behind, nobody else sees it, and what is shared stays stock."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0

import ras_dit
from families_wan import two_stages, wan_call, wan_pipeline
from pipelines import hooks_of, processors_of, sd3_inputs, sd3_pipeline, sd3_transformer
from ras_dit.cache import KVCache
from ras_dit.reference import masked_reference

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}


# -- nothing is left behind -----------------------------------------------------------------------


def watch_caches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    merge = KVCache.merge

    def watched(self: KVCache, *args: Any) -> Any:
        seen.append(weakref.ref(self))
        return merge(self, *args)

    monkeypatch.setattr(KVCache, "merge", watched)
    return seen


def test_caches_are_freed_at_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_caches(monkeypatch)
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE):
        pipe(**sd3_inputs(1))
        gc.collect()
        assert seen
        assert not any(reference() for reference in seen)


def fail(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 4:
        raise KeyboardInterrupt
    return tensors


def stop(pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step >= 4
    return tensors


@pytest.mark.parametrize("callback", [fail, stop])
def test_nothing_survives_an_interrupted_run(
    callback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = sd3_pipeline()
    other = StableDiffusion3Pipeline(
        **pipe.components | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    )
    other.set_progress_bar_config(disable=True)
    stock = other(**sd3_inputs(1)).images
    seen = watch_caches(monkeypatch)
    with ras_dit.enable(pipe, **SPARSE) as handle:
        expected = pipe(**sd3_inputs(2)).images
        seen.clear()
        try:
            pipe(**sd3_inputs(1, seed=3) | {"callback_on_step_end": callback})
        except KeyboardInterrupt:
            gc.collect()
        assert seen
        assert not any(reference() for reference in seen)
        assert handle.trace is not None
        assert handle.trace.batch_size == 2
        assert torch.equal(other(**sd3_inputs(1)).images, stock)
        assert torch.equal(pipe(**sd3_inputs(2)).images, expected)


def test_two_pipelines_do_not_see_each_other() -> None:
    one, two = sd3_pipeline(seed=1), sd3_pipeline(seed=2, dual=True)
    with ras_dit.enable(one, **SPARSE):
        expected_one = one(**sd3_inputs(1)).images
    with ras_dit.enable(two, sample_ratio=0.3):
        expected_two = two(**sd3_inputs(2)).images
    got: list[torch.Tensor] = []

    def nested(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            got.append(two(**sd3_inputs(2)).images)
        return tensors

    with ras_dit.enable(one, **SPARSE), ras_dit.enable(two, sample_ratio=0.3):
        latents = one(**sd3_inputs(1) | {"callback_on_step_end": nested}).images
    assert torch.equal(latents, expected_one)
    assert torch.equal(got[0], expected_two)


# -- pairs of transformer and scheduler -----------------------------------------------------------


def test_sharing_both_accelerates_and_sharing_the_transformer_runs_dense() -> None:
    pipe = sd3_pipeline()
    both = StableDiffusion3Pipeline(**pipe.components)
    apart = StableDiffusion3Pipeline(
        **pipe.components | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    )
    for other in (both, apart):
        other.set_progress_bar_config(disable=True)
    stock = apart(**sd3_inputs(1)).images
    with ras_dit.enable(pipe, **SPARSE) as handle:
        expected = pipe(**sd3_inputs(1)).images
        assert torch.equal(both(**sd3_inputs(1)).images, expected)
        assert torch.equal(apart(**sd3_inputs(1)).images, stock)
        assert ras_dit.enable(both, **SPARSE).trace is handle.trace
    assert type(both) is StableDiffusion3Pipeline


def test_sharing_the_scheduler_leaves_the_other_transformer_dense() -> None:
    pipe = sd3_pipeline()
    other = StableDiffusion3Pipeline(**pipe.components | {"transformer": sd3_transformer(seed=7)})
    other.set_progress_bar_config(disable=True)
    stock = other(**sd3_inputs(1)).images
    with ras_dit.enable(pipe, **SPARSE):
        expected = pipe(**sd3_inputs(1)).images
        assert torch.equal(other(**sd3_inputs(1)).images, stock)
        assert torch.equal(pipe(**sd3_inputs(1)).images, expected)


def test_two_engines_on_one_scheduler_come_off_in_any_order() -> None:
    pipe = sd3_pipeline()
    other = StableDiffusion3Pipeline(**pipe.components | {"transformer": sd3_transformer(seed=7)})
    first = ras_dit.enable(pipe, **SPARSE)
    second = ras_dit.enable(other, **SPARSE)
    first.disable()
    assert type(pipe.scheduler) is not FlowMatchEulerDiscreteScheduler
    second.disable()
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler


def test_a_scheduler_replaced_after_enable_is_followed() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE) as handle:
        pipe(**sd3_inputs(1))
        pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
        latents = pipe(**sd3_inputs(1)).images
    assert handle.trace is not None
    assert len(handle.trace.steps) == 19
    assert type(pipe.scheduler) is FlowMatchHeunDiscreteScheduler
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(1))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_own_class", [False, True])
def test_former_schedulers_are_stock_and_not_kept_alive(by_own_class: bool) -> None:
    pipe, former = sd3_pipeline(), []
    first = pipe.scheduler
    stock = pipe(**sd3_inputs()).images
    with ras_dit.enable(pipe, **SPARSE) as handle:
        for _ in range(3):
            pipe(**sd3_inputs())
            former.append(weakref.ref(pipe.scheduler))
            kind = type(pipe.scheduler) if by_own_class else FlowMatchEulerDiscreteScheduler
            pipe.scheduler = kind.from_config(first.config)
        sparse = pipe(**sd3_inputs()).images
        gc.collect()
        assert type(first) is FlowMatchEulerDiscreteScheduler
        assert [each() is None for each in former] == [False, True, True]
        pipe.scheduler = first  # and may come back
        assert torch.equal(pipe(**sd3_inputs()).images, sparse)
        assert handle.trace is not None
        assert not torch.equal(sparse, stock)
    assert type(first) is FlowMatchEulerDiscreteScheduler


def test_a_former_scheduler_that_another_pipeline_has_is_still_followed() -> None:
    pipe = sd3_pipeline()
    other = StableDiffusion3Pipeline(**pipe.components)
    with ras_dit.enable(pipe, **SPARSE):
        ras_dit.enable(other, **SPARSE)
        sparse = other(**sd3_inputs()).images
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        assert torch.equal(pipe(**sd3_inputs()).images, sparse)
        assert torch.equal(other(**sd3_inputs()).images, sparse)


def test_a_transformer_replaced_after_enable_is_refused() -> None:
    pipe = sd3_pipeline()
    handle = ras_dit.enable(pipe, **SPARSE)
    pipe.transformer = sd3_transformer(seed=4)
    with pytest.raises(ras_dit.RASError, match=r"transformer was replaced"):
        pipe(**sd3_inputs(1))
    handle.disable()
    pipe(**sd3_inputs(1))


def test_the_cure_for_a_replaced_transformer_works_without_the_handle() -> None:
    pipe = sd3_pipeline()
    first = pipe.transformer
    ras_dit.enable(pipe, **SPARSE)
    pipe.transformer = sd3_transformer(seed=4)
    with pytest.raises(ras_dit.RASError, match=r"replaced .* call ras_dit.disable\(pipe\)"):
        pipe(**sd3_inputs(1))
    ras_dit.disable(pipe)
    assert hooks_of(first) == hooks_of(pipe.transformer) == 0
    with ras_dit.enable(pipe, **SPARSE) as handle:
        pipe(**sd3_inputs(1))
        assert handle.trace is not None
    fresh = sd3_pipeline(seed=4)
    assert torch.equal(pipe(**sd3_inputs(1)).images, fresh(**sd3_inputs(1)).images)


def test_a_transformer_whose_turn_is_over_keeps_no_caches() -> None:
    sizes = []
    for pipe in (wan_pipeline(), two_stages()):
        with ras_dit.enable(pipe, sample_ratio=0.5, warmup_steps=1) as handle:
            pipe(**wan_call(1) | {"num_inference_steps": 8}, output_type="latent")
        assert handle.trace is not None
        sizes.append(handle.trace.cache_bytes)
    assert sizes[0] == sizes[1] > 0


def test_the_observed_scheduler_looks_stock(tmp_path: Path) -> None:
    pipe = sd3_pipeline()
    stock = pipe.scheduler
    text, signature = repr(stock), inspect.signature(stock.step)
    stock.save_pretrained(tmp_path / "stock")
    with ras_dit.enable(pipe, **SPARSE):
        observed = pipe.scheduler
        assert observed is stock
        assert isinstance(observed, FlowMatchEulerDiscreteScheduler)
        assert type(observed).__name__ == "FlowMatchEulerDiscreteScheduler"
        assert repr(observed) == text
        assert inspect.signature(observed.step) == signature
        assert "sigmas" in inspect.signature(observed.set_timesteps).parameters
        observed.save_pretrained(tmp_path / "observed")
        for copied in (
            copy.deepcopy(observed),
            copy.copy(observed),
            pickle.loads(pickle.dumps(observed)),
            FlowMatchEulerDiscreteScheduler.from_config(observed.config),
            type(observed).from_config(observed.config),
        ):
            assert isinstance(copied, FlowMatchEulerDiscreteScheduler)
            assert repr(copied) == text
        assert type(copy.deepcopy(observed)) is FlowMatchEulerDiscreteScheduler
        assert type(pickle.loads(pickle.dumps(observed))) is FlowMatchEulerDiscreteScheduler
    files = [
        (tmp_path / name / "scheduler_config.json").read_text() for name in ("stock", "observed")
    ]
    assert files[0] == files[1]


def test_the_observed_pipeline_saves_and_copies_as_stock(
    model_folder: Path, tmp_path: Path
) -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained(model_folder)
    pipe.save_pretrained(tmp_path / "stock")
    with ras_dit.enable(pipe):
        pipe.save_pretrained(tmp_path / "enabled")
        image_to_image = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
        assert image_to_image.transformer is pipe.transformer
    index = [(tmp_path / name / "model_index.json").read_text() for name in ("stock", "enabled")]
    assert index[0] == index[1]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "stock" / weights).read_bytes() == (
        tmp_path / "enabled" / weights
    ).read_bytes()


# -- processors -----------------------------------------------------------------------------------


def test_fused_projections_equal_the_reference() -> None:
    pipe = sd3_pipeline()
    expected = pipe(**sd3_inputs(1)).images
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(pipe(**sd3_inputs(1)).images, expected, atol=1e-4, rtol=0)
    with ras_dit.enable(pipe, **SPARSE) as handle:
        latents = pipe(**sd3_inputs(1)).images
    assert handle.trace is not None
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(1))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


def test_processors_replaced_after_enable_are_bound_again() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE) as handle:
        expected = pipe(**sd3_inputs(1)).images
        fresh = JointAttnProcessor2_0()
        pipe.transformer.set_attn_processor(fresh)
        assert torch.equal(pipe(**sd3_inputs(1)).images, expected)
    assert handle.trace is not None
    assert all(processor is fresh for processor in processors_of(pipe.transformer))


def test_a_loop_of_ones_own_is_accelerated_too() -> None:
    pipe = sd3_pipeline()
    inputs = sd3_inputs(2)
    latents = torch.randn(2, 4, 12, 20)
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=1) as handle, torch.inference_mode():
        pipe.scheduler.set_timesteps(6)
        for time in pipe.scheduler.timesteps:
            noise = pipe.transformer(
                latents,
                inputs["prompt_embeds"],
                inputs["pooled_prompt_embeds"],
                time.expand(2),
                return_dict=False,
            )[0]
            latents = pipe.scheduler.step(noise, time, latents, return_dict=False)[0]
    assert handle.trace is not None
    assert [call.num_active for step in handle.trace.steps for call in step.calls] == [60] + [
        24
    ] * 5
