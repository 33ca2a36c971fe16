"""Qwen-Image: packed latents, text before image, tables of positions apart for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import num_text_tokens, packed_patch, stacked
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS
from ras_dit.tokens import TokenLayout


def qwen_work(config: Mapping[str, Any]) -> Work:
    """Qwen-Image, from ``QwenImageTransformer2DModel.config``.

    With ``zero_cond_t``, reference tokens are modulated as at timestep 0, so that the modulations
    of the image are computed twice.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = config["patch_size"] ** 2 * int(config["out_channels"] or in_channels)
    times = 2 if config["zero_cond_t"] else 1

    conditioning = times * (TIMESTEP_CHANNELS * width + square)
    modulations = (6 * times + 6) * layers + 2
    row = (4 + FEED_FORWARD) * layers
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * in_channels * width,
        per_image_token=2 * (row * square + width * output),
        per_text_token=2 * (row * square + config["joint_attention_dim"] * width),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def qwen_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Pictures by ``img_shapes``, ``[(frames, height, width), ...]`` in tokens for each row.

    The first picture is made, the others are references. In a model of layers
    (``use_layer3d_rope``) all but the last are made, the composed picture and its layers.
    """
    shapes = arguments["img_shapes"][0]
    shapes = shapes if isinstance(shapes, list) else [shapes]
    made = len(shapes) - 1 if config["use_layer3d_rope"] else 1
    grid = stacked([(frames * height, width) for frames, height, width in shapes[:made]])
    references = sum(frames * height * width for frames, height, width in shapes[made:])
    return TokenLayout(grid, num_text_tokens(arguments), references)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="QwenImageTransformer2DModel",
        family="Qwen-Image",
        blocks=("transformer_blocks",),
        attention=("attn",),
        token_order="text_first",
        output="proj_out",
        work=qwen_work,
        token_arguments=(
            # The tables of image and text; text is never left out.
            TokenArgument("image_rotary_emb", dim=0, members=(0,)),
            TokenArgument("modulate_index", dim=1),
        ),
        residuals=("controlnet_block_samples",),
        layout=qwen_layout,
        patch=packed_patch(2),
    ),
)
