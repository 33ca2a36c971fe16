"""Small real pipelines of LTX-Video."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from clips import generators, picture, quiet, rows, shaken, text_encoder, tokenizer
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH = 6, 16
HEIGHT, WIDTH, FRAMES = 64, 192, 25  # with factors 32 and 8: 4 frames of 2 x 6 tokens
TIMESTEPS = [1000, 960, 900, 800, 650, 450, 200]


def ltx_vae() -> AutoencoderKLLTXVideo:
    """A factor of 32 in space, by patches of 4, and of 8 in time."""
    torch.manual_seed(0)
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def ltx_transformer() -> LTXVideoTransformer3DModel:
    return shaken(
        LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=TEXT_WIDTH,
        )
    )


def ltx_pipeline(kind: Any = LTXPipeline, **components: Any) -> Any:
    return quiet(
        kind,
        **{
            "transformer": ltx_transformer(),
            "vae": ltx_vae(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
            **components,
        },
    )


def ltx_call(images: int) -> dict[str, Any]:
    mask = torch.ones(images, TEXT)
    mask[1:, -2:] = 0
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=2),
        "negative_prompt_attention_mask": mask,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(images),
    }


def from_picture(images: int) -> dict[str, Any]:
    image = torch.cat([rows(1, 3, HEIGHT, WIDTH, salt=7 + i) for i in range(images)]).sigmoid()
    return ltx_call(images) | {"image": image}


def from_first_frame(images: int) -> dict[str, Any]:
    call = {"image": picture(HEIGHT, WIDTH), "timesteps": TIMESTEPS}
    return ltx_call(images) | call


def with_key_frames(images: int) -> dict[str, Any]:
    """The first frame is given, and so is one in the middle, as tokens before the video."""
    key_frames = [
        LTXVideoCondition(image=picture(HEIGHT, WIDTH, seed=frame), frame_index=frame)
        for frame in (0, 16)
    ]
    call = {"conditions": key_frames, "timesteps": TIMESTEPS, "generator": generators(1)[0]}
    return ltx_call(images) | call


def ltx_long_pipeline() -> Any:
    return ltx_pipeline(
        LTXI2VLongMultiPromptPipeline,
        scheduler=LTXEulerAncestralRFScheduler(),
        text_encoder=text_encoder(TEXT_WIDTH),
        tokenizer=tokenizer(TEXT),
    )


def long_call(_images: int) -> dict[str, Any]:
    return {
        "prompt": "a fox",
        "negative_prompt": "a dog",
        "cond_image": picture(HEIGHT, WIDTH),
        "cond_strength": 1.0,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "max_sequence_length": TEXT,
    }


LTX = functools.partial(Family, "LTX-Video", wrong={"attention": ("attn2",)})

FAMILIES = (
    LTX(ltx_pipeline, ltx_call, feature="text-to-video", main=True),
    LTX(
        functools.partial(ltx_pipeline, LTXImageToVideoPipeline),
        from_picture,
        feature="image-to-video",
    ),
    LTX(
        functools.partial(ltx_pipeline, LTXConditionPipeline),
        from_first_frame,
        feature="first frame given",
    ),
    LTX(
        functools.partial(ltx_pipeline, LTXConditionPipeline),
        with_key_frames,
        feature="key frames given",
        batched=False,
    ),
    LTX(ltx_long_pipeline, long_call, feature="long image-to-video", batched=False),
)
