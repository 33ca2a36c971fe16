"""Transformers that attend to the image alone, and to the text by cross attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.adapters.layouts import cubic_patch, latent_layout, video_layout
from ras_dit.adapters.work import FEED_FORWARD, TIMESTEP_CHANNELS
from ras_dit.tokens import TokenLayout


def pixart_work(config: Mapping[str, Any]) -> Work:
    """PixArt-alpha and Sigma, from ``PixArtTransformer2DModel.config``."""
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    text: int = config["cross_attention_dim"]
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    conditioning = TIMESTEP_CHANNELS * width + square + 6 * square
    sized = config["use_additional_conditions"]
    if sized or (sized is None and config["sample_size"] == 128):
        # Height, width and their ratio, embedded one by one.
        conditioning += 3 * (TIMESTEP_CHANNELS + width // 3) * (width // 3)
    captions: int = config["caption_channels"] or 0
    projected = (captions + width) * width if captions else 0
    return Work(
        per_sample=2 * conditioning,
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * ((6 + FEED_FORWARD) * layers * square + width * output),
        per_text_token=2 * (projected + 2 * layers * text * width),
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        image_kv=2 * layers * width,
        output=output,
    )


def allegro_work(config: Mapping[str, Any]) -> Work:
    """Allegro, from ``AllegroTransformer3DModel.config``: the blocks of PixArt on a video."""
    return pixart_work({**config, "use_additional_conditions": False})


def hunyuan_dit_work(config: Mapping[str, Any]) -> Work:
    """HunyuanDiT, from ``HunyuanDiT2DModel.config``.

    Two texts, whose lengths are settings of the model, so that the work on one of them alone
    (a projection, and attention that sums it up) is the same for every sample.
    """
    layers: int = config["num_layers"]
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    hidden: int = config["hidden_size"]
    square = width * width
    text: int = config["cross_attention_dim"]
    t5: int = config["cross_attention_dim_t5"]
    pooled: int = config["pooled_projection_dim"]
    length: int = config["text_len_t5"]
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * in_channels * (2 if config["learn_sigma"] else 1)
    inner = int(width * config["mlp_ratio"])
    skips = layers - (layers // 2 + 1)

    pooling = t5 * t5 + 2 * (length + 1) * (t5 * t5 + t5) + t5 * pooled
    extra = pooled
    if config["use_style_cond_and_image_meta_size"]:
        extra += 6 * TIMESTEP_CHANNELS + hidden
    conditioning = (TIMESTEP_CHANNELS + hidden) * hidden + 4 * (extra + hidden) * hidden
    modulations = layers * width * width + 2 * square
    projection = length * 4 * t5 * (t5 + text)
    block = 6 * square + 2 * width * inner
    return Work(
        per_sample=2 * (pooling + conditioning + modulations + projection),
        per_embedded_token=2 * patch * in_channels * hidden,
        per_image_token=2 * (layers * block + 2 * skips * square + width * output),
        per_text_token=2 * 2 * layers * text * width,
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        image_kv=2 * layers * width,
        output=output,
    )


def hunyuan_dit_layout(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> TokenLayout:
    """Latents ``[B, C, H, W]`` and two texts, one behind the other."""
    layout = latent_layout(arguments, config)
    both = layout.num_text + int(arguments["encoder_hidden_states_t5"].shape[1])
    return TokenLayout(layout.grid, both)


def prx_work(config: Mapping[str, Any]) -> Work:
    """PRX, from ``PRXTransformer2DModel.config``.

    Image tokens attend to the image and, in the same operation, to the text, which stays as it
    is. The conditioning is counted for each row of the model batch; the pipeline computes it once
    for all of them where they have the time in common.
    """
    layers: int = config["depth"]
    width: int = config["hidden_size"]
    square = width * width
    output = int(config["in_channels"]) * int(config["patch_size"]) ** 2
    inner = int(width * config["mlp_ratio"])

    embedding = TIMESTEP_CHANNELS * width + square
    conditioning = embedding * (2 if config["resolution_embeds"] else 1)
    entry = output * width
    if config["bottleneck_size"] is not None:
        entry = (output + width) * config["bottleneck_size"]
    image = 4 * square + 3 * width * inner
    return Work(
        per_sample=2 * (conditioning + (6 * layers + 2) * square),
        per_embedded_token=2 * entry,
        per_image_token=2 * (layers * image + width * output),
        per_text_token=2 * (config["context_in_dim"] * width + 2 * layers * square),
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        joint_kv=2 * layers * width,
        output=output,
    )


TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="PixArtTransformer2DModel",
        family="PixArt",
        blocks=("transformer_blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=pixart_work,
    ),
    TransformerDescription(
        transformer="AllegroTransformer3DModel",
        family="Allegro",
        blocks=("transformer_blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=allegro_work,
        # Tables by place in a frame or in time, and of each token its places.
        token_arguments=(TokenArgument("image_rotary_emb", dim=1, members=(1,)),),
        layout=video_layout,
        patch=cubic_patch,
    ),
    TransformerDescription(
        transformer="HunyuanDiT2DModel",
        family="HunyuanDiT",
        blocks=("blocks",),
        attention=("attn1",),
        token_order="image_first",
        output="proj_out",
        work=hunyuan_dit_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=0),),
        residuals=("controlnet_block_samples",),
        layout=hunyuan_dit_layout,
    ),
    TransformerDescription(
        transformer="PRXTransformer2DModel",
        family="PRX",
        blocks=("blocks",),
        attention=("attention",),
        token_order="text_first",
        output="final_layer",
        work=prx_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=2),),
    ),
)
