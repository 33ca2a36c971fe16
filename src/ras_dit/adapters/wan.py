"""Wan and what is built on its blocks: the video attends to itself, then to the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import num_text_tokens, video_layout, video_patch
from ras_dit.tokens import TokenLayout


def wan_work(config: Mapping[str, Any]) -> Work:
    """Wan, from ``WanTransformer3DModel.config``.

    Tokens of a picture that the text attends beside count as text tokens. One timestep per row
    is counted; where every token has its own, their embedding comes on top.
    """
    work = vace_work(config)
    # Behind the blocks, tokens stand at their places again, all of them.
    projected = work.output * 2 * config["num_attention_heads"] * config["attention_head_dim"]
    return replace(
        work,
        per_embedded_token=work.per_embedded_token + projected,
        per_image_token=work.per_image_token - projected,
    )


def vace_work(config: Mapping[str, Any]) -> Work:
    """Wan with control, from ``WanVACETransformer3DModel.config``.

    Some layers have a control block beside them, of the same form, whose output is projected.
    """
    control = len(config.get("vace_layers") or ())
    layers = config["num_layers"] + control
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
        per_embedded_token=2 * width * patch * (in_channels + config.get("vace_in_channels", 0)),
        per_image_token=2 * (layers * token + (control + bool(control)) * square + width * output),
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


_WAN = TransformerDescription(
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
)

TRANSFORMERS: tuple[TransformerDescription, ...] = (
    _WAN,
    replace(
        _WAN,
        transformer="WanVACETransformer3DModel",
        family="Wan 2.1 VACE",
        blocks=("vace_blocks", "blocks"),
        work=vace_work,
        streams=("control_hidden_states",),
        token_timestep=None,
        expand=False,
    ),
    replace(
        _WAN,
        transformer="WanAnimateTransformer3DModel",
        family="Wan 2.2 Animate",
        work=vace_work,
        # Each frame of the video looks at the face of its own time.
        whole=("face_adapter",),
        token_timestep=None,
        expand=False,
    ),
    replace(
        _WAN,
        transformer="SkyReelsV2Transformer3DModel",
        family="SkyReels V2",
        work=vace_work,
        token_timestep=None,
        expand=False,
    ),
    replace(_WAN, transformer="ChronoEditTransformer3DModel", family="ChronoEdit"),
)
