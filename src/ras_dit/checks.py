"""Whether a transformer is what its description says, and free for hooks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn

from ras_dit.adapters import TransformerDescription
from ras_dit.errors import UnsupportedError

# Who may stand in front of a forward: offloading, casting and compilation compute the same.
_HARMLESS_PACKAGES = frozenset({"accelerate", "diffusers", "peft", "torch"})
# cache-dit leaves these behind: whole forwards, rewritten so that it can put its blocks in.
_REWRITTEN = "cache_dit.caching.patch_functors"
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
        UnsupportedError: If one of diffusers' hooks of that sort is active, if the transformer's
            or a block's ``forward`` was replaced (cache-dit, TeaCache), or if blocks are compiled
            one by one.
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
    blocks = (m for part in transformer.children() if isinstance(part, nn.ModuleList) for m in part)
    for module in (transformer, *blocks):
        foreign_module = next(_foreign_modules(module), None)
        if foreign_module is not None:
            raise UnsupportedError(
                f"the forward of {type(module).__name__} was replaced by one of {foreign_module}; "
                "RAS needs the model's own, in which every block runs, so take it off first: "
                "cache_dit.disable_cache(pipe) for cache-dit, and for what was patched by hand "
                "(TeaCache) the old forward"
            )


def _foreign_modules(module: nn.Module) -> Iterator[str]:
    """Names of the modules of code that stands in place of a module's own ``forward``."""
    function = vars(module).get("forward")
    home = None
    if function is None:
        owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
        function, home = vars(owner)["forward"], owner.__module__
    while function is not None:
        if isinstance(function, functools.partial):
            function = function.func
            continue
        # Decorators copy the module's name to what they return, not its globals.
        name = getattr(function, "__globals__", {}).get("__name__")
        if name is not None and name != home and not _is_harmless(name):
            yield name
        function = getattr(function, "__wrapped__", None)


def _is_harmless(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in _HARMLESS_PACKAGES or name.startswith(_REWRITTEN)


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
