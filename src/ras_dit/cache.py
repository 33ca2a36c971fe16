"""What inactive tokens leave behind: keys and values of every layer, and the last output.

Everything is kept per branch (conditional, unconditional, ...) and belongs to one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ras_dit.errors import UnsupportedError
from ras_dit.tokens import TokenOrder, gather_rows, scatter_rows


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
    ) -> None:
        self.active = active
        self.num_tokens = num_tokens
        self.order = order
        self.images = images or active.shape[0]
        self.starts = starts
        self.keeps_text = keeps_text
        self._parts: dict[tuple[int, int], FreshRows] = {}
        self._positions: dict[int, torch.Tensor] = {}
        self._rows: dict[tuple[int, int], torch.Tensor] = {}

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
            )
        return self._parts[key]

    def positions(self, length: int) -> torch.Tensor:
        """Positions in a sequence of N + T rows, int64 ``[B, A + T]``, in the sparse order."""
        if length not in self._positions:
            self._positions[length] = self._joined(length - self.num_tokens)
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
            self._rows[key] = rows.flatten()
        return self._rows[key]

    def prepare(self, cache: BranchCache) -> None:
        """Make the row numbers that a sparse call on these caches needs."""
        if cache.length:
            self.rows(cache.length)
        if cache.output is not None:
            self.rows(cache.output.shape[1])
        for layer in cache.layers.values():
            if layer.num_rows == self.active.shape[0]:
                layer.prepare(self)

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """The fresh rows ``[B, A + T, ...]`` of a whole sequence ``[B, N + T, ...]``, a copy."""
        return gather_rows(whole, self.rows(whole.shape[1]))

    def _joined(self, num_text: int) -> torch.Tensor:
        if num_text == 0:
            return self.active
        active = self.active
        if self.order == "text_first":
            active = active + num_text
        elif self.order == "text_around":
            assert self.starts is not None
            active = active + self.starts.unsqueeze(1)
        if self.keeps_text:
            return active
        text = torch.arange(num_text, device=active.device).expand(active.shape[0], -1)
        if self.order == "image_first":
            return torch.cat([active, text + self.num_tokens], dim=1)
        if self.order == "text_around":
            assert self.starts is not None
            text = torch.where(text < self.starts.unsqueeze(1), text, text + self.num_tokens)
        return torch.cat([text, active], dim=1)


class KVCache:
    """Keys and values of one attention operation over the whole sequence (Eq. 2).

    Tensors are the attention operator's own arguments; ``token_dim`` is 2 for
    ``[B, H, S, D]`` (``scaled_dot_product_attention``) and 1 for ``[B, S, H, D]``.
    They are kept by reference: the dense step that made them is over when they are written to.

    ``scale`` and ``mask`` are the operator's too. A processor may derive them from the length of
    its sequence, which is shorter in a sparse step: those of the whole sequence hold.
    """

    def __init__(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        token_dim: int,
        scale: float | None,
        mask: torch.Tensor | None = None,
    ) -> None:
        self.token_dim = token_dim
        self.scale = scale
        self.mask = mask
        self.num_rows = key.shape[0]
        self.num_keys = key.shape[token_dim]
        self._key = _Rows(key, token_dim)
        self._value = _Rows(value, token_dim)

    @property
    def nbytes(self) -> int:
        """Size in bytes, without the mask, which layers share."""
        return self._key.whole.nbytes + self._value.whole.nbytes

    def by_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole keys and values as views ``[B, S, H, D]``, which may be written to."""
        key, value = self._key.whole, self._value.whole
        return (key, value) if self.token_dim == 1 else (key.transpose(1, 2), value.transpose(1, 2))

    def prepare(self, fresh: FreshRows) -> None:
        """Make the row numbers of a merge."""
        self._key.rows(fresh)
        self._value.rows(fresh)

    def mask_of(
        self, mask: torch.Tensor | None, num_queries: int, fresh: FreshRows
    ) -> torch.Tensor | None:
        """The mask between the fresh queries and the keys of the whole sequence.

        Args:
            mask: The mask that the processor gave, ``[(B, H,) queries, keys]``.
            num_queries: Fresh queries.
            fresh: Where their rows belong.
        """
        if mask is None:
            return None
        if mask.shape[-1] not in {1, self.num_keys}:  # made for the fresh keys alone
            assert self.mask is not None
            mask = self.mask
        if mask.ndim == 1 or mask.shape[-2] in {1, num_queries}:
            return mask
        batch = fresh.active.shape[0]
        mask = mask.view((1,) * (4 - mask.ndim) + mask.shape).expand(batch, -1, -1, -1)
        rows = fresh.positions(self.num_keys)
        return mask.take_along_dim(rows[:, None, :, None], dim=2)

    def merge(
        self, key: torch.Tensor, value: torch.Tensor, fresh: FreshRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the fresh rows and return the whole keys and values.

        Args:
            key: Fresh keys, A + T along the token dimension.
            value: Fresh values of the same layout.
            fresh: Where those rows belong.
        """
        return self._key.write(key, fresh), self._value.write(value, fresh)


class _Rows:
    """One cached tensor seen as rows, so that one ``index_copy_`` serves every sample."""

    def __init__(self, tensor: torch.Tensor, token_dim: int) -> None:
        # Rows are [H * D] where the memory is laid out [B, S, H, D], and [D] in [B, H, S, D].
        by_token = tensor.transpose(1, 2) if token_dim == 2 else tensor
        self.heads_inside = by_token.is_contiguous()
        if not self.heads_inside and not (token_dim == 2 and tensor.is_contiguous()):
            tensor = tensor.contiguous()
            self.heads_inside = token_dim == 1
        self.whole = tensor
        self.swap = token_dim == 2 and self.heads_inside
        self.num_keys = tensor.shape[token_dim]
        self.heads = 1 if self.heads_inside else tensor.shape[1]
        by_row = tensor.transpose(1, 2) if self.swap else tensor
        self.flat = by_row.view(tensor.shape[0] * self.heads * self.num_keys, -1)

    def rows(self, fresh: FreshRows) -> torch.Tensor:
        return fresh.rows(self.num_keys, self.heads)

    def write(self, updates: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        if self.swap:
            updates = updates.transpose(1, 2)
        rows = self.rows(fresh)
        self.flat.index_copy_(0, rows, updates.reshape(rows.shape[0], -1))
        return self.whole


@dataclass
class BranchCache:
    """All that one guidance branch keeps between steps.

    Attributes:
        signature: What the filling call looked like; a call of another kind must run dense.
        length: Rows of the whole sequence, as the first block was given them.
        layers: K/V caches by (layer, operation within the layer).
        masks: The different attention masks of the layers.
        output: Last output of every row, ``[B, L, C]``: the image tokens, or the whole sequence.
    """

    signature: object
    layers: dict[tuple[int, int], KVCache] = field(default_factory=dict)
    masks: list[torch.Tensor] = field(default_factory=list)
    output: torch.Tensor | None = None
    length: int = 0

    @property
    def filled(self) -> bool:
        """Whether a sparse step can build on this branch."""
        return self.output is not None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        output = 0 if self.output is None else self.output.nbytes
        # A mask that is the same for every query takes next to nothing, however it is expanded.
        masks = sum(
            mask.untyped_storage().nbytes()
            for mask in self.masks
            if mask.ndim > 1 and mask.shape[-2] > 1 and mask.stride(-2) != 0
        )
        return output + masks + sum(layer.nbytes for layer in self.layers.values())

    def shared_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """A mask, or an equal one of an earlier layer: some models make it anew in every layer."""
        if mask is None:
            return None
        for known in self.masks:
            if known is mask:
                return known
            # Comparing contents would break a compiled graph.
            if not torch.compiler.is_compiling() and _equal(known, mask):
                return known
        self.masks.append(mask)
        return mask

    def keep_output(self, output: torch.Tensor) -> None:
        """Keep a copy of a dense step's output ``[B, L, C]``."""
        self.output = output.clone()

    def merge_output(self, output: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        """Write the fresh rows' output and return all rows'.

        Args:
            output: ``[B, L, C]`` with rows that count only where they are fresh, or the fresh
                rows alone.
            fresh: Where they belong.

        Returns:
            ``[B, L, C]``, a copy: schedulers keep old outputs, and callers may write to them.
        """
        assert self.output is not None
        length = self.output.shape[1]
        if output.shape[1] == length:
            output = fresh.take(output)
        scatter_rows(self.output, fresh.rows(length), output)
        return self.output.clone()


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.device == other.device
    return same and torch.equal(one, other)
