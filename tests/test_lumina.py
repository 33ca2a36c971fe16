"""The laws of region-adaptive sampling on Lumina-Next, against the masked reference."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ras_dit
from families import accelerated, distance, lumina_inputs, lumina_pipeline, lumina_transformer
from pipelines import take
from ras_dit import hooks
from ras_dit.adapters import DESCRIPTIONS, TokenArgument
from ras_dit.adapters.work import lumina_work
from ras_dit.attention import AttentionLayer
from ras_dit.cost import cache_bytes, forward_flops, trace_cost
from ras_dit.tables import gather_table
from ras_dit.trace import Trace

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}
LUMINA = DESCRIPTIONS["LuminaNextDiT2DModel"]
# Steps 0 to 4 of 10 are below it: the table of positions changes between two sparse steps.
WATERSHED = 0.45


def inputs(images: int = 1, **change: Any) -> Callable[[], dict[str, Any]]:
    return lambda: lumina_inputs(images) | change


def kinds(trace: Trace) -> str:
    return "".join(step.kind[0] for step in trace.steps)


def test_a_sparse_run_equals_the_masked_reference() -> None:
    """Three prompts of different length, 6 x 10 tokens, guidance in one batch, ratio 0.4."""
    pipe = lumina_pipeline()
    latents, trace, reference = accelerated(pipe, inputs(3))
    assert distance(latents, reference) <= 1e-4
    assert kinds(trace) == "ddssssdsss"
    assert [call.batch for call in trace.steps[3].calls] == [6]
    sets = [step.active for step in trace.steps if step.active is not None]
    assert all(active.shape == (3, 24) for active in sets)
    assert not torch.equal(sets[0][0], sets[0][1])
    assert distance(latents, pipe(**lumina_inputs(3)).images) > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 1.0},
        {"height": 160, "width": 96},
        {"height": 64, "width": 64},
        {"proportional_attn": False},
        {"num_inference_steps": 4},
    ],
    ids=["no guidance", "portrait", "default size", "plain attention", "few steps"],
)
def test_other_calls_equal_the_reference(change: dict[str, Any]) -> None:
    latents, trace, reference = accelerated(
        lumina_pipeline(), inputs(2, **change), warmup_steps=1, reset_steps=()
    )
    assert "s" in kinds(trace)
    assert distance(latents, reference) <= 1e-4


@pytest.mark.parametrize(
    "settings",
    [{"num_kv_heads": 1}, {"num_kv_heads": None, "qk_norm": False}],
    ids=["one group", "no groups and norms"],
)
def test_other_configurations_equal_the_reference(settings: dict[str, Any]) -> None:
    latents, _, reference = accelerated(lumina_pipeline(**settings), inputs(2))
    assert distance(latents, reference) <= 1e-4


def test_a_batch_equals_its_images_one_by_one() -> None:
    pipe = lumina_pipeline()
    with ras_dit.enable(pipe, **SPARSE) as handle:
        batch = pipe(**lumina_inputs(3)).images
        assert handle.trace is not None
        together = [step.active for step in handle.trace.steps]
        for image in range(3):
            single = pipe(**take(lumina_inputs(3), image)).images
            assert distance(single, batch[image : image + 1]) <= 1e-4
            for step, active in zip(handle.trace.steps, together, strict=True):
                if active is not None:
                    assert step.active is not None
                    assert torch.equal(step.active[0], active[image])


@pytest.mark.parametrize(
    "config",
    [{"sample_ratio": 1.0}, {"sample_ratio": 0.4, "reset_steps": tuple(range(10))}],
    ids=["ratio 1", "every step a reset"],
)
def test_dense_is_stock_bitwise(config: dict[str, Any]) -> None:
    pipe = lumina_pipeline()
    stock = pipe(**lumina_inputs(2)).images
    with warnings.catch_warnings(), ras_dit.enable(pipe, **config):
        warnings.simplefilter("ignore", ras_dit.RASWarning)
        latents = pipe(**lumina_inputs(2)).images
    assert torch.equal(latents, stock)


def test_disable_restores_bitwise() -> None:
    pipe = lumina_pipeline()
    stock = pipe(**lumina_inputs(2)).images
    processors = [layer.attn1.processor for layer in pipe.transformer.layers]
    with ras_dit.enable(pipe, **SPARSE):
        pipe(**lumina_inputs(2))
    after = [layer.attn1.processor for layer in pipe.transformer.layers]
    assert all(one is other for one, other in zip(processors, after, strict=True))
    assert torch.equal(pipe(**lumina_inputs(2)).images, stock)


# -- the table of positions ------------------------------------------------------------------------


def steps_with_another_table(pipe: Any, call: dict[str, Any]) -> list[int]:
    """Steps whose table of positions is not that of the step before, measured on a stock run."""
    tables: list[torch.Tensor] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: tables.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    pipe(**call)
    handle.remove()
    return [i for i in range(1, len(tables)) if not torch.equal(tables[i], tables[i - 1])]


def test_a_step_with_another_table_of_positions_is_dense() -> None:
    pipe = lumina_pipeline()
    call = inputs(2, scaling_watershed=WATERSHED)
    assert steps_with_another_table(pipe, call()) == [5]
    latents, trace, reference = accelerated(pipe, call, reset_steps=())
    assert kinds(trace) == "ddsssdssss"
    assert trace.steps[5].num_active == 60
    assert distance(latents, reference) <= 1e-4
    # It matters: the same run with one table only is another one.
    assert distance(latents, accelerated(pipe, inputs(2), reset_steps=())[0]) > 1e-2


def test_sparse_steps_on_keys_of_another_table_are_found() -> None:
    """Without the rule, step 5 would mix keys rotated by two tables."""
    mixing = replace(LUMINA, fixed=())
    call = inputs(2, scaling_watershed=WATERSHED)
    latents, trace, reference = accelerated(
        lumina_pipeline(), call, reset_steps=(), description=mixing
    )
    assert kinds(trace) == "ddssssssss"
    assert distance(latents, reference) > 1e-2


def test_at_the_default_size_there_is_one_table() -> None:
    pipe = lumina_pipeline()
    call = inputs(1, height=64, width=64, scaling_watershed=WATERSHED)
    assert steps_with_another_table(pipe, call()) == []
    latents, trace, reference = accelerated(pipe, call, reset_steps=())
    assert kinds(trace) == "ddssssssss"
    assert distance(latents, reference) <= 1e-4


# -- each way of breaking it has to show -----------------------------------------------------------


def first_images_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(table: torch.Tensor, dim: int, active: torch.Tensor) -> torch.Tensor:
        return gather_table(table, dim, active[:1].expand_as(active).contiguous())

    monkeypatch.setattr(hooks, "gather_table", shared)


def scale_of_the_sparse_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recover = AttentionLayer.recover

    def own(self: AttentionLayer, query: Any, key: Any, value: Any, dim: int, options: Any) -> Any:
        scale = options["scale"]
        result = recover(self, query, key, value, dim, options)
        options["scale"] = scale
        return result

    monkeypatch.setattr(AttentionLayer, "recover", own)


@pytest.mark.parametrize("breakage", [first_images_positions, scale_of_the_sparse_step])
def test_a_broken_engine_is_found(breakage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    latents, _, reference = accelerated(lumina_pipeline(), inputs(3))
    assert distance(latents, reference) > 1e-2


def test_a_description_with_the_wrong_output_is_found() -> None:
    wrong = replace(LUMINA, output="norm_out.norm")
    latents, _, reference = accelerated(lumina_pipeline(), inputs(2), description=wrong)
    assert distance(latents, reference) > 1e-2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_arguments": (TokenArgument("rope", dim=1),)}, "no argument 'rope'.*attention_m"),
        ({"token_arguments": (TokenArgument("image_rotary_emb", dim=2),)}, r"\[1, 60, 4\]"),
        ({"token_arguments": (TokenArgument("image_rotary_emb", dim=0),)}, r"\[1, 60, 4\]"),
        ({"token_arguments": ()}, "must match"),
        ({"attention": ("attn2",)}, "must match"),
    ],
    ids=["other name", "other dimension", "dimension 0", "no positions", "other attention"],
)
def test_a_wrong_description_raises(wrong: dict[str, Any], message: str) -> None:
    pipe = lumina_pipeline()
    stock = pipe(**lumina_inputs(1)).images
    with (
        pytest.raises(Exception, match=message),
        ras_dit.enable(pipe, **SPARSE, description=replace(LUMINA, **wrong)),
    ):
        pipe(**lumina_inputs(1))
    assert torch.equal(pipe(**lumina_inputs(1)).images, stock)


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_kv_heads": None, "qk_norm": False, "learn_sigma": False, "patch_size": 4},
        {"hidden_size": 48, "multiple_of": 7, "ffn_dim_multiplier": 1.3, "num_layers": 1},
    ],
    ids=["small", "no groups", "other feed-forward"],
)
def test_forward_equals_what_torch_counts(settings: dict[str, Any]) -> None:
    transformer = lumina_transformer(**settings)
    patch = transformer.config.patch_size
    call = {
        "hidden_states": torch.zeros(2, transformer.config.in_channels, 3 * patch, 5 * patch),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(2, 9, 20),
        "encoder_mask": torch.ones(2, 9),
        "image_rotary_emb": torch.ones(8, 8, transformer.head_dim // 2, dtype=torch.complex64),
        "cross_attention_kwargs": {},
    }
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        transformer(**call)
    assert counter.get_total_flops() == forward_flops(
        lumina_work(transformer.config), batch=2, num_tokens=15, num_active=15, num_text_tokens=9
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["no guidance", "guidance"])
def test_a_real_run_costs_what_its_trace_says(guidance: float) -> None:
    pipe = lumina_pipeline()
    call = functools.partial(lumina_inputs, 2)
    with (
        ras_dit.enable(pipe, **SPARSE) as handle,
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        pipe(**call() | {"guidance_scale": guidance})
    trace = handle.trace
    assert trace is not None
    work = lumina_work(pipe.transformer.config)
    cost = trace_cost(work, trace)
    assert counter.get_total_flops() == cost.ras < cost.dense
    assert (trace.num_tokens, trace.num_text_tokens) == (60, 9)
    assert trace.cache_bytes == cache_bytes(
        work,
        batch=trace.steps[0].calls[0].batch,
        num_tokens=60,
        num_text_tokens=9,
        dtype=torch.float32,
    )
