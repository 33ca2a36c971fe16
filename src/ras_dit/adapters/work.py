"""The arithmetic of each family of transformers, read off its configuration.

Only what ``torch.utils.flop_counter`` counts is counted: matrix products, convolutions and
attention, 2 FLOPs per multiply-add. Norms, activations and residual sums are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ras_dit.adapters.base import Work

TIMESTEP_CHANNELS = 256  # sinusoids that diffusers feeds to every timestep embedding
FEED_FORWARD = 2 * 4  # two matrices, four times as wide as the tokens, in units of width ** 2


def sd3_work(config: Mapping[str, Any]) -> Work:
    """Stable Diffusion 3 and 3.5, from ``SD3Transformer2DModel.config``.

    Text and image tokens attend jointly in every block. The last block ignores what becomes of
    the text. The ``dual_attention_layers`` of SD3.5 have a second attention of the image alone.
    """
    layers: int = config["num_layers"]
    dual = sum(layer in range(layers) for layer in set(config["dual_attention_layers"] or ()))
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    square = width * width
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * int(config["out_channels"] or in_channels)

    conditioning = (TIMESTEP_CHANNELS + config["pooled_projection_dim"]) * width + 2 * square
    # Six modulations per block and stream, nine for the image where it attends twice; two for
    # the text in the last block and two before the output.
    modulations = (6 * layers + 3 * dual) + (6 * (layers - 1) + 2) + 2
    image = (4 + FEED_FORWARD) * layers + 4 * dual
    text = (4 + FEED_FORWARD) * (layers - 1) + 3
    embedded_text = config["joint_attention_dim"] * config["caption_projection_dim"]
    return Work(
        per_sample=2 * (conditioning + modulations * square),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (image * square + width * output),
        per_text_token=2 * (text * square + embedded_text),
        per_kept_text_token=2 * embedded_text,
        joint_pair=4 * layers * width,
        image_pair=4 * dual * width,
        joint_kv=2 * layers * width,
        image_kv=2 * dual * width,
        output=output,
    )


def lumina_work(config: Mapping[str, Any]) -> Work:
    """Lumina-Next, from ``LuminaNextDiT2DModel.config``.

    The image attends to itself and, with the same normed tokens, to the text. Groups of query
    heads share keys and values, which are repeated before attention sees them.
    """
    layers: int = config["num_layers"]
    width: int = config["hidden_size"]
    heads: int = config["num_attention_heads"]
    grouped = width // heads * int(config["num_kv_heads"] or heads)
    text: int = config["cross_attention_dim"]
    patch: int = config["patch_size"] ** 2
    in_channels: int = config["in_channels"]
    output = patch * in_channels * (2 if config["learn_sigma"] else 1)
    inner = int(8 * width / 3)
    if config["ffn_dim_multiplier"] is not None:
        inner = int(config["ffn_dim_multiplier"] * inner)
    inner = -(-inner // config["multiple_of"]) * config["multiple_of"]

    embedding = min(width, 1024)
    conditioning = (TIMESTEP_CHANNELS + embedding + text) * embedding
    # Queries of both attentions and the common output; keys and values; the gated feed-forward.
    image = 3 * width * width + 2 * width * grouped + 3 * width * inner
    return Work(
        per_sample=2 * (conditioning + (4 * layers + 1) * embedding * width),
        per_embedded_token=2 * patch * in_channels * width,
        per_image_token=2 * (layers * image + width * output),
        per_text_token=2 * layers * 2 * text * grouped,
        image_pair=4 * layers * width,
        cross_pair=4 * layers * width,
        image_kv=2 * layers * width,
        output=output,
    )
