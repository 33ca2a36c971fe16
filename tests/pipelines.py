"""Small real diffusers pipelines with random weights, and the calls that run them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

TEXT_TOKENS = 7
POOLED = 24
JOINT = 32


def shake(module: torch.nn.Module, seed: int) -> None:
    """Give every parameter a size that matters: fresh layers are too close to the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim < 2 else 1.2 / parameter[0].numel() ** 0.5
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise)


def sd3_transformer(
    *, dual: bool = False, layers: int = 3, seed: int = 0, in_channels: int = 4, channels: int = 4
) -> SD3Transformer2DModel:
    """SD3 (or SD3.5 with ``dual``: a second attention in two blocks, and qk_norm)."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=in_channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=32,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=24,
        dual_attention_layers=(0, 1) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )
    shake(transformer, seed)
    return transformer.eval()


def tiny_vae(channels: int = 4) -> AutoencoderKL:
    """An autoencoder with a factor of 2."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()


def sd3_pipeline(
    *, dual: bool = False, seed: int = 0, scheduler: Any = None, **kwargs: Any
) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline without text encoders: calls give embeddings."""
    pipe = StableDiffusion3Pipeline(
        transformer=sd3_transformer(dual=dual, seed=seed, **kwargs),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3_inputs(
    images: int = 1, *, seed: int = 0, height: int = 24, width: int = 40
) -> dict[str, Any]:
    """Arguments of one call; image ``i`` is the same whatever the batch.

    The default size has 6 x 10 = 60 image tokens (factor 2, patch 2).
    """

    def rows(*shape: int, salt: int) -> torch.Tensor:
        return torch.cat(
            [
                torch.randn(
                    1, *shape, generator=torch.Generator().manual_seed(1000 * seed + 10 * i + salt)
                )
                for i in range(images)
            ]
        )

    return {
        "prompt_embeds": rows(TEXT_TOKENS, JOINT, salt=1),
        "negative_prompt_embeds": rows(TEXT_TOKENS, JOINT, salt=2),
        "pooled_prompt_embeds": rows(POOLED, salt=3),
        "negative_pooled_prompt_embeds": rows(POOLED, salt=4),
        "height": 4 * (height // 4),
        "width": 4 * (width // 4),
        "num_inference_steps": 10,
        "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(100 * seed + i) for i in range(images)],
        "output_type": "latent",
    }


def take(inputs: dict[str, Any], image: int) -> dict[str, Any]:
    """The call that makes one image of a batch alone."""
    return {
        name: value[image : image + 1] if isinstance(value, torch.Tensor | list) else value
        for name, value in inputs.items()
    }


def hooks_of(module: torch.nn.Module) -> int:
    """How many hooks a module and its parts have."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def processors_of(transformer: Any) -> list[Any]:
    """The attention processors, in order."""
    return list(transformer.attn_processors.values())


def is_stock(pipe: Any, processors: list[Any]) -> bool:
    """Whether nothing of RAS is left on a pipeline that had these processors."""
    return (
        type(pipe) is StableDiffusion3Pipeline
        and type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
        and hooks_of(pipe.transformer) == 0
        and all(a is b for a, b in zip(processors_of(pipe.transformer), processors, strict=True))
    )
