"""CogVideoX: frames before channels, text before video in one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TEXT_STREAM, TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import cubic_patch, frames_first_layout
from ras_dit.adapters.work import FEED_FORWARD


def cogvideox_work(config: Mapping[str, Any]) -> Work:
    """CogVideoX, from ``CogVideoXTransformer3DModel.config``.

    The one embedding of a call that says how much moves (``ofs``) is left out.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    frames, height, columns = cubic_patch(config)
    patch = frames * height * columns
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)
    embedding: int = config["time_embed_dim"]

    conditioning = (width + embedding) * embedding
    # Six modulations before attention and six before the feed-forward; two at the end.
    modulations = (12 * layers + 2) * embedding * width
    row = (4 + FEED_FORWARD) * layers * square
    return Work(
        per_sample=2 * (conditioning + modulations),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (row + width * output),
        per_text_token=2 * (row + config["text_embed_dim"] * width),
        per_kept_text_token=2 * config["text_embed_dim"] * width,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="CogVideoXTransformer3DModel",
        family="CogVideoX",
        blocks=("transformer_blocks",),
        attention=("attn1",),
        token_order="text_first",
        output="proj_out",
        work=cogvideox_work,
        text_arguments=TEXT_STREAM,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        layout=frames_first_layout,
        patch=cubic_patch,
        frames_first=True,
    ),
)
