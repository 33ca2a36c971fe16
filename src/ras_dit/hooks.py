"""The hooks on one transformer: the only file that registers any.

Before the transformer runs, its engine says what the call computes. Before the first block the
active tokens are gathered; behind the last layer the rows are put back together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ras_dit.adapters import TokenArgument, TransformerDescription
from ras_dit.attention import AttentionLayer
from ras_dit.calls import TransformerCall
from ras_dit.checks import block_parameters, submodule
from ras_dit.entrance import Entrance, Skipped, uncompiled
from ras_dit.errors import UnsupportedError
from ras_dit.fresh import FreshRows
from ras_dit.guidance import Half
from ras_dit.tables import gather_shared, gather_table
from ras_dit.trees import tree_map

# Gets the hooks and the arguments of a call by name; None where RAS has no part in the call.
Begin = Callable[["TransformerHooks", Mapping[str, Any]], TransformerCall | None]


class TransformerHooks:
    """Everything that RAS puts on one transformer.

    Args:
        called: What the pipeline calls: the transformer, or what ``torch.compile`` made of it.
        description: What it looks like.
        begin: Asked at every call what it computes.
        owner: The engine, so that it can be found from its transformer.
        may_skip: Whether some calls are to be skipped.

    Raises:
        UnsupportedError: If the transformer is not what the description says. Nothing is left
            on it then.
    """

    def __init__(
        self,
        called: nn.Module,
        description: TransformerDescription,
        begin: Begin,
        owner: object,
        *,
        may_skip: bool = False,
    ) -> None:
        self.transformer = transformer = uncompiled(called)
        self.description = description
        self.owner = owner
        self.model_config = cast("Mapping[str, Any]", transformer.config)
        self._begin = begin
        self._may_skip = may_skip
        self._call: TransformerCall | None = None
        self._gathered: dict[str, tuple[Any, Any]] = {}
        self._streams: dict[str, tuple[Any, torch.Tensor]] = {}
        self._layers: list[AttentionLayer] = []
        self._blocks: list[tuple[list[AttentionLayer], tuple[str, ...]]] = []
        self._entrance: Entrance | None = None
        self._handles: list[RemovableHandle] = []
        self._output: tuple[nn.Module, RemovableHandle] | None = None
        self._signature = inspect.signature(transformer.forward)
        try:
            self._attach()
            self.follow_called(called)
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        description, transformer = self.description, self.transformer
        keep = self._handles.append
        blocks = [block for name in description.blocks for block in getattr(transformer, name)]
        if not blocks:
            raise UnsupportedError(
                f"{type(transformer).__name__} has no block in {', '.join(description.blocks)}"
            )
        parameters = block_parameters(blocks, description)
        for block, names in zip(blocks, parameters, strict=True):
            layers = []
            for path in description.attention:
                module = submodule(block, path)
                if module is not None:
                    layer = AttentionLayer(
                        module,
                        len(self._layers),
                        self._current_call,
                        by_sample=description.attention_by_sample,
                        fused=description.fused,
                    )
                    self._layers.append(layer)
                    layers.append(layer)
            self._blocks.append((layers, names))
            hook = functools.partial(self._before_block, len(self._blocks) - 1)
            keep(block.register_forward_pre_hook(hook, with_kwargs=True))
        if description.expand:
            keep(blocks[-1].register_forward_hook(self._after_last_block))
        for name in description.whole:
            for module in getattr(transformer, name):
                keep(module.register_forward_pre_hook(self._before_whole))
                keep(module.register_forward_hook(self._after_whole))
        self.follow_replaced_modules()

    def follow_called(self, called: nn.Module) -> None:
        """Stand in front of what the pipeline calls now, outside of what is compiled."""
        if self._entrance is None or not self._entrance.leads_to(called):
            if self._entrance is not None:
                self._entrance.close()
            self._entrance = Entrance(
                called,
                self._before_transformer,
                self._after_transformer,
                may_skip=self._may_skip,
            )

    def follow_replaced_modules(self) -> None:
        """Processors and the output layer may be others now (IP-adapters, LoRA)."""
        for layer in self._layers:
            layer.refresh()
        output = self.transformer.get_submodule(self.description.output)
        if self._output is None or self._output[0] is not output:
            if self._output is not None:
                self._output[1].remove()
            self._output = output, output.register_forward_hook(self._after_output)

    def detach(self) -> None:
        """Remove every hook and give every layer its own processor back."""
        if self._entrance is not None:
            self._entrance.close()
            self._entrance = None
        for handle in self._handles:
            handle.remove()
        if self._output is not None:
            self._output[1].remove()
            self._output = None
        for layer in self._layers:
            layer.restore()
        self._handles.clear()
        self._layers.clear()
        self._blocks.clear()

    def end_call(self) -> None:
        """Forget the call under way."""
        self._call = None
        self._gathered.clear()
        self._streams.clear()

    def settings(self) -> list[object]:
        """What of the attention processors decides which operations there are."""
        return [layer.settings() for layer in self._layers]

    def half_of(self, arguments: Mapping[str, Any], half: Half) -> dict[str, Any]:
        """The transformer's arguments for one of two guidance branches in a batch."""
        description = self.description
        return half.arguments(
            arguments,
            lists=isinstance(arguments[description.latents], list),
            shared=description.shared_arguments,
            batch_dims=description.batch_dims,
        )

    @property
    def is_perturbed(self) -> bool:
        """Whether attention treats guidance branches differently (perturbed-attention guidance)."""
        return any(type(layer.original).__name__.startswith("PAG") for layer in self._layers)

    def _current_call(self) -> TransformerCall | None:
        return self._call

    def __reduce__(self) -> tuple[type[InertHooks], tuple[()]]:
        """Copies and pickles of a transformer are stock: their hooks do nothing."""
        return InertHooks, ()

    def _before_transformer(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | Skipped | None:
        self.end_call()
        arguments = self._signature.bind(*args, **kwargs).arguments
        self._call = call = self._begin(self, arguments)
        if call is not None and call.is_skipped:
            # A copy: callers may write to it.
            return Skipped(tree_map(torch.clone, call.cache.returned))
        if call is None:
            return None
        changed = None
        if call.half is not None:
            arguments = self.half_of(arguments, call.half)
            changed = (), arguments
        if call.fresh is None:
            return changed
        # Row numbers are made here, so that a compiled transformer only looks them up.
        call.cache.prepare(call.fresh)
        present = [name for name in self.description.residuals if arguments.get(name) is not None]
        if not present:
            return changed
        for name in present:
            arguments[name] = tree_map(call.fresh.take, arguments[name])
        return (), arguments

    def _after_transformer(self, output: Any) -> Any:
        call = self._call
        if call is not None and call.fills_caches:
            call.cache.settle()
        if call is not None and not call.is_skipped:
            call.cache.returned = tree_map(torch.clone, output) if call.is_repeated else None
        self.end_call()
        if call is not None and call.finish is not None and output is not None:
            return call.finish(output)
        return output

    def _before_block(
        self,
        index: int,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._call
        if call is None:
            return None
        layers, parameters = self._blocks[index]
        for layer in layers:
            layer.begin()
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        name = self.description.hidden
        if not call.entered:
            call.entered = True
            call.length = call.cache.length = arguments[name].shape[1]
            if call.length < call.num_image:
                raise UnsupportedError(
                    f"{type(block).__name__} got {call.length} tokens, and the latents have "
                    f"{call.num_image}; the description of {self.description.transformer} "
                    "does not fit this pipeline"
                )
        if call.fresh is None:
            return None
        self._cut_down(arguments, call.fresh)
        # Whatever came by position goes back by position.
        return tuple(arguments.pop(parameter) for parameter in parameters[: len(args)]), arguments

    def _cut_down(self, arguments: dict[str, Any], fresh: FreshRows) -> None:
        """Leave a block's arguments with the fresh rows only."""
        for stream in (self.description.hidden, *self.description.streams):
            if arguments.get(stream) is not None:
                arguments[stream] = self._narrow(stream, arguments[stream], fresh)
        for count in self.description.counts:
            if count in arguments:
                arguments[count] = 0
        for argument in self.description.token_arguments:
            if arguments.get(argument.name) is not None:
                arguments[argument.name] = self._gather_once(argument, arguments[argument.name])
        if fresh.keeps_text:
            for argument in self.description.text_arguments or ():
                if arguments.get(argument.name) is not None:
                    arguments[argument.name] = _without_rows(argument, arguments[argument.name])

    def _narrow(self, name: str, tokens: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        """The fresh rows of a stream where it comes in; what blocks hand on has them only."""
        if name not in self._streams:
            self._streams[name] = tokens, fresh.take(tokens)
        whole, narrowed = self._streams[name]
        # Some models give the same whole tokens to several blocks.
        return narrowed if tokens is whole else tokens

    def _gather_once(self, argument: TokenArgument, value: Any) -> Any:
        """The fresh rows of what all blocks of one call are given."""
        known = self._gathered.get(argument.name)
        if known is None or known[0] is not value:
            known = value, self._gather(argument, value)
            self._gathered[argument.name] = known
        return known[1]

    def _gather(self, argument: TokenArgument, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return _by_member(argument, value, self._gather)
        if value is None or (argument.ndim is not None and value.ndim != argument.ndim):
            return value
        assert self._call is not None
        fresh = self._call.fresh
        assert fresh is not None
        length = value.shape[argument.dim] if value.ndim > argument.dim else 0
        if length == 1 and argument.dim > 0:  # one row for all tokens
            return value
        if length < fresh.num_tokens:
            raise UnsupportedError(
                f"{argument.name} of {self.description.transformer}'s blocks is {list(value.shape)}"
                f"; the description says that dimension {argument.dim} holds the "
                f"{fresh.num_tokens} image tokens"
            )
        positions = fresh.positions(length)
        if argument.dim == 0:
            if fresh.are_shared:
                positions = positions[:1]
            elif not argument.broadcast:
                self._check_operations_on_all_rows(fresh.active.shape[0])
            return gather_shared(value, positions, broadcast=argument.broadcast)
        return gather_table(value, argument.dim, positions)

    def _check_operations_on_all_rows(self, rows: int) -> None:
        """A table with rows for every image is of no use to attention on some branches alone."""
        assert self._call is not None
        layers = self._call.cache.layers.values()
        if not self.description.attention_by_sample and any(x.num_rows != rows for x in layers):
            raise UnsupportedError(
                f"{self.description.transformer} makes attention on some guidance branches alone, "
                "as perturbed-attention guidance does, and positions of several images with active "
                "tokens of their own cannot follow; make one image at a time"
            )

    def _after_last_block(
        self, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor | None:
        """As many rows as before the first block; those of inactive tokens count for nothing."""
        call = self._call
        if call is None or call.fresh is None:
            return None
        return _spread(output, call.fresh, call.length)

    def _before_whole(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Every token at its place, as a module between the blocks expects them."""
        call = self._call
        if call is None or call.fresh is None:
            return None
        return _spread(args[0], call.fresh, call.length), *args[1:]

    def _after_whole(
        self, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor | None:
        call = self._call
        if call is None or call.fresh is None:
            return None
        return call.fresh.take(output)

    def _after_output(
        self, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor | None:
        call = self._call
        if call is None:
            return None
        if call.fresh is not None:
            return call.cache.merge_output(output, call.fresh)
        if call.fills_caches:
            call.cache.keep_output(output)
        return None


class InertHooks(TransformerHooks):
    """What becomes of hooks in a copy of a transformer: there is no call that they change."""

    def __init__(self) -> None:
        self._call = None


def _spread(rows: torch.Tensor, fresh: FreshRows, length: int) -> torch.Tensor:
    """Fresh rows at their places in a sequence that is zero elsewhere."""
    whole = rows.new_zeros(rows.shape[0], length, *rows.shape[2:])
    whole.view(-1, *rows.shape[2:]).index_copy_(0, fresh.rows(length), rows.flatten(0, 1))
    return whole


def _by_member(
    argument: TokenArgument, value: Any, change: Callable[[TokenArgument, Any], Any]
) -> Any:
    """A tuple or list whose members with token rows are changed, with all that is in them."""
    members = argument.members or range(len(value))
    whole = replace(argument, members=None)
    return type(value)(
        [change(whole, item) if place in members else item for place, item in enumerate(value)]
    )


def _without_rows(argument: TokenArgument, value: Any) -> Any:
    """A text argument with none of its rows."""
    if isinstance(value, tuple | list):
        return _by_member(argument, value, _without_rows)
    return None if value is None else value.narrow(argument.dim, 0, 0)
