"""Small real pipelines of models that were made after Flux.1: LongCat, Ovis, Bria."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    BriaPipeline,
    BriaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from torch.nn import functional as F

from families_flux import (
    FLUX_JOINT,
    FLUX_TEXT,
    HEIGHT,
    WIDTH,
    generators,
    rows,
    shaken,
)
from families_qwen_edit import drawings
from family_laws import STEPS, Family
from pipelines import tiny_vae


def kin_pipeline(kind: Any, transformer: Any, **components: Any) -> Any:
    pipe = kind(
        **{
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": tiny_vae(),
            "text_encoder": None,
            "tokenizer": None,
            "transformer": shaken(transformer),
            **components,
        }
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sizes(**settings: Any) -> dict[str, Any]:
    return {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": FLUX_JOINT,
        "axes_dims_rope": [4, 6, 6],
        **settings,
    }


def kin_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=1),
        "negative_prompt_embeds": rows(images, FLUX_TEXT, FLUX_JOINT, salt=2),
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(images),
    }


def ovis_pipeline() -> Any:
    return kin_pipeline(OvisImagePipeline, OvisImageTransformer2DModel(**sizes(out_channels=16)))


def ovis_call(images: int) -> dict[str, Any]:
    return kin_call(images) | {"negative_prompt": None}


def bria_pipeline() -> Any:
    return kin_pipeline(BriaPipeline, BriaTransformer2DModel(**sizes()))


def read(prompts: list[str]) -> torch.Tensor:
    """Embeddings of prompts, which the pipelines of LongCat do not take from the caller."""
    return torch.cat(
        [rows(1, FLUX_TEXT, FLUX_JOINT, salt=sum(prompt.encode())) for prompt in prompts]
    )


class NoProcessor:
    """Stands for what would prepare pictures for a text encoder."""

    image_processor = None


class LongCatImagePipeline(diffusers.LongCatImagePipeline):  # type: ignore[misc]
    """Reads without a text encoder."""

    def _encode_prompt(self, prompt: list[str]) -> torch.Tensor:
        return read(prompt)


class LongCatImageEditPipeline(diffusers.LongCatImageEditPipeline):  # type: ignore[misc]
    """Reads without a text encoder."""

    def _encode_prompt(self, prompt: list[str], _image: Any) -> torch.Tensor:
        return read(prompt)


class CoarseAutoencoder(AutoencoderKL):
    """Averages over squares of 32 pixels before it encodes."""

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        return super().encode(F.avg_pool2d(x, 32), return_dict)


def longcat_pipeline(kind: Any = LongCatImagePipeline) -> Any:
    """The pipelines take 16 channels of latents for granted, 64 with packing."""
    torch.manual_seed(0)
    vae = CoarseAutoencoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()
    transformer = LongCatImageTransformer2DModel(**sizes(in_channels=64))
    return kin_pipeline(kind, transformer, vae=vae, text_processor=NoProcessor())


def longcat_call(images: int) -> dict[str, Any]:
    call = kin_call(images)
    return {name: value for name, value in call.items() if not name.endswith("embeds")} | {
        "prompt": ["a cat", "a dog"][:images],
        "negative_prompt": ["blur", "blur"][:images],
        "enable_prompt_rewrite": False,
    }


def longcat_edit() -> Any:
    """Pictures are brought to about 1024 x 1024 pixels; tokens are of 128 x 128 here."""
    pipe = longcat_pipeline(LongCatImageEditPipeline)
    pipe.vae_scale_factor = 64
    return pipe


def longcat_edit_call(images: int) -> dict[str, Any]:
    """7 x 9 tokens are made beside as many references; one prompt at a time."""
    call = longcat_call(1)
    for name in ("height", "width", "enable_prompt_rewrite"):
        del call[name]
    return call | {
        "image": drawings(1, 81, 64)[0],
        "num_images_per_prompt": images,
        "generator": generators(images),
    }


FAMILIES = (
    Family("LongCat-Image", longcat_pipeline, longcat_call),
    Family("LongCat-Image", longcat_edit, longcat_edit_call, feature="edit"),
    Family("Ovis-Image", ovis_pipeline, ovis_call),
    Family("Bria 3", bria_pipeline, kin_call),
)
