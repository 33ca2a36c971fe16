"""Image tokens: their grid, and rows of them gathered from and scattered into whole sequences.

Shape letters: B images or model rows, N image tokens, A active tokens, P latent pixels per token,
C channels, h and w the token grid, f its frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

# Where the image tokens stand in a sequence that also holds text; "text_around" is a place of
# its own in every row, with text before and behind it.
TokenOrder = Literal["image_first", "text_first", "text_around"]


@dataclass(frozen=True)
class TokenGrid:
    """The image tokens of one picture or video, in rows from the top left, frame by frame.

    Attributes:
        height: Rows h of tokens.
        width: Columns w of tokens.
        frames: Frames f of tokens, 1 for a picture.
    """

    height: int
    width: int
    frames: int = 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self.height * self.width * self.frames

    @property
    def shape(self) -> tuple[int, ...]:
        """``(h, w)`` for a picture, ``(f, h, w)`` for a video."""
        picture = self.height, self.width
        return picture if self.frames == 1 else (self.frames, *picture)


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one call.

    Attributes:
        grid: The tokens of the picture that is made, N of them.
        num_text: Text tokens T.
        num_references: Further image tokens, of pictures that are given (editing). They are never
            active in a sparse step.
        offset: How many of the references stand before the picture that is made.
    """

    grid: TokenGrid
    num_text: int
    num_references: int = 0
    offset: int = 0

    @property
    def num_image(self) -> int:
        """All image tokens, references included."""
        return self.grid.num_tokens + self.num_references


Patch = tuple[int, int, int]


def by_token(
    latents: torch.Tensor, patch: int | Patch, *, frames_first: bool = False
) -> torch.Tensor:
    """Latent pixels sorted by the token that they belong to.

    Args:
        latents: ``[B, C, H, W]``, ``[B, C, F, H, W]``, ``[B, F, C, H, W]`` with
            ``frames_first``, or packed by the pipeline, ``[B, N, C * P]``. Sizes are multiples
            of the patch.
        patch: A token's patch in latent pixels: a side, or frames, height and width.
        frames_first: Whether frames stand before channels.

    Returns:
        ``[B, N, P, C]``.
    """
    frames, height, width = (1, patch, patch) if isinstance(patch, int) else patch
    batch = latents.shape[0]
    if latents.ndim == 3:
        return latents.view(*latents.shape[:2], -1, frames * height * width).transpose(2, 3)
    if latents.ndim == 4:
        latents = latents.unsqueeze(2)
    elif frames_first:
        latents = latents.transpose(1, 2)
    channels = latents.shape[1]
    f, h, w = (n // p for n, p in zip(latents.shape[2:], (frames, height, width), strict=True))
    patches = latents.reshape(batch, channels, f, frames, h, height, w, width)
    by_row = patches.permute(0, 2, 4, 6, 3, 5, 7, 1)
    return by_row.reshape(batch, f * h * w, frames * height * width, channels)


def channel_dim(latents: torch.Tensor, *, frames_first: bool = False) -> int:
    """The dimension of latents that holds their channels, among others where they are packed."""
    return 2 if latents.ndim == 3 or frames_first else 1


def own_by_token(
    latents: torch.Tensor, layout: TokenLayout, patch: int | Patch, *, frames_first: bool = False
) -> torch.Tensor:
    """As :func:`by_token`, without the references where the latents have them, too."""
    tokens = by_token(latents, patch, frames_first=frames_first)
    if layout.num_references and tokens.shape[1] == layout.num_image:
        return tokens[:, layout.offset :][:, : layout.grid.num_tokens]
    return tokens


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
