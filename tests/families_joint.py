"""Small real pipelines whose transformers attend to text and image together."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import (
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import LayerSkipConfig

from families_flux import generators, rows
from family_laws import STEPS, Family
from family_parts import near_one, quiet, text_mask
from pipelines import tiny_vae

TEXT, FEATURES = 7, 20


def aura_pipeline() -> Any:
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=2,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=FEATURES,
        caption_projection_dim=32,
        pos_embed_max_size=24 * 24,
    )
    near_one(transformer)
    return quiet(
        AuraFlowPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_vae(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    )


def aura_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "prompt_attention_mask": text_mask(TEXT, [TEXT] * images),
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=2),
        "negative_prompt_attention_mask": text_mask(TEXT, [TEXT] * images),
        "height": 24,
        "width": 40,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.5,
        "generator": generators(images),
    }


# -- CogView ---------------------------------------------------------------------------------------

COGVIEW = {
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "out_channels": 4,
    "text_embed_dim": FEATURES,
    "time_embed_dim": 24,
    "condition_dim": 4,
    "sample_size": 16,
}


def cogview4_pipeline(kind: Any = CogView4Pipeline, in_channels: int = 4) -> Any:
    transformer = CogView4Transformer2DModel(in_channels=in_channels, **COGVIEW)
    near_one(transformer)
    return quiet(
        kind(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_vae(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, time_shift_type="linear"
            ),
        )
    )


def cogview_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=2),
        "height": 32,
        "width": 48,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.5,
        "generator": generators(images),
    }


def cogview4_control(images: int) -> dict[str, Any]:
    return cogview_call(images) | {"control_image": rows(images, 3, 32, 48, salt=3).sigmoid()}


def cogview3_pipeline() -> Any:
    transformer = CogView3PlusTransformer2DModel(in_channels=4, pos_embed_max_size=16, **COGVIEW)
    near_one(transformer)
    return quiet(
        CogView3PlusPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_vae(),
            transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(snr_shift_scale=1.0, timestep_spacing="trailing"),
        )
    )


# -- HunyuanImage ----------------------------------------------------------------------------------

TEXT_2, FEATURES_2 = 5, 12


def hunyuan_image_transformer(**settings: Any) -> HunyuanImageTransformer2DModel:
    transformer = HunyuanImageTransformer2DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": FEATURES,
            "rope_axes_dim": (8, 8),
            **settings,
        }
    )
    near_one(transformer)
    return transformer


def hunyuan_image_pipeline(*, guider: Any = None, **settings: Any) -> Any:
    return quiet(
        HunyuanImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=hunyuan_image_transformer(**settings),
            guider=guider,
        )
    )


def hunyuan_image_guided() -> Any:
    guider = AdaptiveProjectedMixGuidance(
        guidance_scale=3.0, adaptive_projected_guidance_start_step=4
    )
    return hunyuan_image_pipeline(guider=guider, text_embed_2_dim=FEATURES_2)


def hunyuan_image_skips_layers() -> Any:
    """A third call in some of the steps, in which the first block is left out."""
    guider = SkipLayerGuidance(
        guidance_scale=3.0,
        skip_layer_config=LayerSkipConfig([0], fqn="transformer_blocks"),
        skip_layer_guidance_start=0.3,
        skip_layer_guidance_stop=0.8,
    )
    return hunyuan_image_pipeline(guider=guider, text_embed_2_dim=FEATURES_2, num_layers=2)


def hunyuan_image_guided_early() -> Any:
    """Guidance ends in mid-run, and with it the second call."""
    guider = ClassifierFreeGuidance(guidance_scale=3.0, stop=0.6)
    return hunyuan_image_pipeline(guider=guider, text_embed_2_dim=FEATURES_2)


def hunyuan_image_distilled() -> Any:
    return hunyuan_image_pipeline(
        guidance_embeds=True, use_meanflow=True, text_embed_2_dim=FEATURES_2
    )


def hunyuan_image_refiner() -> Any:
    transformer = hunyuan_image_transformer(
        in_channels=8, patch_size=(1, 1, 1), rope_axes_dim=(4, 6, 6), guidance_embeds=True
    )
    return quiet(
        HunyuanImageRefinerPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
        )
    )


def hunyuan_image_call(images: int) -> dict[str, Any]:
    """6 x 8 tokens of 32 pixels; texts of all lengths."""
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "prompt_embeds_mask": text_mask(TEXT, [6 - 2 * i for i in range(images)]),
        "prompt_embeds_2": rows(images, TEXT_2, FEATURES_2, salt=2),
        "prompt_embeds_mask_2": text_mask(TEXT_2, [2 + i for i in range(images)]),
        "height": 192,
        "width": 256,
        "num_inference_steps": STEPS,
        "generator": generators(images),
    }


def hunyuan_image_two_calls(images: int) -> dict[str, Any]:
    return hunyuan_image_call(images) | {
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=3),
        "negative_prompt_embeds_mask": text_mask(TEXT, [3 + i for i in range(images)]),
        "negative_prompt_embeds_2": rows(images, TEXT_2, FEATURES_2, salt=4),
        "negative_prompt_embeds_mask_2": text_mask(TEXT_2, [1 + i for i in range(images)]),
    }


def hunyuan_image_refined(images: int) -> dict[str, Any]:
    """6 x 8 tokens of 16 pixels; the picture comes as latents."""
    call = hunyuan_image_call(images) | {"height": 96, "width": 128}
    del call["prompt_embeds_2"], call["prompt_embeds_mask_2"]
    return call | {"image": rows(images, 4, 1, 6, 8, salt=5)}


# -- HiDream ---------------------------------------------------------------------------------------

LLAMA, T5 = 15, 18


def hidream_pipeline(largest: tuple[int, int] = (12, 16)) -> Any:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[T5, LLAMA],
        text_emb_dim=12,
        axes_dims_rope=(4, 6, 6),
        max_resolution=largest,
        llama_layers=[0, 1],
    )
    near_one(transformer)
    encoders = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2")}
    encoders |= {f"{part}_{i}": None for part in ("text_encoder", "tokenizer") for i in (3, 4)}
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(),
        transformer=transformer,
        **encoders,
    )
    # The pipeline makes every picture as large as its default one.
    pipe.default_sample_size = 0.501 * (24 * 32) ** 0.5
    return quiet(pipe)


def hidream_texts(images: int, salt: int) -> torch.Tensor:
    """Features of three layers."""
    return rows(images, 3, 4, LLAMA, salt=salt).transpose(0, 1)


def hidream_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds_t5": rows(images, 4, T5, salt=1),
        "prompt_embeds_llama3": hidream_texts(images, 2),
        "negative_prompt_embeds_t5": rows(images, 4, T5, salt=3),
        "negative_prompt_embeds_llama3": hidream_texts(images, 4),
        "pooled_prompt_embeds": rows(images, 12, salt=5),
        "negative_pooled_prompt_embeds": rows(images, 12, salt=6),
        "height": 24,
        "width": 32,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
    }


FAMILIES = (
    Family("AuraFlow", aura_pipeline, aura_call),
    Family("CogView4", cogview4_pipeline, cogview_call),
    Family(
        "CogView4",
        functools.partial(cogview4_pipeline, CogView4ControlPipeline, 8),
        cogview4_control,
        feature="control",
    ),
    Family("CogView3Plus", cogview3_pipeline, cogview_call),
    Family("HunyuanImage", hunyuan_image_pipeline, hunyuan_image_call),
    Family(
        "HunyuanImage", hunyuan_image_guided, hunyuan_image_two_calls, feature="guidance, two texts"
    ),
    Family(
        "HunyuanImage",
        hunyuan_image_skips_layers,
        hunyuan_image_two_calls,
        feature="skip-layer guidance",
    ),
    Family(
        "HunyuanImage",
        hunyuan_image_guided_early,
        hunyuan_image_two_calls,
        feature="truncated guidance",
    ),
    Family("HunyuanImage", hunyuan_image_distilled, hunyuan_image_call, feature="distilled"),
    Family("HunyuanImage", hunyuan_image_refiner, hunyuan_image_refined, feature="refiner"),
    Family("HiDream", hidream_pipeline, hidream_call),
    Family(
        "HiDream",
        functools.partial(hidream_pipeline, (16, 16)),
        hidream_call,
        feature="filled up",
    ),
)
