"""Stable Diffusion 3 and Lumina-Next; `test_sd3_family` and `test_lumina` go deeper."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import (
    SD3MultiControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
)

from families import lumina_inputs, lumina_pipeline, pictures, sd3_controlnet, sd3_kind
from family_laws import STEPS, Family
from pipelines import sd3_inputs, sd3_pipeline, sd3_transformer, tiny_vae


def sd3_call(images: int, **more: Any) -> dict[str, Any]:
    call = sd3_inputs(images) | {"num_inference_steps": STEPS} | more
    del call["output_type"]
    return call


def sd3_controlled() -> Any:
    return sd3_kind(StableDiffusion3ControlNetPipeline, controlnet=sd3_controlnet(1))


def sd3_several_controlnets() -> Any:
    both = SD3MultiControlNetModel([sd3_controlnet(1), sd3_controlnet(2)])
    return sd3_kind(StableDiffusion3ControlNetPipeline, controlnet=both)


def sd3_control_inpaint() -> Any:
    return sd3_kind(
        StableDiffusion3ControlNetInpaintingPipeline,
        controlnet=sd3_controlnet(1, extra_conditioning_channels=1),
    )


def sd3_inpaint() -> Any:
    return sd3_kind(
        StableDiffusion3InpaintPipeline,
        transformer=sd3_transformer(in_channels=16, channels=16),
        vae=tiny_vae(16),
    )


def sd3_perturbed(kind: Any) -> Any:
    return sd3_kind(kind, pag_applied_layers=["blocks.1"])


def control_call(images: int) -> dict[str, Any]:
    return sd3_call(images, control_image=pictures(images))


def several_controls(images: int) -> dict[str, Any]:
    """The second ControlNet goes before the last steps."""
    return sd3_call(
        images,
        control_image=[pictures(images), pictures(images, seed=2)],
        controlnet_conditioning_scale=[0.7, 0.5],
        control_guidance_end=[1.0, 0.7],
    )


def skip_layer_call(images: int) -> dict[str, Any]:
    """A third call in some of the steps, in which a layer is left out."""
    return sd3_call(
        images,
        skip_guidance_layers=[1],
        skip_layer_guidance_scale=2.8,
        skip_layer_guidance_start=0.1,
        skip_layer_guidance_stop=0.7,
    )


def control_inpaint_call(images: int) -> dict[str, Any]:
    masks = pictures(images, 1, seed=1).round()
    return sd3_call(images, control_image=pictures(images), control_mask=masks)


def img2img_call(images: int) -> dict[str, Any]:
    call = sd3_call(images, image=pictures(images), strength=0.8)
    return {name: value for name, value in call.items() if name not in {"height", "width"}}


def inpaint_call(images: int) -> dict[str, Any]:
    masks = pictures(images, 1, seed=1).round()
    return sd3_call(images, image=pictures(images), mask_image=masks, strength=0.8)


def pag_call(images: int) -> dict[str, Any]:
    return sd3_call(images, pag_scale=3.0)


def pag_img2img_call(images: int) -> dict[str, Any]:
    return img2img_call(images) | {"pag_scale": 3.0}


def lumina_call(images: int) -> dict[str, Any]:
    call = lumina_inputs(images) | {"num_inference_steps": STEPS}
    del call["output_type"]
    return call


sd35_pipeline = functools.partial(sd3_pipeline, dual=True)

SD3 = "Stable Diffusion 3"
FAMILIES = (
    Family(SD3, sd3_pipeline, sd3_call),
    Family("Stable Diffusion 3.5", sd35_pipeline, sd3_call),
    Family(SD3, sd3_controlled, control_call, feature="controlnet"),
    Family(SD3, sd3_several_controlnets, several_controls, feature="several controlnets"),
    Family("Stable Diffusion 3.5", sd35_pipeline, skip_layer_call, feature="skip-layer guidance"),
    Family(SD3, sd3_control_inpaint, control_inpaint_call, feature="controlnet inpaint"),
    Family(
        SD3,
        functools.partial(sd3_kind, StableDiffusion3Img2ImgPipeline),
        img2img_call,
        feature="img2img",
    ),
    Family(SD3, sd3_inpaint, inpaint_call, feature="inpaint"),
    Family(
        SD3,
        functools.partial(sd3_perturbed, StableDiffusion3PAGPipeline),
        pag_call,
        feature="perturbed attention",
    ),
    Family(
        SD3,
        functools.partial(sd3_perturbed, StableDiffusion3PAGImg2ImgPipeline),
        pag_img2img_call,
        feature="perturbed attention img2img",
    ),
    Family("Lumina-Next", lumina_pipeline, lumina_call, wrong={"output": "norm_out.norm"}),
)
