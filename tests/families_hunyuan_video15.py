"""Small real pipelines of HunyuanVideo 1.5."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from clips import generators, picture, quiet, rows, shaken
from family_laws import STEPS, Family

TEXT, TEXT_WIDTH, TEXT_2, TEXT_2_WIDTH, IMAGE_WIDTH = 6, 16, 4, 12, 8
PICTURE_TOKENS = 4
HEIGHT, WIDTH, FRAMES = 32, 80, 9  # with factors of 8 and 4: 3 frames of 4 x 10


def hunyuan_vae() -> AutoencoderKLHunyuanVideo15:
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    ).eval()


def hunyuan_transformer() -> HunyuanVideo15Transformer3DModel:
    """Beside the noise come the given picture, four channels, and where it is given."""
    return shaken(
        HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_refiner_layers=1,
            text_embed_dim=TEXT_WIDTH,
            text_embed_2_dim=TEXT_2_WIDTH,
            image_embed_dim=IMAGE_WIDTH,
            rope_axes_dim=(4, 6, 6),
            target_size=48,
        )
    )


def image_encoder() -> SiglipVisionModel:
    """Four tokens of a picture."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return SiglipVisionModel(config).eval()


def hunyuan_pipeline(kind: Any = HunyuanVideo15Pipeline, **components: Any) -> Any:
    pipe = quiet(
        kind,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=hunyuan_transformer(),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
        **components,
    )
    pipe.vision_num_semantic_tokens = PICTURE_TOKENS
    return pipe


def image_to_video() -> Any:
    processor = SiglipImageProcessor(size={"height": 16, "width": 16})
    return hunyuan_pipeline(
        HunyuanVideo15ImageToVideoPipeline,
        image_encoder=image_encoder(),
        feature_extractor=processor,
    )


def text_mask(length: int, lengths: list[int]) -> torch.Tensor:
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def hunyuan_call(images: int) -> dict[str, Any]:
    """Two texts for each video, of all lengths."""
    return {
        "prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=1),
        "prompt_embeds_mask": text_mask(TEXT, [6 - 2 * i for i in range(images)]),
        "prompt_embeds_2": rows(images, TEXT_2, TEXT_2_WIDTH, salt=2),
        "prompt_embeds_mask_2": text_mask(TEXT_2, [1 + i for i in range(images)]),
        "negative_prompt_embeds": rows(images, TEXT, TEXT_WIDTH, salt=3),
        "negative_prompt_embeds_mask": text_mask(TEXT, [3 + i for i in range(images)]),
        "negative_prompt_embeds_2": rows(images, TEXT_2, TEXT_2_WIDTH, salt=4),
        "negative_prompt_embeds_mask_2": text_mask(TEXT_2, [2 + i for i in range(images)]),
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "generator": generators(images),
    }


def from_picture(images: int) -> dict[str, Any]:
    """The size is that of the picture."""
    call = hunyuan_call(images) | {"image": picture(HEIGHT, WIDTH)}
    return {name: value for name, value in call.items() if name not in {"height", "width"}}


HUNYUAN = functools.partial(Family, "HunyuanVideo 1.5")
FAMILIES = (
    HUNYUAN(
        hunyuan_pipeline,
        hunyuan_call,
        feature="text-to-video",
        main=True,
        caches_by_formula=False,
        uncounted=("context_embedder", "context_embedder_2", "image_embedder"),
    ),
    HUNYUAN(image_to_video, from_picture, feature="image-to-video"),
)
