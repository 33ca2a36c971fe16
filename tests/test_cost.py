"""The cost formulas equal what torch counts in real transformers, and add up over a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import ras_dit
from pipelines import JOINT, POOLED, sd3_inputs, sd3_pipeline, sd3_transformer
from ras_dit.adapters.base import Work
from ras_dit.adapters.work import sd3_work
from ras_dit.config import RASConfig
from ras_dit.cost import cache_bytes, forward_flops, plan_cost, trace_cost
from ras_dit.errors import RASError
from ras_dit.schedule import StepPlan, plan_steps
from ras_dit.tokens import TokenGrid
from ras_dit.trace import Call, StepTrace, Trace

SD3_MEDIUM: Mapping[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
    "qk_norm": None,
}
SD35_MEDIUM = {**SD3_MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}
SD35_LARGE = {
    **SD3_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
WORK = Work(
    per_sample=7,
    per_embedded_token=3,
    per_image_token=50,
    per_text_token=40,
    joint_pair=4,
    image_pair=2,
    cross_pair=6,
)


class RecoveredAttention(TorchFunctionMode):
    """Attention as in a sparse step: keys and values get the rows that the queries lack."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            rows = key.new_zeros(*key.shape[:2], self.missing, key.shape[-1])
            args = (query, torch.cat([key, rows], 2), torch.cat([value, rows], 2))
        return func(*args, **(kwargs or {}))


def counted_flops(
    transformer: nn.Module, *, batch: int, grid: tuple[int, int], text: int, active: int
) -> int:
    """What torch counts in one forward in which only ``active`` image tokens pass the blocks."""
    config, device = transformer.config, next(transformer.parameters()).device
    size = [side * config.patch_size for side in grid]
    missing = grid[0] * grid[1] - active
    inputs = {
        "hidden_states": torch.zeros(batch, config.in_channels, *size, device=device),
        "encoder_hidden_states": torch.zeros(
            batch, text, config.joint_attention_dim, device=device
        ),
        "pooled_projections": torch.zeros(batch, config.pooled_projection_dim, device=device),
        "timestep": torch.zeros(batch, device=device),
    }
    handles = [
        transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: (
                args,
                {**kwargs, "hidden_states": kwargs["hidden_states"][:, :active]},
            ),
            with_kwargs=True,
        ),
        transformer.proj_out.register_forward_hook(
            lambda _, args, output: F.pad(output, (0, 0, 0, missing))
        ),
    ]
    # The math kernel is made of plain matrix products, which are counted on every device.
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            RecoveredAttention(missing),
        ):
            transformer(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops()


def trace_of(calls: list[list[Call]], num_tokens: int, text: int) -> Trace:
    steps = tuple(
        StepTrace(index=i, kind="dense", sigma=None, num_tokens=num_tokens, calls=tuple(made))
        for i, made in enumerate(calls)
    )
    return Trace("Any", TokenGrid(1, num_tokens), text, 1, "float32", 0, steps)


@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd35"])
@pytest.mark.parametrize(
    ("batch", "grid", "text", "active"),
    [
        (1, (3, 5), 7, 15),
        (2, (6, 4), 1, 24),
        (3, (2, 9), 11, 18),
        (1, (3, 5), 7, 1),
        (2, (6, 4), 5, 9),
        (3, (2, 9), 11, 17),
    ],
)
def test_forward_equals_what_torch_counts(
    dual: bool, batch: int, grid: tuple[int, int], text: int, active: int
) -> None:
    transformer = sd3_transformer(dual=dual)
    counted = counted_flops(transformer, batch=batch, grid=grid, text=text, active=active)
    assert counted == forward_flops(
        sd3_work(transformer.config),
        batch=batch,
        num_tokens=grid[0] * grid[1],
        num_active=active,
        num_text_tokens=text,
    )


def test_unusual_shapes_of_a_transformer_are_read_from_its_configuration() -> None:
    transformer = SD3Transformer2DModel(
        sample_size=9,
        patch_size=3,
        in_channels=5,
        out_channels=None,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=JOINT,
        caption_projection_dim=24,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=9,
        dual_attention_layers=(0, 4),
    )
    shape = {"batch": 2, "text": 6}
    for active in (3, 8):
        counted = counted_flops(transformer, grid=(2, 4), active=active, **shape)
        assert counted == forward_flops(
            sd3_work(transformer.config),
            batch=2,
            num_tokens=8,
            num_active=active,
            num_text_tokens=6,
        )


@pytest.mark.parametrize("active", [4096, 1024])
def test_a_full_size_model_is_counted_without_weights(active: int) -> None:
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**SD35_MEDIUM)
    counted = counted_flops(transformer, batch=2, grid=(64, 64), text=333, active=active)
    assert counted == forward_flops(
        sd3_work(SD35_MEDIUM), batch=2, num_tokens=4096, num_active=active, num_text_tokens=333
    )


