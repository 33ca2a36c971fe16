"""Enable, run, disable: what a pipeline's owner sees, and what is left behind: nothing."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxTransformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.models.attention_processor import JointAttnProcessor2_0

import ras_dit
from pipelines import sd3_inputs, sd3_pipeline, sd3_transformer
from ras_dit.cache import KVCache
from ras_dit.schedule import plan_steps
from ras_dit.verify import masked_reference

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}


def hooks_of(module: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def processors_of(transformer: Any) -> list[Any]:
    return list(transformer.attn_processors.values())


def is_stock(pipe: Any, processors: list[Any]) -> bool:
    return (
        type(pipe) is StableDiffusion3Pipeline
        and type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
        and hooks_of(pipe.transformer) == 0
        and all(a is b for a, b in zip(processors_of(pipe.transformer), processors, strict=True))
    )


# -- the two verbs --------------------------------------------------------------------------------


def test_three_ways_to_undo() -> None:
    pipe = sd3_pipeline(dual=True)
    processors = processors_of(pipe.transformer)
    handle = ras_dit.enable(pipe, "balanced")
    assert not is_stock(pipe, processors)
    handle.disable()
    assert is_stock(pipe, processors)
    ras_dit.enable(pipe, sample_ratio=0.3)
    ras_dit.disable(pipe)
    assert is_stock(pipe, processors)
    with ras_dit.enable(pipe) as handle:
        assert handle.config == ras_dit.RASConfig()
    assert is_stock(pipe, processors)
    handle.disable()
    ras_dit.disable(pipe)
    assert is_stock(pipe, processors)


def test_enabling_twice_is_one_engine_and_another_configuration_is_refused() -> None:
    pipe = sd3_pipeline()
    ras_dit.enable(pipe, sample_ratio=0.5)
    hooks = hooks_of(pipe.transformer)
    again = ras_dit.enable(pipe, ras_dit.RASConfig(sample_ratio=0.5))
    assert hooks_of(pipe.transformer) == hooks
    with pytest.raises(ras_dit.RASError, match="enabled already") as caught:
        ras_dit.enable(pipe, sample_ratio=0.25)
    assert "0.5" in str(caught.value)
    assert "0.25" in str(caught.value)
    again.disable()
    assert hooks_of(pipe.transformer) == 0


def test_configurations_come_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("sample_ratio: 0.3\nwarmup_steps: 2\n")
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, str(file)) as handle:
        assert handle.config.sample_ratio == 0.3
    with ras_dit.enable(pipe, "fast", warmup_steps=3) as handle:
        assert handle.config == ras_dit.RASConfig.load("fast").replace(warmup_steps=3)
    with pytest.raises(ras_dit.RASError, match="no field ratio"):
        ras_dit.enable(pipe, ratio=0.5)


def test_the_trace_outlives_disable() -> None:
    pipe = sd3_pipeline()
    handle = ras_dit.enable(pipe, **SPARSE)
    assert handle.trace is None
    pipe(**sd3_inputs(2))
    handle.disable()
    trace = handle.trace
    assert trace is not None
    assert (trace.grid.height, trace.grid.width, trace.num_tokens) == (6, 10, 60)
    assert trace.num_text_tokens == 7
    assert [step.index for step in trace.steps] == list(range(10))
    assert "".join(step.kind[0] for step in trace.steps) == "ddssssdsss"
    assert trace.steps[0].sigma == pytest.approx(1.0)
    assert trace.steps[9].sigma == pytest.approx(pipe.scheduler.sigmas[9].item())
    active = trace.steps[3].active
    assert active is not None
    assert active.dtype == torch.int64
    assert torch.equal(active.sort(dim=1).values, active)
    assert ras_dit.Trace.from_json(trace.to_json()).to_json() == trace.to_json()


def test_summary_is_data_and_markdown() -> None:
    pipe = sd3_pipeline()
    with pytest.raises(ras_dit.RASError, match="not enabled"):
        ras_dit.summary(pipe)
    with ras_dit.enable(pipe, **SPARSE):
        assert "none finished yet" in str(ras_dit.summary(pipe))
        pipe(**sd3_inputs(2))
        summary = ras_dit.summary(pipe)
    data = summary.to_dict()
    assert data["steps"] == 10
    assert data["dense_steps"] == 3
    assert data["active_tokens"] == [60, 60, 24, 24, 24, 24, 60, 24, 24, 24]
    assert 0 < data["flops_saved"] < 0.5
    assert data["flop_limit"] == pytest.approx(1 / (1 - data["flops_saved"]))
    # Three layers of 67 joint keys and values of width 32, and 60 outputs of 16, float32.
    assert data["cache_bytes"] == 4 * 4 * (3 * 2 * 67 * 32 + 60 * 16)
    table = str(summary).splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in table)


# -- what is refused ------------------------------------------------------------------------------


def test_an_unknown_transformer_is_refused_and_untouched() -> None:
    pipe = sd3_pipeline()
    pipe.transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2
    )
    pipe.transformer.__class__ = type("SomeTransformer", (FluxTransformer2DModel,), {})
    with pytest.raises(ras_dit.UnsupportedError, match="SD3Transformer2DModel"):
        ras_dit.enable(pipe)
    assert type(pipe) is StableDiffusion3Pipeline
    assert hooks_of(pipe.transformer) == 0


@pytest.mark.parametrize("pipe", [object(), None, DDPMPipeline(None, None)])
def test_what_is_no_transformer_pipeline_is_refused(pipe: Any) -> None:
    with pytest.raises(ras_dit.UnsupportedError, match="has no transformer"):
        ras_dit.enable(pipe)


def test_another_cache_is_refused_before_and_after() -> None:
    pipe = sd3_pipeline()
    processors = processors_of(pipe.transformer)
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
    with pytest.raises(ras_dit.UnsupportedError, match="fbc_"):
        ras_dit.enable(pipe)
    assert processors_of(pipe.transformer) == processors
    assert type(pipe) is StableDiffusion3Pipeline
    pipe = sd3_pipeline()
    ras_dit.enable(pipe)
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
    with pytest.raises(ras_dit.UnsupportedError, match="fbc_"):
        pipe(**sd3_inputs(1))


def test_a_processor_that_hides_its_attention_is_refused_whole() -> None:
    class Hidden(JointAttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return JointAttnProcessor2_0.__call__(self, *args, **kwargs)

    pipe = sd3_pipeline()
    pipe.transformer.transformer_blocks[2].attn.set_processor(Hidden())
    processors = processors_of(pipe.transformer)
    with pytest.raises(ras_dit.UnsupportedError, match="Hidden"):
        ras_dit.enable(pipe)
    assert is_stock(pipe, processors)


def test_a_reset_outside_the_run_fails_at_its_start_and_the_next_run_works() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.4, reset_steps=(8,)) as handle:
        with pytest.raises(ras_dit.RASError, match=r"reset_steps=\[8\]"):
            pipe(**sd3_inputs(1) | {"num_inference_steps": 6})
        assert handle.trace is None
        latents = pipe(**sd3_inputs(1)).images
    assert handle.trace is not None
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(1))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


def test_gradients_are_refused_and_the_next_run_works() -> None:
    pipe = sd3_pipeline()
    inputs = sd3_inputs(1)
    with ras_dit.enable(pipe, **SPARSE):
        pipe.scheduler.set_timesteps(10)
        with pytest.raises(ras_dit.RASError, match="no_grad"):
            pipe.transformer(
                hidden_states=torch.randn(1, 4, 12, 20),
                encoder_hidden_states=inputs["prompt_embeds"],
                pooled_projections=inputs["pooled_prompt_embeds"],
                timestep=torch.tensor([1000.0]),
            )
        pipe(**inputs)


def test_a_metric_of_another_shape_is_refused() -> None:
    pipe = sd3_pipeline()
    with (
        ras_dit.enable(pipe, metric=lambda noise: noise.mean(-1)),
        pytest.raises(ras_dit.RASError, match=r"returned \(1, 60, 4\).*\(1, 60\)"),
    ):
        pipe(**sd3_inputs(1))


def test_fewer_steps_than_warm_up_run_dense_and_warn_once() -> None:
    pipe = sd3_pipeline()
    stock = pipe(**sd3_inputs(1) | {"num_inference_steps": 3}).images
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=5):
        with pytest.warns(ras_dit.RASWarning, match="does nothing in this run"):
            latents = pipe(**sd3_inputs(1) | {"num_inference_steps": 3}).images
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(**sd3_inputs(1) | {"num_inference_steps": 3})
    assert torch.equal(latents, stock)


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


def test_a_transformer_replaced_after_enable_is_refused() -> None:
    pipe = sd3_pipeline()
    handle = ras_dit.enable(pipe, **SPARSE)
    pipe.transformer = sd3_transformer(seed=4)
    with pytest.raises(ras_dit.RASError, match=r"transformer was replaced"):
        pipe(**sd3_inputs(1))
    handle.disable()
    pipe(**sd3_inputs(1))


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


# -- schedules and replay -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "linear", "sample_ratio": 0.4},
        {"schedule": (1.0, 0.5, 0.3, 0.3, 1.0, 0.6, 0.2, 0.2, 0.2, 0.2)},
        {"starvation": "since_refresh", "sample_ratio": 0.3, "reset_steps": (6,)},
    ],
    ids=["linear", "list", "since refresh"],
)
def test_every_schedule_equals_the_reference(config: dict[str, Any]) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **config) as handle:
        latents = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    planned = plan_steps(handle.config, 10, 60)
    assert [step.num_active for step in handle.trace.steps] == [p.num_active for p in planned]
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(2))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


def test_a_replayed_trace_gives_the_same_picture() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE | {"metric": "random", "seed": 7}) as handle:
        expected = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    recorded = ras_dit.Trace.from_json(handle.trace.to_json())
    with ras_dit.enable(pipe, replay=recorded) as handle:
        assert torch.equal(pipe(**sd3_inputs(2)).images, expected)
        assert handle.trace is not None
        assert handle.trace.to_json() == recorded.to_json()
        with pytest.raises(ras_dit.RASError, match=r"2 images, and this run makes 1"):
            pipe(**sd3_inputs(1))
        with pytest.raises(ras_dit.RASError, match=r"10 steps, and this is .* 8 steps"):
            pipe(**sd3_inputs(2) | {"num_inference_steps": 8})
        with pytest.raises(ras_dit.RASError, match=r"does not fit this run"):
            pipe(**sd3_inputs(2) | {"height": 40})
        assert torch.equal(pipe(**sd3_inputs(2)).images, expected)
        with pytest.raises(ras_dit.RASError, match="another trace to replay"):
            ras_dit.enable(pipe)
