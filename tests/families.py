"""Small real pipelines of further families and features, with random weights that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline

import ras_dit
from pipelines import shake, tiny_vae
from ras_dit.verify import masked_reference

LUMINA_TEXT = 9
LUMINA_CROSS = 20


def lumina_transformer(*, seed: int = 0, **settings: Any) -> LuminaNextDiT2DModel:
    """Lumina-Next with two query heads to each key head, and a trained size of 8 x 8 latents."""
    transformer = LuminaNextDiT2DModel(
        **{
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "qk_norm": True,
            "cross_attention_dim": LUMINA_CROSS,
            **settings,
        }
    )
    shake(transformer, seed)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            # Norms near one: attention then looks at some tokens much more than at others.
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return transformer.eval()


def lumina_pipeline(*, seed: int = 0, scheduler: Any = None, **settings: Any) -> LuminaPipeline:
    """A Lumina-Next pipeline without a text encoder: calls give embeddings."""
    pipe = LuminaPipeline(
        transformer=lumina_transformer(seed=seed, **settings),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lumina_inputs(
    images: int = 1, *, seed: int = 0, height: int = 96, width: int = 160
) -> dict[str, Any]:
    """Arguments of one call; image ``i`` is the same whatever the batch.

    The default size has 6 x 10 = 60 image tokens (factor 8, patch 2). Texts differ in length.
    """

    def rows(*shape: int, salt: int) -> torch.Tensor:
        seeds = [1000 * seed + 10 * i + salt for i in range(images)]
        return torch.cat(
            [torch.randn(1, *shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )

    def mask(shortest: int) -> torch.Tensor:
        lengths = torch.tensor([shortest + i % 3 for i in range(images)])
        return (torch.arange(LUMINA_TEXT) < lengths[:, None]).long()

    return {
        "prompt_embeds": rows(LUMINA_TEXT, LUMINA_CROSS, salt=1),
        "negative_prompt_embeds": rows(LUMINA_TEXT, LUMINA_CROSS, salt=2),
        "prompt_attention_mask": mask(6),
        "negative_prompt_attention_mask": mask(2),
        "height": height,
        "width": width,
        "num_inference_steps": 10,
        "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(100 * seed + i) for i in range(images)],
        "output_type": "latent",
    }


def accelerated(
    pipe: Any, inputs: Callable[[], dict[str, Any]], **config: Any
) -> tuple[torch.Tensor, ras_dit.Trace, torch.Tensor]:
    """Final latents of an accelerated run, its trace, and the masked reference's latents.

    ``inputs`` gives the arguments of a call; it is asked for each run, as generators are used up.
    """
    settings = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,), **config}
    with ras_dit.enable(pipe, **settings) as handle:
        latents = pipe(**inputs()).images
    assert handle.trace is not None
    return latents, handle.trace, masked_reference(pipe, handle.trace, **inputs())


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())
