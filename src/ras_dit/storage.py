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

    def updates(self, tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Fresh keys or values as rows."""
        by_row = tensor.transpose(1, 2) if self.swap else tensor
        return by_row.reshape(rows.shape[0], -1)

    def cut(self, first: int, count: int) -> tuple[RowLayout, slice]:
        """The layout of some samples ``[first, first + count)``, and where their rows are."""
        each = self.heads * self.num_keys
        part = altered(self, shape=torch.Size((count, *self.shape[1:])))
        return part, slice(first * each, (first + count) * each)

    @property
    def numbering(self) -> tuple[int, int]:
        """Length of a sequence and heads of its row numbers."""
        return self.num_keys, self.heads

    def rows(self, fresh: FreshRows) -> torch.Tensor:
        """Row numbers of what is fresh."""
        return fresh.rows(*self.numbering)


class HeldRows:
    """Keys or values kept by reference: nothing is copied in a dense step."""

    def __init__(self, tensor: torch.Tensor, token_dim: int) -> None:
        self.layout = RowLayout(tensor, token_dim)
        self.whole = tensor if self.layout.contiguous else tensor.contiguous()
        self._flat = self.layout.flat(self.whole)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.whole.nbytes

    def merge(self, updates: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        """Write fresh rows and return the whole tensor."""
        rows = self.layout.rows(fresh)
        self._flat.index_copy_(0, rows, self.layout.updates(updates, rows))
        return self.whole

    def cut(self, first: int, count: int) -> HeldRows:
        """Those of some samples, a view that is written through."""
        layout, rows = self.layout.cut(first, count)
        whole = self.whole.narrow(0, first, count)
        return altered(self, layout=layout, whole=whole, _flat=self._flat[rows])

    def packed(self, storage: Storage, key: Hashable, buffers: Buffers) -> PackedRows:
        """The same rows, stored otherwise."""
        return PackedRows(self.layout, self._flat, storage, key, buffers)


class PackedRows:
    """Keys or values copied into storage: at fixed addresses, in eight bits, or on the CPU.

    Args:
        layout: How the tensor is seen as rows.
        flat: Its rows.
        storage: How they are stored.
        key: Their name among the buffers.
        buffers: Where they are.
    """

    def __init__(
        self,
        layout: RowLayout,
        flat: torch.Tensor,
        storage: Storage,
        key: Hashable,
        buffers: Buffers,
    ) -> None:
        self.layout = layout
        self._storage = storage
        self._dtype = flat.dtype
        self._device = flat.device
        self._parts = tuple(
            buffers.keep((key, number), part, offload=storage.offload)
            for number, part in enumerate(self._encode(flat))
        )

    @property
    def whole(self) -> torch.Tensor | None:
        """The whole tensor, where it lies beside the model as it is."""
        if self._storage.dtype != "model" or self._storage.offload:
            return None
        return self.layout.whole(self._parts[0])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for part in self._parts)

    def merge(self, updates: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        """Write fresh rows and return the whole tensor, in which fresh rows are exact."""
        rows = self.layout.rows(fresh)
        new = self.layout.updates(updates, rows)
        parts = [part.to(self._device, non_blocking=True) for part in self._parts]
        flat = self._decode(parts)
        for part, value in zip(parts, self._encode(new), strict=True):
            part.index_copy_(0, rows, value)
        if self._storage.dtype != "model":
            flat.index_copy_(0, rows, new)
        for stored, part in zip(self._parts, parts, strict=True):
            if stored is not part:
                stored.copy_(part, non_blocking=True)
        return self.layout.whole(flat)

    def cut(self, first: int, count: int) -> PackedRows:
        """Those of some samples, a view that is written through."""
        layout, rows = self.layout.cut(first, count)
        return altered(self, layout=layout, _parts=tuple(stored[rows] for stored in self._parts))

    def _encode(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._storage.dtype == "model":
            return (flat,)
        return encode(flat, self.layout.head_width, self._storage.dtype)

    def _decode(self, parts: list[torch.Tensor]) -> torch.Tensor:
        if self._storage.dtype == "model":
            return parts[0]
        codes, scales = parts
        return decode(codes, scales, self._dtype, self._storage.dtype)


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
