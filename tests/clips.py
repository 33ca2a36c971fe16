"""Parts of small video pipelines: random inputs that are the same in every batch, autoencoders."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pipelines import shake

WORDS = ("<pad>", "<unk>", "a", "dog", "fox")

_Module = TypeVar("_Module", bound=torch.nn.Module)


def rows(images: int, *shape: int, salt: int) -> torch.Tensor:
    """Random rows; those of one video are the same whatever the batch."""
    generators = [torch.Generator().manual_seed(10 * i + salt) for i in range(images)]
    return torch.cat([torch.randn(1, *shape, generator=g) for g in generators])


def generators(images: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(images)]


def picture(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """A random picture."""
    return pictures(1, height, width, seed=seed)[0]


def pictures(frames: int, height: int, width: int, *, seed: int = 0) -> list[Image.Image]:
    """A random video, frame by frame."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


def videos(images: int, frames: int, height: int, width: int) -> torch.Tensor:
    """Random videos ``[B, F, 3, H, W]`` in [0, 1]."""
    return rows(images, frames, 3, height, width, salt=5).sigmoid()


def shaken(module: _Module, seed: int = 0) -> _Module:
    """Random weights that matter, with norms near one: attention then looks at some tokens more."""
    shake(module, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module.eval()


def quiet(kind: Any, **components: Any) -> Any:
    """A pipeline without text encoders and progress bars."""
    text = {"text_encoder": None, "tokenizer": None}
    pipe = kind(**text | components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_vae(channels: int = 4) -> AutoencoderKLWan:
    """An autoencoder with a factor of 4 in time and space."""
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        scale_factor_spatial=4,
    ).eval()


def text_encoder(width: int) -> T5EncoderModel:
    """A text encoder for pipelines that take no embeddings."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config).eval()


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )


def image_encoder(width: int) -> CLIPVisionModel:
    """Five tokens of a picture."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModel(config).eval()


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
