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
        ``[B, N, p * p, C]``.
    """
    batch, channels, height, width = latents.shape
    h, w = height // patch_size, width // patch_size
    patches = latents.reshape(batch, channels, h, patch_size, w, patch_size)
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


def gather_table(table: torch.Tensor, dim: int, active: torch.Tensor) -> torch.Tensor:
    """Each sample's rows of a table with one row per token, such as positions.

    Args:
        table: Tokens N along ``dim``; dimension 0 is B, or 1 where all samples share the table.
        dim: At least 1.
        active: ``[B, A]`` token indices.

    Returns:
        The same with A along ``dim`` and B along dimension 0, a copy.
    """
    index = active.view(-1, *(1,) * (dim - 1), active.shape[1], *(1,) * (table.ndim - dim - 1))
    return table.expand(active.shape[0], *table.shape[1:]).take_along_dim(index, dim)


def scatter_rows(tokens: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor) -> None:
    """Overwrite the given rows of each sample in place.

    Args:
        tokens: ``[B, N, ...]``, contiguous.
        rows: ``[B * A]`` from :func:`flat_rows`.
        updates: ``[B, A, ...]``.
    """
    flat = tokens.view(tokens.shape[0] * tokens.shape[1], *tokens.shape[2:])
    flat.index_copy_(0, rows, updates.reshape(rows.shape[0], *tokens.shape[2:]))
