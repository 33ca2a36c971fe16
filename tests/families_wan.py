"""Small real pipelines of Wan and of what shares its blocks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    LucyEditPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)

from clips import (
    generators,
    image_encoder,
    image_processor,
    picture,
    pictures,
    quiet,
    rows,
    shaken,
    videos,
    wan_vae,
)
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH, IMAGE_WIDTH = 6, 20, 16
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


# The first channels are the noise, then a mask of which frames are given (4), then the picture.
CONDITIONED = {"in_channels": 12}
SEEN = CONDITIONED | {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 32}


def sees_picture(pipeline: Any, **model: Any) -> Any:
    """A pipeline whose transformer attends to what an image encoder says of the picture."""
    return wan_pipeline(
        pipeline,
        model=SEEN | model,
        image_encoder=image_encoder(IMAGE_WIDTH),
        image_processor=image_processor(),
    )


def from_seen_picture(images: int) -> dict[str, Any]:
    """Texts have 512 tokens here: the attention processor counts on it."""
    return from_picture(images) | {
        "prompt_embeds": rows(images, 512, TEXT_WIDTH, salt=1),
        "negative_prompt_embeds": rows(images, 512, TEXT_WIDTH, salt=2),
    }


def sees_pictures_well(seed: int) -> Any:
    """A transformer on which the last frame of a video has an influence, after a random encoder."""
    transformer = wan_transformer(seed=seed, **CONDITIONED)
    with torch.no_grad():
        transformer.patch_embedding.weight[:, 8:] *= 8
    return transformer


def two_stages_from_picture() -> Any:
    return wan_pipeline(
        WanImageToVideoPipeline,
        transformer=sees_pictures_well(0),
        transformer_2=sees_pictures_well(1),
        boundary_ratio=0.75,
    )


def between_pictures(images: int) -> dict[str, Any]:
    return from_picture(images) | {"last_image": picture(HEIGHT, WIDTH, seed=1)}


def edit(images: int) -> dict[str, Any]:
    return wan_call(images) | {"video": videos(images, FRAMES, HEIGHT, WIDTH)}


def with_control(_images: int) -> dict[str, Any]:
    return wan_call(1) | {
        "video": pictures(9, HEIGHT, WIDTH),
        "mask": pictures(9, HEIGHT, WIDTH, seed=1),
        "reference_images": picture(HEIGHT, WIDTH, seed=2),
        "num_frames": 9,
        "generator": generators(1)[0],
    }


def vace() -> Any:
    # Two kinds of control latents of 4 channels, and a mask of 4 x 4 pixels.
    model = {"kind": WanVACETransformer3DModel, "vace_layers": (0, 1), "vace_in_channels": 24}
    return wan_pipeline(WanVACEPipeline, model=model)


def chrono_call(images: int) -> dict[str, Any]:
    call = from_seen_picture(images)
    call.pop("num_frames")
    return call


def animate() -> Any:
    pipe = sees_picture(
        WanAnimatePipeline,
        kind=WanAnimateTransformer3DModel,
        latent_channels=4,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    # A random encoder of eight layers hardly tells one face from another.
    with torch.no_grad():
        for name, weight in pipe.transformer.motion_encoder.named_parameters():
            if weight.ndim > 1 and "res_blocks" not in name:
                weight.mul_(4)
    return pipe


def animated(images: int) -> dict[str, Any]:
    """One segment: a frame that is known, and those of a pose and a face."""
    call = from_seen_picture(images)
    call.pop("num_frames")
    return call | {
        "pose_video": pictures(12, HEIGHT, WIDTH, seed=3),
        "face_video": pictures(12, 16, 16, seed=4),
        "segment_frame_length": FRAMES,
    }


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
    WAN(
        "Wan 2.1",
        functools.partial(sees_picture, WanImageToVideoPipeline),
        from_seen_picture,
        feature="image-to-video",
    ),
    WAN(
        "Wan 2.2",
        two_stages_from_picture,
        between_pictures,
        feature="image-to-video, two transformers, last frame given",
    ),
    WAN("Wan 2.1 VACE", vace, with_control, feature="control", main=True, batched=False),
    WAN(
        "Lucy Edit",
        functools.partial(
            wan_pipeline, LucyEditPipeline, model={"in_channels": 8}, expand_timesteps=True
        ),
        edit,
        feature="edit",
    ),
    WAN(
        "SkyReels V2",
        functools.partial(
            wan_pipeline,
            SkyReelsV2Pipeline,
            model={"kind": SkyReelsV2Transformer3DModel},
        ),
        wan_call,
        feature="text-to-video",
        main=True,
    ),
    WAN(
        "SkyReels V2",
        functools.partial(
            wan_pipeline,
            SkyReelsV2Pipeline,
            model={"kind": SkyReelsV2Transformer3DModel, "num_frame_per_block": 2},
        ),
        wan_call,
        feature="text-to-video, causal in blocks of frames",
    ),
    WAN(
        "SkyReels V2",
        functools.partial(
            sees_picture, SkyReelsV2ImageToVideoPipeline, kind=SkyReelsV2Transformer3DModel
        ),
        from_seen_picture,
        feature="image-to-video",
    ),
    WAN(
        "ChronoEdit",
        functools.partial(sees_picture, ChronoEditPipeline, kind=ChronoEditTransformer3DModel),
        chrono_call,
        feature="edit",
    ),
    WAN("Wan 2.2 Animate", animate, animated, feature="animate"),
)
