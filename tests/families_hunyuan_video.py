"""Small real pipelines of HunyuanVideo."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from clips import generators, quiet, rows, shaken
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH, POOLED = 6, 16, 12
HEIGHT, WIDTH, FRAMES = 32, 96, 13  # with factors 8 and 4, and patches of 2 x 2: 4 frames of 2 x 6


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


def hunyuan_transformer(**settings: Any) -> HunyuanVideoTransformer3DModel:
    return shaken(
        HunyuanVideoTransformer3DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "num_single_layers": 2,
                "num_refiner_layers": 1,
                "text_embed_dim": TEXT_WIDTH,
                "pooled_projection_dim": POOLED,
                "rope_axes_dim": (4, 6, 6),
                **settings,
            }
        )
    )


def hunyuan_pipeline(kind: Any = HunyuanVideoPipeline, **settings: Any) -> Any:
    components: dict[str, Any] = {"text_encoder_2": None, "tokenizer_2": None}
    if kind is HunyuanVideoImageToVideoPipeline:
        components["image_processor"] = None
    return quiet(
        kind,
        transformer=hunyuan_transformer(**settings),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **components,
    )


def hunyuan_call(images: int) -> dict[str, Any]:
    mask = torch.ones(images, TEXT)
    mask[1:, -2:] = 0
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "pooled_prompt_embeds": rows(images, POOLED, salt=2),
        "prompt_attention_mask": mask,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": 6.0,
        "generator": generators(images),
    }


def true_guidance(images: int) -> dict[str, Any]:
    return hunyuan_call(images) | {
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=3),
        "negative_pooled_prompt_embeds": rows(images, POOLED, salt=4),
        "negative_prompt_attention_mask": torch.ones(images, TEXT),
        "true_cfg_scale": 3.0,
        "guidance_scale": 1.0,
    }


def from_picture(images: int) -> dict[str, Any]:
    return hunyuan_call(images) | {"image": rows(images, 3, HEIGHT, WIDTH, salt=5).sigmoid()}


def from_picture_guided(images: int) -> dict[str, Any]:
    return true_guidance(images) | {"image": rows(images, 3, HEIGHT, WIDTH, salt=5).sigmoid()}


image_to_video = functools.partial(hunyuan_pipeline, HunyuanVideoImageToVideoPipeline)
HUNYUAN = functools.partial(Family, "HunyuanVideo")

FAMILIES = (
    HUNYUAN(hunyuan_pipeline, hunyuan_call, feature="text-to-video", main=True),
    HUNYUAN(hunyuan_pipeline, true_guidance, feature="text-to-video, true guidance"),
    HUNYUAN(
        functools.partial(image_to_video, in_channels=9, image_condition_type="latent_concat"),
        from_picture_guided,
        feature="image-to-video",
    ),
    HUNYUAN(
        functools.partial(image_to_video, image_condition_type="token_replace"),
        from_picture,
        feature="image-to-video, first frame as it is",
        main=True,
    ),
    Family(
        "SkyReels V1",
        functools.partial(hunyuan_pipeline, HunyuanSkyreelsImageToVideoPipeline, in_channels=8),
        from_picture_guided,
        feature="image-to-video",
    ),
)
