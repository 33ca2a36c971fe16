"""Small real pipelines whose transformers attend to the text by cross attention."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)

from families_flux import generators, rows
from family_laws import STEPS, Family
from family_parts import deep_vae, near_one, quiet, text_mask
from pipelines import tiny_vae

TEXT, FEATURES = 7, 20

# -- PixArt ----------------------------------------------------------------------------------------


def pixart_pipeline(
    kind: Any = PixArtAlphaPipeline, *, sample_size: int = 16, width: int = 32, **more: Any
) -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=width // 2,
        num_layers=2,
        cross_attention_dim=width,
        sample_size=sample_size,
        caption_channels=FEATURES,
    )
    near_one(transformer)
    return quiet(
        kind(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_vae(),
            transformer=transformer,
            scheduler=DDIMScheduler(beta_end=0.005, clip_sample=False),
            **more,
        )
    )


def pixart_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "negative_prompt": None,
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=2),
        "prompt_attention_mask": text_mask(TEXT, [6 - 2 * i for i in range(images)]),
        "negative_prompt_attention_mask": text_mask(TEXT, [3 + i for i in range(images)]),
        "height": 24,
        "width": 40,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
        "use_resolution_binning": False,
    }


def pixart_alone(images: int) -> dict[str, Any]:
    return pixart_call(images) | {"guidance_scale": 1.0}


# -- HunyuanDiT ------------------------------------------------------------------------------------

T5_TEXT, T5_FEATURES = 5, 16
HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 16,
    "hidden_size": 32,
    "cross_attention_dim": FEATURES,
    "cross_attention_dim_t5": T5_FEATURES,
    "pooled_projection_dim": 12,
    "text_len": TEXT,
    "text_len_t5": T5_TEXT,
}


def hunyuan_dit_pipeline(kind: Any = HunyuanDiTPipeline, *, layers: int = 4, **more: Any) -> Any:
    transformer = HunyuanDiT2DModel(num_layers=layers, **HUNYUAN)
    near_one(transformer)
    return quiet(
        kind(
            vae=deep_vae(),
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            scheduler=DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **more,
        )
    )


def hunyuan_dit_controlled() -> Any:
    controlnet = HunyuanDiT2DControlNetModel(transformer_num_layers=6, **HUNYUAN)
    near_one(controlnet)
    return hunyuan_dit_pipeline(HunyuanDiTControlNetPipeline, layers=6, controlnet=controlnet)


def hunyuan_dit_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "prompt_embeds_2": rows(images, T5_TEXT, T5_FEATURES, salt=2),
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=3),
        "negative_prompt_embeds_2": rows(images, T5_TEXT, T5_FEATURES, salt=4),
        "prompt_attention_mask": text_mask(TEXT, [6 - 2 * i for i in range(images)]),
        "prompt_attention_mask_2": text_mask(T5_TEXT, [2 + i for i in range(images)]),
        "negative_prompt_attention_mask": text_mask(TEXT, [3 + i for i in range(images)]),
        "negative_prompt_attention_mask_2": text_mask(T5_TEXT, [1 + i for i in range(images)]),
        "height": 80,
        "width": 144,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
        "use_resolution_binning": False,
    }


def hunyuan_dit_control(images: int) -> dict[str, Any]:
    pictures = rows(images, 3, 80, 144, salt=5).sigmoid()
    return hunyuan_dit_call(images) | {"control_image": pictures}


# -- PRX -------------------------------------------------------------------------------------------


def prx_transformer(**settings: Any) -> PRXTransformer2DModel:
    transformer = PRXTransformer2DModel(
        **{
            "in_channels": 4,
            "context_in_dim": FEATURES,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [8, 8],
            **settings,
        }
    )
    near_one(transformer)
    return transformer


def prx_pipeline() -> Any:
    with warnings.catch_warnings():
        # The class itself is built on one that diffusers calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        pipe = PRXPipeline(
            transformer=prx_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=None,
            tokenizer=None,
            vae=tiny_vae(),
        )
    return quiet(pipe)


def prx_pixel_pipeline() -> Any:
    transformer = prx_transformer(
        in_channels=3, patch_size=4, bottleneck_size=24, resolution_embeds=True
    )
    return quiet(
        PRXPixelPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=None,
            tokenizer=None,
        )
    )


def allegro_pipeline() -> Any:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=18,
        num_layers=2,
        cross_attention_dim=36,
        caption_channels=FEATURES,
        sample_height=8,
        sample_width=8,
        sample_frames=3,
    )
    near_one(transformer)
    return quiet(
        AllegroPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=DDIMScheduler(beta_end=0.005, clip_sample=False),
        )
    )


def allegro_call(images: int) -> dict[str, Any]:
    """3 frames of 3 x 5 tokens, 16 pixels wide."""
    call = pixart_call(images) | {"height": 48, "width": 80, "num_frames": 12}
    del call["use_resolution_binning"]
    return call


def prx_guided(images: int) -> dict[str, Any]:
    call = pixart_call(images) | {"height": 24, "width": 40}
    del call["negative_prompt"]
    for name in ("prompt_attention_mask", "negative_prompt_attention_mask"):
        call[name] = call[name].bool()
    return call


def prx_call(images: int) -> dict[str, Any]:
    return prx_guided(images) | {"guidance_scale": 1.0}


OTHER_ATTENTION = {"attention": ("attn2",)}
SMALLER_OUTPUT = {"output": "norm_out"}

FAMILIES = (
    Family("PixArt-alpha", pixart_pipeline, pixart_call, wrong=SMALLER_OUTPUT),
    Family(
        "PixArt-alpha",
        functools.partial(pixart_pipeline, sample_size=128, width=24),
        pixart_call,
        feature="size conditions",
        main=True,
        wrong=OTHER_ATTENTION,
    ),
    Family(
        "PixArt-Sigma",
        functools.partial(pixart_pipeline, PixArtSigmaPipeline),
        pixart_call,
        wrong=OTHER_ATTENTION,
    ),
    Family(
        "PixArt-Sigma",
        functools.partial(pixart_pipeline, PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"]),
        pixart_call,
        feature="perturbed attention",
    ),
    Family(
        "PixArt-Sigma",
        functools.partial(pixart_pipeline, PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"]),
        pixart_alone,
        feature="perturbed attention alone",
    ),
    Family("HunyuanDiT", hunyuan_dit_pipeline, hunyuan_dit_call, wrong=OTHER_ATTENTION),
    Family("HunyuanDiT", hunyuan_dit_controlled, hunyuan_dit_control, feature="controlnet"),
    Family(
        "HunyuanDiT",
        functools.partial(hunyuan_dit_pipeline, HunyuanDiTPAGPipeline, pag_applied_layers=["1"]),
        hunyuan_dit_call,
        feature="perturbed attention",
        batched=False,
    ),
    Family(
        "Allegro",
        allegro_pipeline,
        allegro_call,
        feature="text-to-video",
        main=True,
        wrong=OTHER_ATTENTION,
    ),
    # One row of the model batch, so that the conditioning is counted as it is computed.
    Family("PRX", prx_pipeline, prx_call, images=1),
    Family("PRX", prx_pipeline, prx_guided, feature="guidance", batched=False),
    Family("PRX-Pixel", prx_pixel_pipeline, prx_call, images=1),
)
