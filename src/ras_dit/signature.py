"""What a call of the transformer has to share with the call that filled its caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class CallSignature:
    """A call as far as cached keys and values depend on it. Equal ones may share caches.

    Args:
        arguments: The transformer's arguments by name.
        fixed: Names of those whose contents count as well, not only their shapes.
        settings: Further values that have to be equal.
    """

    __hash__ = None  # type: ignore[assignment]  # tensors are compared by contents

    def __init__(
        self, arguments: Mapping[str, Any], fixed: Iterable[str] = (), settings: object = None
    ) -> None:
        self._structure = structure(arguments), settings
        self._contents = [leaf for name in fixed for leaf in _tensors(arguments.get(name))]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallSignature):
            return NotImplemented
        # Equal structures have equal shapes and devices.
        return self._structure == other._structure and all(
            mine is theirs or torch.equal(mine, theirs)
            for mine, theirs in zip(self._contents, other._contents, strict=True)
        )


def structure(value: Any) -> object:
    """What of a call's arguments the caches depend on: shapes and plain values, no contents."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, structure(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(structure(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = [item for _, item in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _tensors(item)]
    return []
