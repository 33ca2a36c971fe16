"""The stock transformer on some of an image's tokens: training need not pay for all of them."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional as F

EDGE_DIFFERENCE = 0.15


def choose(
    batch: int,
    rows: int,
    columns: int,
    number: int,
    window: int,
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> Tensor:
    """Indices [batch, number] of tokens: a square window (0: none) and others by chance.

    Tokens of more weight [batch, rows * columns] are chosen more often.
    """
    if number >= rows * columns:
        return torch.arange(rows * columns).expand(batch, -1)
    score = torch.rand(batch, rows, columns, generator=generator)
    if weight is not None:
        score = score.pow(1 / weight.view(batch, rows, columns))
    if window:
        top = torch.randint(rows - window + 1, (batch, 1, 1), generator=generator)
        left = torch.randint(columns - window + 1, (batch, 1, 1), generator=generator)
        row = torch.arange(rows)[None, :, None] - top
        column = torch.arange(columns)[None, None, :] - left
        inside = (row >= 0) & (row < window) & (column >= 0) & (column < window)
        score = score + inside
    return score.flatten(1).topk(number, dim=1).indices.sort(dim=1).values


def patches(latents: Tensor, patch: int) -> Tensor:
    """Latents [B, C, H, W] as tokens [B, N, patch * patch * C], in the order of `proj_out`."""
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(
        batch, (height // patch) * (width // patch), patch * patch * channels
    )


def stands_out(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens [B, N] show something else than the left edge of their row does."""
    split = tokens.unflatten(1, grid)
    return ((split - split[:, :, :1]).abs().mean(dim=3) > EDGE_DIFFERENCE).flatten(1)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, A, C] at the indices [B, A]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def forward(
    transformer: SD3Transformer2DModel,
    tokens: Tensor,
    index: Tensor,
    grid: tuple[int, int],
    timestep: Tensor,
    rows: Tensor,
    pooled: Tensor,
) -> Tensor:
    """What the transformer predicts for chosen tokens that see only each other and the text.

    With all tokens chosen this is the transformer's own forward.
    """
    embed = transformer.pos_embed
    patch = transformer.config.patch_size
    # The convolution's weight as a matrix for (row, column, channel) tokens.
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    hidden = F.linear(tokens, weight, embed.proj.bias)
    table = embed.cropped_pos_embed(grid[0] * patch, grid[1] * patch)[0]
    hidden = hidden + table[index].to(hidden.dtype)
    condition = transformer.time_text_embed(timestep, pooled)
    text = transformer.context_embedder(rows)
    for block in transformer.transformer_blocks:
        text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=condition)
    return transformer.proj_out(transformer.norm_out(hidden, condition))
