"""Small real pipelines of Wan and of what shares its blocks."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import (
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)

from clips import generators, picture, quiet, rows, shaken, videos, wan_vae
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH = 6, 20
HEIGHT, WIDTH, FRAMES = 16, 48, 13  # with factors 4, 4 and patches of 2 x 2: 4 frames of 2 x 6


def wan_transformer(seed: int = 0, kind: Any = WanTransformer3DModel, **settings: Any) -> Any:
    return shaken(
        kind(
            **{
                "patch_size": (1, 2, 2),
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": TEXT_WIDTH,
                "freq_dim": 32,
                "ffn_dim": 48,
                "num_layers": 2,
                "rope_max_seq_len": 32,
                **settings,
            }
        ),
        seed,
    )


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def wan_pipeline(kind: Any = WanPipeline, *, model: Any = None, **components: Any) -> Any:
    return quiet(
        kind,
        **{
            "transformer": wan_transformer(**(model or {})),
            "vae": wan_vae(),
            "scheduler": wan_scheduler(),
            **components,
        },
    )


def wan_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=2),
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
    }


def two_stages() -> Any:
    return wan_pipeline(transformer_2=wan_transformer(seed=1), boundary_ratio=0.75)


def from_video(images: int) -> dict[str, Any]:
    call = wan_call(images) | {"video": videos(images, FRAMES, HEIGHT, WIDTH), "strength": 0.9}
    call.pop("num_frames")
    return call


def from_picture(images: int) -> dict[str, Any]:
    return wan_call(images) | {"image": picture(HEIGHT, WIDTH)}


WAN = functools.partial(Family, wrong={"attention": ("attn2",)})

FAMILIES = (
    WAN("Wan 2.1", wan_pipeline, wan_call, feature="text-to-video", main=True),
    WAN("Wan 2.2", two_stages, wan_call, feature="text-to-video, two transformers"),
    WAN(
        "Wan 2.2 TI2V",
        functools.partial(wan_pipeline, expand_timesteps=True),
        wan_call,
        feature="text-to-video",
    ),
    WAN(
        "Wan 2.2 TI2V",
        functools.partial(wan_pipeline, WanImageToVideoPipeline, expand_timesteps=True),
        from_picture,
        feature="image-to-video",
    ),
    WAN(
        "Wan 2.1",
        functools.partial(wan_pipeline, WanVideoToVideoPipeline),
        from_video,
        feature="video-to-video",
    ),
)
