"""What inactive tokens leave behind: keys and values of every layer, and the last output.

Everything is kept per branch (conditional, unconditional, ...) and belongs to one run.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ras_dit.fresh import FreshRows
from ras_dit.key_clock import KeyClock
from ras_dit.rules import Storage
from ras_dit.storage import Buffers, CachedRows, altered
from ras_dit.tokens import scatter_rows

# A layer and the number of an attention operation within it.
Place = tuple[int, int]


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
        self._key = CachedRows(key, token_dim)
        self._value = CachedRows(value, token_dim)

    @property
    def nbytes(self) -> int:
        """Size in bytes, without the mask, which layers share."""
        return self._key.nbytes + self._value.nbytes

    def by_token(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The whole keys and values as views ``[B, S, H, D]``, which may be written to.

        ``None`` where they are not stored as they are, or attention gets others than are stored.
        """
        key, value = self._key.plain, self._value.plain
        if key is None or value is None:
            return None
        return (key, value) if self.token_dim == 1 else (key.transpose(1, 2), value.transpose(1, 2))

    def pack(self, storage: Storage, name: Hashable, buffers: Buffers) -> None:
        """Store keys and values otherwise than by reference, once."""
        self._key.pack(storage, (name, "key"), buffers)
        self._value.pack(storage, (name, "value"), buffers)

    def follow(
        self, before: KVCache | None, storage: Storage, name: Hashable, buffers: Buffers
    ) -> None:
        """Forecast keys and values by their change since an earlier call's, which is used up."""
        key, value = (None, None) if before is None else before.parts
        self._key.follow(key, storage, (name, "key"), buffers)
        self._value.follow(value, storage, (name, "value"), buffers)

    def hold(self) -> None:
        """Forecast no more, and free what that took."""
        for part in self.parts:
            part.hold()

    @property
    def parts(self) -> tuple[CachedRows, CachedRows]:
        """Keys and values."""
        return self._key, self._value

    @property
    def kind(self) -> Hashable:
        """What :meth:`prepare` depends on."""
        kinds = [(part.numbering, part.dtype, part.is_forecast) for part in self.parts]
        return self.num_rows, *kinds

    def prepare(self, fresh: FreshRows) -> None:
        """Make what keys and values are merged by."""
        for part in self.parts:
            fresh.rows(*part.numbering)
            if part.is_forecast:
                fresh.weights(*part.numbering, part.dtype)

    def cut(self, first: int, count: int) -> KVCache:
        """Those of some rows of the model batch, a view that is written through."""
        mask = self.mask
        if mask is not None and mask.ndim == 4 and mask.shape[0] == self.num_rows:
            mask = mask.narrow(0, first, count)
        return altered(
            self,
            _key=self._key.cut(first, count),
            _value=self._value.cut(first, count),
            mask=mask,
            num_rows=count,
        )

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
        """Write the fresh rows; the whole keys and values, forecast where they are not fresh.

        Args:
            key: Fresh keys, A + T along the token dimension.
            value: Fresh values of the same layout.
            fresh: Where those rows belong.
        """
        return self._key.merge(key, fresh), self._value.merge(value, fresh)


