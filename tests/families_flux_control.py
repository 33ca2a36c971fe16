"""Flux.1 with something beside the prompt: control pictures, ControlNets, IP-adapters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxMultiControlNetModel,
)
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from families_flux import (
    FLUX_JOINT,
    FLUX_POOLED,
    HEIGHT,
    WIDTH,
    deprecations_allowed,
    flux_call,
    flux_pipeline,
    flux_transformer,
    flux_true_guidance,
    img2img_call,
    inpaint_call,
    pictures,
    rows,
    shaken,
)
from family_laws import Family
from family_parts import deep_vae

IP_FEATURES = 12


def control_pipeline(kind: Any = FluxControlPipeline) -> Any:
    """The control picture comes in channels beside the noise."""
    transformer = flux_transformer(in_channels=32, out_channels=16)
    return flux_pipeline(kind, components={"transformer": transformer})


def control_img2img() -> Any:
    return control_pipeline(FluxControlImg2ImgPipeline)


def control_inpaint() -> Any:
    return control_pipeline(FluxControlInpaintPipeline)


def control_call(images: int) -> dict[str, Any]:
    return flux_call(images) | {"control_image": pictures(images, salt=7)}


def control_img2img_call(images: int) -> dict[str, Any]:
    return img2img_call(images) | {"control_image": pictures(images, salt=7)}


def control_inpaint_call(images: int) -> dict[str, Any]:
    return inpaint_call(images) | {"control_image": pictures(images, salt=7)}


def flux_controlnet(seed: int = 1, patch_size: int = 1, **settings: Any) -> FluxControlNetModel:
    """A ControlNet with one block of each kind, for a transformer with two."""
    with deprecations_allowed():
        controlnet = FluxControlNetModel(
            patch_size=patch_size,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=FLUX_JOINT,
            pooled_projection_dim=FLUX_POOLED,
            guidance_embeds=True,
            axes_dims_rope=[4, 6, 6],
            **settings,
        )
    shaken(controlnet, seed)
    return controlnet


def controlnet_pipeline(kind: Any = FluxControlNetPipeline) -> Any:
    return flux_pipeline(kind, components={"controlnet": flux_controlnet()})


def controlnet_img2img() -> Any:
    return controlnet_pipeline(FluxControlNetImg2ImgPipeline)


def controlnet_inpaint() -> Any:
    return controlnet_pipeline(FluxControlNetInpaintPipeline)


def several_controlnets() -> Any:
    both = FluxMultiControlNetModel([flux_controlnet(), flux_controlnet(seed=2)])
    return flux_pipeline(FluxControlNetPipeline, components={"controlnet": both})


def several_controls(images: int) -> dict[str, Any]:
    """The second ControlNet comes in behind the first step and goes before the last ones."""
    return flux_call(images) | {
        "control_image": [pictures(images, salt=7), pictures(images, salt=8)],
        "controlnet_conditioning_scale": [0.7, 0.5],
        "control_guidance_start": [0.0, 0.1],
        "control_guidance_end": [1.0, 0.7],
        "control_mode": [None, None],
    }


def hinted_controlnet() -> Any:
    """As XLabs makes them: the control picture in pixels, 16 to a token, added to the latents."""
    controlnet = flux_controlnet(conditioning_embedding_channels=4, patch_size=2)
    return flux_pipeline(
        FluxControlNetPipeline, components={"controlnet": controlnet, "vae": deep_vae()}
    )


def hinted_call(images: int) -> dict[str, Any]:
    height, width = 4 * HEIGHT, 4 * WIDTH
    size = {"height": height, "width": width}
    return flux_call(images) | size | {"control_image": pictures(images, height, width, salt=7)}


def ip_adapter_pipeline() -> Any:
    """An IP-adapter of four tokens on the double blocks."""
    pipe = flux_pipeline()
    projection = shaken(ImageProjection(IP_FEATURES, FLUX_JOINT, 4), seed=2)
    weights: dict[str, dict[str, torch.Tensor]] = {"ip_adapter": {}}
    weights["image_proj"] = {
        name.replace("image_embeds", "proj"): value
        for name, value in projection.state_dict().items()
    }
    for index in range(len(pipe.transformer.transformer_blocks)):
        processor = shaken(FluxIPAdapterAttnProcessor(32, FLUX_JOINT), seed=3 + index)
        for name, value in processor.state_dict().items():
            weights["ip_adapter"][f"{index}.{name.replace('.0', '')}"] = value
    pipe.transformer._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    return pipe


def ip_adapter_call(images: int) -> dict[str, Any]:
    return flux_true_guidance(images) | {
        "ip_adapter_image_embeds": [rows(images, 1, IP_FEATURES, salt=8)],
        "negative_ip_adapter_image_embeds": [rows(images, 1, IP_FEATURES, salt=9)],
    }


FAMILIES = (
    Family("Flux.1", control_pipeline, control_call, feature="control"),
    Family("Flux.1", control_img2img, control_img2img_call, feature="control img2img"),
    Family("Flux.1", control_inpaint, control_inpaint_call, feature="control inpaint"),
    Family("Flux.1", controlnet_pipeline, control_call, feature="controlnet"),
    Family("Flux.1", controlnet_img2img, control_img2img_call, feature="controlnet img2img"),
    Family("Flux.1", controlnet_inpaint, control_inpaint_call, feature="controlnet inpaint"),
    Family("Flux.1", several_controlnets, several_controls, feature="several controlnets"),
    Family("Flux.1", hinted_controlnet, hinted_call, feature="XLabs controlnet"),
    Family("Flux.1", ip_adapter_pipeline, ip_adapter_call, feature="IP-adapter"),
)
