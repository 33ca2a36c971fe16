"""How cached rows are stored: as they come, at fixed addresses, in eight bits, on the CPU.

One tensor of keys or values, ``[B, H, S, D]`` or ``[B, S, H, D]``, is seen as rows, so that one
``index_copy_`` serves every sample.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, Literal, TypeVar

import torch

from ras_dit.fresh import FreshRows
from ras_dit.rules import Storage

_T = TypeVar("_T")
_LARGEST = {"int8": 127.0, "float8": 448.0}
# Scales are halves; below this a row counts as zero.
_SMALLEST = 6e-8


class Buffers:
    """Tensors that keep their addresses for as long as their shapes stay the same."""

    def __init__(self) -> None:
        self._tensors: dict[Hashable, torch.Tensor] = {}

    def keep(self, key: Hashable, value: torch.Tensor, *, offload: bool = False) -> torch.Tensor:
        """Copy a value to the buffer of that name and return the buffer."""
        known = self._tensors.get(key)
        device = torch.device("cpu") if offload else value.device
        if (
            known is None
            or known.shape != value.shape
            or known.dtype != value.dtype
            or known.device != device
        ):
            known = self._tensors[key] = new_buffer(value, offload=offload)
        return known.copy_(value, non_blocking=True)

    def clear(self) -> None:
        """Free every buffer."""
        self._tensors.clear()


def new_buffer(value: torch.Tensor, *, offload: bool) -> torch.Tensor:
    """An empty tensor of the same shape, on the CPU (pinned beside a GPU) or beside the value."""
    if offload:
        pinned = value.device.type == "cuda"
        return torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pinned)
    return torch.empty_like(value)


def altered(original: _T, **attributes: Any) -> _T:
    """A shallow copy with other attributes."""
    part = copy.copy(original)
    vars(part).update(attributes)
    return part


class RowLayout:
    """How a tensor is seen as rows: ``[H * D]`` where memory is laid out ``[B, S, H, D]``,
    ``[D]`` where it is ``[B, H, S, D]``.

    Args:
        tensor: Keys or values.
        token_dim: 2 for ``[B, H, S, D]``, 1 for ``[B, S, H, D]``.
    """

    def __init__(self, tensor: torch.Tensor, token_dim: int) -> None:
        by_token = tensor.transpose(1, 2) if token_dim == 2 else tensor
        heads_inside = by_token.is_contiguous()
        self.contiguous = heads_inside or (token_dim == 2 and tensor.is_contiguous())
        if not self.contiguous:
            heads_inside = token_dim == 1
        self.swap = token_dim == 2 and heads_inside
        self.heads = 1 if heads_inside else tensor.shape[1]
        self.num_keys = tensor.shape[token_dim]
        self.head_width = tensor.shape[-1]
        self.shape = (tensor.transpose(1, 2) if self.swap else tensor).shape

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows ``[B * heads * S, width]`` of the whole tensor, a view."""
        by_row = tensor.transpose(1, 2) if self.swap else tensor
        return by_row.view(self.shape[0] * self.heads * self.num_keys, -1)

    def whole(self, flat: torch.Tensor) -> torch.Tensor:
        """The tensor of those rows, a view."""
        by_row = flat.view(self.shape)
        return by_row.transpose(1, 2) if self.swap else by_row

    def rows_of(self, tensor: torch.Tensor, count: int) -> torch.Tensor:
        """Keys or values of another length or layout as so many rows."""
        by_row = tensor.transpose(1, 2) if self.swap else tensor
        return by_row.reshape(count, -1)

    def cut(self, first: int, count: int) -> tuple[RowLayout, slice]:
        """The layout of some samples ``[first, first + count)``, and where their rows are."""
        each = self.heads * self.num_keys
        part = altered(self, shape=torch.Size((count, *self.shape[1:])))
        return part, slice(first * each, (first + count) * each)

    @property
    def numbering(self) -> tuple[int, int]:
        """Length of a sequence and heads of its row numbers."""
        return self.num_keys, self.heads


