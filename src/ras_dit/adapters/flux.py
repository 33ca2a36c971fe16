"""Flux and its relatives: packed latents, text before image, double and then single blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import layout_from_ids, packed_patch
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS


def flux_work(config: Mapping[str, Any]) -> Work:
    """Flux.1, from ``FluxTransformer2DModel.config``.

    Single blocks treat text and image alike: attention and a feed-forward layer side by side,
    with one common output.
    """
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = int(config["out_channels"] or in_channels)

    embedders = 2 if config["guidance_embeds"] else 1
    conditioning = embedders * (TIMESTEP_CHANNELS * width + square)
    conditioning += config["pooled_projection_dim"] * width + square
    # Six modulations per double block and stream, three per single block, two at the end.
    modulations = 12 * double + 3 * single + 2
    row = (4 + FEED_FORWARD) * double + (3 + FEED_FORWARD // 2 + 5) * single
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * in_channels * width,
        per_image_token=2 * (row * square + width * output),
        per_text_token=2 * (row * square + config["joint_attention_dim"] * width),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="FluxTransformer2DModel",
        family="Flux.1",
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="text_first",
        output="proj_out",
        work=flux_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        residuals=("controlnet_block_samples", "controlnet_single_block_samples"),
        layout=layout_from_ids(),
        patch=packed_patch(2),
    ),
)
