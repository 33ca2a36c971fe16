"""Small real pipelines of VisualCloze, which draws the missing pictures of a grid of examples."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, VisualClozeGenerationPipeline, VisualClozePipeline
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from conftest import LETTERS, clip_tokenizer
from families_flux import (
    FLUX_JOINT,
    FLUX_POOLED,
    FLUX_TEXT,
    fill_pipeline,
    generators,
    pictures,
)
from family_laws import STEPS, Family

RESOLUTION = 16  # side of a square as large as one picture, in pixels


@functools.cache
def clip() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return clip_tokenizer(Path(folder))


def text_components() -> dict[str, Any]:
    """The pipeline takes no embeddings, so there are text encoders, which read letters."""
    tokenizer = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        + [(letter, -1.0) for letter in ["▁", *LETTERS]],
        extra_ids=0,
        model_max_length=64,
    )
    torch.manual_seed(0)
    pooled = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip()),
            hidden_size=FLUX_POOLED,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=48,
            bos_token_id=clip().bos_token_id,
            eos_token_id=clip().eos_token_id,
            pad_token_id=clip().pad_token_id,
        )
    )
    joint = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=FLUX_JOINT,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
        )
    )
    return {
        "tokenizer": clip(),
        "text_encoder": pooled.eval(),
        "tokenizer_2": tokenizer,
        "text_encoder_2": joint.eval(),
    }


def visualcloze_pipeline(kind: Any = VisualClozePipeline) -> Any:
    stock = fill_pipeline()
    parts = {name: getattr(stock, name) for name in ("scheduler", "vae", "transformer")}
    pipe = kind(**parts, **text_components(), resolution=RESOLUTION)
    for part in (pipe, *vars(pipe).values()):
        if isinstance(part, DiffusionPipeline):
            part.set_progress_bar_config(disable=True)
    return pipe


def generation_pipeline() -> Any:
    return visualcloze_pipeline(VisualClozeGenerationPipeline)


def drawing(width: int, height: int, salt: int) -> Image.Image:
    values = (255 * pictures(1, height, width, salt=salt)[0]).byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def generation_call(images: int) -> dict[str, Any]:
    """An example of 3 x 4 tokens a picture, and a query of 5 x 3 whose second one is missing."""
    examples = [
        [
            [drawing(18, 12, salt=10 * image + 5), drawing(18, 12, salt=10 * image + 6)],
            [drawing(12, 20, salt=10 * image + 7), None],
        ]
        for image in range(images)
    ]
    return {
        "task_prompt": ["edges to a drawing", "a drawing to edges"][:images],
        "content_prompt": ["a cat", "a dog"][:images],
        "image": examples,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.5,
        "max_sequence_length": FLUX_TEXT,
        "generator": generators(images),
    }


def visualcloze_call(images: int) -> dict[str, Any]:
    return generation_call(images) | {"upsampling_strength": 0}


FAMILIES = (
    Family("VisualCloze", generation_pipeline, generation_call, feature="grid of examples"),
    Family("VisualCloze", visualcloze_pipeline, visualcloze_call, feature="upsampled grid"),
)
