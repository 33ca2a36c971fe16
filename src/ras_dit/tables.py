"""Tables with one row per token (positions, modulations), cut down to the rows of a sparse call.

Shape letters: B rows of the model batch, L rows of the table, A rows of a sparse call.
"""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.errors import UnsupportedError


def gather_table(table: torch.Tensor, dim: int, positions: torch.Tensor) -> torch.Tensor:
    """Each sample's rows of a table that has a batch dimension.

    Args:
        table: L rows along ``dim``; dimension 0 is B, or 1 where all samples share the table.
        dim: At least 1.
        positions: int64 ``[B, A]``.

    Returns:
        The same with A along ``dim`` and B along dimension 0, a copy.
    """
    index = positions.view(
        -1, *(1,) * (dim - 1), positions.shape[1], *(1,) * (table.ndim - dim - 1)
    )
    return table.expand(positions.shape[0], *table.shape[1:]).take_along_dim(index, dim)


def gather_shared(
    table: torch.Tensor, positions: torch.Tensor, *, broadcast: bool
) -> torch.Tensor | PerSampleTable:
    """Each sample's rows of a table without a batch dimension.

    Args:
        table: ``[L, ...]``, the same for every sample.
        positions: int64 ``[B, A]``.
        broadcast: Whether the model lines the table up with ``[B, L, ...]`` by plain
            broadcasting, so that a batch dimension in front is welcome.

    Returns:
        ``[A, ...]`` for a single sample, else ``[B, A, ...]``, as a tensor or, where the model
        would take a tensor of that form for something else, as a stand-in for ``[A, ...]``.
    """
    if positions.shape[0] == 1 and not broadcast:
        return table.index_select(0, positions[0])
    rows = table.index_select(0, positions.flatten()).view(*positions.shape, *table.shape[1:])
    return rows if broadcast else PerSampleTable(rows)


class PerSampleTable:
    """Stands in for a table ``[A, D]`` where each sample of a batch has rows of its own.

    Models bring a shared table into line with ``[B, A, H, D]`` or ``[B, H, A, D]`` by indexing
    it with ``None``. These forms give the tensor with the samples in their place; any other use
    raises, because it would mean something else than for a shared table.

    Args:
        rows: ``[B, A, D]``.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def __getitem__(self, index: Any) -> torch.Tensor:
        everything = slice(None)
        if isinstance(index, tuple) and all(i is None or i == everything for i in index):
            kept = [place for place, i in enumerate(index) if i is not None]
            if index and index[0] is None and len(kept) == self._rows.ndim - 1:
                return self._rows[(everything, *index[1:])]
        raise UnsupportedError(_unknown_use(f"index {index!r}"))

    def unsqueeze(self, dim: int) -> torch.Tensor:
        """``[A, 1, D]`` to line up with ``[B, A, H, D]``."""
        if dim != 1:
            raise UnsupportedError(_unknown_use(f"unsqueeze({dim})"))
        return self._rows.unsqueeze(2)

    def to(self, *args: Any, **kwargs: Any) -> PerSampleTable:
        """The same on another device or in another dtype."""
        return PerSampleTable(self._rows.to(*args, **kwargs))

    def float(self) -> PerSampleTable:
        """The same in fp32."""
        return PerSampleTable(self._rows.float())

    @property
    def dtype(self) -> torch.dtype:
        """The rows' dtype."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """The rows' device."""
        return self._rows.device

    @property
    def shape(self) -> torch.Size:
        """The form of the table that this stands in for, ``[A, D]``."""
        return self._rows.shape[1:]

    @property
    def ndim(self) -> int:
        """Dimensions of the table that this stands in for."""
        return self._rows.ndim - 1


def _unknown_use(use: str) -> str:
    return (
        f"the model uses its table of positions by {use}, which means something else for several "
        "images with active tokens of their own; make one image at a time, or report the model"
    )
