"""Attention recovery without copying an attention processor.

A diffusers attention processor projects, normalises and rotates, and then calls one attention
operator that it finds among its module's globals: ``F.scaled_dot_product_attention`` or
``dispatch_attention_fn``. A layer's processor is *re-bound*: its own code object runs with a copy
of its globals in which only those two names lead here. Keys and values are merged with the cache
(Eq. 2) and the original operator is called. Nothing is global, every attention backend keeps
working, and putting the old processor back undoes it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ras_dit.cache import BranchCache, FreshRows, KVCache
from ras_dit.errors import UnsupportedError

_OPERATORS = ("dispatch_attention_fn", "F")


class AttentionCall(Protocol):
    """What attention has to know of the transformer call that it is part of."""

    cache: BranchCache
    fills_caches: bool
    fresh: FreshRows | None
    num_tokens: int


class AttentionLayer:
    """One attention module whose processor is re-bound.

    Args:
        module: The attention module.
        index: Number of the layer in its transformer.
        current: Gives the transformer call under way, ``None`` where RAS has no part in it.
    """

    def __init__(
        self, module: nn.Module, index: int, current: Callable[[], AttentionCall | None]
    ) -> None:
        self.module = module
        self.index = index
        self._current = current
        self._operations = 0
        self.original: Any = module.processor
        self.bound: Any = rebind(self.original, self)
        _set_processor(module, self.bound)

    def begin(self) -> None:
        """Start counting the attention operations of one block call."""
        self._operations = 0

    def refresh(self) -> None:
        """Re-bind a processor that was replaced meanwhile (IP-adapters, attention slicing)."""
        if self.module.processor is not self.bound:
            self.original = self.module.processor
            self.bound = rebind(self.original, self)
            _set_processor(self.module, self.bound)

    def restore(self) -> None:
        """Put the original processor back, unless somebody else has replaced ours."""
        if self.module.processor is self.bound:
            _set_processor(self.module, self.original)

    def recover(
        self, key: torch.Tensor, value: torch.Tensor, token_dim: int, scale: float | None
    ) -> tuple[torch.Tensor, torch.Tensor, float | None]:
        """Keys and values of the whole sequence, and the softmax scale of the dense step.

        Proportional attention (Lumina) derives the scale from the number of queries, which a
        sparse step must not change.
        """
        call = self._current()
        place = self.index, self._operations
        self._operations += 1
        if call is None:
            return key, value, scale
        if call.fresh is None:
            if call.fills_caches and key.shape[token_dim] >= call.num_tokens:
                call.cache.layers[place] = KVCache(key, value, token_dim, scale)
            return key, value, scale
        cached = call.cache.layers.get(place)
        num_missing = call.num_tokens - call.fresh.active.shape[1]
        if cached is None or cached.num_keys - key.shape[token_dim] != num_missing:
            return key, value, scale
        key, value = cached.merge(key, value, call.fresh)
        return key, value, cached.scale


def rebind(processor: Any, layer: AttentionLayer) -> Any:
    """A copy of ``processor`` whose attention operator goes through ``layer``.

    Raises:
        UnsupportedError: If the processor calls neither of the two operators by name.
    """
    kind = type(processor)
    function = inspect.unwrap(kind.__call__)
    if not isinstance(function, types.FunctionType) or not (
        set(function.__code__.co_names) & set(_OPERATORS)
    ):
        raise UnsupportedError(
            f"the attention processor {kind.__name__} calls neither dispatch_attention_fn nor "
            "F.scaled_dot_product_attention itself, so its keys and values cannot be cached; "
            "set one of diffusers' own processors for this model before enabling"
        )
    own_globals = dict(function.__globals__)
    # torch.compile looks a function's globals up again by module name; without the name it
    # takes those of the function itself.
    own_globals.pop("__name__", None)
    if "dispatch_attention_fn" in own_globals:
        own_globals["dispatch_attention_fn"] = _through(
            layer, own_globals["dispatch_attention_fn"], token_dim=1
        )
    if own_globals.get("F") is F:
        own_globals["F"] = _functional(layer)
    bound = types.FunctionType(
        function.__code__,
        own_globals,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    rebound = copy.copy(processor)
    rebound.__class__ = type(
        kind.__name__,
        (kind,),
        {"__call__": bound, "__module__": kind.__module__, "__qualname__": kind.__qualname__},
    )
    return rebound


def _functional(layer: AttentionLayer) -> types.ModuleType:
    functional = types.ModuleType(F.__name__)
    functional.__dict__.update(F.__dict__)
    functional.__dict__["scaled_dot_product_attention"] = _through(
        layer, F.scaled_dot_product_attention, token_dim=2
    )
    return functional


def _through(
    layer: AttentionLayer, operator: Callable[..., torch.Tensor], token_dim: int
) -> Callable[..., torch.Tensor]:
    @functools.wraps(operator)
    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        key, value, scale = layer.recover(key, value, token_dim, kwargs.get("scale"))
        if scale is not None:
            kwargs["scale"] = scale
        return operator(query, key, value, *args, **kwargs)

    return attend


def _set_processor(module: nn.Module, processor: Any) -> None:
    # As diffusers does: a processor that is a module must not stay registered beside a plain one.
    if isinstance(module.processor, nn.Module) and not isinstance(processor, nn.Module):
        del module.processor
    module.processor = processor
