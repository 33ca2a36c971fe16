"""Transformers whose blocks see one sequence of text and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import first_of, latent_layout
from ras_dit.adapters.work import TIMESTEP_CHANNELS
from ras_dit.tokens import Patch, TokenGrid, TokenLayout

# Z-Image fills the image and the text up to multiples of this.
_Z_IMAGE_MULTIPLE = 32


def lumina2_work(config: Mapping[str, Any]) -> Work:
    """Lumina-Image-2, from ``Lumina2Transformer2DModel.config``.

    Refiners treat image and text apart, at full length, before the common blocks. The text
    tokens that count are those of the longest text.
    """
    layers: int = config["num_layers"]
    refiners: int = config["num_refiner_layers"]
    width: int = config["hidden_size"]
    heads: int = config["num_attention_heads"]
    grouped = width // heads * int(config["num_kv_heads"] or heads)
    inner = 4 * width
    if config["ffn_dim_multiplier"] is not None:
        inner = int(config["ffn_dim_multiplier"] * inner)
    inner = -(-inner // config["multiple_of"]) * config["multiple_of"]
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    embedding = min(width, 1024)
    block = 2 * width * width + 2 * width * grouped + 3 * width * inner
    modulations = 4 * (layers + refiners) + 1
    conditioning = (TIMESTEP_CHANNELS + embedding + modulations * width) * embedding
    return Work(
        per_sample=2 * conditioning,
        per_embedded_token=2 * (patch * in_channels * width + refiners * block),
        per_image_token=2 * (layers * block + width * output),
        per_text_token=2
        * (config["cap_feat_dim"] * width + (refiners + layers) * block + width * output),
        per_kept_text_token=2 * (config["cap_feat_dim"] * width + refiners * block),
        joint_pair=4 * layers * width,
        embedded_pair=4 * refiners * width,
        text_pair=4 * refiners * width,
        joint_kv=2 * layers * width + output,
    )


def lumina2_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """As many text tokens as the longest text has; padding does not enter the blocks."""
    grid = latent_layout(arguments, config).grid
    return TokenLayout(grid, int(arguments["encoder_attention_mask"].sum(dim=1).max()))


def lumina2_starts(arguments: Mapping[str, Any]) -> torch.Tensor:
    """The image stands behind the row's own text."""
    lengths: torch.Tensor = arguments["encoder_attention_mask"].sum(dim=1).long()
    return lengths


def z_image_work(config: Mapping[str, Any]) -> Work:
    """Z-Image, from ``ZImageTransformer2DModel.config``.

    What fills the image up to a multiple of 32 tokens counts as text, which it is in the common
    blocks; before them it costs what an image token does.
    """
    layers: int = config["n_layers"]
    refiners: int = config["n_refiner_layers"]
    width: int = config["dim"]
    inner = int(width / 3 * 8)
    patch: int = config["all_f_patch_size"][0] * config["all_patch_size"][0] ** 2
    output = patch * int(config["in_channels"])

    embedding = min(width, 256)
    block = 4 * width * width + 3 * width * inner
    modulations = 4 * (layers + refiners) + 1
    conditioning = 1024 * (TIMESTEP_CHANNELS + embedding) + modulations * width * embedding
    return Work(
        per_sample=2 * conditioning,
        per_embedded_token=2 * (output * width + refiners * block),
        per_image_token=2 * (layers * block + width * output),
        per_text_token=2
        * (config["cap_feat_dim"] * width + (refiners + layers) * block + width * output),
        per_kept_text_token=2 * (config["cap_feat_dim"] * width + refiners * block),
        joint_pair=4 * layers * width,
        embedded_pair=4 * refiners * width,
        text_pair=4 * refiners * width,
        joint_kv=2 * layers * width + output,
    )


def z_image_patch(config: Mapping[str, Any]) -> Patch:
    """The first of the patch sizes that the transformer was made for, which pipelines take."""
    side = int(config["all_patch_size"][0])
    return int(config["all_f_patch_size"][0]), side, side


def z_image_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Lists of latents ``[C, F, H, W]`` and texts ``[T, C]``, both filled up."""
    sides = z_image_patch(config)
    sizes = first_of(arguments["x"]).shape[-3:]
    frames, height, width = (size // side for size, side in zip(sizes, sides, strict=True))
    grid = TokenGrid(height, width, frames)
    text = max(_filled(feats.shape[0]) for feats in arguments["cap_feats"])
    return TokenLayout(grid, _filled(grid.num_tokens) - grid.num_tokens + text)


def _filled(count: int) -> int:
    return -(-count // _Z_IMAGE_MULTIPLE) * _Z_IMAGE_MULTIPLE


def omnigen_work(config: Mapping[str, Any]) -> Work:
    """OmniGen, from ``OmniGenTransformer2DModel.config``.

    The time is a token like those of the text. Pictures that the text speaks of count as text.
    """
    layers: int = config["num_layers"]
    width: int = config["hidden_size"]
    head = width // int(config["num_attention_heads"])
    grouped = head * int(config["num_key_value_heads"])
    time: int = config["time_step_dim"]
    output = int(config["patch_size"]) ** 2 * int(config["in_channels"])

    conditioning = 2 * (time + width) * width + 2 * width * width
    block = 2 * width * width + 2 * width * grouped + 3 * width * config["intermediate_size"]
    # Angles of each token's place, from frequencies.
    angles = head
    return Work(
        per_sample=2 * conditioning,
        per_embedded_token=2 * 2 * output * width + angles,
        per_image_token=2 * layers * block,
        per_text_token=2 * layers * block + angles,
        per_kept_text_token=angles,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * grouped,
        output=output,
    )


def omnigen_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, H, W]``, token numbers ``[B, T]`` and the time."""
    ids = arguments["input_ids"]
    grid = latent_layout(arguments, config).grid
    return TokenLayout(grid, 1 + (0 if ids is None else int(ids.shape[1])))


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="Lumina2Transformer2DModel",
        family="Lumina-Image-2",
        blocks=("layers",),
        attention=("attn",),
        token_order="text_around",
        output="norm_out",
        work=lumina2_work,
        text_arguments=(),
        token_arguments=(TokenArgument("image_rotary_emb", dim=1),),
        layout=lumina2_layout,
        starts=lumina2_starts,
    ),
    TransformerDescription(
        transformer="ZImageTransformer2DModel",
        family="Z-Image",
        blocks=("layers",),
        attention=("attention",),
        token_order="image_first",
        output="all_final_layer.2-1",
        work=z_image_work,
        text_arguments=(),
        latents="x",
        text="cap_feats",
        hidden="x",
        token_arguments=(TokenArgument("freqs_cis", dim=1),),
        residuals=("controlnet_block_samples",),
        layout=z_image_layout,
        patch=z_image_patch,
        conditional_first=True,
    ),
    TransformerDescription(
        transformer="OmniGenTransformer2DModel",
        family="OmniGen",
        blocks=("layers",),
        attention=("self_attn",),
        token_order="text_first",
        output="proj_out",
        work=omnigen_work,
        text_arguments=(),
        text="input_ids",
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        layout=omnigen_layout,
        conditional_first=True,
        # The image tokens are cut off the sequence by their number.
        expand=True,
    ),
)
