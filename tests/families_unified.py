"""Small real pipelines whose transformers see one sequence of text and image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from families import pictures
from families_flux import generators, rows
from family_laws import STEPS, Family
from family_parts import near_one, quiet, text_mask
from pipelines import tiny_vae

TEXT, FEATURES = 7, 20


# -- Lumina-Image-2 --------------------------------------------------------------------------------


def lumina2_transformer() -> Lumina2Transformer2DModel:
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16),
        cap_feat_dim=FEATURES,
    )
    near_one(transformer)
    return transformer


def lumina2_pipeline() -> Any:
    return quiet(
        Lumina2Pipeline(
            transformer=lumina2_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(),
            text_encoder=None,
            tokenizer=None,
        )
    )


def lumina2_call(images: int) -> dict[str, Any]:
    """Texts of full length: 5 x 9 image tokens of 16 pixels."""
    return {
        "prompt_embeds": rows(images, TEXT, FEATURES, salt=1),
        "negative_prompt_embeds": rows(images, TEXT, FEATURES, salt=2),
        "prompt_attention_mask": text_mask(TEXT, [TEXT] * images),
        "negative_prompt_attention_mask": text_mask(TEXT, [TEXT] * images),
        "height": 80,
        "width": 144,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
    }


def lumina2_lengths(images: int) -> dict[str, Any]:
    """Each text has a length of its own, and negative ones others than positive ones."""
    return lumina2_call(images) | {
        "prompt_attention_mask": text_mask(TEXT, [5 - 2 * i for i in range(images)]),
        "negative_prompt_attention_mask": text_mask(TEXT, [2 + i for i in range(images)]),
    }


def lumina2_truncated(images: int) -> dict[str, Any]:
    return lumina2_lengths(images) | {"cfg_trunc_ratio": 0.5}


# -- Z-Image ---------------------------------------------------------------------------------------


def z_image_transformer() -> ZImageTransformer2DModel:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=FEATURES,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    )
    near_one(transformer)
    return transformer


def z_image_controlnet(**settings: Any) -> ZImageControlNetModel:
    controlnet = ZImageControlNetModel(
        **{
            "control_layers_places": [0, 1],
            "control_refiner_layers_places": [0],
            "control_in_dim": 4,
            "dim": 32,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            **settings,
        }
    )
    near_one(controlnet)
    return controlnet


def z_image_pipeline(kind: Any = ZImagePipeline, **control: Any) -> Any:
    if control:
        control = {"controlnet": z_image_controlnet(**control)}
    return quiet(
        kind(
            transformer=z_image_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(),
            text_encoder=None,
            tokenizer=None,
            **control,
        )
    )


def texts(images: int, *, salt: int) -> list[torch.Tensor]:
    """One text for each image, of a length of its own."""
    whole = rows(images, TEXT, FEATURES, salt=salt)
    return [text[: TEXT - i] for i, text in enumerate(whole)]


def z_image_call(images: int) -> dict[str, Any]:
    """4 x 16 tokens, which need no filling up."""
    return {
        "prompt_embeds": texts(images, salt=1),
        "negative_prompt_embeds": texts(images, salt=2),
        "height": 16,
        "width": 64,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": generators(images),
    }


def z_image_filled(images: int) -> dict[str, Any]:
    """6 x 10 tokens, filled up to 64; guidance stops in mid-run, so that the batch changes."""
    return z_image_call(images) | {"height": 24, "width": 40, "cfg_truncation": 0.4}


def z_image_distilled(images: int) -> dict[str, Any]:
    return z_image_call(images) | {"height": 24, "width": 40, "guidance_scale": 0.0}


def z_image_long_text(images: int) -> dict[str, Any]:
    """Texts on both sides of the length to which they are filled up."""
    long = rows(images, 40, FEATURES, salt=3)
    return z_image_filled(images) | {
        "prompt_embeds": [text[: 40 - 20 * (i % 2)] for i, text in enumerate(long)]
    }


def z_image_from_picture(images: int, **change: Any) -> dict[str, Any]:
    size = {"height": 24, "width": 40, "strength": 0.8}
    return z_image_call(images) | size | {"image": pictures(images)} | change


def z_image_inpaint(images: int) -> dict[str, Any]:
    return z_image_from_picture(images, mask_image=pictures(images, 1, seed=1).round())


def z_image_control(images: int, **change: Any) -> dict[str, Any]:
    size = {"height": 24, "width": 40, "controlnet_conditioning_scale": 0.8}
    return z_image_call(images) | size | {"control_image": pictures(images, seed=2)} | change


def z_image_control_inpaint(images: int) -> dict[str, Any]:
    mask_image = pictures(images, 1, seed=1).round()
    return z_image_control(images, image=pictures(images), mask_image=mask_image)


INPAINT_CHANNELS = 4 + 1 + 4  # control picture, mask, masked picture

FAMILIES = (
    Family(
        "Lumina-Image-2",
        lumina2_pipeline,
        lumina2_call,
        wrong={"starts": lambda a: a["encoder_attention_mask"].new_zeros(len(a["hidden_states"]))},
    ),
    Family("Lumina-Image-2", lumina2_pipeline, lumina2_lengths, feature="texts of all lengths"),
    Family("Lumina-Image-2", lumina2_pipeline, lumina2_truncated, feature="truncated guidance"),
    Family("Z-Image", z_image_pipeline, z_image_call),
    Family("Z-Image", z_image_pipeline, z_image_filled, feature="truncated guidance"),
    Family("Z-Image", z_image_pipeline, z_image_distilled, feature="no guidance"),
    Family("Z-Image", z_image_pipeline, z_image_long_text, feature="texts of all lengths"),
    Family(
        "Z-Image",
        functools.partial(z_image_pipeline, ZImageImg2ImgPipeline),
        z_image_from_picture,
        feature="img2img",
    ),
    Family(
        "Z-Image",
        functools.partial(z_image_pipeline, ZImageInpaintPipeline),
        z_image_inpaint,
        feature="inpaint",
    ),
    Family(
        "Z-Image",
        functools.partial(z_image_pipeline, ZImageControlNetPipeline, control_in_dim=4),
        z_image_control,
        feature="controlnet",
    ),
    Family(
        "Z-Image",
        functools.partial(
            z_image_pipeline,
            ZImageControlNetInpaintPipeline,
            control_in_dim=INPAINT_CHANNELS,
            add_control_noise_refiner="control_noise_refiner",
        ),
        z_image_control_inpaint,
        feature="controlnet inpaint",
    ),
)
