"""Small real pipelines of CogVideoX, and of Mochi."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)

from clips import generators, quiet, rows, shaken, videos
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH = 6, 16
HEIGHT, WIDTH, FRAMES = 32, 96, 13  # with factors 8 and 4, and patches of 2 x 2: 4 frames of 2 x 6


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()


def cogvideox_transformer(**settings: Any) -> CogVideoXTransformer3DModel:
    return shaken(
        CogVideoXTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": 4,
                "out_channels": 4,
                "time_embed_dim": 8,
                "text_embed_dim": TEXT_WIDTH,
                "num_layers": 2,
                "sample_width": 12,
                "sample_height": 4,
                "sample_frames": FRAMES,
                "max_text_seq_length": TEXT,
                "use_rotary_positional_embeddings": True,
                **settings,
            }
        )
    )


def cogvideox_pipeline(
    kind: Any = CogVideoXPipeline, scheduler: Any = CogVideoXDPMScheduler, **settings: Any
) -> Any:
    return quiet(
        kind,
        transformer=cogvideox_transformer(**settings),
        vae=cogvideox_vae(),
        scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def cogvideox_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=2),
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": 6.0,
        "max_sequence_length": TEXT,
        "generator": generators(images),
    }


def from_picture(images: int) -> dict[str, Any]:
    return cogvideox_call(images) | {"image": rows(images, 3, HEIGHT, WIDTH, salt=5).sigmoid()}


def from_video(images: int) -> dict[str, Any]:
    call = cogvideox_call(images)
    call.pop("num_frames")
    return call | {"video": videos(images, FRAMES, HEIGHT, WIDTH), "strength": 0.9}


def with_control(images: int) -> dict[str, Any]:
    call = cogvideox_call(images)
    call.pop("num_frames")
    return call | {"control_video": videos(images, FRAMES, HEIGHT, WIDTH)}


def mochi_pipeline() -> Any:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=24,
        in_channels=4,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=8,
    )
    return quiet(
        MochiPipeline,
        transformer=shaken(transformer),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1000),
    )


def mochi_call(images: int, *, short: int = 0) -> dict[str, Any]:
    mask = torch.ones(images, TEXT)
    mask[1:, TEXT - short :] = 0
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "prompt_attention_mask": mask.bool(),
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=2),
        "negative_prompt_attention_mask": torch.ones(images, TEXT).bool(),
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": 19,  # with a factor of 6: 4 frames
        "num_inference_steps": STEPS,
        "guidance_scale": 4.5,
        "generator": generators(images),
    }


COGVIDEOX = functools.partial(Family, "CogVideoX")
MOCHI = functools.partial(Family, "Mochi")

FAMILIES = (
    COGVIDEOX(cogvideox_pipeline, cogvideox_call, feature="text-to-video", main=True),
    COGVIDEOX(
        functools.partial(
            cogvideox_pipeline,
            scheduler=CogVideoXDDIMScheduler,
            use_rotary_positional_embeddings=False,
        ),
        cogvideox_call,
        feature="text-to-video, DDIM, positions added",
    ),
    COGVIDEOX(
        functools.partial(
            cogvideox_pipeline,
            CogVideoXImageToVideoPipeline,
            in_channels=8,
            patch_size_t=2,
            patch_bias=False,
            ofs_embed_dim=8,
        ),
        from_picture,
        feature="image-to-video",
    ),
    COGVIDEOX(
        functools.partial(cogvideox_pipeline, CogVideoXVideoToVideoPipeline),
        from_video,
        feature="video-to-video",
    ),
    COGVIDEOX(
        functools.partial(
            cogvideox_pipeline, CogVideoXFunControlPipeline, CogVideoXDDIMScheduler, in_channels=8
        ),
        with_control,
        feature="control",
    ),
    MOCHI(mochi_pipeline, mochi_call, feature="text-to-video", main=True, uncounted=("rope",)),
    MOCHI(
        mochi_pipeline,
        functools.partial(mochi_call, short=2),
        feature="text-to-video, texts of different lengths",
        caches_by_formula=False,
    ),
)
