"""Tensors within lists, tuples and mappings, as models take and return them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def tree_map(
    change: Callable[..., Any], *values: Any, lists: Callable[[list[Any]], bool] | None = None
) -> Any:
    """Values of one structure of lists, tuples and mappings, with their tensors changed together.

    Args:
        change: Gets a tensor of each value.
        *values: The values. What is neither a tensor nor holds any stays as in the first.
        lists: Which lists of the first are changed whole, as a tensor is; by default none.
    """
    first: Any = values[0]
    if isinstance(first, torch.Tensor) or (isinstance(first, list) and lists and lists(first)):
        return change(*values)
    if isinstance(first, Mapping):
        items = {
            key: tree_map(change, *(value[key] for value in values), lists=lists) for key in first
        }
        # Outputs of diffusers models are mappings with fields.
        return type(first)(**items) if hasattr(first, "__dataclass_fields__") else items
    if isinstance(first, list | tuple):
        return type(first)(
            [tree_map(change, *members, lists=lists) for members in zip(*values, strict=True)]
        )
    return first
