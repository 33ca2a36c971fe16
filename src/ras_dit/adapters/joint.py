"""Image transformers that attend to text and image together, each in a stream of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TEXT_STREAM, TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import latent_layout, num_text_tokens
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS
from ras_dit.tokens import Patch, TokenGrid, TokenLayout

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
        per_kept_text_token=2 * embedded_text,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def aura_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, H, W]``, text and registers."""
    layout = latent_layout(arguments, config)
    return TokenLayout(layout.grid, layout.num_text + _AURA_REGISTERS)


def cogview_work(config: Mapping[str, Any]) -> Work:
    """CogView4 and CogView3Plus, from their ``config``: text and image share all weights."""
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    time: int = config["time_embed_dim"]
    patch: int = config["patch_size"] ** 2
    output = patch * int(config["out_channels"])

    # Three sizes of two numbers each.
    conditioning = (width + time) * time + (6 * config["condition_dim"] + time) * time
    block = (4 + FEED_FORWARD) * layers * square
    return Work(
        per_sample=2 * (conditioning + (12 * layers + 2) * width * time),
        per_embedded_token=2 * patch * config["in_channels"] * width,
        per_image_token=2 * (block + width * output),
        per_text_token=2 * (block + config["text_embed_dim"] * width),
        per_kept_text_token=2 * config["text_embed_dim"] * width,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def hunyuan_image_work(config: Mapping[str, Any]) -> Work:
    """HunyuanImage, from ``HunyuanImageTransformer2DModel.config``.

    A refiner treats the text before the blocks. A token of the second text, which has a
    projection in its place, is counted like one of the first.
    """
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    refiners: int = config["num_refiner_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    inner = int(width * config["mlp_ratio"])
    text: int = config["text_embed_dim"]
    patch = math.prod(config["patch_size"])
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    embedders = 1 + int(config["guidance_embeds"]) + int(config["use_meanflow"])
    conditioning = (embedders + 1) * (TIMESTEP_CHANNELS + width) * width + (text + width) * width
    modulations = 12 * double + 3 * single + 2 * refiners + 2
    row = layers * 4 * square + double * 2 * width * inner + single * 2 * width * inner
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (row + width * output),
        per_text_token=2 * (row + text * width + refiners * (4 + FEED_FORWARD) * square),
        joint_pair=4 * layers * width,
        text_pair=4 * refiners * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def hunyuan_image_patch(config: Mapping[str, Any]) -> Patch:
    """Height and width, or frames, height and width (the refiner)."""
    *frames, height, width = config["patch_size"]
    return int(frames[0]) if frames else 1, int(height), int(width)


def hunyuan_image_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, (F,) H, W]`` and one or two texts."""
    latents = arguments["hidden_states"]
    sizes = (1, *latents.shape[-2:]) if latents.ndim == 4 else latents.shape[-3:]
    sides = hunyuan_image_patch(config)
    frames, height, width = (size // side for size, side in zip(sizes, sides, strict=True))
    text = num_text_tokens(arguments)
    if config["text_embed_2_dim"] is not None:
        text += num_text_tokens(arguments, "encoder_hidden_states_2")
    return TokenLayout(TokenGrid(height, width, frames), text)


def hidream_work(config: Mapping[str, Any]) -> Work:
    """HiDream, from ``HiDreamImageTransformer2DModel.config``.

    Each image token passes some of the experts and a shared one; so does text in single blocks.
    The sequence has the T5 text and, twice, the Llama text of the same length, whose features of
    many layers are projected in every step. What fills an image that is not square up to the
    largest one counts as text.
    """
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)
    t5, llama = config["caption_channels"]
    projections = t5 + len(config["llama_layers"]) * llama

    whole = 3 * width * _hidream_inner(4 * width)
    routed: int = config["num_routed_experts"]
    experts = whole
    if routed > 0:
        experts = config["num_activated_experts"] * whole + routed * width
        experts += 3 * width * _hidream_inner(2 * width)
    conditioning = (TIMESTEP_CHANNELS + config["text_emb_dim"]) * width + 2 * square
    image = layers * (4 * square + experts)
    text = double * (4 * square + whole) + single * (4 * square + experts)
    return Work(
        per_sample=2 * (conditioning + (12 * double + 6 * single + 2) * square),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (image + width * output),
        per_text_token=2 * (text + projections * width // 3),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def _hidream_inner(width: int) -> int:
    return -(-int(2 * width / 3) // 256) * 256


def hidream_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, H, W]``; T5 text ``[B, T, C]``, Llama text ``[layers, B, T, C]``."""
    grid = latent_layout(arguments, config).grid
    text = num_text_tokens(arguments, "encoder_hidden_states_t5")
    text += 2 * num_text_tokens(arguments, "encoder_hidden_states_llama3")
    if grid.height != grid.width:
        largest = math.prod(config["max_resolution"]) // config["patch_size"] ** 2
        text += largest - grid.num_tokens
    return TokenLayout(grid, text)


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="AuraFlowTransformer2DModel",
        family="AuraFlow",
        blocks=("joint_transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="text_first",
        output="proj_out",
        work=aura_work,
        text_arguments=TEXT_STREAM,
        layout=aura_layout,
    ),
    *(
        TransformerDescription(
            transformer=name,
            family=family,
            blocks=("transformer_blocks",),
            attention=("attn1",),
            token_order="text_first",
            output="proj_out",
            work=cogview_work,
            text_arguments=TEXT_STREAM,
            token_arguments=positions,
        )
        for name, family, positions in (
            (
                "CogView4Transformer2DModel",
                "CogView4",
                (TokenArgument("image_rotary_emb", dim=0),),
            ),
            ("CogView3PlusTransformer2DModel", "CogView3Plus", ()),
        )
    ),
    TransformerDescription(
        transformer="HunyuanImageTransformer2DModel",
        family="HunyuanImage",
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="image_first",
        output="proj_out",
        work=hunyuan_image_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        layout=hunyuan_image_layout,
        patch=hunyuan_image_patch,
    ),
    TransformerDescription(
        transformer="HiDreamImageTransformer2DModel",
        family="HiDream",
        blocks=("double_stream_blocks", "single_stream_blocks"),
        attention=("block.attn1",),
        token_order="image_first",
        output="final_layer",
        work=hidream_work,
        text="encoder_hidden_states_t5",
        token_arguments=(
            TokenArgument("image_rotary_emb", dim=1),
            TokenArgument("hidden_states_masks", dim=1, ndim=2),
        ),
        batch_dims={"encoder_hidden_states_llama3": 1},
        layout=hidream_layout,
    ),
)
