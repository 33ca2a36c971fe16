"""Small real pipelines of Chroma."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    ChromaInpaintPipeline,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

from families_flux import (
    FLUX_JOINT,
    FLUX_TEXT,
    HEIGHT,
    WIDTH,
    deprecations_allowed,
    generators,
    half_mask,
    pictures,
    rows,
    shaken,
)
from family_laws import STEPS, Family
from pipelines import tiny_vae


def chroma_pipeline(kind: Any = ChromaPipeline) -> Any:
    with deprecations_allowed():
        transformer = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=FLUX_JOINT,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=24,
            approximator_layers=2,
        )
    pipe = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=shaken(transformer),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_mask(images: int, shortest: int) -> torch.Tensor:
    """Ones at the text, as numbers: the pipeline's own encoder gives no other mask."""
    lengths = torch.tensor([shortest + i % 2 for i in range(images)])
    return (torch.arange(FLUX_TEXT) < lengths[:, None]).float()


def chroma_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=1),
        "prompt_attention_mask": text_mask(images, 4),
        "negative_prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=2),
        "negative_prompt_attention_mask": text_mask(images, 2),
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(images),
    }


def chroma_img2img() -> Any:
    return chroma_pipeline(ChromaImg2ImgPipeline)


def img2img_call(images: int) -> dict[str, Any]:
    """Seven of nine steps."""
    given = {"image": pictures(images, salt=5), "strength": 7 / 9, "num_inference_steps": 9}
    return chroma_call(images) | given


def chroma_inpaint() -> Any:
    pipe = chroma_pipeline(ChromaInpaintPipeline)
    # The pipeline of diffusers 0.42.1 asks for a setting that the model does not have.
    pipe.transformer.register_to_config(guidance_embeds=False)
    return pipe


def inpaint_call(images: int) -> dict[str, Any]:
    return img2img_call(images) | {"mask_image": half_mask(images)}


FAMILIES = (
    # Besides keys, values and outputs, the caches hold the mask of each guidance branch.
    Family("Chroma", chroma_pipeline, chroma_call, caches_by_formula=False),
    Family("Chroma", chroma_img2img, img2img_call, feature="img2img"),
    Family("Chroma", chroma_inpaint, inpaint_call, feature="inpaint"),
)