@dataclass
class BranchCache:
    """All that one guidance branch keeps between steps.

    Attributes:
        signature: What the filling call looked like; a call of another kind must run dense.
        storage: How keys, values and output are stored.
        name: The branch's name among the buffers.
        buffers: Where they are, if they are stored otherwise than by reference.
        length: Rows of the whole sequence, as the first block was given them.
        starts: First image token of each row, int64 ``[B]``, for the order ``"text_around"``.
        clock: When each token's keys and values were computed, where they are to be forecast.
        before: Layers of the branch's last call, which a dense call takes the changes since.
        layers: K/V caches by (layer, operation within the layer).
        masks: The different attention masks of the layers, as far as they take space.
        output: Last output of every row, ``[B, L, C]``: the image tokens, or the whole sequence.
        returned: What the transformer returned last, for a step that is skipped.
    """

    signature: object
    storage: Storage = field(default_factory=Storage)
    name: Hashable = None
    buffers: Buffers = field(default_factory=Buffers)
    layers: dict[Place, KVCache] = field(default_factory=dict)
    masks: list[torch.Tensor] = field(default_factory=list)
    output: torch.Tensor | None = None
    returned: Any = None
    length: int = 0
    starts: torch.Tensor | None = None
    clock: KeyClock | None = None
    before: dict[Place, KVCache] | None = None
    # One of each kind of layers, once they are all there: most are the same.
    _kinds: list[KVCache] | None = None
    _parts: dict[tuple[int, int], BranchCache] = field(default_factory=dict)

    @property
    def filled(self) -> bool:
        """Whether a sparse step can build on this branch."""
        return self.output is not None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        output = 0 if self.output is None else self.output.nbytes
        # A mask that is the same for every query takes next to nothing, however it is expanded.
        masks = sum(mask.untyped_storage().nbytes() for mask in self.masks)
        return output + masks + sum(layer.nbytes for layer in self.layers.values())

    def cut(self, first: int, count: int, *, by_operation: bool = False) -> BranchCache:
        """The caches of some rows of the model batch, a view that is written through.

        Args:
            first: The first of them.
            count: Their number.
            by_operation: Whether attention makes one operation for each row of the batch.
        """
        if (first, count) not in self._parts:
            if by_operation:
                layers = {
                    (layer, row - first): entry
                    for (layer, row), entry in self.layers.items()
                    if first <= row < first + count
                }
            else:
                layers = {place: entry.cut(first, count) for place, entry in self.layers.items()}
            assert self.output is not None
            output = self.output.narrow(0, first, count)
            starts = None if self.starts is None else self.starts.narrow(0, first, count)
            self._parts[first, count] = replace(
                self, layers=layers, output=output, starts=starts, _kinds=None, _parts={}
            )
        return self._parts[first, count]

    def keep(self, place: Place, entry: KVCache) -> None:
        """Keep what a dense step computed."""
        self.layers[place] = entry
        # A compiled graph hands its tensors on as they are; they are stored behind it.
        if not torch.compiler.is_compiling():
            self._store(place, entry)

    def _store(self, place: Place, entry: KVCache) -> None:
        where = self.storage, (self.name, place), self.buffers
        # First: what is packed may take the place of what the change is from.
        if self.before is not None:
            entry.follow(self.before.pop(place, None), *where)
        if self.storage.packs:
            entry.pack(*where)

    def settle(self) -> None:
        """Behind a dense call: store what is not stored yet as it is to be."""
        for place, entry in self.layers.items():
            self._store(place, entry)
        self.before = None
        if self.storage.static and self.output is not None:
            self.output = self.buffers.keep((self.name, "output"), self.output)

    def prepare(self, fresh: FreshRows) -> None:
        """Make the row numbers that a sparse call on these caches needs."""
        if self.length:
            fresh.rows(self.length)
        if self.output is not None:
            fresh.rows(self.output.shape[1])
        if self._kinds is None:
            self._kinds = list({layer.kind: layer for layer in self.layers.values()}.values())
        for layer in self._kinds:
            if layer.num_rows == fresh.active.shape[0]:
                layer.prepare(fresh)

    def shared_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """A mask, or an equal one of an earlier layer: some models make it anew in every layer."""
        if mask is None:
            return None
        if not _has_row_per_query(mask):
            return mask
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
        # As with keys and values: at its address at once, or behind a compiled graph.
        if self.storage.static and not torch.compiler.is_compiling():
            self.output = self.buffers.keep((self.name, "output"), output)
        else:
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


def _has_row_per_query(mask: torch.Tensor) -> bool:
    # A mask that is the same for every query takes next to nothing, however it is expanded.
    return mask.ndim > 1 and mask.shape[-2] > 1 and mask.stride(-2) != 0


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.device == other.device
    return same and torch.equal(one, other)
