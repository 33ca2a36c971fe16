"""Small real pipelines of further families and features, with random weights that matter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    SD3ControlNetModel,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from peft import LoraConfig, get_peft_model_state_dict

import ras_dit
from pipelines import JOINT, POOLED, sd3_pipeline, sd3_transformer, shake, tiny_vae
from ras_dit.reference import masked_reference

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
        latents = final_latents(pipe, inputs())
    assert handle.trace is not None
    torch.manual_seed(0)
    return latents, handle.trace, masked_reference(pipe, handle.trace, **inputs())


def final_latents(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """What a run gives; some pipelines encode images with the global generator."""
    torch.manual_seed(0)
    latents: torch.Tensor = pipe(**call).images
    return latents


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())


# -- features of the SD3 family --------------------------------------------------------------------

IP_FEATURES = 12


def sd3_kind(kind: Any, *, seed: int = 0, **components: Any) -> Any:
    """A pipeline of another class on the parts of ``sd3_pipeline``, some of them replaced."""
    parts = sd3_pipeline(seed=seed).components | components
    parts.pop("image_encoder")
    parts.pop("feature_extractor")
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(images: int, channels: int = 3, *, seed: int = 0) -> torch.Tensor:
    """Random pictures of 24 x 40 pixels, in [0, 1]; one of them is the same in every batch."""
    return torch.cat(
        [
            torch.rand(
                1, channels, 24, 40, generator=torch.Generator().manual_seed(7 + 10 * seed + i)
            )
            for i in range(images)
        ]
    )


def sd3_controlnet(seed: int, **settings: Any) -> SD3ControlNetModel:
    """A ControlNet of two layers, for a transformer of three."""
    controlnet = SD3ControlNetModel(
        **{
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": JOINT,
            "caption_projection_dim": 32,
            "pooled_projection_dim": POOLED,
            "pos_embed_max_size": 24,
            **settings,
        }
    )
    shake(controlnet, seed)
    return controlnet.eval()


def ip_adapter(num_processors: int, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of an IP-adapter for the transformers of ``sd3_transformer``."""
    projection = IPAdapterTimeImageProjection(
        embed_dim=IP_FEATURES,
        output_dim=32,
        hidden_dim=64,
        heads=1,
        num_queries=5,
        timestep_in_dim=16,
    )
    shake(projection, seed)
    weights: dict[str, dict[str, torch.Tensor]] = {"ip_adapter": {}}
    weights["image_proj"] = projection.state_dict()
    for index in range(num_processors):
        processor = SD3IPAdapterJointAttnProcessor2_0(32, 32, 16, timesteps_emb_dim=64)
        shake(processor, seed + 1 + index)
        for name, value in processor.state_dict().items():
            weights["ip_adapter"][f"{index}.{name}"] = value
    return weights


@functools.cache
def lora_weights() -> dict[str, torch.Tensor]:
    """A LoRA on attention, feed-forward and output layers, as a pipeline loads it."""
    transformer = sd3_transformer()
    targets = ["to_q", "to_k", "to_v", "add_k_proj", "to_out.0", "net.0.proj", "proj_out"]
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    weights = get_peft_model_state_dict(transformer)
    generator = torch.Generator().manual_seed(0)
    return {
        f"transformer.{name}": 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
    }
