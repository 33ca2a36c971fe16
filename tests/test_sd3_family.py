"""Features of the SD3 family, each with weights that matter, against the masked reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

import ras_dit
from families import (
    IP_FEATURES,
    accelerated,
    distance,
    final_latents,
    ip_adapter,
    lora_weights,
    pictures,
    sd3_controlnet,
    sd3_kind,
)
from pipelines import sd3_inputs, sd3_pipeline, sd3_transformer, tiny_vae
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cache import KVCache
from ras_dit.reference import masked_reference
from ras_dit.trace import Trace

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}
SD3 = DESCRIPTIONS["SD3Transformer2DModel"]
Inputs = Callable[[], dict[str, Any]]


def inputs(**change: Any) -> Inputs:
    """Arguments of a call for two images; the feature's own are added."""
    return lambda: sd3_inputs(2) | change


def kinds(trace: Trace) -> str:
    return "".join(step.kind[0] for step in trace.steps)


def check_feature(pipe: Any, with_it: Inputs, without: Inputs, **config: Any) -> Trace:
    """A feature that matters survives sparse steps, and its pipeline is stock afterwards."""
    stock = final_latents(pipe, with_it())
    assert distance(stock, final_latents(pipe, without())) > 1e-2
    latents, trace, reference = accelerated(pipe, with_it, **config)
    assert distance(latents, reference) <= 1e-4
    assert distance(latents, stock) > 1e-2
    assert kinds(trace).count("s") >= 4
    sets = [step.active for step in trace.steps if step.active is not None]
    assert all(active.shape == (2, 24) for active in sets)
    assert not torch.equal(sets[0][0], sets[0][1])
    assert torch.equal(final_latents(pipe, with_it()), stock)
    return trace


# -- ControlNet ------------------------------------------------------------------------------------

SD35_CONTROL = {
    "joint_attention_dim": None,
    "use_pos_embed": False,
    "pos_embed_type": None,
    "force_zeros_for_pooled_projection": False,
}


@pytest.mark.parametrize(
    ("settings", "end"),
    [({}, 1.0), ({}, 0.5), (SD35_CONTROL, 1.0)],
    ids=["sd3", "half of the run", "sd35"],
)
def test_controlnet(settings: dict[str, Any], end: float) -> None:
    pipe = sd3_kind(StableDiffusion3ControlNetPipeline, controlnet=sd3_controlnet(1, **settings))
    call = {"control_image": pictures(2), "control_guidance_end": end}
    check_feature(pipe, inputs(**call), inputs(**call, controlnet_conditioning_scale=0.0))


@pytest.mark.parametrize("removed", [0, 1])
def test_several_controlnets(removed: int) -> None:
    pipe = sd3_kind(
        StableDiffusion3ControlNetPipeline, controlnet=[sd3_controlnet(1), sd3_controlnet(2)]
    )
    call = {"control_image": [pictures(2), pictures(2, seed=1)]}
    scales = [0.7, 0.5]
    fewer = [0.0 if i == removed else scale for i, scale in enumerate(scales)]
    check_feature(
        pipe,
        inputs(**call, controlnet_conditioning_scale=scales),
        inputs(**call, controlnet_conditioning_scale=fewer),
    )


def test_controlnet_inpainting() -> None:
    pipe = sd3_kind(
        StableDiffusion3ControlNetInpaintingPipeline,
        controlnet=sd3_controlnet(1, extra_conditioning_channels=1),
    )
    call = {"control_image": pictures(2), "control_mask": pictures(2, 1, seed=1).round()}
    check_feature(pipe, inputs(**call), inputs(**call, controlnet_conditioning_scale=0.0))


def test_residuals_that_the_description_lacks_are_found() -> None:
    pipe = sd3_kind(StableDiffusion3ControlNetPipeline, controlnet=sd3_controlnet(1))
    with (
        pytest.raises(RuntimeError, match="must match"),
        ras_dit.enable(pipe, **SPARSE, description=replace(SD3, residuals=())),
    ):
        final_latents(pipe, sd3_inputs(2) | {"control_image": pictures(2)})


# -- skip-layer guidance ---------------------------------------------------------------------------


@pytest.mark.parametrize(("dual", "layers"), [(False, [1]), (False, [0]), (True, [0, 2])])
def test_skip_layer_guidance(dual: bool, layers: list[int]) -> None:
    """Its own call in steps 4 to 8: dense once for want of a cache, then sparse, reset at 6."""
    window = {"skip_layer_guidance_start": 0.35, "skip_layer_guidance_stop": 0.85}
    trace = check_feature(
        sd3_pipeline(dual=dual), inputs(**window, skip_guidance_layers=layers), inputs(**window)
    )
    assert kinds(trace) == "ddssssdsss"
    calls = [[(call.batch, call.num_active) for call in step.calls] for step in trace.steps]
    assert [len(made) for made in calls] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 1]
    assert calls[4] == [(4, 24), (2, 60)]
    assert calls[5] == calls[7] == calls[8] == [(4, 24), (2, 24)]
    assert calls[6] == [(4, 60), (2, 60)]