class HeldRows:
    """Rows kept by reference: nothing is copied in a dense step."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat
        self.dtype = flat.dtype

    @property
    def plain(self) -> torch.Tensor | None:
        """All rows as they lie beside the model; ``None`` where they do not."""
        return self._flat

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._flat.nbytes

    def read(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The given rows, a copy, or all."""
        return self._flat if rows is None else self._flat.index_select(0, rows)

    def write(self, rows: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write the given rows and return all."""
        return self._flat.index_copy_(0, rows, new)

    def cut(self, rows: slice) -> HeldRows:
        """Some of the rows, a view that is written through."""
        return HeldRows(self._flat[rows])


class PackedRows:
    """Rows copied into storage: at fixed addresses, in eight bits, or on the CPU.

    Args:
        flat: The rows.
        head_width: Elements of a row that have a scale of their own.
        storage: How they are stored.
        key: Their name among the buffers.
        buffers: Where they are.
    """

    def __init__(
        self,
        flat: torch.Tensor,
        head_width: int,
        storage: Storage,
        key: Hashable,
        buffers: Buffers,
    ) -> None:
        self._head_width = head_width
        self._storage = storage
        self.dtype = flat.dtype
        self._device = flat.device
        self._parts = tuple(
            buffers.keep((key, number), part, offload=storage.offload)
            for number, part in enumerate(self._encode(flat))
        )

    @property
    def plain(self) -> torch.Tensor | None:
        """All rows as they lie beside the model; ``None`` where they do not."""
        is_plain = self._storage.dtype == "model" and not self._storage.offload
        return self._parts[0] if is_plain else None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for part in self._parts)

    def read(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The given rows, a copy, or all, beside the model and in its dtype."""
        parts = [part.to(self._device, non_blocking=True) for part in self._parts]
        return self._decode(parts if rows is None else [p.index_select(0, rows) for p in parts])

    def write(self, rows: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write the given rows and return all, in which those are exact."""
        parts = [part.to(self._device, non_blocking=True) for part in self._parts]
        flat = self._decode(parts)
        for part, value in zip(parts, self._encode(new), strict=True):
            part.index_copy_(0, rows, value)
        if self._storage.dtype != "model":
            flat.index_copy_(0, rows, new)
        for stored, part in zip(self._parts, parts, strict=True):
            if stored is not part:
                stored.copy_(part, non_blocking=True)
        return flat

    def cut(self, rows: slice) -> PackedRows:
        """Some of the rows, a view that is written through."""
        return altered(self, _parts=tuple(stored[rows] for stored in self._parts))

    def _encode(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._storage.dtype == "model":
            return (flat,)
        return encode(flat, self._head_width, self._storage.dtype)

    def _decode(self, parts: list[torch.Tensor]) -> torch.Tensor:
        if self._storage.dtype == "model":
            return parts[0]
        codes, scales = parts
        return decode(codes, scales, self.dtype, self._storage.dtype)


class CachedRows:
    """Keys or values of one operation, and, where they are forecast, how each row changed last.

    Args:
        tensor: Of the whole sequence, ``[B, H, S, D]`` or ``[B, S, H, D]``.
        token_dim: The dimension of S.
    """

    def __init__(self, tensor: torch.Tensor, token_dim: int) -> None:
        self._layout = RowLayout(tensor, token_dim)
        kept = tensor if self._layout.contiguous else tensor.contiguous()
        self._last: HeldRows | PackedRows = HeldRows(self._layout.flat(kept))
        self._change: HeldRows | PackedRows | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._last.nbytes + (0 if self._change is None else self._change.nbytes)

    @property
    def numbering(self) -> tuple[int, int]:
        """Length of the sequence and heads of its row numbers."""
        return self._layout.numbering

    @property
    def is_forecast(self) -> bool:
        """Whether rows move along their last change."""
        return self._change is not None

    @property
    def dtype(self) -> torch.dtype:
        """What they are attended to in."""
        return self._last.dtype

    @property
    def plain(self) -> torch.Tensor | None:
        """The whole tensor, where what is stored is what attention gets."""
        flat = None if self.is_forecast else self._last.plain
        return None if flat is None else self._layout.whole(flat)

    def pack(self, storage: Storage, key: Hashable, buffers: Buffers) -> None:
        """Store the rows otherwise than by reference, once."""
        if isinstance(self._last, HeldRows):
            self._last = self._stored(self._last.read(), storage, (key, "last"), buffers)

    def follow(
        self, before: CachedRows | None, storage: Storage, key: Hashable, buffers: Buffers
    ) -> None:
        """Forecast from here on: with the change since other rows, or from none at all, once.

        Those others are used up: their memory takes the change.
        """
        if self._change is not None:
            return
        new = self._last.read()
        if before is None:
            change = torch.zeros_like(new)
        else:
            old = self._layout.rows_of(before.whole, new.shape[0])
            change = torch.sub(new, old, out=old)
        self._change = self._stored(change, storage, (key, "change"), buffers)

    def hold(self) -> None:
        """Forecast no more, and free what that took."""
        self._change = None

    @property
    def whole(self) -> torch.Tensor:
        """The last rows as one tensor."""
        return self._layout.whole(self._last.read())

    def merge(self, updates: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        """Write fresh rows; all rows, those that are not fresh where they are expected to be."""
        rows = fresh.rows(*self.numbering)
        new = self._layout.rows_of(updates, rows.shape[0])
        if self._change is None:
            return self._layout.whole(self._last.write(rows, new))
        change = self._change.write(rows, new - self._last.read(rows))
        last = self._last.write(rows, new)
        weights = fresh.weights(*self.numbering, last.dtype)
        return self._layout.whole(torch.addcmul(last, change, weights))

    def cut(self, first: int, count: int) -> CachedRows:
        """Those of some samples, a view that is written through; for rows that are held."""
        assert self._change is None
        layout, rows = self._layout.cut(first, count)
        return altered(self, _layout=layout, _last=self._last.cut(rows))

    def _stored(
        self, flat: torch.Tensor, storage: Storage, key: Hashable, buffers: Buffers
    ) -> HeldRows | PackedRows:
        if storage.packs:
            return PackedRows(flat, self._layout.head_width, storage, key, buffers)
        return HeldRows(flat)


def encode(
    flat: torch.Tensor, head_width: int, dtype: Literal["int8", "float8"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in eight bits, with a scale for every head of every row.

    Args:
        flat: ``[R, H * D]`` in any float dtype.
        head_width: D.
        dtype: ``"int8"``, symmetric, or ``"float8"``, e4m3.

    Returns:
        Codes int8 ``[R, H * D]`` (of float8 the bits) and scales float16 ``[R, H]``.
    """
    by_head = flat.float().view(flat.shape[0], -1, head_width)
    largest = _LARGEST[dtype]
    scales = (by_head.abs().amax(dim=-1) / largest).clamp_min(_SMALLEST).half()
    scaled = (by_head / scales.float().unsqueeze(-1)).clamp(-largest, largest)
    if dtype == "int8":
        codes = scaled.round().to(torch.int8)
    else:
        codes = scaled.to(torch.float8_e4m3fn).view(torch.int8)
    return codes.flatten(1), scales


def decode(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
    coded_as: Literal["int8", "float8"],
) -> torch.Tensor:
    """What :func:`encode` made, as ``[R, H * D]`` of the given dtype, a copy."""
    if coded_as == "float8":
        codes = codes.view(torch.float8_e4m3fn)
    by_head = codes.to(dtype).view(*scales.shape, -1)
    return by_head.mul_(scales.to(dtype).unsqueeze(-1)).flatten(1)
