"""Image transformers that attend to text and image together, each in a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TransformerDescription, Work
from ras_dit.adapters.layouts import latent_layout
from ras_dit.adapters.work import TIMESTEP_CHANNELS
from ras_dit.tokens import TokenLayout

# AuraFlow puts these learnt tokens before the text.
_AURA_REGISTERS = 8


def aura_work(config: Mapping[str, Any]) -> Work:
    """AuraFlow, from ``AuraFlowTransformer2DModel.config``."""
    double: int = config["num_mmdit_layers"]
    single: int = config["num_single_dit_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    patch: int = config["patch_size"] ** 2
    output = patch * int(config["out_channels"] or config["in_channels"])
    inner = -(-int(2 * 4 * width / 3) // 256) * 256

    conditioning = TIMESTEP_CHANNELS * width + square + (12 * double + 6 * single + 2) * square
    block = 4 * square + 3 * width * inner
    embedded_text = config["joint_attention_dim"] * config["caption_projection_dim"]
    return Work(
        per_sample=2 * (conditioning - _AURA_REGISTERS * embedded_text),
        per_embedded_token=2 * patch * config["in_channels"] * width,
        per_image_token=2 * (layers * block + width * output),
        per_text_token=2 * (layers * block + embedded_text),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def aura_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, H, W]``, text and registers."""
    layout = latent_layout(arguments, config)
    return TokenLayout(layout.grid, layout.num_text + _AURA_REGISTERS)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="AuraFlowTransformer2DModel",
        family="AuraFlow",
        blocks=("joint_transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="text_first",
        output="proj_out",
        work=aura_work,
        layout=aura_layout,
    ),
)
