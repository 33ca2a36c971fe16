"""Image tokens: their grid, and rows of them gathered from and scattered into whole sequences.

Shape letters: B images or model rows, N image tokens, A active tokens, P latent pixels per token,
C channels, h and w the token grid, f its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

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
    if latents.ndim == 3:
        size = patch**2 if isinstance(patch, int) else math.prod(patch)
        return latents.view(*latents.shape[:2], -1, size).transpose(2, 3)
    by_row = _patches(latents, patch, frames_first=frames_first).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return by_row.flatten(4, 6).flatten(1, 3)


def _patches(latents: torch.Tensor, patch: int | Patch, *, frames_first: bool) -> torch.Tensor:
    """``[B, C, f, frames, h, height, w, width]`` with a patch of frames x height x width."""
    frames, height, width = (1, patch, patch) if isinstance(patch, int) else patch
    if latents.ndim == 4:
        latents = latents.unsqueeze(2)
    elif frames_first:
        latents = latents.transpose(1, 2)
    f, h, w = (n // p for n, p in zip(latents.shape[2:], (frames, height, width), strict=True))
    return latents.reshape(*latents.shape[:2], f, frames, h, height, w, width)


def channel_dim(latents: torch.Tensor, *, frames_first: bool = False) -> int:
    """The dimension of latents that holds their channels, among others where they are packed."""
    return 2 if latents.ndim == 3 or frames_first else 1


@dataclass(frozen=True)
class TokenSort:
    """Sorts a guided noise prediction by the tokens of the picture that is made.

    Attributes:
        patch: A token's patch in latent pixels: a side, or frames, height and width.
        layout: The tokens of a call; references are left out where the latents have them, too.
        frames_first: Whether frames stand before channels.
    """

    patch: int | Patch
    layout: TokenLayout | None = None
    frames_first: bool = False

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Latent pixels by token, ``[B, N, P, C]``."""
        return self._own(by_token(latents, self.patch, frames_first=self.frames_first))

    def means(self, latents: torch.Tensor) -> torch.Tensor:
        """Means over each token's pixels and channels, ``[B, N]``; as sorting first, in one go."""
        if latents.ndim == 3:
            return self._own(latents.mean(2))
        patches = _patches(latents, self.patch, frames_first=self.frames_first)
        return self._own(patches.mean((1, 3, 5, 7)).flatten(1))

    def channel_dim(self, latents: torch.Tensor) -> int:
        """The dimension of latents that holds their channels."""
        return channel_dim(latents, frames_first=self.frames_first)

    def _own(self, tokens: torch.Tensor) -> torch.Tensor:
        layout = self.layout
        if layout is not None and layout.num_references and tokens.shape[1] == layout.num_image:
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


class PixelMap:
    """Between one number per token and the latent pixels of a noise prediction.

    Args:
        noise_pred: A noise prediction, as :func:`by_token` takes it.
        sort: Sorts such latents by token; they may be fewer than the N tokens of the picture where
            given frames in front are no part of what the scheduler gets.
        num_tokens: N.

    Raises:
        ValueError: If a latent pixel belongs to no token, so that nothing could stand for it.
    """

    def __init__(self, noise_pred: torch.Tensor, sort: TokenSort, num_tokens: int) -> None:
        self._sort = sort
        self._owners: torch.Tensor | None = None
        if noise_pred.ndim == 3:
            found, pixels = noise_pred.shape[1], noise_pred.shape[1]
            self._missing = num_tokens - found
        else:
            self._shape = noise_pred.narrow(sort.channel_dim(noise_pred), 0, 1).shape[1:]
            pixels = self._shape.numel()
            numbers = torch.arange(pixels, device=noise_pred.device).view(1, *self._shape)
            order = sort(numbers)[0].flatten(1)
            self._missing = num_tokens - order.shape[0]
            found = order.numel()
            self._owners = torch.empty_like(order.flatten())
            if found == pixels:
                tokens = torch.arange(order.shape[0], device=order.device) + self._missing
                self._owners[order.flatten()] = tokens.repeat_interleave(order.shape[1])
        if found != pixels or self._missing < 0:
            raise ValueError(
                f"{pixels} latent pixels, and {found} of them belong to tokens; forecasts and "
                "expected errors cannot be had here: leave them out, and choose by another metric"
            )

    def spread(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers ``[B, N]`` at their tokens' pixels, with a channel dimension of 1."""
        if self._owners is None:
            return numbers[:, self._missing :].unsqueeze(2)
        return numbers[:, self._owners].view(numbers.shape[0], *self._shape)

    def mean(self, latents: torch.Tensor) -> torch.Tensor:
        """Means over each token's pixels and channels, ``[B, N]``; 0 for tokens without pixels."""
        means = self._sort.means(latents)
        return F.pad(means, (self._missing, 0)) if self._missing else means
