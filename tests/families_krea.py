"""Small real pipelines of Krea 2 and Bria Fibo, whose text comes from layers of its encoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from clips import WORDS, generators, picture, quiet, rows, shaken, tokenizer, wan_vae
from family_laws import STEPS, Family
from family_parts import text_mask

TEXT, DEPTH, FEATURES = 6, 3, 16
SCHEDULER = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def krea2_pipeline() -> Any:
    """Two query heads to each head of keys and values."""
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=24,
        text_hidden_dim=FEATURES,
        num_text_layers=DEPTH,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=20,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return quiet(Krea2Pipeline, scheduler=SCHEDULER, vae=None, transformer=shaken(transformer))


def krea2_call(images: int) -> dict[str, Any]:
    """5 x 9 tokens of 16 x 16 pixels; texts of all lengths."""
    return {
        "prompt_embeds": rows(images, TEXT, DEPTH, FEATURES, salt=1),
        "prompt_embeds_mask": text_mask(TEXT, [6 - 2 * i for i in range(images)]).bool(),
        "negative_prompt_embeds": rows(images, TEXT, DEPTH, FEATURES, salt=2),
        "negative_prompt_embeds_mask": text_mask(TEXT, [3 + i for i in range(images)]).bool(),
        "height": 80,
        "width": 144,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "generator": generators(images),
    }


def language_model() -> SmolLM3ForCausalLM:
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=len(WORDS),
        hidden_size=FEATURES,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return shaken(SmolLM3ForCausalLM(config))


def fibo_pipeline(kind: Any = BriaFiboPipeline, vae: Any = None) -> Any:
    transformer = BriaFiboTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * FEATURES,
        text_encoder_dim=FEATURES,
        axes_dims_rope=[4, 6, 6],
    )
    return quiet(
        kind,
        scheduler=SCHEDULER,
        vae=vae,
        transformer=shaken(transformer),
        text_encoder=language_model(),
        tokenizer=tokenizer(TEXT),
    )


def fibo_call(images: int) -> dict[str, Any]:
    """5 x 9 tokens of 16 x 16 pixels; the negative text is the longest."""
    return {
        "prompt": ["a fox", "dog"][:images],
        "negative_prompt": ["a dog a"] * images,
        "height": 80,
        "width": 144,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(images),
    }


def fibo_edit() -> Any:
    return fibo_pipeline(BriaFiboEditPipeline, wan_vae(8))


def fibo_edit_call(images: int) -> dict[str, Any]:
    """6 x 10 tokens beside two references, the same for every image."""
    given = [picture(32, 32), picture(32, 64, seed=1)]
    prompts = [{"edit_instruction": text} for text in ("a fox", "dog")]
    return fibo_call(images) | {
        "prompt": prompts[:images],
        "image": given,
        "height": 96,
        "width": 160,
    }


FAMILIES = (
    # Its latents are as large as 10.
    Family("Krea 2", krea2_pipeline, krea2_call, tolerance=5e-4),
    Family("Bria Fibo", fibo_pipeline, fibo_call),
    Family("Bria Fibo", fibo_edit, fibo_edit_call, feature="edit"),
)
