"""Attention recovery without copying an attention processor.

A diffusers attention processor projects, normalises and rotates, and then calls one attention
operator that it finds among its module's globals: ``F.scaled_dot_product_attention`` or
``dispatch_attention_fn``. A layer's processor is *re-bound*: its own code object runs with a copy
of its globals in which only those two names lead here. Keys and values are merged with the cache
(Eq. 2) and the original operator is called. Nothing is global, every attention backend keeps
working, and putting the old processor back undoes it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ras_dit.cache import BranchCache, KVCache
from ras_dit.errors import UnsupportedError
from ras_dit.fresh import FreshRows

_OPERATORS = ("dispatch_attention_fn", "F")
# What both operators take after query, key and value, in this order.
_OPTIONS = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa", "attention_kwargs")
_STOCK = "__ras_stock__"


class AttentionCall(Protocol):
    """What attention has to know of the transformer call that it is part of."""

    cache: BranchCache
    fills_caches: bool
    fresh: FreshRows | None
    num_image: int


class AttentionLayer:
    """One attention module whose processor is re-bound.

    Args:
        module: The attention module.
        index: Number of the layer in its transformer.
        current: Gives the transformer call under way, ``None`` where RAS has no part in it.
        by_sample: Whether the processor makes one operation for each row of the model batch.
        fused: Name of the kernels that make its sparse calls where they can.
    """

    def __init__(
        self,
        module: nn.Module,
        index: int,
        current: Callable[[], AttentionCall | None],
        *,
        by_sample: bool = False,
        fused: str | None = None,
    ) -> None:
        self.module = module
        self.index = index
        self.fused = fused
        self._current = current
        self._by_sample = by_sample
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
            self.original = stock(self.module.processor)
            self.bound = rebind(self.original, self)
            _set_processor(self.module, self.bound)

    def settings(self) -> object:
        """What of the processor decides which attention operations there are."""
        plain = (bool, int, float, str)
        values = vars(self.original).items()
        return self.original, [(name, value) for name, value in values if isinstance(value, plain)]

    def restore(self) -> None:
        """Put the original processor back, unless somebody else has replaced ours."""
        current = self.module.processor
        if stock(current) is not current:
            _set_processor(self.module, stock(current))

    def sparse_operation(self, batch: int, num_fresh: int) -> tuple[KVCache, FreshRows] | None:
        """The cache of the operation to come and its fresh rows; ``None`` in a dense call.

        Args:
            batch: Rows of the model batch in the operation.
            num_fresh: Tokens that come with it.
        """
        call = self._current()
        if call is None or call.fresh is None:
            return None
        return self._sparse(call, call.fresh, self._operations, batch, num_fresh)

    def _sparse(
        self, call: AttentionCall, fresh: FreshRows, operation: int, batch: int, num_fresh: int
    ) -> tuple[KVCache, FreshRows] | None:
        cached = call.cache.layers.get((self.index, operation))
        if cached is None or num_fresh != fresh.count(cached.num_keys):
            return None
        return cached, fresh.sample(operation) if self._by_sample else fresh.part(batch)

    def recover(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        token_dim: int,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole sequence (Eq. 2), and options that fit them.

        Proportional attention (Lumina) derives the softmax scale from the number of queries, and
        some processors make a mask for the sequence that they see. Neither may change because a
        step is sparse, so ``options`` gets those of the dense step.
        """
        call = self._current()
        place = self.index, self._operations
        self._operations += 1
        if call is None:
            return key, value
        scale, mask = options.get("scale"), options.get("attn_mask")
        if call.fresh is None:
            if call.fills_caches and key.shape[token_dim] >= call.num_image:
                mask = call.cache.shared_mask(mask)
                call.cache.keep(place, KVCache(key, value, token_dim, scale, mask))
            return key, value
        found = self._sparse(call, call.fresh, place[1], key.shape[0], key.shape[token_dim])
        if found is None:
            return key, value
        cached, fresh = found
        if scale is not None:
            options["scale"] = cached.scale
        if mask is not None:
            options["attn_mask"] = cached.mask_of(mask, query.shape[token_dim], fresh)
        return cached.merge(key, value, fresh)


def stock(processor: Any) -> Any:
    """The processor that a re-bound one was made from; any other processor itself.

    Pipelines that exchange processors for one run (perturbed-attention guidance) put back what
    they found, which may be a re-bound one of an earlier time.
    """
    return vars(type(processor)).get(_STOCK, processor)


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
    namespace = {
        "__call__": _fused(bound, processor, layer),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        _STOCK: processor,
        # Copies and pickles of a layer are stock.
        "__reduce_ex__": lambda _self, _protocol: (_same, (processor,)),
    }
    rebound: Any = object.__new__(type(kind.__name__, (kind,), namespace))
    # One set of attributes: the scale of an IP-adapter may be changed on either.
    rebound.__dict__ = processor.__dict__
    return rebound


def _same(processor: Any) -> Any:
    return processor


def _fused(bound: Callable[..., Any], processor: Any, layer: AttentionLayer) -> Callable[..., Any]:
    """A processor's call, whose sparse calls kernels make where there are any for it."""
    if layer.fused is None:
        return bound
    from ras_dit.kernels import fused_processor, machine_obstacle

    fused = fused_processor(layer.fused)
    if machine_obstacle() is not None or not fused.fits(processor):
        return bound

    @functools.wraps(bound)
    def attend(own: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A compiler makes kernels of its own, and cannot look into these.
        output = (
            None if torch.compiler.is_compiling() else fused.attend(layer, module, *args, **kwargs)
        )
        return bound(own, module, *args, **kwargs) if output is None else output

    return attend


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
        options = {**dict(zip(_OPTIONS, args, strict=False)), **kwargs}
        key, value = layer.recover(query, key, value, token_dim, options)
        return operator(query, key, value, **options)

    return attend


def _set_processor(module: nn.Module, processor: Any) -> None:
    # As diffusers does: a processor that is a module must not stay registered beside a plain one.
    if isinstance(module.processor, nn.Module) and not isinstance(processor, nn.Module):
        del module.processor
    module.processor = processor
