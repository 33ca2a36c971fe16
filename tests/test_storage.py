"""How caches are stored: at fixed addresses, in eight bits, on the CPU."""

from __future__ import annotations

import gc
from typing import Any, Literal

import pytest
import torch

import ras_dit
from family_laws import SPARSE, run, run_sparse
from pipelines import sd3_inputs, sd3_pipeline, take
from ras_dit.cache import BranchCache, KVCache
from ras_dit.fresh import FreshRows
from ras_dit.hooks import TransformerHooks
from ras_dit.rules import Storage
from ras_dit.storage import Buffers, decode, encode

EIGHT_BITS: list[Literal["int8", "float8"]] = ["int8", "float8"]


def sd3(images: int = 2, **change: Any) -> dict[str, Any]:
    call = sd3_inputs(images) | change
    call.pop("output_type")
    return call


def addresses(cache: BranchCache) -> list[int]:
    parts = [part for layer in cache.layers.values() for part in layer.by_token() or ()]
    assert cache.output is not None
    return [part.data_ptr() for part in (*parts, cache.output)]


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Addresses of caches and of row numbers in every sparse call."""
    seen: list[tuple[list[int], list[int]]] = []
    before = TransformerHooks._before_transformer

    def watch(hooks: TransformerHooks, *call: Any) -> Any:
        result = before(hooks, *call)
        if hooks._call is not None and hooks._call.fresh is not None:
            rows = [
                rows.data_ptr()
                for table in (hooks._call.fresh._rows, hooks._call.fresh._positions)
                for rows in table.values()
            ]
            seen.append((addresses(hooks._call.cache), rows))
        return result

    monkeypatch.setattr(TransformerHooks, "_before_transformer", watch)
    return seen


def test_static_caches_change_nothing_and_keep_their_addresses(caches: list[Any]) -> None:
    pipe = sd3_pipeline(dual=True)
    plain, _ = run_sparse(pipe, sd3())
    by_reference, caches[:] = list(caches), []
    assert by_reference[0] != by_reference[-1]
    with ras_dit.enable(pipe, **SPARSE, static_cache=True):
        assert torch.equal(run(pipe, sd3()), plain)
        # Other allocations between two runs must not matter.
        block = torch.empty(1 << 16)
        assert torch.equal(run(pipe, sd3()), plain)
        del block
    assert len(caches) == 14
    assert all(call == caches[0] for call in caches)


def test_static_caches_are_freed_with_ras_and_for_another_shape() -> None:
    pipe = sd3_pipeline()

    def live() -> int:
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        return sum(x.untyped_storage().nbytes() for x in tensors)

    run_sparse(pipe, sd3())
    start = live()
    handle = ras_dit.enable(pipe, **SPARSE, static_cache=True)
    run(pipe, sd3())
    assert handle.trace is not None
    held = live() - start
    assert held >= handle.trace.cache_bytes
    run(pipe, sd3(height=16, width=16))
    assert live() - start < held
    handle.disable()
    del handle
    assert live() - start < 10_000


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
def test_eight_bits_round_each_head_of_each_row_by_itself(
    dtype: Literal["int8", "float8"], source: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows = torch.randn(7, 3, 16) * torch.logspace(-4, 3, 21).view(7, 3, 1)
    rows[2, 1] = 0
    flat = rows.flatten(1).to(source)
    codes, scales = encode(flat, 16, dtype)
    assert (codes.dtype, codes.shape) == (torch.int8, (7, 48))
    assert (scales.dtype, scales.shape) == (torch.float16, (7, 3))
    found = decode(codes, scales, source, dtype).float().view_as(rows)
    whole = flat.float().view_as(rows)
    largest = whole.abs().amax(-1, keepdim=True)
    error = (found - whole).abs()
    # Half a step of int8; e4m3 has three bits behind the point. Both with a half's scale.
    bound = largest / 127 / 2 if dtype == "int8" else whole.abs() / 16 + largest / 448 / 512
    slack = 2e-3 if source == torch.float32 else 1e-2
    assert bool((error <= bound + slack * largest).all())
    assert bool((found[2, 1] == 0).all())


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("token_dim", [1, 2])
def test_fresh_rows_are_exact_and_others_rounded(
    dtype: Literal["int8", "float8"], token_dim: int
) -> None:
    torch.manual_seed(0)
    shape = (2, 12, 3, 8) if token_dim == 1 else (2, 3, 12, 8)
    key, value = torch.randn(shape), torch.randn(shape)
    active = torch.tensor([[0, 5, 7], [1, 2, 11]])
    cache = KVCache(key.clone(), value.clone(), token_dim, None)
    cache.pack(Storage(dtype), "layer", Buffers())
    assert cache.nbytes == 2 * key.numel() + 2 * 2 * key.numel() // 8
    fresh = FreshRows(active, 12, "image_first")
    new_shape = (2, 3, 3, 8)
    new = torch.randn(new_shape), torch.randn(new_shape)
    for old, update, merged in zip((key, value), new, cache.merge(*new, fresh), strict=True):
        index = active.view(2, 3, 1, 1).expand(2, 3, 3, 8)
        if token_dim == 2:
            index = index.transpose(1, 2)
        assert torch.equal(merged.gather(token_dim, index), update)
        expected = old.scatter(token_dim, index, update)
        assert not torch.equal(merged, expected)
        torch.testing.assert_close(merged, expected, atol=0.15, rtol=0.07)
    # The next step finds those rows rounded, too.
    later = cache.merge(
        *(tensor[..., :1, :] if token_dim == 2 else tensor[:, :1] for tensor in new),
        FreshRows(active[:, :1], 12, "image_first"),
    )
    assert not torch.equal(later[0], expected)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_a_run_with_eight_bits_is_near_and_smaller(dtype: str) -> None:
    pipe = sd3_pipeline(dual=True)
    stock = run(pipe, sd3(3))
    plain, trace = run_sparse(pipe, sd3(3))
    rounded, small = run_sparse(pipe, sd3(3), cache_dtype=dtype)
    assert small.cache_bytes < 0.45 * trace.cache_bytes
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).abs().mean() < 0.1 * (plain - stock).abs().mean()
    alone = take(sd3(3), 1)
    single, _ = run_sparse(pipe, alone, cache_dtype=dtype)
    # A value on the edge between two codes may fall to either side.
    torch.testing.assert_close(single, rounded[1:2], atol=1e-2, rtol=0)
    with ras_dit.enable(pipe, sample_ratio=1.0, cache_dtype=dtype):
        assert torch.equal(run(pipe, sd3(3)), stock)


def test_caches_on_the_cpu_change_nothing() -> None:
    pipe = sd3_pipeline()
    plain, trace = run_sparse(pipe, sd3())
    with pytest.warns(ras_dit.RASWarning, match="offload_cache does nothing"):
        moved, other = run_sparse(pipe, sd3(), offload_cache=True)
    assert torch.equal(moved, plain)
    assert other.cache_bytes == trace.cache_bytes


@pytest.mark.parametrize("option", ["static_cache", "offload_cache"])
def test_options_of_storage_are_flags(option: str) -> None:
    with pytest.raises(ras_dit.RASError, match=f"{option}='yes'; expected True or False"):
        ras_dit.RASConfig(**{option: "yes"})
    with pytest.raises(ras_dit.RASError, match=r"cache_dtype='int4'.*model, int8, float8"):
        ras_dit.RASConfig(cache_dtype="int4")  # type: ignore[arg-type]
