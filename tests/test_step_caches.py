"""Step caches of others beside RAS: refused with the reason, whichever comes first.

They skip blocks by what blocks gave in earlier steps, for all tokens at once; a sparse step has
other rows each time. So none is combined with RAS, and none may go unseen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FluxTransformer2DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
)
from torch import nn

import families_crossed
import families_unified
import families_wan
import ras_dit
from families_flux import flux_call, flux_pipeline
from family_laws import SPARSE, Family, run, run_sparse
from pipelines import hooks_of

CONFIGS = (
    FirstBlockCacheConfig(threshold=0.1),
    FasterCacheConfig(current_timestep_callback=lambda: 500, tensor_format="BCHW"),
    PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    MagCacheConfig(num_inference_steps=7, mag_ratios=[1.0] * 7),
    SeaCacheConfig(),
    TaylorSeerCacheConfig(),
)


def refused(pipe: Any, take_off: Callable[[], None], put_on: Callable[[], None], what: str) -> None:
    """A cache is refused before and after RAS is enabled, and nothing is left once it is off."""
    stock = run(pipe, flux_call(1))
    sparse, _ = run_sparse(pipe, flux_call(1))
    put_on()
    hooks = hooks_of(pipe.transformer)
    with pytest.raises(ras_dit.UnsupportedError, match=what):
        ras_dit.enable(pipe, **SPARSE)
    assert hooks_of(pipe.transformer) == hooks
    take_off()
    with ras_dit.enable(pipe, **SPARSE):
        assert torch.equal(run(pipe, flux_call(1)), sparse)
        put_on()
        with pytest.raises(ras_dit.UnsupportedError, match=what):
            run(pipe, flux_call(1))
        take_off()
        assert torch.equal(run(pipe, flux_call(1)), sparse)
    assert torch.equal(run(pipe, flux_call(1)), stock)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_caches_of_diffusers(config: Any) -> None:
    pipe = flux_pipeline()
    transformer = pipe.transformer
    put_on = functools.partial(transformer.enable_cache, config)
    refused(pipe, transformer.disable_cache, put_on, "disable_cache")


def test_a_cache_that_was_put_on_by_its_hooks_alone() -> None:
    pipe = flux_pipeline()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ras_dit.UnsupportedError, match="fbc_leader_block_hook"):
        ras_dit.enable(pipe, **SPARSE)


def every_other(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As TeaCache does: the output of the last call in place of every other one."""
    last: list[Any] = []

    @functools.wraps(forward)
    def skipping(*args: Any, **kwargs: Any) -> Any:
        if last:
            return last.pop()
        last.append(forward(*args, **kwargs))
        return last[0]

    return skipping


def test_a_forward_that_was_replaced_on_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = FluxTransformer2DModel.forward
    replace = functools.partial(monkeypatch.setattr, FluxTransformer2DModel, "forward")

    def take_off() -> None:
        replace(stock)

    def put_on() -> None:
        replace(every_other(stock))

    refused(flux_pipeline(), take_off, put_on, "replaced by one of test_step_caches")


@pytest.mark.parametrize("part", ["transformer", "block"])
def test_a_forward_that_was_replaced_on_the_object(part: str) -> None:
    pipe = flux_pipeline()
    module: nn.Module = pipe.transformer
    if part == "block":
        module = pipe.transformer.single_transformer_blocks[1]

    def put_on() -> None:
        module.forward = every_other(module.forward)  # type: ignore[method-assign]

    def take_off() -> None:
        del vars(module)["forward"]

    refused(pipe, take_off, put_on, "replaced by one of test_step_caches")


def test_a_compiled_forward_is_let_through() -> None:
    """Not every replaced forward is a cache."""
    pipe = flux_pipeline()
    pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend="eager")
    ras_dit.enable(pipe, **SPARSE).disable()


# -- cache-dit -------------------------------------------------------------------------------------


def cached_by_cache_dit(pipe: Any) -> None:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.9, max_warmup_steps=2
    )
    cache_dit.enable_cache(pipe, cache_config=config)


def freed_from_cache_dit(pipe: Any) -> None:
    import cache_dit

    cache_dit.disable_cache(pipe)


@pytest.mark.filterwarnings("ignore")
def test_cache_dit() -> None:
    pipe = flux_pipeline()
    stock = run(pipe, flux_call(1))
    cached_by_cache_dit(pipe)
    assert float((run(pipe, flux_call(1)) - stock).abs().max()) > 1e-2
    freed_from_cache_dit(pipe)
    refused(
        pipe,
        functools.partial(freed_from_cache_dit, pipe),
        functools.partial(cached_by_cache_dit, pipe),
        r"cache_dit\.disable_cache",
    )


def rows_by_name() -> dict[str, Family]:
    rooms = (families_crossed, families_unified, families_wan)
    return {str(family): family for room in rooms for family in room.FAMILIES}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["HunyuanDiT text-to-image", "Wan 2.1 VACE control", "Z-Image text-to-image"]
)
def test_what_cache_dit_leaves_behind_is_no_cache(name: str) -> None:
    """Some forwards stay rewritten when it is off; RAS gives the same latents with these."""
    family = rows_by_name()[name]
    pipe = family.build()
    sparse, _ = run_sparse(pipe, family.call(1))
    cached_by_cache_dit(pipe)
    with pytest.raises(ras_dit.UnsupportedError, match="cache_dit"):
        ras_dit.enable(pipe)
    freed_from_cache_dit(pipe)
    assert torch.equal(run_sparse(pipe, family.call(1))[0], sparse)
