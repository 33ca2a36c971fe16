"""How many tokens beside the picture a call has: text, given pictures, guidance branches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ras_dit.sizes import SizeRule
from ras_dit.tokens import TokenGrid

_MOST_TEXT_ROWS = 256  # of pipelines that pad a prompt no further than needed
_CLIP_PICTURE_ROWS = 257  # what CLIP's vision encoder says of a picture of 224 x 224 pixels
_LLAVA_PICTURE_ROWS = 576
_Z_IMAGE_MULTIPLE = 32
_GIVEN_AREA = 1024**2  # pixels that editing pipelines scale a given picture to

# Text rows of pipelines whose call has no max_sequence_length.
_OWN_ROWS: Mapping[str, int] = {
    "HunyuanImagePipeline": 1000,
    "HunyuanImageRefinerPipeline": 256,
    "HunyuanVideo15Pipeline": 1000,
    "LongCatImagePipeline": 512,
    "LongCatImageEditPipeline": 512,
}
_HUNYUAN_GLYPH_ROWS = 128
# Tokens that models put beside the text whatever it is.
_ADDED: Mapping[str, int] = {
    "AuraFlowTransformer2DModel": 8,  # registers
    "OmniGenTransformer2DModel": 1,  # the time
    "HunyuanVideo15Transformer3DModel": 256 + 729,  # letters and a picture, also without any
}
_EDITING = (
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "QwenImageEditInpaintPipeline",
    "LongCatImageEditPipeline",
)
# Pipelines whose guidance is an input of the transformer.
_UNGUIDED = ("Flux", "HunyuanVideo")
_GUIDED = ("QwenImage", "HunyuanSkyreels", "HunyuanVideo15")


def own_rows(pipeline: str, parameters: Mapping[str, Any]) -> int:
    """Text rows of a call that does not say how many.

    Args:
        pipeline: Class name of the pipeline.
        parameters: Defaults of its call.
    """
    return int(parameters.get("max_sequence_length") or _OWN_ROWS.get(pipeline, _MOST_TEXT_ROWS))


def text_tokens(transformer: str, config: Mapping[str, Any], rows: int, grid: TokenGrid) -> int:
    """Text tokens T of a call, with all that its model counts among them.

    Args:
        transformer: Class name of the transformer.
        config: Its configuration.
        rows: Text rows as the pipeline counts them.
        grid: The image tokens, to whose number some models fill the sequence up.
    """
    count = rows + _ADDED.get(transformer, 0)
    if transformer == "HunyuanDiT2DModel":
        count = config["text_len"] + config["text_len_t5"]
    elif transformer == "HunyuanImageTransformer2DModel" and config["text_embed_2_dim"]:
        count += _HUNYUAN_GLYPH_ROWS
    elif transformer == "HiDreamImageTransformer2DModel":
        # T5 rows, Llama rows twice, and what fills a picture up to the largest one.
        count *= 3
        if grid.height != grid.width:
            largest = math.prod(config["max_resolution"]) // config["patch_size"] ** 2
            count += largest - grid.num_tokens
    elif transformer == "ZImageTransformer2DModel":
        count = _filled(rows) + _filled(grid.num_tokens) - grid.num_tokens
    elif transformer == "HunyuanVideoTransformer3DModel":
        every = {"latent_concat": 2, "token_replace": 4}.get(config["image_condition_type"])
        count += _LLAVA_PICTURE_ROWS // every if every else 0
    elif config.get("image_dim") is not None:
        count += config.get("pos_embed_seq_len") or _CLIP_PICTURE_ROWS
    return count


def reference_tokens(
    pipeline: str, config: Mapping[str, Any], sizes: SizeRule, grid: TokenGrid
) -> tuple[TokenGrid, int]:
    """The tokens that are made and how many are given, of all tokens of the latents.

    Editing pipelines are counted with one given picture, a square.
    """
    if pipeline in _EDITING:
        side = math.isqrt(_GIVEN_AREA) // sizes.pixels
        return grid, (side // sizes.patch[1]) * (side // sizes.patch[2])
    if config.get("image_condition_type") == "token_replace" and grid.frames > 1:
        rest = TokenGrid(grid.height, grid.width, grid.frames - 1)
        return rest, grid.height * grid.width
    return grid, 0


def guidance_branches(
    pipeline: str, config: Mapping[str, Any], parameters: Mapping[str, Any]
) -> int:
    """Guidance branches of a call with the pipeline's own settings, of text alone.

    Args:
        pipeline: Class name of the pipeline.
        config: The transformer's configuration.
        parameters: Defaults of its call, and its configuration.
    """
    if "PAG" in pipeline:
        return 3
    if pipeline.startswith("Flux2Klein"):
        return 1 if parameters.get("is_distilled") else 2
    if pipeline.startswith("HunyuanImage"):
        return 1 if config["guidance_embeds"] else 2
    if pipeline.startswith(_GUIDED):
        return 2
    scale = parameters.get("guidance_scale")
    guided = not pipeline.startswith(_UNGUIDED) and (scale is None or scale > 1)
    return 2 if guided else 1


def _filled(count: int) -> int:
    return -(-count // _Z_IMAGE_MULTIPLE) * _Z_IMAGE_MULTIPLE