# -- IP-adapter ------------------------------------------------------------------------------------


def load_ip_adapter(pipe: Any) -> None:
    weights = ip_adapter(len(pipe.transformer.attn_processors))
    pipe.load_ip_adapter(weights, image_encoder_folder=None)


def block_processors(pipe: Any) -> list[Any]:
    processors = pipe.transformer.attn_processors
    return [value for name, value in processors.items() if name.startswith("transformer_blocks")]


def ip_inputs() -> dict[str, Any]:
    features = torch.randn(2, 3, IP_FEATURES, generator=torch.Generator().manual_seed(5))
    return sd3_inputs(2) | {"ip_adapter_image_embeds": features}


@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd35"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after enabling"])
def test_ip_adapter(dual: bool, late: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    plain = final_latents(pipe, sd3_inputs(2))
    if not late:
        load_ip_adapter(pipe)
    with ras_dit.enable(pipe, **SPARSE) as handle:
        if late:
            pipe(**sd3_inputs(2))
            load_ip_adapter(pipe)
        processors = block_processors(pipe)
        latents = final_latents(pipe, ip_inputs())
    assert handle.trace is not None
    assert kinds(handle.trace) == "ddssssdsss"
    after = block_processors(pipe)
    assert all(type(processor) is SD3IPAdapterJointAttnProcessor2_0 for processor in after)
    assert not late or all(a is b for a, b in zip(after, processors, strict=True))
    reference = masked_reference(pipe, handle.trace, **ip_inputs())
    assert distance(latents, reference) <= 1e-4
    assert distance(final_latents(pipe, ip_inputs()), plain) > 1e-2
    pipe.unload_ip_adapter()
    assert torch.equal(final_latents(pipe, sd3_inputs(2)), plain)


def test_an_ip_adapter_unloaded_while_enabled_leaves_nothing() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE):
        plain = final_latents(pipe, sd3_inputs(2))
        load_ip_adapter(pipe)
        assert distance(final_latents(pipe, ip_inputs()), plain) > 1e-2
        pipe.unload_ip_adapter()
        assert torch.equal(final_latents(pipe, sd3_inputs(2)), plain)


def test_the_scale_of_an_ip_adapter_holds_before_and_after_disable() -> None:
    pipe = sd3_pipeline()
    load_ip_adapter(pipe)
    with ras_dit.enable(pipe, **SPARSE) as handle:
        first = final_latents(pipe, ip_inputs())
        pipe.set_ip_adapter_scale(0.9)
        latents = final_latents(pipe, ip_inputs())
    assert distance(latents, first) > 1e-2
    assert handle.trace is not None
    assert distance(latents, masked_reference(pipe, handle.trace, **ip_inputs())) <= 1e-4


def test_an_ip_adapter_switched_on_within_a_run_makes_that_step_dense() -> None:
    """The step has attention operations that the filling step did not have."""

    def switch(pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(0.0 if step < 3 else 0.9)
        return tensors

    pipe = sd3_pipeline()
    load_ip_adapter(pipe)
    runs = []
    for resets in ((), (4,)):
        pipe.set_ip_adapter_scale(0.0)
        # Drops that were planned and not made count, so starvation is left out.
        config = SPARSE | {"reset_steps": resets, "starvation_scale": 0.0}
        with ras_dit.enable(pipe, **config) as handle:
            runs.append(final_latents(pipe, ip_inputs() | {"callback_on_step_end": switch}))
        assert handle.trace is not None
        assert kinds(handle.trace) == "ddssdsssss"
    assert torch.equal(runs[0], runs[1])


# -- from an image on ------------------------------------------------------------------------------


def image_inputs(strength: float = 0.75, **change: Any) -> Inputs:
    """Starts at step 3 of 12."""
    call = {"image": pictures(2), "strength": strength, "num_inference_steps": 12}
    return inputs(**call | change)


def test_image_to_image_counts_from_its_first_step() -> None:
    pipe = sd3_kind(StableDiffusion3Img2ImgPipeline)
    trace = check_feature(pipe, image_inputs(), image_inputs(image=pictures(2, seed=1)))
    assert kinds(trace) == "ddssssdss"
    assert [step.index for step in trace.steps] == list(range(9))
    assert trace.steps[0].sigma == pytest.approx(pipe.scheduler.sigmas[3].item())
    with (
        ras_dit.enable(pipe, sample_ratio=0.4, reset_steps=(9,)),
        pytest.raises(ras_dit.RASError, match="9"),
    ):
        pipe(**image_inputs()())


def test_image_to_image_with_two_evaluations_per_step() -> None:
    pipe = sd3_kind(
        StableDiffusion3Img2ImgPipeline, scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0)
    )
    trace = check_feature(pipe, image_inputs(), image_inputs(image=pictures(2, seed=1)))
    assert len(trace.steps) == 17
    assert trace.steps[0].sigma == pytest.approx(pipe.scheduler.sigmas[6].item())


