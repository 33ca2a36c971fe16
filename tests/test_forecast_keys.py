"""Keys and values that move on: as in a full-length reference, exact on lines, freed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import ras_dit
from families import lumina_inputs, lumina_pipeline
from families_flux import FAMILIES as FLUX
from families_unified import FAMILIES as UNIFIED
from family_laws import SPARSE, Family, run, run_sparse
from pipelines import TEXT_TOKENS, sd3_inputs, sd3_pipeline
from ras_dit import reference
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cache import BranchCache, KVCache
from ras_dit.fresh import FreshRows
from ras_dit.key_clock import KeyClock
from ras_dit.masked_branch import MaskedBranch
from ras_dit.planning import plan_table
from ras_dit.reference import masked_reference
from ras_dit.rules import Storage

MOVING = {"forecast_keys": 0.75}
B, H, N, T, D = 2, 3, 11, 4, 6


def sd3(images: int = 2, **change: Any) -> dict[str, Any]:
    call = sd3_inputs(images) | {"num_inference_steps": 7} | change
    call.pop("output_type")
    return call


class MovingBranch(MaskedBranch):
    """Keys and values in float64 at full length, each by its own last two fresh ones."""

    sigmas: list[float]
    factor = 0.75
    longest = 99
    number = -1

    def start(self, mask: torch.Tensor | None, runs: torch.Tensor | None) -> None:
        self.number += 1
        if self.number == 0:
            self.known: dict[int, list[torch.Tensor]] = {}
        super().start(mask, runs)

    def recover(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, in_block: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = self._made
        held = torch.cat(super().recover(query, key, value, in_block=in_block), dim=1).double()
        operation = self.operations[index]
        fresh = torch.ones_like(operation.tokens, dtype=torch.bool)
        if self._mask is not None and in_block:
            active = self._mask[operation.rows].gather(1, operation.tokens.clamp(min=0))
            fresh = torch.where(operation.tokens < 0, not self.keeps_text, active)
        fresh = fresh.expand(key.shape[0], -1)[:, None, :, None]
        step = torch.full_like(fresh, self.number, dtype=torch.int64)
        if index not in self.known:
            self.known[index] = [torch.full_like(step, -1), held, step, held]
            return key, value
        before, old, last, new = self.known[index]
        noise = torch.tensor(self.sigmas, dtype=torch.float64)
        until = noise[step.minimum(last + self.longest)]
        slope = (new - old) / (noise[last] - noise[before.clamp(min=0)])
        slope = torch.where(before < 0, 0.0, slope)
        moved = torch.where(fresh, held, new + self.factor * slope * (until - noise[last]))
        self.known[index] = [
            torch.where(fresh, last, before),
            torch.where(fresh, new, old),
            torch.where(fresh, step, last),
            torch.where(fresh, held, new),
        ]
        moved_key, moved_value = moved.to(key.dtype).chunk(2, dim=1)
        return moved_key, moved_value


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[MovingBranch]]:
    monkeypatch.setattr(reference, "MaskedBranch", MovingBranch)
    yield MovingBranch
    MovingBranch.longest = 99


def noise_levels(trace: ras_dit.Trace) -> list[float]:
    return [float(step.sigma or 0) for step in trace.steps]


def lumina(images: int) -> dict[str, Any]:
    call = lumina_inputs(images)
    call.pop("output_type")
    return call


FAMILIES = [
    Family("SD3.5", lambda: sd3_pipeline(dual=True), sd3),
    Family("Lumina-Next", lumina_pipeline, lumina),
    # Calls of their own for each branch; references; some rows alone, and a branch that ends.
    next(family for family in FLUX if family.feature == "true guidance"),
    next(family for family in FLUX if family.feature == "edit"),
    *(family for family in UNIFIED if family.feature == "truncated guidance"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_sparse_run_equals_the_reference_with_the_same_forecasts(
    family: Family, moving: type[MovingBranch]
) -> None:
    pipe = family.build()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    call = family.call(2 if family.batched else 1)
    sparse, trace = run_sparse(pipe, call, **MOVING)
    held, _ = run_sparse(pipe, family.call(2 if family.batched else 1))
    moving.sigmas = noise_levels(trace)
    torch.manual_seed(0)
    expected = masked_reference(pipe, trace, **family.call(2 if family.batched else 1))
    torch.testing.assert_close(sparse, expected, atol=2e-4, rtol=0)
    assert (held - sparse).abs().max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"text": "keep"},
        {"forecast_age": 1},
        {"schedule": (1.0, 0.4, 0.0, 0.4, 1.0, 0.4, 0.4)},
        {"schedule": (1.0, 1.0, 0.4, 0.4, 1.0, 1.0, 0.4)},
    ],
    ids=["kept text", "an age", "one dense step and a skipped one", "two dense steps"],
)
def test_other_runs_equal_it_too(change: dict[str, Any], moving: type[MovingBranch]) -> None:
    pipe = sd3_pipeline()
    settings = change if "schedule" in change else SPARSE | change
    with ras_dit.enable(pipe, **settings, **MOVING) as handle:
        sparse = run(pipe, sd3())
    assert handle.trace is not None
    moving.sigmas = noise_levels(handle.trace)
    moving.longest = change.get("forecast_age", 99)
    expected = masked_reference(pipe, handle.trace, **sd3())
    torch.testing.assert_close(sparse, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("token_dim", [1, 2])
@pytest.mark.parametrize("storage", [Storage(), Storage(static=True), Storage(offload=True)])
@pytest.mark.parametrize("order", ["image_first", "text_first", "text_around"])
@pytest.mark.parametrize("keeps_text", [False, True])
def test_keys_on_a_line_are_forecast_exactly(
    token_dim: int, storage: Storage, order: Any, keeps_text: bool
) -> None:
    """Whatever the sets and the steps, once every row was computed twice."""
    base, slope = torch.randn(2, B, N + T, H, D)
    times = torch.tensor([1.0, 0.93, 0.8, 0.66, 0.41, 0.3, 0.12, 0.0])
    starts = torch.tensor([1, 3])

    def keys(step: int) -> torch.Tensor:
        made = base + slope * times[step]
        return made.transpose(1, 2).contiguous() if token_dim == 2 else made

    cache, buffers = None, BranchCache(None).buffers
    for step in range(8):
        if step in {0, 1, 5}:  # dense
            before, cache = cache, BranchCache(None, storage, "branch", buffers)
            cache.clock = KeyClock(1.0, None, step, before and before.clock)
            cache.before = before.layers if before else {}
            cache.keep((0, 0), KVCache(keys(step), 2 * keys(step), token_dim, None))
            cache.settle()
            continue
        assert cache is not None
        assert cache.clock is not None
        active = torch.stack([torch.randperm(N)[:3].sort().values for _ in range(B)])
        ahead = cache.clock.advance(times, step, active, N, keeps_text=keeps_text)
        fresh = FreshRows(active, N, order, starts=starts, keeps_text=keeps_text, ahead=ahead)
        rows = fresh.positions(N + T)[:, None, :, None]
        new = keys(step) if token_dim == 2 else keys(step).transpose(1, 2)
        new = new.take_along_dim(rows, 2)
        new = new if token_dim == 2 else new.transpose(1, 2)
        key, value = cache.layers[0, 0].merge(new, 2 * new, fresh)
        torch.testing.assert_close(key, keys(step), atol=1e-5, rtol=0)
        torch.testing.assert_close(value, 2 * keys(step), atol=2e-5, rtol=0)


def test_a_forecast_goes_on_to_its_age_and_starts_with_the_second_refresh() -> None:
    times = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1])
    clock = KeyClock(0.5, 1, 0)
    rest = torch.tensor([[0]])
    first = clock.advance(times, 1, rest, 2, keeps_text=True)
    assert first.tolist() == [[0, 0, 0]]  # 0 is fresh, 1 and the text have no change yet
    second = clock.advance(times, 2, torch.tensor([[1]]), 2, keeps_text=False)
    torch.testing.assert_close(second, torch.tensor([[0.5 * 2.0, 0, 0]]))
    third = clock.advance(times, 3, torch.tensor([[1]]), 2, keeps_text=False)
    torch.testing.assert_close(third, torch.tensor([[0.5 * 2.0, 0, 0]]))  # no further


def test_nothing_changes_without_a_factor() -> None:
    pipe = sd3_pipeline()
    plain, trace = run_sparse(pipe, sd3())
    zero, same = run_sparse(pipe, sd3(), forecast_keys=0.0)
    assert torch.equal(plain, zero)
    assert trace.cache_bytes == same.cache_bytes
    stock = run(pipe, sd3())
    with ras_dit.enable(pipe, sample_ratio=1.0, **MOVING):
        assert torch.equal(run(pipe, sd3()), stock)


def test_static_and_offloaded_caches_change_nothing() -> None:
    pipe = sd3_pipeline(dual=True)
    plain, _ = run_sparse(pipe, sd3(), **MOVING)
    with ras_dit.enable(pipe, **SPARSE, **MOVING, static_cache=True):
        for _ in range(2):
            torch.testing.assert_close(run(pipe, sd3()), plain, atol=1e-5, rtol=0)
    with pytest.warns(ras_dit.RASWarning, match="offload_cache"):
        offloaded, _ = run_sparse(pipe, sd3(), **MOVING, offload_cache=True)
    torch.testing.assert_close(offloaded, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_eight_bits_forecast_nearly_the_same(dtype: Any) -> None:
    pipe = sd3_pipeline()
    plain, trace = run_sparse(pipe, sd3(), **MOVING)
    held, _ = run_sparse(pipe, sd3())
    packed, small = run_sparse(pipe, sd3(), **MOVING, cache_dtype=dtype)
    assert (packed - plain).square().mean() < 0.1 * (held - plain).square().mean()
    assert small.cache_bytes < 0.4 * trace.cache_bytes


def test_a_compiled_transformer_gives_the_same() -> None:
    plain, pipe = sd3_pipeline(layers=1), sd3_pipeline(layers=1)
    expected, _ = run_sparse(plain, sd3(), **MOVING)
    pipe.transformer.compile(backend="eager", fullgraph=True)
    found, _ = run_sparse(pipe, sd3(), **MOVING)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_other_schedulers_hold_keys_and_say_so() -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = sd3_pipeline(scheduler=scheduler)
    held, _ = run_sparse(pipe, sd3())
    with ras_dit.enable(pipe, **SPARSE, **MOVING):
        with pytest.warns(ras_dit.RASWarning, match=r"forecast_keys=0\.75"):
            assert torch.equal(run(pipe, sd3()), held)
        run(pipe, sd3())  # no second warning


def test_everything_is_freed_at_the_end() -> None:
    pipe = sd3_pipeline()

    def live() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    run_sparse(pipe, sd3(), **MOVING)
    before = live()
    run_sparse(pipe, sd3(), **MOVING)
    assert live() <= before
    assert not {KVCache, KeyClock} & {type(thing) for thing in gc.get_objects()}


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_plans_and_runs_count_the_further_cache(factor: float) -> None:
    pipe = sd3_pipeline()
    _, trace = run_sparse(pipe, sd3(1), forecast_keys=factor)
    config = ras_dit.RASConfig(**SPARSE, forecast_keys=factor)
    work = DESCRIPTIONS["SD3Transformer2DModel"].work(pipe.transformer.config)
    table = plan_table(work, config, 7, trace.grid, num_text_tokens=TEXT_TOKENS)
    assert table.cache_bytes == trace.cache_bytes
    held = plan_table(work, config.replace(forecast_keys=0.0), 7, trace.grid, num_text_tokens=7)
    assert (table.cache_bytes > held.cache_bytes) == bool(factor)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"forecast_keys": 1.5}, "forecast_keys"),
        ({"forecast_keys": True}, "forecast_keys"),
        ({"forecast_keys": 1.0, "forecast_age": 0}, "forecast_age"),
        ({"forecast_age": 2}, "forecast_age=2 limits forecasts, and there are none"),
        ({"forecast_keys": 1.0, "guidance_every": 2}, "give forecast_keys=0 .* guidance_every=1"),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ras_dit.RASError, match=named):
        ras_dit.RASConfig(**fields)


def test_halved_steps_of_a_trace_are_not_replayed() -> None:
    pipe = sd3_pipeline(layers=1)
    _, trace = run_sparse(pipe, sd3(1), guidance_every=2)
    assert trace.num_halved
    with pytest.raises(ras_dit.RASError, match="give forecast_keys=0"):
        ras_dit.enable(pipe, **MOVING, replay=trace)
    run(pipe, sd3(1))  # nothing is patched


def test_settings_stay_with_a_configuration() -> None:
    config = ras_dit.RASConfig(forecast_keys=0.5, forecast_age=3)
    assert ras_dit.RASConfig.load(config.to_dict()) == config
    assert replace(config.line_rules, longest=None) == ras_dit.RASConfig().line_rules
