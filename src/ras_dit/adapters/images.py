"""Image transformers of diffusers, one description each."""

from __future__ import annotations

from ras_dit.adapters.base import TEXT_STREAM, TokenArgument, TransformerDescription
from ras_dit.adapters.work import lumina_work, sd3_work

TRANSFORMERS: tuple[TransformerDescription, ...] = (
    TransformerDescription(
        transformer="SD3Transformer2DModel",
        family="Stable Diffusion 3 / 3.5",
        blocks=("transformer_blocks",),
        attention=("attn", "attn2"),
        token_order="image_first",
        output="proj_out",
        work=sd3_work,
        text_arguments=TEXT_STREAM,
        residuals=("block_controlnet_hidden_states",),
        fused="joint",
    ),
    TransformerDescription(
        transformer="LuminaNextDiT2DModel",
        family="Lumina-Next",
        blocks=("layers",),
        attention=("attn1",),
        token_order="image_first",
        output="norm_out",
        work=lumina_work,
        token_arguments=(TokenArgument("image_rotary_emb", dim=1),),
        # Away from the default size there are two tables of positions, one for early steps.
        fixed=("image_rotary_emb",),
        conditional_first=True,
        fused="lumina",
    ),
)
