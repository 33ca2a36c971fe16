"""Small real pipelines of Qwen-Image that edit pictures, or take them apart into layers.

These pipelines bring every picture to about 1024 x 1024 pixels (640 x 640 for layers), so their
autoencoder makes tokens of 128 x 128 pixels here.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from PIL import Image
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

from families_flux import generators, pictures
from families_qwen import qwen_call, qwen_pipeline, qwen_transformer, qwen_vae
from family_laws import Family


class CoarseAutoencoder(AutoencoderKLQwenImage):
    """Averages over squares of 32 pixels before it encodes."""

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        return super().encode(F.avg_pool3d(x, (1, 32, 32)), return_dict)


def coarse_vae() -> Any:
    vae = qwen_vae(CoarseAutoencoder)
    vae.temperal_downsample = [False] * 6  # the pipelines read their factor of 64 off its length
    return vae


def drawings(images: int, width: int, height: int) -> list[Image.Image]:
    """Pictures whose form makes 1152 x 896 pixels of about a million, or 768 x 512 of 640 x 640."""
    values = (255 * pictures(images, 5, 7, salt=5)).byte().permute(0, 2, 3, 1).numpy()
    nearest = Image.Resampling.NEAREST
    return [Image.fromarray(value).resize((width, height), nearest) for value in values]


def edit_pipeline(kind: Any = QwenImageEditPipeline, **components: Any) -> Any:
    return qwen_pipeline(kind, vae=coarse_vae(), processor=None, **components)


def edit_call(images: int) -> dict[str, Any]:
    """5 x 9 tokens are made beside 7 x 9 of the reference."""
    return qwen_call(images) | {
        "image": drawings(images, 81, 64),
        "height": 5 * 128,
        "width": 9 * 128,
    }


def edit_plus() -> Any:
    """As the 2511 release: references are modulated as at timestep 0."""
    transformer = qwen_transformer(zero_cond_t=True)
    return edit_pipeline(QwenImageEditPlusPipeline, transformer=transformer)


def edit_plus_call(images: int) -> dict[str, Any]:
    """One prompt, two references."""
    return {
        **edit_call(1),
        "image": drawings(2, 81, 64),
        "num_images_per_prompt": images,
        "generator": generators(images),
    }


def edit_inpaint() -> Any:
    return edit_pipeline(QwenImageEditInpaintPipeline)


def edit_inpaint_call(images: int) -> dict[str, Any]:
    """The size is that of the picture; seven of nine steps."""
    mask = Image.new("L", (81, 64), 0)
    mask.paste(255, (0, 0, 40, 64))
    return edit_call(images) | {
        "mask_image": [mask] * images,
        "strength": 7 / 9,
        "num_inference_steps": 9,
    }


class QwenImageLayeredPipeline(diffusers.QwenImageLayeredPipeline):  # type: ignore[misc]
    """Gives the latents of the last step; that of diffusers 0.42.1 fails if asked for them."""

    def __call__(self, **call: Any) -> tuple[torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            kept.append(values["latents"])
            return {}

        super().__call__(**call | {"output_type": "pt", "callback_on_step_end": keep})
        return (kept[-1],)


def layered_pipeline() -> Any:
    """Only the dtype of its text encoder is asked for."""
    encoder = T5EncoderModel(
        T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    transformer = qwen_transformer(use_layer3d_rope=True, use_additional_t_cond=True)
    return edit_pipeline(QwenImageLayeredPipeline, transformer=transformer, text_encoder=encoder)


def layered_call(images: int) -> dict[str, Any]:
    """Two layers and their composition, 4 x 6 tokens each, beside 4 x 6 of the picture."""
    call = qwen_call(images)
    return {name: call[name] for name in call if name not in {"height", "width"}} | {
        "image": drawings(images, 91, 61),
        "prompt": ["a"] * images,
        "layers": 2,
    }


FAMILIES = (
    Family("Qwen-Image-Edit", edit_pipeline, edit_call, feature="edit"),
    Family("Qwen-Image-Edit", edit_plus, edit_plus_call, feature="edit with several references"),
    Family("Qwen-Image-Edit", edit_inpaint, edit_inpaint_call, feature="inpaint"),
    Family("Qwen-Image-Layered", layered_pipeline, layered_call, feature="layers"),
)
