"""Transformers of published widths with few layers, random weights, and inputs for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LuminaNextDiT2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

import ras_dit
from ras_dit.adapters import describe
from ras_dit.cost import forward_flops
from ras_dit.schedule import count_active

Model = Literal["sd3", "lumina"]
TEXT_TOKENS: dict[Model, int] = {"sd3": 333, "lumina": 128}
LATENT_CHANNELS: dict[Model, int] = {"sd3": 16, "lumina": 4}


@dataclass(frozen=True)
class Size:
    """How large a transformer and its inputs are.

    Attributes:
        model: SD3-medium's blocks (width 64 x heads) or Lumina-Next's (72 x heads, a quarter as
            many key heads).
        heads: Query heads: 24 in SD3-medium, 32 in Lumina-Next.
        layers: Blocks.
        height: Image tokens from top to bottom.
        width: Image tokens from left to right.
        text: Text tokens.
        images: Images; guidance doubles the rows of the model batch.
        dtype: dtype of weights and inputs.
    """

    model: Model = "sd3"
    heads: int = 24
    layers: int = 4
    height: int = 32
    width: int = 32
    text: int = 333
    images: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def num_tokens(self) -> int:
        """Image tokens N."""
        return self.height * self.width


class Setting:
    """A transformer and a scheduler, as ``enable`` expects them of a pipeline, and inputs."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        self.size = size
        make = _sd3 if size.model == "sd3" else _lumina
        self.transformer, self.inputs = make(size)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        channels = LATENT_CHANNELS[size.model]
        self.latents = torch.randn(size.images, channels, 2 * size.height, 2 * size.width)
        self.inputs["hidden_states"] = self.latents.repeat(2, 1, 1, 1).to(size.dtype)

    def step(self, timestep: torch.Tensor) -> float:
        """Seconds of one transformer call, with guidance in one batch, and scheduler step."""
        started = time.perf_counter()
        noise = self.transformer(**self.inputs, return_dict=False)[0]
        noise = noise[:, : self.latents.shape[1]].chunk(2)[0]
        self.scheduler.step(noise, timestep, self.latents)
        return time.perf_counter() - started

    def stock(self) -> tuple[float, ...]:
        """Seconds of the second of two stock steps."""
        self.scheduler.set_timesteps(3)
        return (tuple(self.step(t) for t in self.scheduler.timesteps[:2])[1],)

    def accelerated(self, ratios: Sequence[float], **settings: Any) -> tuple[float, ...]:
        """Seconds of a dense step that fills the caches, and of a sparse one for each ratio.

        A dense step before them is not counted: what runs first finds other memory.
        """
        with ras_dit.enable(self, schedule=(1.0, 1.0, *ratios), **settings):
            return self.run(len(ratios))

    def run(self, num_sparse: int) -> tuple[float, ...]:
        """The same of a transformer on which RAS is enabled already."""
        self.scheduler.set_timesteps(2 + num_sparse)
        return tuple(self.step(t) for t in self.scheduler.timesteps)[1:]

    def other(
        self, make: Callable[..., AbstractContextManager[object]], ratio: float
    ) -> tuple[float, ...]:
        """Seconds of the third step under another implementation."""
        with make(self.transformer, self.scheduler, ratio):
            self.scheduler.set_timesteps(3)
            return (tuple(self.step(t) for t in self.scheduler.timesteps)[2],)

    def limit(self, ratio: float, *, keeps_text: bool = False) -> float:
        """FLOPs of a dense step over those of a sparse one."""
        work = describe(self.transformer).work(self.transformer.config)
        size = self.size
        shape = {
            "batch": 2 * size.images,
            "num_tokens": size.num_tokens,
            "num_text_tokens": size.text,
        }
        active = count_active(ratio, size.num_tokens)
        dense = forward_flops(work, num_active=size.num_tokens, **shape)
        return dense / forward_flops(work, num_active=active, keeps_text=keeps_text, **shape)


def _sd3(size: Size) -> tuple[Any, dict[str, Any]]:
    width = 64 * size.heads
    side = 2 * max(size.height, size.width)
    transformer = SD3Transformer2DModel(
        sample_size=side,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        joint_attention_dim=256,
        caption_projection_dim=width,
        pooled_projection_dim=256,
        pos_embed_max_size=side,
    )
    rows = 2 * size.images
    inputs = {
        "encoder_hidden_states": torch.randn(rows, size.text, 256).to(size.dtype),
        "pooled_projections": torch.randn(rows, 256).to(size.dtype),
        "timestep": torch.full((rows,), 500.0),
    }
    # As a plain module: the model's own method warns about layers that it lacks.
    return torch.nn.Module.to(transformer.eval(), size.dtype), inputs


def _lumina(size: Size) -> tuple[Any, dict[str, Any]]:
    transformer = LuminaNextDiT2DModel(
        sample_size=2 * max(size.height, size.width),
        hidden_size=72 * size.heads,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        num_kv_heads=size.heads // 4,
        cross_attention_dim=2048,
    )
    rows = 2 * size.images
    inputs = {
        "encoder_hidden_states": torch.randn(rows, size.text, 2048).to(size.dtype),
        "encoder_mask": torch.ones(rows, size.text),
        "timestep": torch.full((rows,), 0.5),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(72, 384, 384),
        "cross_attention_kwargs": {"base_sequence_length": size.num_tokens},
    }
    # As a plain module: the model's own method warns about layers that it lacks.
    return torch.nn.Module.to(transformer.eval(), size.dtype), inputs
