"""Whether a transformer is what its description says, and free for hooks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ras_dit.adapters import TransformerDescription
from ras_dit.errors import UnsupportedError

# Hooks of diffusers that move or cast weights and leave the computation as it is.
_HARMLESS_HOOKS = frozenset(
    {
        "group_offloading",
        "lazy_prefetch_group_offloading",
        "layerwise_casting",
        "peft_autocast_disable",
    }
)


def check_unhooked(transformer: nn.Module) -> None:
    """Refuse a transformer on which another method skips or splits the computation.

    Raises:
        UnsupportedError: If one of diffusers' hooks of that sort is active.
    """
    if any(
        vars(m).get("_compiled_call_impl") for m in transformer.modules() if m is not transformer
    ):
        raise UnsupportedError(
            f"blocks of this {type(transformer).__name__} are compiled one by one, and RAS would "
            "make torch compile each of them again and again; compile the whole transformer: "
            "pipe.transformer = torch.compile(pipe.transformer)"
        )
    registries = (getattr(m, "_diffusers_hook", None) for m in transformer.modules())
    names = {name for registry in registries if registry is not None for name in registry.hooks}
    foreign = sorted(names - _HARMLESS_HOOKS)
    if foreign or getattr(transformer, "is_cache_enabled", False):
        raise UnsupportedError(
            f"another cache or hook ({', '.join(foreign) or 'enable_cache'}) is active on this "
            f"{type(transformer).__name__}; RAS needs every block to run in dense steps, so call "
            "transformer.disable_cache() or remove that hook first"
        )


def submodule(block: nn.Module, path: str) -> nn.Module | None:
    """The module at a path below ``block``; ``None`` where there is none."""
    module: Any = block
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return cast("nn.Module", module)


def block_parameters(
    blocks: Sequence[nn.Module], description: TransformerDescription
) -> list[tuple[str, ...]]:
    """Names of each block's parameters, in order.

    Raises:
        UnsupportedError: If the description speaks of others: every block has the image tokens,
            and some block each of the further arguments.
    """
    parameters = [tuple(inspect.signature(block.forward).parameters) for block in blocks]
    known = {name for names in parameters for name in names}
    further = (*(argument.name for argument in description.token_arguments), *description.streams)
    for block, names in zip(blocks, parameters, strict=True):
        for name in (description.hidden, *(name for name in further if name not in known)):
            if name not in names:
                raise UnsupportedError(
                    f"{type(block).__name__}.forward has no argument {name!r}, as the description "
                    f"of {description.transformer} says; it has {', '.join(names)}"
                )
    return parameters
