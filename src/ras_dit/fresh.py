"""Which rows of a whole sequence a sparse call computes anew, and where they belong."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from ras_dit.errors import UnsupportedError
from ras_dit.tokens import TokenOrder, gather_rows


class FreshRows:
    """Which rows of a whole sequence a sparse call computes anew: active tokens, and the text.

    One object serves every layer of the call: row numbers are computed once per layout.

    Args:
        active: Sorted active tokens, int64 ``[B, A]``, one row per row of the model batch.
        num_tokens: Image tokens N, references included.
        order: Where the image tokens stand in a sequence that also holds text.
        images: Images among the rows, whose sets repeat over the guidance branches; all rows are
            images of their own where it is not given.
        starts: First image token of each row, int64 ``[B]``, for the order ``"text_around"``.
        keeps_text: Whether no text row is computed, so that T below is 0.
        ahead: How far keys and values of each token are to be moved along their last change, and
            last those of the text, float32 ``[B, N + 1]``; 0 where they are fresh. ``None`` where
            they are held.
        keep: Copies row numbers to where they are to lie, by name; ``None`` leaves them.
    """

    def __init__(
        self,
        active: torch.Tensor,
        num_tokens: int,
        order: TokenOrder,
        images: int | None = None,
        starts: torch.Tensor | None = None,
        *,
        keeps_text: bool = False,
        ahead: torch.Tensor | None = None,
        keep: Callable[[Hashable, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.active = active
        self.num_tokens = num_tokens
        self.order = order
        self.images = images or active.shape[0]
        self.starts = starts
        self.keeps_text = keeps_text
        self._ahead = ahead
        self._keep = keep or _as_it_is
        self._parts: dict[tuple[int, int], FreshRows] = {}
        self._positions: dict[int, torch.Tensor] = {}
        self._rows: dict[tuple[int, int], torch.Tensor] = {}
        self._weights: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def count(self, length: int) -> int:
        """How many rows of a whole sequence of that length are fresh."""
        text = 0 if self.keeps_text else length - self.num_tokens
        return self.active.shape[1] + text

    @property
    def are_shared(self) -> bool:
        """Whether all rows of the model batch have the same fresh rows."""
        return self.images == 1 and self.starts is None

    def part(self, batch: int) -> FreshRows:
        """The rows of an operation on some of the guidance branches alone.

        Raises:
            UnsupportedError: If the operation splits the images of a branch.
        """
        if batch == self.active.shape[0]:
            return self
        if batch % self.images or batch > self.active.shape[0] or self.starts is not None:
            raise UnsupportedError(
                f"an attention operation on {batch} of {self.active.shape[0]} rows, which are "
                f"branches of {self.images} images; expected whole branches"
            )
        # Branches are stacked, so every run of whole branches has the same sets.
        return self._cut(0, batch)

    def sample(self, row: int) -> FreshRows:
        """The rows of an operation on one row of the model batch."""
        return self._cut(row, 1)

    def _cut(self, first: int, batch: int) -> FreshRows:
        key = first, batch
        if key not in self._parts:
            rows = slice(first, first + batch)
            starts = None if self.starts is None else self.starts[rows]
            images = min(self.images, batch)
            self._parts[key] = FreshRows(
                self.active[rows],
                self.num_tokens,
                self.order,
                images,
                starts,
                keeps_text=self.keeps_text,
                ahead=None if self._ahead is None else self._ahead[rows],
                keep=lambda name, value: self._keep((key, name), value),
            )
        return self._parts[key]

    def positions(self, length: int) -> torch.Tensor:
        """Positions in a sequence of N + T rows, int64 ``[B, A + T]``, in the sparse order."""
        if length not in self._positions:
            positions = self._joined(length - self.num_tokens)
            self._positions[length] = self._keep(("positions", length), positions)
        return self._positions[length]

    def rows(self, length: int, heads: int = 1) -> torch.Tensor:
        """Row numbers in a ``[B * heads * length, ...]`` view, int64 ``[B * heads * (A + T)]``.

        ``heads`` is 1 for memory laid out ``[B, S, H, D]``.
        """
        key = length, heads
        if key not in self._rows:
            batch = self.active.shape[0]
            starts = torch.arange(batch * heads, device=self.active.device) * length
            rows = self.positions(length).unsqueeze(1) + starts.view(batch, heads, 1)
            self._rows[key] = self._keep(("rows", *key), rows.flatten())
        return self._rows[key]

    def weights(self, length: int, heads: int, dtype: torch.dtype) -> torch.Tensor:
        """Weight of each row's last change, ``[B * heads * length, 1]``, rows as in :meth:`rows`.

        Only where ``ahead`` is given.
        """
        key = length, heads, dtype
        if key not in self._weights:
            assert self._ahead is not None
            batch = self.active.shape[0]
            image, text = self._ahead[:, :-1], self._ahead[:, -1:]
            tokens = torch.arange(self.num_tokens, device=image.device).expand(batch, -1)
            places = self._placed(tokens, length - self.num_tokens)
            by_row = text.repeat(1, length).scatter_(1, places, image).to(dtype)
            weights = by_row.unsqueeze(1).expand(-1, heads, -1).reshape(-1, 1)
            self._weights[key] = self._keep(("weights", *key), weights)
        return self._weights[key]

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """The fresh rows ``[B, A + T, ...]`` of a whole sequence ``[B, N + T, ...]``, a copy."""
        return gather_rows(whole, self.rows(whole.shape[1]))

    def _joined(self, num_text: int) -> torch.Tensor:
        active = self._placed(self.active, num_text)
        if num_text == 0 or self.keeps_text:
            return active
        text = torch.arange(num_text, device=active.device).expand(active.shape[0], -1)
        if self.order == "image_first":
            return torch.cat([active, text + self.num_tokens], dim=1)
        if self.order == "text_around":
            assert self.starts is not None
            text = torch.where(text < self.starts.unsqueeze(1), text, text + self.num_tokens)
        return torch.cat([text, active], dim=1)

    def _placed(self, tokens: torch.Tensor, num_text: int) -> torch.Tensor:
        """Image tokens by their places in a sequence with so many text rows."""
        if num_text and self.order == "text_first":
            return tokens + num_text
        if num_text and self.order == "text_around":
            assert self.starts is not None
            return tokens + self.starts.unsqueeze(1)
        return tokens


def _as_it_is(_name: Hashable, value: torch.Tensor) -> torch.Tensor:
    return value
