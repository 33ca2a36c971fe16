"""Krea 2: one sequence of text and picture; the text is fused from layers of its encoder first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import layout_from_ids, packed_patch
from ras_dit.tokens import TokenLayout


def krea2_work(config: Mapping[str, Any]) -> Work:
    """Krea 2, from ``Krea2Transformer2DModel.config``.

    Each text token comes as features of several layers of its encoder. Blocks attend across these
    layers, one token at a time, then across the text; both before the first block of the picture.
    Groups of query heads share keys and values, which are repeated before attention sees them.
    """
    layers: int = config["num_layers"]
    heads: int = config["num_attention_heads"]
    width: int = heads * config["attention_head_dim"]
    square = width * width
    channels: int = config["in_channels"]

    def block(size: int, grouped: int, inner: int) -> int:
        """Queries, gate and output; keys and values; the gated feed-forward layer."""
        return 3 * size * size + 2 * size * grouped + 3 * size * inner

    grouped = width // heads * config["num_key_value_heads"]
    row = layers * block(width, grouped, config["intermediate_size"])

    depth: int = config["num_text_layers"]
    text: int = config["text_hidden_dim"]
    text_heads: int = config["text_num_attention_heads"]
    text_grouped = text // text_heads * config["text_num_key_value_heads"]
    text_block = block(text, text_grouped, config["text_intermediate_size"])
    across, along = config["num_layerwise_text_blocks"], config["num_refiner_text_blocks"]
    fused = across * (depth * text_block + 2 * depth * depth * text) + depth * text
    fused += along * text_block + text * width + square
    return Work(
        per_sample=2 * (config["timestep_embed_dim"] * width + square + 6 * square),
        per_embedded_token=2 * channels * width,
        per_image_token=2 * (row + width * channels),
        per_text_token=2 * (row + fused),
        joint_pair=4 * layers * width,
        text_pair=4 * along * text,
        joint_kv=2 * layers * width,
        output=channels,
    )


def krea2_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Packed latents; positions are those of the text, then those of the picture.

    Text comes as ``[B, T, layers, C]``.
    """
    num_text = int(arguments["encoder_hidden_states"].shape[1])
    ids = {"position_ids": arguments["position_ids"][num_text:]}
    return TokenLayout(layout_from_ids("position_ids")(ids, config).grid, num_text)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="Krea2Transformer2DModel",
        family="Krea 2",
        blocks=("transformer_blocks",),
        attention=("attn",),
        token_order="text_first",
        output="final_layer",
        work=krea2_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        layout=krea2_layout,
        patch=packed_patch(2),
    ),
)
