"""What the small pipelines of several families are made of."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL

from pipelines import shake


def near_one(model: torch.nn.Module) -> None:
    """Random weights that matter, with norms near one so that attention chooses."""
    shake(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    model.eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_mask(length: int, lengths: list[int]) -> torch.Tensor:
    """Which of the tokens are text: so many of each row."""
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def deep_vae(channels: int = 4) -> AutoencoderKL:
    """An autoencoder with a factor of 8, for pipelines that take it for granted."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()
