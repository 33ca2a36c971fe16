"""What is wrong with a description, in words: for the report of `ras_dit.verify`.

Shape letters: R rows of the model batch, N image tokens, A active tokens, S length of a sequence,
C channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ras_dit.adapters import TransformerDescription
from ras_dit.errors import RASError
from ras_dit.fresh import FreshRows
from ras_dit.probe import Operation, probe_attention, read_latents
from ras_dit.trace import Trace

_PLACES = {
    "image_first": "in front of the text",
    "text_first": "behind the text",
    "text_around": "between two parts of the text",
}


@dataclass
class BlockOutputs:
    """What the blocks gave in one call of a transformer.

    Attributes:
        arguments: Of that call, by name.
        names: Of the blocks, in order.
        tensors: All tensors ``[R, S, C]`` that each block returned.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    tensors: list[list[torch.Tensor]] = field(default_factory=list)


@contextmanager
def watch_blocks(
    transformers: Sequence[nn.Module], description: TransformerDescription, call_number: int
) -> Iterator[BlockOutputs]:
    """Keep what the blocks give in the call of that number, counted from 0."""
    outputs = BlockOutputs()
    calls = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        if calls == call_number:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            outputs.arguments = dict(bound.arguments)
        calls += 1

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if calls == call_number + 1:
                members = output if isinstance(output, tuple | list) else (output,)
                tensors = [m for m in members if isinstance(m, torch.Tensor) and m.ndim == 3]
                outputs.names.append(name)
                outputs.tensors.append([tensor.detach().clone() for tensor in tensors])

        return hook

    handles = []
    for transformer in transformers:
        handles.append(transformer.register_forward_pre_hook(count, with_kwargs=True))
        for name in description.blocks:
            for index, block in enumerate(getattr(transformer, name)):
                handles.append(block.register_forward_hook(keep(f"{name}.{index}")))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def misplaced(
    transformer: nn.Module, description: TransformerDescription, arguments: dict[str, Any]
) -> list[str]:
    """Where image tokens stand in attention, measured, against what the description says.

    Args:
        transformer: The transformer, without RAS enabled.
        description: What is said of it.
        arguments: Those of a dense call.
    """
    config: Any = transformer.config
    try:
        call = inspect.BoundArguments(inspect.signature(transformer.forward), arguments)
        latents = read_latents(
            arguments,
            description.latents,
            description.patch(config),
            frames_first=description.frames_first,
        )
        operations = probe_attention(transformer, call, latents)
    except RASError as error:
        return [str(error)]
    for number, operation in enumerate(operations):
        measured = _order(operation)
        if measured is not None and measured != description.token_order:
            text = (
                f'token_order="{description.token_order}" is wrong: in attention operation '
                f"{number} the image tokens stand {_PLACES[measured]}; "
                f'token_order="{measured}" would say so'
            )
            return [text]
    return []


def _order(operation: Operation) -> str | None:
    """The token order of an operation; ``None`` where there is no text, or no image."""
    is_image = operation.tokens[0] >= 0
    places = is_image.nonzero().flatten()
    if places.numel() in {0, is_image.numel()}:
        return None
    if int(places[0]) == 0:
        return "image_first"
    return "text_first" if int(places[-1]) == is_image.numel() - 1 else "text_around"


def first_difference(
    fast: BlockOutputs,
    slow: BlockOutputs,
    description: TransformerDescription,
    trace: Trace,
    step: int,
) -> str | None:
    """The first block whose active tokens differ from the reference, in the first sparse call.

    Args:
        fast: From the accelerated run.
        slow: From the reference run.
        description: Of the transformer.
        trace: Of the accelerated run.
        step: The step that the outputs are of.
    """
    active = trace.steps[step].active
    assert active is not None
    number = len(fast.tensors)
    # Measuring the tokens' places runs the blocks, too; the real call comes last.
    names, whole = slow.names[-number:], slow.tensors[-number:]
    starts = None if description.starts is None else description.starts(fast.arguments)
    for name, mine, theirs in zip(names, fast.tensors, whole, strict=True):
        for tensor, reference in zip(mine, theirs, strict=False):
            rows = active.to(tensor.device).repeat(tensor.shape[0] // active.shape[0], 1)
            missing = reference.shape[1] - tensor.shape[1]
            if missing <= 0:
                continue
            fresh = FreshRows(rows, missing + rows.shape[1], description.token_order, None, starts)
            expected = fresh.take(reference)
            error = float((tensor - expected).abs().max())
            if not error <= 1e-3 * float(expected.abs().max()):
                return name
    return None


def blame(block: str | None, description: TransformerDescription) -> str:
    """What is likely to be wrong where the first difference is."""
    if block is None:
        return (
            f"all blocks agree with the reference and the noise does not: look at "
            f"output={description.output!r}, expand={description.expand}, and the patch"
        )
    gathered = ", ".join(argument.name for argument in description.token_arguments) or "none"
    return (
        f"the first difference is behind {block}: look at attention="
        f"{', '.join(description.attention)} (is there another attention on image tokens?), "
        f"token_arguments={gathered} (is there another argument with a row per token, or is its "
        "dim another?), and residuals"
    )
