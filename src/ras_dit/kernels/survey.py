"""Where a pipeline's sparse steps use the kernels, and what is in the way elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from ras_dit.adapters import TransformerDescription, describe
from ras_dit.attention import stock
from ras_dit.checks import submodule
from ras_dit.engine import denoisers
from ras_dit.entrance import uncompiled
from ras_dit.kernels.eligibility import tensor_obstacle
from ras_dit.kernels.processors import fused_processor

IN_USE = "in use"


def survey(pipe: Any, description: TransformerDescription | None = None) -> dict[str, int]:
    """How many attention layers use the kernels in sparse steps, and why the others do not.

    Nothing is changed, and RAS need not be enabled.

    Args:
        pipe: A diffusers pipeline with a supported transformer.
        description: What the transformer looks like, where ras-dit does not know it.

    Returns:
        Attention layers by what holds for them: ``"in use"``, or what is in the way.

    Raises:
        UnsupportedError: If the transformer is not known.
    """
    found: Counter[str] = Counter()
    for called in denoisers(pipe).values():
        transformer: Any = uncompiled(called)
        known = description or describe(transformer)
        compiled = transformer is not called or vars(called).get("_compiled_call_impl") is not None
        for name in known.blocks:
            for block in getattr(transformer, name):
                for path in known.attention:
                    module = submodule(block, path)
                    if module is not None:
                        found[_state(module, known, transformer, compiled=compiled)] += 1
    return dict(found)


def _state(
    module: nn.Module, description: TransformerDescription, transformer: Any, *, compiled: bool
) -> str:
    if description.fused is None:
        return f"there is no kernel for {description.family}"
    if compiled:
        return "the transformer is compiled, and the compiler makes its own kernels"
    fused = fused_processor(description.fused)
    processor = stock(module.processor)
    if not fused.fits(processor):
        return f"there is no kernel for {type(processor).__name__}"
    like = next(
        parameter for parameter in transformer.parameters() if parameter.is_floating_point()
    )
    return tensor_obstacle(like.device, like.dtype) or fused.obstacle(module, like) or IN_USE
