"""Flux and its relatives: packed latents, text before image, double and then single blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ras_dit.adapters.base import TEXT_STREAM, TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import layout_from_ids, packed_patch
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS


def flux_work(config: Mapping[str, Any]) -> Work:
    """Flux.1 and what has its blocks, from the configuration of the transformer.

    Single blocks treat text and image alike: attention and a feed-forward layer side by side,
    with one common output.
    """
    return _flux_blocks(config, feed_forward=FEED_FORWARD)


def longcat_work(config: Mapping[str, Any]) -> Work:
    """LongCat-Image, whose configuration names a pooled text that the model does not have."""
    return flux_work({**config, "pooled_projection_dim": None})


def fibo_work(config: Mapping[str, Any]) -> Work:
    """Bria Fibo, where every block gets the text of another layer of the encoder as well."""
    layers: int = config["num_layers"] + config["num_single_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    projected = 2 * layers * config["text_encoder_dim"] * (width // 2)
    work = flux_work({**config, "pooled_projection_dim": None})
    return replace(work, per_text_token=work.per_text_token + projected)


def gated_flux_work(config: Mapping[str, Any]) -> Work:
    """The same with gated feed-forward layers, which have half as many weights again."""
    return _flux_blocks(config, feed_forward=FEED_FORWARD + FEED_FORWARD // 2)


def _flux_blocks(config: Mapping[str, Any], feed_forward: int) -> Work:
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = int(config.get("out_channels") or in_channels)

    embedders = 2 if config.get("guidance_embeds") else 1
    conditioning = embedders * (TIMESTEP_CHANNELS * width + square)
    if pooled := config.get("pooled_projection_dim"):
        conditioning += pooled * width + square
    # Six modulations per double block and stream, three per single block, two at the end.
    modulations = 12 * double + 3 * single + 2
    # Queries, keys, values and their output; in single blocks it is a part of the common output.
    row = (4 + feed_forward) * layers
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * in_channels * width,
        per_image_token=2 * (row * square + width * output),
        per_text_token=2 * (row * square + config["joint_attention_dim"] * width),
        per_kept_text_token=2 * config["joint_attention_dim"] * width,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def chroma_work(config: Mapping[str, Any]) -> Work:
    """Chroma, from ``ChromaTransformer2DModel.config``.

    Flux.1 without modulation layers: one small network, the approximator, makes the modulations
    of all blocks from the timestep and their numbers.
    """
    double: int = config["num_layers"]
    single: int = config["num_single_layers"]
    layers = double + single
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = int(config["out_channels"] or in_channels)

    hidden: int = config["approximator_hidden_dim"]
    modulation = (
        config["approximator_num_channels"] * hidden
        + config["approximator_layers"] * 2 * hidden * hidden
        + hidden * width
    )
    row = (4 + FEED_FORWARD) * layers
    return Work(
        per_sample=2 * (12 * double + 3 * single + 2) * modulation,
        per_embedded_token=2 * in_channels * width,
        per_image_token=2 * (row * square + width * output),
        per_text_token=2 * (row * square + config["joint_attention_dim"] * width),
        per_kept_text_token=2 * config["joint_attention_dim"] * width,
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def flux2_work(config: Mapping[str, Any]) -> Work:
    """Flux.2, from ``Flux2Transformer2DModel.config``.

    Feed-forward layers are gated, and all blocks of a kind share their modulations.
    """
    layers: int = config["num_layers"] + config["num_single_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    in_channels: int = config["in_channels"]
    output = int(config["out_channels"] or in_channels)
    inner = int(width * config["mlp_ratio"])

    embedders = 2 if config["guidance_embeds"] else 1
    conditioning = embedders * (config["timestep_guidance_channels"] * width + square)
    # Six each for image and text of double blocks, three for single blocks, two at the end.
    modulations = 6 + 6 + 3 + 2
    row = layers * (4 * square + 3 * inner * width)
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * in_channels * width,
        per_image_token=2 * (row + width * output),
        per_text_token=2 * (row + config["joint_attention_dim"] * width),
        joint_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


def _flux_like(
    transformer: str, family: str, work: Callable[[Mapping[str, Any]], Work], **more: Any
) -> TransformerDescription:
    return TransformerDescription(
        transformer=transformer,
        family=family,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=("attn",),
        token_order="text_first",
        output="proj_out",
        work=work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        layout=layout_from_ids(),
        patch=packed_patch(2),
        **{"text_arguments": TEXT_STREAM, **more},
    )


_RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")

TRANSFORMERS: tuple[TransformerDescription, ...] = (
    _flux_like("FluxTransformer2DModel", "Flux.1", flux_work, residuals=_RESIDUALS),
    # A mask of the text comes with the rows of the whole sequence and stays whole.
    _flux_like("ChromaTransformer2DModel", "Chroma", chroma_work, residuals=_RESIDUALS),
    # Single blocks cut the text off by the length that it had before them.
    _flux_like("Flux2Transformer2DModel", "Flux.2", flux2_work, text_arguments=None),
    _flux_like("LongCatImageTransformer2DModel", "LongCat-Image", longcat_work),
    _flux_like("OvisImageTransformer2DModel", "Ovis-Image", gated_flux_work),
    # Each block is given the text of a layer anew, in one width with what became of it.
    _flux_like("BriaFiboTransformer2DModel", "Bria Fibo", fibo_work, text_arguments=None),
    _flux_like("BriaTransformer2DModel", "Bria 3", flux_work, residuals=_RESIDUALS),
)
