"""Small real pipelines of Flux.2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from PIL import Image

from families_flux import (
    FLUX_JOINT,
    FLUX_TEXT,
    HEIGHT,
    WIDTH,
    generators,
    half_mask,
    pictures,
    rows,
    shaken,
)
from family_laws import STEPS, Family

SIZE = 64  # of a picture that is given, in pixels: at least this for Flux.2's own check


def flux2_vae() -> AutoencoderKLFlux2:
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    ).eval()


def flux2_pipeline(kind: Any = Flux2Pipeline, *, guidance: bool = True) -> Any:
    transformer = shaken(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=FLUX_JOINT,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        )
    )
    pipe = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux2_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux2_call(images: int) -> dict[str, Any]:
    """6 x 10 tokens of 16 x 16 pixels."""
    return {
        "prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=1),
        "height": 4 * HEIGHT,
        "width": 4 * WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(images),
    }


def drawing(width: int, height: int, *, salt: int) -> Image.Image:
    values = (255 * pictures(1, height, width, salt=salt)[0]).byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def edit_call(images: int) -> dict[str, Any]:
    """Two references, 4 x 4 and 4 x 6 tokens, the same for every image."""
    given = [drawing(SIZE, SIZE, salt=5), drawing(SIZE + 32, SIZE, salt=6)]
    return flux2_call(images) | {"image": given}


def klein_pipeline() -> Any:
    return flux2_pipeline(Flux2KleinPipeline, guidance=False)


def klein_call(images: int) -> dict[str, Any]:
    """Guidance in two calls."""
    negative = {"negative_prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=2)}
    return flux2_call(images) | negative


def klein_edit_call(images: int) -> dict[str, Any]:
    return klein_call(images) | {"image": [drawing(SIZE, SIZE, salt=5)]}


def klein_inpaint() -> Any:
    return flux2_pipeline(Flux2KleinInpaintPipeline, guidance=False)


def klein_inpaint_call(images: int) -> dict[str, Any]:
    """The picture itself is a reference, and another one is; seven of nine steps."""
    call = klein_call(images)
    return {name: call[name] for name in call if name not in {"height", "width"}} | {
        "image": pictures(1, 5 * 16, 7 * 16, salt=5),
        "mask_image": half_mask(1, 5 * 16, 7 * 16),
        "image_reference": pictures(1, SIZE, SIZE, salt=6),
        "strength": 7 / 9,
        "num_inference_steps": 9,
    }


FAMILIES = (
    Family("Flux.2", flux2_pipeline, flux2_call),
    Family("Flux.2", flux2_pipeline, edit_call, feature="edit"),
    Family("Flux.2 klein", klein_pipeline, klein_call),
    Family("Flux.2 klein", klein_pipeline, klein_edit_call, feature="edit"),
    Family("Flux.2 klein", klein_inpaint, klein_inpaint_call, feature="inpaint"),
)