@pytest.mark.parametrize("in_channels", [16, 33], ids=["blended", "mask as input"])
def test_inpainting(in_channels: int) -> None:
    pipe = sd3_kind(
        StableDiffusion3InpaintPipeline,
        transformer=sd3_transformer(in_channels=in_channels, channels=16),
        vae=tiny_vae(16),
    )
    masks = [pictures(2, 1, seed=seed).round() for seed in (2, 3)]
    trace = check_feature(
        pipe, image_inputs(mask_image=masks[0]), image_inputs(mask_image=masks[1])
    )
    assert kinds(trace) == "ddssssdss"


# -- perturbed-attention guidance ------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["alone", "with guidance"])
def test_perturbed_attention(guidance: float) -> None:
    pipe = sd3_kind(StableDiffusion3PAGPipeline, pag_applied_layers="blocks.1")
    processors = list(pipe.transformer.attn_processors.values())
    call = {"guidance_scale": guidance}
    trace = check_feature(pipe, inputs(**call, pag_scale=3.0), inputs(**call, pag_scale=0.0))
    assert {call.batch for step in trace.steps for call in step.calls} == {4 if guidance < 2 else 6}
    after = pipe.transformer.attn_processors.values()
    assert all(one is other for one, other in zip(processors, after, strict=True))


def test_perturbed_attention_from_an_image_on() -> None:
    pipe = sd3_kind(StableDiffusion3PAGImg2ImgPipeline, pag_applied_layers=["blocks.(0|2)"])
    check_feature(pipe, image_inputs(pag_scale=3.0), image_inputs(pag_scale=0.0))


def test_processors_exchanged_in_every_run_are_put_back() -> None:
    pipe = sd3_kind(StableDiffusion3PAGPipeline, pag_applied_layers="blocks.1")
    processors = list(pipe.transformer.attn_processors.values())
    call = inputs(pag_scale=3.0)
    with ras_dit.enable(pipe, **SPARSE):
        first = final_latents(pipe, call())
        without = final_latents(pipe, inputs(pag_scale=0.0)())
        assert torch.equal(final_latents(pipe, call()), first)
    after = pipe.transformer.attn_processors.values()
    assert all(one is other for one, other in zip(processors, after, strict=True))
    plain = StableDiffusion3Pipeline(**sd3_pipeline().components)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(without, accelerated(plain, inputs())[0])


def test_a_mask_of_the_wrong_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mask_of = KVCache.mask_of

    def shifted(self: KVCache, *args: Any) -> Any:
        mask = mask_of(self, *args)
        return mask if mask is None else mask.roll(1, dims=-2)

    monkeypatch.setattr(KVCache, "mask_of", shifted)
    pipe = sd3_kind(StableDiffusion3PAGPipeline, pag_applied_layers="blocks.1")
    latents, _, reference = accelerated(pipe, inputs(pag_scale=3.0))
    assert distance(latents, reference) > 1e-2


# -- LoRA ------------------------------------------------------------------------------------------


def load_lora(pipe: Any) -> None:
    pipe.load_lora_weights(dict(lora_weights()), adapter_name="style")


@pytest.mark.parametrize("late", [False, True], ids=["before", "after enabling"])
def test_lora(late: bool) -> None:
    """One that reaches the output layer as well, loaded, scaled and unloaded again."""
    pipe = sd3_pipeline()
    plain = final_latents(pipe, sd3_inputs(2))
    if not late:
        load_lora(pipe)
    runs: list[tuple[torch.Tensor, Trace]] = []
    calls = [inputs(), inputs(joint_attention_kwargs={"scale": 0.5})]
    with ras_dit.enable(pipe, **SPARSE) as handle:
        if late:
            pipe(**sd3_inputs(2))
            load_lora(pipe)
        for call in calls:
            latents = final_latents(pipe, call())
            assert handle.trace is not None
            runs.append((latents, handle.trace))
        pipe.unload_lora_weights()
        accelerated_plain = final_latents(pipe, sd3_inputs(2))
    assert torch.equal(final_latents(pipe, sd3_inputs(2)), plain)
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(2))
    assert distance(accelerated_plain, reference) <= 1e-4
    load_lora(pipe)
    for call, (latents, trace) in zip(calls, runs, strict=True):
        assert distance(latents, masked_reference(pipe, trace, **call())) <= 1e-4
        assert distance(final_latents(pipe, call()), plain) > 1e-2
    assert distance(runs[0][0], runs[1][0]) > 1e-2


def test_a_fused_lora() -> None:
    pipe = sd3_pipeline()
    plain = final_latents(pipe, sd3_inputs(2))
    with ras_dit.enable(pipe, **SPARSE) as handle:
        load_lora(pipe)
        pipe.fuse_lora()
        latents = final_latents(pipe, sd3_inputs(2))
    assert handle.trace is not None
    assert distance(latents, masked_reference(pipe, handle.trace, **sd3_inputs(2))) <= 1e-4
    assert distance(final_latents(pipe, sd3_inputs(2)), plain) > 1e-2
