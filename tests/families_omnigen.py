"""Small real pipelines of OmniGen."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families_flux import generators
from family_laws import STEPS, Family
from family_parts import deep_vae, near_one, quiet

WORDS = ("fox", "tree", "sea", "cat", "and", "<img>", "</img>", "low", "quality", "ugly")


def tokenizer() -> PreTrainedTokenizerFast:
    """A number for each of a few words, and one for all others."""
    vocabulary = {word: number for number, word in enumerate(("<s>", "<pad>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", model_max_length=512
    )


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """``[3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture) / 127.5 - 1.0).permute(2, 0, 1).float()


def omnigen_pipeline() -> Any:
    transformer = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        num_layers=2,
        pad_token_id=1,
        vocab_size=16,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=24,
    )
    near_one(transformer)
    # The pipeline's own way of reading pictures needs torchvision.
    reader = processor_omnigen.OmniGenMultiModalProcessor
    with (
        patch.object(processor_omnigen, "transforms", create=True),
        patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", reader, create=True),
    ):
        pipe = OmniGenPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            vae=deep_vae(),
            tokenizer=tokenizer(),
        )
    pipe.multimodal_processor.image_transform = as_tensor
    return quiet(pipe)


def omnigen_call(images: int) -> dict[str, Any]:
    return {
        "prompt": ["a fox and a tree", "the cat and the sea"][:images],
        "height": 80,
        "width": 112,
        "num_inference_steps": STEPS,
        "generator": generators(images),
    }


def omnigen_edit(images: int) -> dict[str, Any]:
    numbers = np.random.default_rng(0)
    pictures = [
        Image.fromarray(numbers.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(2)
    ]
    prompts = ["<img><|image_1|></img> and a tree", "the sea and <img><|image_1|></img>"]
    return omnigen_call(images) | {
        "prompt": prompts[:images],
        "input_images": [[picture] for picture in pictures[:images]],
    }


FAMILIES = (
    Family("OmniGen", omnigen_pipeline, omnigen_call, caches_by_formula=False),
    Family("OmniGen", omnigen_pipeline, omnigen_edit, feature="edit"),
)
