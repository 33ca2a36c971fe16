"""The judge's network: a small fully convolutional reader of emoji pictures.

One answer at every place of a grid of 16 pixels: which thing has its middle here (or none), how
large it is and where exactly. Trained by `training/judge.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from ras_dit.world import OBJECTS, SHAPES, Thing

STRIDE: Final = 16  # pixels from one place of the grid to the next
FEATURES: Final = 128  # width of the last layer, and of the features of the Frechet distance
TYPICAL_SIZE: Final = 64.0  # pixels; sizes are predicted as powers of two of it
_STEM, _FINE, _MIDDLE = 16, 40, 80
_BLOCKS: Final = 3


def judged_things() -> tuple[Thing, ...]:
    """Every thing that the network knows, in the order of its outputs."""
    shapes = [Thing(shape, colour) for shape, colours in SHAPES.items() for colour in colours]
    return (*(Thing(name) for name in OBJECTS), *shapes)


class Answers(NamedTuple):
    """What the network says of a batch of pictures, on a grid of h x w places.

    `logits` [B, things + 1, h, w], the last channel for "nothing here"; `boxes` [B, 3, h, w]:
    the middle's distance from the place across and down in units of the stride, and the binary
    logarithm of the size in units of `TYPICAL_SIZE`; `features` [B, FEATURES, h, w].
    """

    logits: Tensor
    boxes: Tensor
    features: Tensor


def _convolution(wide_in: int, wide_out: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(wide_in, wide_out, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(wide_out),
    )


class _Residual(nn.Module):
    """Two convolutions around which the input is led."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3)
        self.second = _convolution(width, width, 3)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.first(hidden)))
        return torch.relu(hidden + inner)


class JudgeNetwork(nn.Module):
    """Pictures [B, 3, H, W] in -1 to 1, sides multiples of 16, to `Answers` on H/16 x W/16."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(3, _STEM, 5, 2),
            nn.ReLU(),
            _convolution(_STEM, _FINE, 3, 2),
            nn.ReLU(),
            _convolution(_FINE, _MIDDLE, 3, 2),
            nn.ReLU(),
            _Residual(_MIDDLE),
            _convolution(_MIDDLE, FEATURES, 3, 2),
            nn.ReLU(),
            *(_Residual(FEATURES) for _ in range(_BLOCKS)),
        )
        self.names = nn.Conv2d(FEATURES, things + 1, 1)
        self.boxes = nn.Conv2d(FEATURES, 3, 1)

    def forward(self, images: Tensor) -> Answers:
        """Answers at every place."""
        features = self.trunk(images)
        return Answers(self.names(features), self.boxes(features), features)
