"""The latent space: a fixed linear map of 4x4 pixel patches, written down here.

The autoencoder's encoder is trained to compute this map and its decoder to invert it. The map
being known beforehand, diffusion training needs no trained autoencoder and can start first.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 4


@dataclass(frozen=True)
class Coefficient:
    """One latent channel: colour axis, frequencies down and across, mean and deviation."""

    axis: int
    down: int
    across: int
    deviation: float
    mean: float = 0.0


# The twelve strongest cosines, with their statistics over rendered scenes.
CHANNELS: Final = (
    Coefficient(0, 0, 0, 3.45, 2.4),
    Coefficient(1, 0, 0, 2.00, 0.6),
    Coefficient(2, 0, 0, 1.20, -0.2),
    Coefficient(0, 0, 1, 0.30),
    Coefficient(0, 1, 0, 0.30),
    Coefficient(1, 0, 1, 0.19),
    Coefficient(1, 1, 0, 0.19),
    Coefficient(2, 0, 1, 0.12),
    Coefficient(2, 1, 0, 0.12),
    Coefficient(0, 1, 1, 0.13),
    Coefficient(0, 0, 2, 0.12),
    Coefficient(0, 2, 0, 0.12),
)
GAIN: Final = 1.2  # brings the mean square of all channels together to one


def _cosine(frequency: int) -> list[float]:
    norm = math.sqrt((1 if frequency == 0 else 2) / PATCH)
    return [norm * math.cos(math.pi * (i + 0.5) * frequency / PATCH) for i in range(PATCH)]


# Orthonormal colour axes: brightness, red against blue, green against both.
_THIRD, _HALF, _SIXTH = math.sqrt(1 / 3), math.sqrt(1 / 2), math.sqrt(1 / 6)
COLOUR_AXES: Final = (
    (_THIRD, _THIRD, _THIRD),
    (_HALF, 0.0, -_HALF),
    (-_SIXTH, 2 * _SIXTH, -_SIXTH),
)


@functools.cache
def _basis() -> Tensor:
    """Orthonormal rows, one per channel: [channel, 3, 4, 4]."""
    rows = [
        torch.einsum(
            "c,y,x->cyx",
            torch.tensor(COLOUR_AXES[channel.axis]),
            torch.tensor(_cosine(channel.down)),
            torch.tensor(_cosine(channel.across)),
        )
        for channel in CHANNELS
    ]
    return torch.stack(rows)


def _statistics() -> tuple[Tensor, Tensor]:
    mean = torch.tensor([channel.mean for channel in CHANNELS])
    # The square root keeps strong channels strong: the loss weighs what the eye sees first.
    scale = torch.tensor([GAIN / math.sqrt(channel.deviation) for channel in CHANNELS])
    return mean[:, None, None], scale[:, None, None]


def to_latents(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in -1 to 1 to latents [B, 12, H / 4, W / 4]."""
    mean, scale = _statistics()
    return (F.conv2d(images, _basis(), stride=PATCH) - mean) * scale


def to_images(latents: Tensor) -> Tensor:
    """The best linear inverse of `to_latents`; what the decoder has to beat."""
    mean, scale = _statistics()
    images = F.conv_transpose2d(latents / scale + mean, _basis(), stride=PATCH)
    return images.clamp(-1, 1)
