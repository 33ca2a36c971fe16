"""Small real pipelines of the Qwen-Image family."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from families_flux import HEIGHT, WIDTH, generators, half_mask, pictures, rows, shaken
from family_laws import STEPS, Family

QWEN_TEXT, QWEN_JOINT = 9, 20


def qwen_transformer(**settings: Any) -> QwenImageTransformer2DModel:
    transformer: QwenImageTransformer2DModel = shaken(
        QwenImageTransformer2DModel(
            **{
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 4,
                "num_layers": 3,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": QWEN_JOINT,
                "axes_dims_rope": (4, 6, 6),
                **settings,
            }
        )
    )
    return transformer


def qwen_vae(kind: Any = AutoencoderKLQwenImage, **settings: Any) -> Any:
    """An autoencoder with a factor of 2."""
    torch.manual_seed(0)
    return kind(
        **{
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False],
            "latents_mean": [0.1, -0.1, 0.2, 0.0],
            "latents_std": [0.3, 0.2, 0.4, 0.3],
            **settings,
        }
    ).eval()


def qwen_pipeline(kind: Any = QwenImagePipeline, **components: Any) -> Any:
    pipe = kind(
        **{
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
            "vae": qwen_vae(),
            "text_encoder": None,
            "tokenizer": None,
            "transformer": qwen_transformer(),
            **components,
        }
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_mask(images: int, shortest: int) -> torch.Tensor:
    """Texts of different lengths; none of one image alone, whatever the batch, is whole."""
    lengths = torch.tensor([shortest + i % 2 for i in range(images)])
    return (torch.arange(QWEN_TEXT) < lengths[:, None]).long()


def qwen_call(images: int) -> dict[str, Any]:
    return {
        "prompt_embeds": rows(images, QWEN_TEXT, QWEN_JOINT, salt=1),
        "prompt_embeds_mask": text_mask(images, 6),
        "negative_prompt_embeds": rows(images, QWEN_TEXT, QWEN_JOINT, salt=2),
        "negative_prompt_embeds_mask": text_mask(images, 3),
        "true_cfg_scale": 3.0,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "generator": generators(images),
    }


def qwen_unguided(images: int) -> dict[str, Any]:
    """No second call, and prompts without padding, for which there is no mask."""
    return {
        name: value
        for name, value in qwen_call(images).items()
        if not name.startswith("negative") and not name.endswith("mask")
    } | {"true_cfg_scale": 1.0}


def qwen_img2img() -> Any:
    return qwen_pipeline(QwenImageImg2ImgPipeline)


def img2img_call(images: int) -> dict[str, Any]:
    """Seven of nine steps."""
    given = {"image": pictures(images, salt=5), "strength": 7 / 9, "num_inference_steps": 9}
    return qwen_call(images) | given


def qwen_inpaint() -> Any:
    return qwen_pipeline(QwenImageInpaintPipeline)


def inpaint_call(images: int) -> dict[str, Any]:
    return img2img_call(images) | {"mask_image": half_mask(images)}


def qwen_controlnet(extra: int = 0) -> QwenImageControlNetModel:
    """A ControlNet of two layers, for a transformer of three."""
    controlnet: QwenImageControlNetModel = shaken(
        QwenImageControlNetModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=QWEN_JOINT,
            axes_dims_rope=(4, 6, 6),
            extra_condition_channels=extra,
        ),
        seed=1,
    )
    return controlnet


def controlnet_pipeline() -> Any:
    return qwen_pipeline(QwenImageControlNetPipeline, controlnet=qwen_controlnet())


def controlnet_call(images: int) -> dict[str, Any]:
    return qwen_call(images) | {"control_image": pictures(images, salt=7)}


def controlnet_inpaint() -> Any:
    """The mask comes in a channel of its own for each of the four pixels of a token."""
    return qwen_pipeline(QwenImageControlNetInpaintPipeline, controlnet=qwen_controlnet(extra=4))


def controlnet_inpaint_call(images: int) -> dict[str, Any]:
    return controlnet_call(images) | {"control_mask": half_mask(images)}


FAMILIES = (
    Family("Qwen-Image", qwen_pipeline, qwen_call),
    Family("Qwen-Image", qwen_pipeline, qwen_unguided, feature="no guidance"),
    Family("Qwen-Image", qwen_img2img, img2img_call, feature="img2img"),
    Family("Qwen-Image", qwen_inpaint, inpaint_call, feature="inpaint"),
    Family("Qwen-Image", controlnet_pipeline, controlnet_call, feature="controlnet"),
    Family("Qwen-Image", controlnet_inpaint, controlnet_inpaint_call, feature="controlnet inpaint"),
)
