"""Image transformers of diffusers, one description each."""

from __future__ import annotations

from ras_dit.adapters.base import TransformerDescription
from ras_dit.adapters.work import sd3_work

IMAGE_TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="SD3Transformer2DModel",
        family="Stable Diffusion 3 / 3.5",
        blocks=("transformer_blocks",),
        attention=("attn", "attn2"),
        token_order="image_first",
        output="proj_out",
        work=sd3_work,
        residuals=("block_controlnet_hidden_states",),
    ),
)
