"""Small real pipelines of the Flux family."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from family_laws import STEPS, Family
from pipelines import shake

FLUX_TEXT, FLUX_JOINT, FLUX_POOLED = 7, 20, 24
HEIGHT, WIDTH = 24, 40  # with factor 2 and packing by 2: 6 x 10 tokens


def rows(images: int, *shape: int, salt: int) -> torch.Tensor:
    """Random rows; those of one image are the same whatever the batch."""
    generators = [torch.Generator().manual_seed(10 * i + salt) for i in range(images)]
    return torch.cat([torch.randn(1, *shape, generator=g) for g in generators])


def generators(images: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(images)]


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
    shake(transformer, 0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return transformer.eval()


def flux_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()


def flux_pipeline(kind: Any = FluxPipeline, *, components: dict[str, Any] | None = None) -> Any:
    pipe = kind(
        **{
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": flux_vae(),
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


FAMILIES = (
    Family("Flux.1", flux_pipeline, flux_call),
    Family("Flux.1", flux_pipeline, flux_true_guidance, feature="true guidance"),
)
