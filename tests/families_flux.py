"""Small real pipelines of the Flux family."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from family_laws import STEPS, Family
from pipelines import shake, tiny_vae

FLUX_TEXT, FLUX_JOINT, FLUX_POOLED = 7, 20, 24
HEIGHT, WIDTH = 24, 40  # with factor 2 and packing by 2: 6 x 10 tokens


def rows(images: int, *shape: int, salt: int) -> torch.Tensor:
    """Random rows; those of one image are the same whatever the batch."""
    generators = [torch.Generator().manual_seed(10 * i + salt) for i in range(images)]
    return torch.cat([torch.randn(1, *shape, generator=g) for g in generators])


def generators(images: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(images)]


@contextmanager
def deprecations_allowed() -> Iterator[None]:
    """Some models of diffusers are made with what diffusers itself calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def pictures(images: int, height: int = HEIGHT, width: int = WIDTH, *, salt: int) -> torch.Tensor:
    """Random pictures in [0, 1]; one of them is the same in every batch."""
    return rows(images, 3, height, width, salt=salt).sigmoid()


def half_mask(images: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """White where a picture is to be made anew: its left half."""
    mask = torch.zeros(images, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def flux_transformer(**settings: Any) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        **{
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": FLUX_JOINT,
            "pooled_projection_dim": FLUX_POOLED,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
            **settings,
        }
    )
    return shaken(transformer)


def shaken(module: torch.nn.Module, seed: int = 0) -> Any:
    """A module with weights that matter, and norms near one."""
    shake(module, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module.eval()


def flux_pipeline(kind: Any = FluxPipeline, *, components: dict[str, Any] | None = None) -> Any:
    pipe = kind(
        **{
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": tiny_vae(),
            "text_encoder": None,
            "tokenizer": None,
            "text_encoder_2": None,
            "tokenizer_2": None,
            "transformer": flux_transformer(),
            **(components or {}),
        }
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=1),
        "pooled_prompt_embeds": rows(images, FLUX_POOLED, salt=2),
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.5,
        "generator": generators(images),
    }


def flux_true_guidance(images: int) -> dict[str, Any]:
    return flux_call(images) | {
        "negative_prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=3),
        "negative_pooled_prompt_embeds": rows(images, FLUX_POOLED, salt=4),
        "true_cfg_scale": 3.0,
    }


def schnell_pipeline() -> Any:
    return flux_pipeline(components={"transformer": flux_transformer(guidance_embeds=False)})


def schnell_call(images: int) -> dict[str, Any]:
    return flux_call(images) | {"guidance_scale": 0.0}


def flux_img2img() -> Any:
    return flux_pipeline(FluxImg2ImgPipeline)


def img2img_call(images: int) -> dict[str, Any]:
    """Seven of nine steps."""
    given = {"image": pictures(images, salt=5), "strength": 7 / 9, "num_inference_steps": 9}
    return flux_call(images) | given


def flux_inpaint() -> Any:
    return flux_pipeline(FluxInpaintPipeline)


def inpaint_call(images: int) -> dict[str, Any]:
    return img2img_call(images) | {"mask_image": half_mask(images)}


def fill_pipeline() -> Any:
    """Beside the noise come the masked picture, 16 channels, and the mask, 2 x 2 x 4."""
    transformer = flux_transformer(in_channels=48, out_channels=16)
    return flux_pipeline(FluxFillPipeline, components={"transformer": transformer})


def fill_call(images: int) -> dict[str, Any]:
    given = {"image": pictures(images, salt=5), "mask_image": half_mask(images)}
    return flux_call(images) | given


def kontext_pipeline() -> Any:
    return flux_pipeline(FluxKontextPipeline)


def kontext_call(images: int) -> dict[str, Any]:
    """4 x 7 reference tokens, given as latents, beside the 6 x 10 that are made."""
    return flux_call(images) | {
        "image": rows(images, 4, 8, 14, salt=5),
        "max_area": HEIGHT * WIDTH,
        "_auto_resize": False,
    }


def kontext_inpaint() -> Any:
    return flux_pipeline(FluxKontextInpaintPipeline)


def kontext_inpaint_call(images: int) -> dict[str, Any]:
    return kontext_call(images) | {
        "image": pictures(images, salt=5),
        "image_reference": pictures(images, 16, 28, salt=6),
        "mask_image": half_mask(images),
    }


FAMILIES = (
    Family("Flux.1", flux_pipeline, flux_call),
    Family("Flux.1", flux_pipeline, flux_true_guidance, feature="true guidance"),
    Family("Flux.1 schnell", schnell_pipeline, schnell_call, feature="four steps"),
    Family("Flux.1", flux_img2img, img2img_call, feature="img2img"),
    Family("Flux.1", flux_inpaint, inpaint_call, feature="inpaint"),
    Family("Flux.1 Fill", fill_pipeline, fill_call, feature="inpaint"),
    Family("Flux.1 Kontext", kontext_pipeline, kontext_call, feature="edit", main=True),
    Family("Flux.1 Kontext", kontext_inpaint, kontext_inpaint_call, feature="inpaint"),
)