@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd35"])
@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["no guidance", "guidance"])
def test_a_real_run_costs_what_its_trace_says(dual: bool, guidance: float) -> None:
    pipe = sd3_pipeline(dual=dual)
    inputs = sd3_inputs(2) | {"guidance_scale": guidance}
    with (
        ras_dit.enable(pipe, sample_ratio=0.4) as handle,
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        pipe(**inputs)
    trace = handle.trace
    assert trace is not None
    work = sd3_work(pipe.transformer.config)
    cost = trace_cost(work, trace)
    assert counter.get_total_flops() == cost.ras
    assert trace.cache_bytes == cache_bytes(
        work,
        batch=trace.steps[0].calls[0].batch,
        num_tokens=trace.num_tokens,
        num_text_tokens=trace.num_text_tokens,
        dtype=torch.float32,
    )
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe(**inputs)
    assert counter.get_total_flops() == cost.dense


def test_grouped_self_attention_and_cross_attention_can_be_expressed() -> None:
    """A block as in Lumina-Next: grouped heads are repeated, text has keys and values only."""
    heads, groups, head, tokens, active, text = 4, 2, 8, 12, 5, 7
    width, narrow = heads * head, groups * head
    square, grouped = nn.Linear(width, width), nn.Linear(width, narrow)

    def heads_of(rows: torch.Tensor) -> torch.Tensor:
        return (
            rows.unflatten(-1, (-1, head))
            .transpose(1, 2)
            .repeat_interleave(width // rows.shape[-1], dim=1)
        )

    image, words = torch.zeros(1, active, width), torch.zeros(1, text, width)
    cached = torch.zeros(1, heads, tokens - active, head)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        key, value = (torch.cat([heads_of(grouped(image)), cached], 2) for _ in range(2))
        F.scaled_dot_product_attention(heads_of(square(image)), key, value)
        F.scaled_dot_product_attention(
            heads_of(square(image)), heads_of(grouped(words)), heads_of(grouped(words))
        )
    work = Work(
        per_sample=0,
        per_embedded_token=0,
        per_image_token=2 * (2 * width * width + 2 * width * narrow),
        per_text_token=2 * 2 * width * narrow,
        image_pair=4 * width,
        cross_pair=4 * width,
        image_kv=2 * width,
    )
    assert counter.get_total_flops() == forward_flops(
        work, batch=1, num_tokens=tokens, num_active=active, num_text_tokens=text
    )
    assert cache_bytes(
        work, batch=1, num_tokens=tokens, num_text_tokens=text, dtype=torch.float32
    ) == 4 * (key[0].numel() + value[0].numel())


def test_a_plan_costs_the_sum_of_its_steps() -> None:
    counts = [10, 4, 3, 10, 1]
    plans = tuple(
        StepPlan(index=i, kind="dense" if n == 10 else "sparse", num_active=n)
        for i, n in enumerate(counts)
    )
    shape = {"batch": 6, "num_tokens": 10, "num_text_tokens": 4}
    cost = plan_cost(WORK, plans, **shape)
    assert cost.ras == sum(forward_flops(WORK, num_active=n, **shape) for n in counts)
    assert cost.dense == 5 * forward_flops(WORK, num_active=10, **shape)
    assert cost.limit == cost.dense / cost.ras > 1
    assert cost.saved == pytest.approx(1 - 1 / cost.limit)


def test_a_dense_plan_has_the_limit_one() -> None:
    plans = plan_steps(RASConfig(sample_ratio=1.0), 28, 60)
    cost = plan_cost(WORK, plans, batch=2, num_tokens=60, num_text_tokens=7)
    assert cost.limit == 1.0
    assert cost.saved == 0.0


@pytest.mark.parametrize(("ratio", "limit"), [(0.5, 1.57), (0.25, 2.20), (0.125, 2.75)])
def test_known_limits_of_whole_runs(ratio: float, limit: float) -> None:
    """SD3-medium at 1024 x 1024, 28 steps of which 6 are dense: figures worked out by hand."""
    plans = plan_steps(RASConfig(sample_ratio=ratio), 28, 4096)
    assert sum(plan.kind == "dense" for plan in plans) == 6
    cost = plan_cost(sd3_work(SD3_MEDIUM), plans, batch=2, num_tokens=4096, num_text_tokens=333)
    assert cost.limit == pytest.approx(limit, abs=0.02)


def test_a_trace_costs_what_its_calls_really_ran() -> None:
    """Two evaluations of the guidance in one step, one branch of them without a cache yet."""
    calls = [[Call(4, 10)], [Call(4, 3), Call(2, 10)], [Call(4, 3), Call(2, 3)]]
    cost = trace_cost(WORK, trace_of(calls, num_tokens=10, text=4))

    def flops(batch: int, active: int) -> int:
        return forward_flops(WORK, batch=batch, num_tokens=10, num_active=active, num_text_tokens=4)

    assert cost.ras == 2 * flops(4, 3) + flops(4, 10) + flops(2, 10) + flops(2, 3)
    assert cost.dense == 3 * flops(4, 10) + 2 * flops(2, 10)


def test_a_trace_that_followed_its_plan_costs_what_the_plan_costs() -> None:
    plans = plan_steps(RASConfig(sample_ratio=0.4), 12, 60)
    calls = [[Call(3, plan.num_active), Call(3, plan.num_active)] for plan in plans]
    planned = plan_cost(WORK, plans, batch=6, num_tokens=60, num_text_tokens=7)
    assert trace_cost(WORK, trace_of(calls, num_tokens=60, text=7)) == planned
    assert planned.limit > 1.2


@pytest.mark.parametrize(
    ("config", "gigabytes"),
    [(SD3_MEDIUM, 0.65), (SD35_MEDIUM, 0.98), (SD35_LARGE, 1.64)],
    ids=["sd3-medium", "sd35-medium", "sd35-large"],
)
def test_known_cache_sizes(config: Mapping[str, Any], gigabytes: float) -> None:
    """Per row of the model batch, 1024 x 1024, bfloat16."""
    shape = {"num_tokens": 4096, "num_text_tokens": 333}
    size = cache_bytes(sd3_work(config), batch=1, dtype=torch.bfloat16, **shape)
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.006)
    double = cache_bytes(sd3_work(config), batch=6, dtype=torch.float32, **shape)
    assert double == 12 * size


def test_every_kind_of_cache_is_counted() -> None:
    """By hand: 3 layers of width 32 with keys and values, two of them twice; 2 x 2 x 4 outputs."""
    work = sd3_work(sd3_transformer(dual=True).config)
    size = cache_bytes(work, batch=2, num_tokens=60, num_text_tokens=7, dtype=torch.float16)
    assert size == 2 * 2 * (3 * 2 * 32 * 67 + 2 * 2 * 32 * 60 + 16 * 60)


@pytest.mark.parametrize("active", [-1, 11])
def test_active_tokens_out_of_range_are_refused(active: int) -> None:
    with pytest.raises(RASError, match="between 0 and 10"):
        forward_flops(WORK, batch=1, num_tokens=10, num_active=active, num_text_tokens=0)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"num_tokens": 0}, {"num_text_tokens": -1}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    shape = {"batch": 1, "num_tokens": 10, "num_text_tokens": 0} | wrong
    with pytest.raises(RASError, match="expected at least"):
        cache_bytes(WORK, dtype=torch.float32, **shape)
    with pytest.raises(RASError, match="expected at least"):
        forward_flops(WORK, num_active=1, **shape)


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(RASError, match="the plan holds no call"):
        plan_cost(WORK, (), batch=1, num_tokens=10, num_text_tokens=0)
    with pytest.raises(RASError, match="the trace holds no call"):
        trace_cost(WORK, trace_of([], 10, 0))
