"""HunyuanVideo: double blocks, then single ones, on video and text at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import cubic_patch, num_text_tokens, video_layout
from ras_dit.adapters.work import TIMESTEP_CHANNELS
from ras_dit.tokens import TokenGrid, TokenLayout


def hunyuan_video_work(config: Mapping[str, Any]) -> Work:
    """HunyuanVideo, from ``HunyuanVideoTransformer3DModel.config``.

    A refiner goes over the text before the blocks. Where the first frame is given as it is
    (``token_replace``), its tokens have modulations of their own.
    """
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    refiner: int = config["num_refiner_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    inner: float = config["mlp_ratio"]
    frames, height, columns = cubic_patch(config)
    patch = frames * height * columns
    output = patch * int(config["out_channels"] or config["in_channels"])
    text: int = config["text_embed_dim"]

    replaced = config["image_condition_type"] == "token_replace"
    embedders = 1 + bool(config["guidance_embeds"]) + replaced
    timestep = TIMESTEP_CHANNELS * width + square
    conditioning = embedders * timestep + config["pooled_projection_dim"] * width + square
    # The refiner has a conditioning of its own, of the timestep and the pooled text.
    conditioning += timestep + text * width + square
    modulations = (12 + 6 * replaced) * double + (3 + 3 * replaced) * single + 2 + 2 * refiner
    row = int((4 + 2 * inner) * layers * square)
    # Feed-forward layers of the refiner are four times as wide.
    refined = text * width + (4 + 2 * 4) * refiner * square
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * patch * config["in_channels"] * width,
        per_image_token=2 * (row + width * output),
        per_text_token=2 * (row + refined),
        joint_pair=4 * layers * width,
        text_pair=4 * refiner * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def hunyuan_video_15_work(config: Mapping[str, Any]) -> Work:
    """HunyuanVideo 1.5, from ``HunyuanVideo15Transformer3DModel.config``.

    Before the blocks two texts and a picture become one sequence, each by layers of its own
    (``context_embedder``, ``context_embedder_2``, ``image_embedder``). Once they are one, their
    lengths are not told apart, so these layers are left out.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    frames, height, columns = cubic_patch(config)
    patch = frames * height * columns
    output = patch * int(config["out_channels"] or config["in_channels"])
    timestep = (1 + bool(config["use_meanflow"])) * (TIMESTEP_CHANNELS * width + square)
    row = int((4 + 2 * config["mlp_ratio"]) * layers * square)
    return Work(
        per_sample=2 * (timestep + (12 * layers + 2) * square),
        per_embedded_token=2 * patch * config["in_channels"] * width,
        per_image_token=2 * (row + width * output),
        per_text_token=2 * row,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def two_texts_and_a_picture(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """A video ``[B, C, F, H, W]``; what it attends to comes as three arguments."""
    layout = video_layout(arguments, config)
    names = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    return TokenLayout(layout.grid, sum(num_text_tokens(arguments, name) for name in names))


def with_first_frame(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """A video ``[B, C, F, H, W]``, whose first frame is a reference if it replaces noise."""
    layout = video_layout(arguments, config)
    if config["image_condition_type"] != "token_replace":
        return layout
    grid = layout.grid
    rest = TokenGrid(grid.height, grid.width, grid.frames - 1)
    first = grid.height * grid.width
    return TokenLayout(rest, layout.num_text, first, first)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="HunyuanVideoTransformer3DModel",
        family="HunyuanVideo",
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="image_first",
        output="proj_out",
        work=hunyuan_video_work,
        token_arguments=(
            TokenArgument("freqs_cis", dim=0),
            TokenArgument("image_rotary_emb", dim=0),
        ),
        counts=("num_tokens",),
        layout=with_first_frame,
        patch=cubic_patch,
    ),
    TransformerDescription(
        transformer="HunyuanVideo15Transformer3DModel",
        family="HunyuanVideo 1.5",
        blocks=("transformer_blocks",),
        attention=("attn",),
        token_order="image_first",
        output="proj_out",
        work=hunyuan_video_15_work,
        token_arguments=(TokenArgument("freqs_cis", dim=0),),
        layout=two_texts_and_a_picture,
        patch=cubic_patch,
    ),
)
