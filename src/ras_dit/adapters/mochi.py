"""Mochi: every row of a batch attends on its own, to the text that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import cubic_patch, video_layout


def mochi_work(config: Mapping[str, Any]) -> Work:
    """Mochi, from ``MochiTransformer3DModel.config``.

    Counted for texts that fill all their tokens; attention leaves the padding of shorter ones out.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    narrow: int = config["pooled_projection_dim"]
    text: int = config["text_embed_dim"]
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    # One more token is the mean of the text; it asks all of them for the pooled text.
    pooling = 3 * text * text + text * width + 2 * text
    timestep = config["time_embed_dim"] * width + square
    # Four modulations per block and stream, one for the text in the last block, two at the end.
    modulations = 4 * layers * square + (4 * (layers - 1) + 1) * width * narrow + 2 * square
    image = 4 * square + 3 * width * (4 * width * 2 // 3)
    written = narrow * width + 3 * narrow * (4 * narrow * 2 // 3)
    return Work(
        per_sample=2 * (pooling + timestep + modulations),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (layers * image + width * output),
        per_text_token=2
        * (
            2 * text * text
            + 2 * text
            + text * narrow
            + 3 * layers * narrow * width
            + (layers - 1) * written
        ),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="MochiTransformer3DModel",
        family="Mochi",
        blocks=("transformer_blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=mochi_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0, broadcast=True),),
        layout=video_layout,
        patch=cubic_patch,
        attention_by_sample=True,
    ),
)
