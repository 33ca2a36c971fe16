"""The table of position embeddings: sines and cosines fine enough to tell neighbours apart.

The stock table for 64x64 positions has no wave shorter than twelve tokens, and half of its waves
are longer than any picture. The table is part of the weights, so a better one is still stock.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

SHORTEST: Final = 3.0  # wavelengths in tokens
LONGEST: Final = 200.0


def position_table(side: int, width: int) -> Tensor:
    """Embeddings [1, side * side, width] of a square grid, counted from its middle."""
    waves = width // 4
    lengths = SHORTEST * (LONGEST / SHORTEST) ** (torch.arange(waves) / (waves - 1))
    place = torch.arange(side) - (side - 1) / 2
    angle = place[:, None] * (2 * math.pi / lengths)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    down = axis[:, None, :].expand(side, side, -1)
    across = axis[None, :, :].expand(side, side, -1)
    return torch.cat([across, down], dim=2).reshape(1, side * side, width)
