"""Block sizes: how much of a problem one program of a kernel takes.

They are fixed, so that what was compiled and checked ahead of time is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Elements of one token's keys that one program holds in registers.
LARGEST_TOKEN = 16384
_HEADS_TOGETHER = 2048


@dataclass(frozen=True)
class Tile:
    """One program of the projection.

    Attributes:
        tokens: Tokens, at least 16.
        channels: Output channels, at least 16.
        depth: Input channels that are taken at a time, at least 16.
        warps: Groups of 32 threads.
        stages: Loads under way at a time.
    """

    tokens: int
    channels: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class TokenTile:
    """One program of the norm: some heads, or all, of one token, filled up to powers of two.

    Attributes:
        heads: Heads.
        width: Channels of a head.
        warps: Groups of 32 threads.
    """

    heads: int
    width: int
    warps: int


# Half precision: tensor cores, and 96 KiB of shared memory at most, which every GPU of compute
# capability 8.0 and above has. Single precision in full has no tensor cores.
LARGE = Tile(tokens=128, channels=128, depth=64, warps=8, stages=3)
SMALL = Tile(tokens=64, channels=64, depth=64, warps=4, stages=3)
FULL = Tile(tokens=64, channels=64, depth=16, warps=4, stages=3)


def projection_tile(
    dtype: torch.dtype, num_tokens: int, num_channels: int, processors: int
) -> Tile:
    """The block size of a projection.

    Args:
        dtype: dtype of the operands.
        num_tokens: Tokens of the whole batch, B * A.
        num_channels: Output channels.
        processors: Multiprocessors of the device; large blocks have to keep all of them busy.
    """
    if dtype == torch.float32:
        return FULL
    blocks = -(-num_tokens // LARGE.tokens) * -(-num_channels // LARGE.channels)
    return LARGE if blocks >= processors else SMALL


def token_tile(heads: int, width: int, *, across: bool) -> TokenTile:
    """The block size of a norm.

    Args:
        heads: Heads of a token.
        width: Channels of a head.
        across: Whether the norm needs all heads at once.
    """
    width = power_of_two(width)
    together = power_of_two(heads)
    if not across:
        together = min(together, max(1, _HEADS_TOGETHER // width))
    size = together * width
    return TokenTile(together, width, 4 if size <= 4096 else 8 if size <= 8192 else 16)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
