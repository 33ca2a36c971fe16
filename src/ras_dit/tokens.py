"""Image tokens: their grid, and rows of them gathered from and scattered into whole sequences.

Shape letters: B images or model rows, N image tokens, A active tokens, P latent pixels per token,
C channels, h and w the token grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenGrid:
    """The image tokens of one picture, in rows from the top left.

    Attributes:
        height: Rows h of tokens.
        width: Columns w of tokens.
    """

    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self.height * self.width


def by_token(latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Latent pixels sorted by the token that they belong to.

    Args:
        latents: ``[B, C, H, W]``, with H and W multiples of ``patch_size``.
        patch_size: Side p of a token's patch in latent pixels.

    Returns:
        float32 ``[B, N, p * p, C]``.
    """
    batch, channels, height, width = latents.shape
    h, w = height // patch_size, width // patch_size
    patches = latents.float().view(batch, channels, h, patch_size, w, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, patch_size**2, channels)


def flat_rows(active: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Row numbers in a ``[B * N, ...]`` view.

    Args:
        active: ``[B, A]`` token indices, a set of its own for each row.
        num_tokens: Tokens N per row of the batch.

    Returns:
        int64 ``[B * A]``.
    """
    starts = torch.arange(active.shape[0], device=active.device).unsqueeze(1) * num_tokens
    return (active + starts).flatten()


def gather_rows(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The given rows of each sample.

    Args:
        tokens: ``[B, N, ...]``.
        rows: ``[B * A]`` from :func:`flat_rows`.

    Returns:
        ``[B, A, ...]``, a copy.
    """
    batch, num_tokens = tokens.shape[:2]
    flat = tokens.reshape(batch * num_tokens, *tokens.shape[2:])
    return flat.index_select(0, rows).view(batch, -1, *tokens.shape[2:])


def scatter_rows(tokens: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor) -> None:
    """Overwrite the given rows of each sample in place.

    Args:
        tokens: ``[B, N, ...]``, contiguous.
        rows: ``[B * A]`` from :func:`flat_rows`.
        updates: ``[B, A, ...]``.
    """
    flat = tokens.view(tokens.shape[0] * tokens.shape[1], *tokens.shape[2:])
    flat.index_copy_(0, rows, updates.reshape(rows.shape[0], *tokens.shape[2:]))
