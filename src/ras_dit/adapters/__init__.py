"""Descriptions of the supported transformers, found by class name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from ras_dit.adapters import (
    cogvideox,
    crossed,
    flux,
    hunyuan_video,
    images,
    joint,
    krea,
    ltx,
    mochi,
    qwen,
    refused,
    unified,
    wan,
)
from ras_dit.adapters.base import TokenArgument, TransformerDescription, Work
from ras_dit.errors import UnsupportedError

__all__ = ["DESCRIPTIONS", "TokenArgument", "TransformerDescription", "Work", "describe"]

_ROOMS = (
    images,
    crossed,
    joint,
    flux,
    krea,
    qwen,
    unified,
    wan,
    ltx,
    hunyuan_video,
    cogvideox,
    mochi,
)

DESCRIPTIONS: Mapping[str, TransformerDescription] = MappingProxyType(
    {description.transformer: description for room in _ROOMS for description in room.TRANSFORMERS}
)


def describe(transformer: nn.Module) -> TransformerDescription:
    """The description of a transformer.

    Raises:
        UnsupportedError: If no description is known for its class.
    """
    name = type(transformer).__name__
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    if name in refused.TRANSFORMERS:
        raise UnsupportedError(f"{name} is not supported: {refused.TRANSFORMERS[name]}")
    known = ", ".join(sorted(DESCRIPTIONS))
    raise UnsupportedError(
        f"{name} is not supported; supported transformers: {known}. "
        "Another one can be described: enable(pipe, config, description=...)"
    )
