"""LTX-Video: packed latents, a timestep for every token where some are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import num_text_tokens
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS
from ras_dit.tokens import Patch, TokenGrid, TokenLayout


def ltx_work(config: Mapping[str, Any]) -> Work:
    """LTX-Video, from ``LTXVideoTransformer3DModel.config``.

    One timestep per row is counted; where every token has its own, their embedding comes on top.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = int(config["out_channels"] or in_channels)
    text: int = config["cross_attention_dim"]
    return Work(
        per_sample=2 * (TIMESTEP_CHANNELS * width + 7 * square),
        per_embedded_token=2 * width * (in_channels + output),
        per_image_token=2 * layers * (6 + FEED_FORWARD) * square,
        per_text_token=2
        * (config["caption_channels"] * width + square + 2 * layers * text * width),
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        image_kv=2 * layers * width,
        output=output,
    )


def ltx_patch(config: Mapping[str, Any]) -> Patch:
    """Of latents that the pipeline has unpacked."""
    return int(config["patch_size_t"]), int(config["patch_size"]), int(config["patch_size"])


def ltx_layout(arguments: Mapping[str, Any], _config: Mapping[str, Any]) -> TokenLayout:
    """Packed latents ``[B, N, C]`` with either their sizes or coordinates ``[B, 3, N]``.

    Coordinates are those of time, rows and columns. Given frames of later times stand before the
    video itself, which begins at time 0.
    """
    text = num_text_tokens(arguments)
    coordinates = arguments.get("video_coords")
    if coordinates is None:
        sizes = (int(arguments[name]) for name in ("height", "width", "num_frames"))
        return TokenLayout(TokenGrid(*sizes), text)
    times, rows, columns = coordinates[0].to("cpu", torch.float32)
    height, width = len(rows.unique()), len(columns.unique())
    by_frame = times[:: height * width]
    started = (by_frame <= 0).nonzero()
    given = int(started[0]) if len(started) else 0
    grid = TokenGrid(height, width, len(by_frame) - given)
    references = given * height * width
    return TokenLayout(grid, text, references, references)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="LTXVideoTransformer3DModel",
        family="LTX-Video",
        blocks=("transformer_blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=ltx_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=1), TokenArgument("temb", dim=1)),
        layout=ltx_layout,
        patch=ltx_patch,
        token_timestep="timestep",
        # Behind the blocks, tokens with timesteps of their own are modulated by their place.
        expand=True,
    ),
)
