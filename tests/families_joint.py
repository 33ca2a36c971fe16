"""Small real pipelines whose transformers attend to text and image together."""

from __future__ import annotations

from typing import Any

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

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


FAMILIES = (Family("AuraFlow", aura_pipeline, aura_call),)
