"""Wan and what is built on its blocks: the video attends to itself, then to the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import num_text_tokens, video_layout, video_patch
from ras_dit.tokens import TokenLayout


def wan_work(config: Mapping[str, Any]) -> Work:
    """Wan, from ``WanTransformer3DModel.config``.

    Tokens of a picture that the text attends beside count as text tokens. One timestep per row
    is counted; where every token has its own, their embedding comes on top.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    frames, height, rows = video_patch(config)
    patch = frames * height * rows
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    # Two matrices of the timestep embedding and the six modulations that all blocks share.
    conditioning = config["freq_dim"] * width + 7 * square
    # Self-attention, queries and output of cross-attention, feed-forward.
    token = 6 * square + 2 * width * config["ffn_dim"]
    return Work(
        per_sample=2 * conditioning,
        per_embedded_token=2 * width * (patch * in_channels + output),
        per_image_token=2 * layers * token,
        per_text_token=2 * (config["text_dim"] * width + square + 2 * layers * square),
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        image_kv=2 * layers * width,
        output=output,
    )


def with_picture(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """A video ``[B, C, F, H, W]``; tokens of a given picture stand with the text."""
    picture = num_text_tokens(arguments, "encoder_hidden_states_image")
    layout = video_layout(arguments, config)
    return TokenLayout(layout.grid, layout.num_text + picture)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="WanTransformer3DModel",
        family="Wan 2.1 / 2.2",
        blocks=("blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=wan_work,
        token_arguments=(TokenArgument("rotary_emb", dim=1), TokenArgument("temb", dim=1, ndim=4)),
        layout=with_picture,
        patch=video_patch,
        token_timestep="timestep",
        # Behind the blocks, tokens with timesteps of their own are modulated by their place.
        expand=True,
    ),
)
