"""Enable, run, disable: what a pipeline's owner sees and is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    ModelHook,
    apply_first_block_cache,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0

import ras_dit
from families_wan import wan_call, wan_pipeline
from family_laws import run
from pipelines import hooks_of, is_stock, processors_of, sd3_inputs, sd3_pipeline
from ras_dit.generate import Comparison, Generated
from ras_dit.reference import masked_reference
from ras_dit.report import comparison_rows
from ras_dit.schedule import plan_steps

SPARSE = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (6,)}


# -- the two verbs --------------------------------------------------------------------------------


def test_three_ways_to_undo() -> None:
    pipe = sd3_pipeline(dual=True)
    processors = processors_of(pipe.transformer)
    handle = ras_dit.enable(pipe, "balanced")
    assert not is_stock(pipe, processors)
    handle.disable()
    assert is_stock(pipe, processors)
    ras_dit.enable(pipe, sample_ratio=0.3)
    ras_dit.disable(pipe)
    assert is_stock(pipe, processors)
    with ras_dit.enable(pipe) as handle:
        assert handle.config == ras_dit.RASConfig()
    assert is_stock(pipe, processors)
    handle.disable()
    ras_dit.disable(pipe)
    assert is_stock(pipe, processors)


def test_enabling_twice_is_one_engine_and_another_configuration_is_refused() -> None:
    pipe = sd3_pipeline()
    ras_dit.enable(pipe, sample_ratio=0.5)
    hooks = hooks_of(pipe.transformer)
    again = ras_dit.enable(pipe, ras_dit.RASConfig(sample_ratio=0.5))
    assert hooks_of(pipe.transformer) == hooks
    with pytest.raises(ras_dit.RASError, match="enabled already") as caught:
        ras_dit.enable(pipe, sample_ratio=0.25)
    assert "0.5" in str(caught.value)
    assert "0.25" in str(caught.value)
    again.disable()
    assert hooks_of(pipe.transformer) == 0


def test_configurations_come_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("sample_ratio: 0.3\nwarmup_steps: 2\n")
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, str(file)) as handle:
        assert handle.config.sample_ratio == 0.3
    with ras_dit.enable(pipe, "quality", warmup_steps=3) as handle:
        assert handle.config == ras_dit.RASConfig.load("quality").replace(warmup_steps=3)
    with pytest.raises(ras_dit.RASError, match="no field ratio"):
        ras_dit.enable(pipe, ratio=0.5)


def test_the_trace_outlives_disable() -> None:
    pipe = sd3_pipeline()
    handle = ras_dit.enable(pipe, **SPARSE)
    assert handle.trace is None
    pipe(**sd3_inputs(2))
    handle.disable()
    trace = handle.trace
    assert trace is not None
    assert (trace.grid.height, trace.grid.width, trace.num_tokens) == (6, 10, 60)
    assert trace.num_text_tokens == 7
    assert [step.index for step in trace.steps] == list(range(10))
    assert "".join(step.kind[0] for step in trace.steps) == "ddssssdsss"
    assert trace.steps[0].sigma == pytest.approx(1.0)
    assert trace.steps[9].sigma == pytest.approx(pipe.scheduler.sigmas[9].item())
    active = trace.steps[3].active
    assert active is not None
    assert active.dtype == torch.int64
    assert torch.equal(active.sort(dim=1).values, active)
    assert ras_dit.Trace.from_json(trace.to_json()).to_json() == trace.to_json()


def test_summary_is_data_and_markdown() -> None:
    pipe = sd3_pipeline()
    with pytest.raises(ras_dit.RASError, match="not enabled"):
        ras_dit.summary(pipe)
    with ras_dit.enable(pipe, **SPARSE):
        assert "none finished yet" in str(ras_dit.summary(pipe))
        pipe(**sd3_inputs(2))
        summary = ras_dit.summary(pipe)
    data = summary.to_dict()
    assert data["steps"] == 10
    assert data["dense_steps"] == 3
    assert data["active_tokens"] == [60, 60, 24, 24, 24, 24, 60, 24, 24, 24]
    assert 0 < data["flops_saved"] < 0.5
    assert data["flop_limit"] == pytest.approx(1 / (1 - data["flops_saved"]))
    # Three layers of 67 joint keys and values of width 32, and 60 outputs of 16, float32.
    assert data["cache_bytes"] == 4 * 4 * (3 * 2 * 67 * 32 + 60 * 16)
    table = str(summary).splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in table)


@pytest.mark.parametrize(
    ("static", "words"), [(False, "freed at the end of the run"), (True, "kept until RAS is disab")]
)
def test_a_summary_says_how_long_caches_stay(static: bool, words: str) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE, static_cache=static):
        pipe(**sd3_inputs(2))
        (line,) = (line for line in str(ras_dit.summary(pipe)).splitlines() if "| caches" in line)
    assert f"MiB, {words}" in line


def test_tables_give_every_side_of_a_video() -> None:
    pipe = wan_pipeline()
    with ras_dit.enable(pipe, **SPARSE) as handle:
        run(pipe, wan_call(1))
        table = str(ras_dit.summary(pipe))
    assert handle.trace is not None
    made = Generated((), 1.0, 1.0, handle.trace)
    (row,) = (
        value
        for name, value in comparison_rows(Comparison(made, made, (1.0,), (1.0,), 1.0, ()))
        if name == "image tokens"
    )
    grid = handle.trace.grid
    assert row == f"{grid.num_tokens} ({grid.frames} x {grid.height} x {grid.width})"
    assert f"| {row} |" in table


# -- what is refused ------------------------------------------------------------------------------


NAN = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda score: -score - 0.5,
            r"returned scores down to -[0-9.]+; expected finite ones >= 0",
        ),
        (lambda score: score.index_fill(1, torch.tensor([3]), NAN), "returned 2 of 120 scores"),
        (lambda score: score / 0, "returned 120 of 120 scores that are not finite"),
        (lambda score: -score.round().long() - 1, "returned scores down to -[0-9]+;"),
    ],
)
def test_scores_that_rank_nothing_are_refused_with_the_metrics_name(
    spoil: Any, message: str
) -> None:
    pipe = sd3_pipeline()
    calls = []

    def my_score(noise: torch.Tensor) -> Any:
        calls.append(noise)
        return spoil(noise.abs().mean((-1, -2)))

    with ras_dit.enable(pipe, **SPARSE, metric=my_score):
        for run_number in (1, 2):  # in every run anew
            with pytest.raises(ras_dit.RASError, match=rf"the metric .*my_score.* {message}"):
                pipe(**sd3_inputs(2))
            assert len(calls) == run_number


def test_an_unknown_transformer_is_refused_and_untouched() -> None:
    pipe = sd3_pipeline()
    pipe.transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2
    )
    pipe.transformer.__class__ = type("SomeTransformer", (FluxTransformer2DModel,), {})
    with pytest.raises(ras_dit.UnsupportedError, match="SD3Transformer2DModel"):
        ras_dit.enable(pipe)
    assert type(pipe) is StableDiffusion3Pipeline
    assert hooks_of(pipe.transformer) == 0


@pytest.mark.parametrize("pipe", [object(), None, DDPMPipeline(None, None)])
def test_what_is_no_transformer_pipeline_is_refused(pipe: Any) -> None:
    with pytest.raises(ras_dit.UnsupportedError, match="has no transformer"):
        ras_dit.enable(pipe)


def add_cache(transformer: torch.nn.Module) -> None:
    """What diffusers' step caches leave on a block."""
    block = transformer.transformer_blocks[0]
    HookRegistry.check_if_exists_or_initialize(block).register_hook(ModelHook(), "some_cache")


def test_another_cache_is_refused_before_and_after() -> None:
    pipe = sd3_pipeline()
    processors = processors_of(pipe.transformer)
    add_cache(pipe.transformer)
    with pytest.raises(ras_dit.UnsupportedError, match="some_cache"):
        ras_dit.enable(pipe)
    assert processors_of(pipe.transformer) == processors
    assert type(pipe) is StableDiffusion3Pipeline
    pipe = sd3_pipeline()
    ras_dit.enable(pipe)
    add_cache(pipe.transformer)
    with pytest.raises(ras_dit.UnsupportedError, match="some_cache"):
        pipe(**sd3_inputs(1))


def test_diffusers_own_cache_is_refused() -> None:
    pipe = sd3_pipeline()
    try:
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
    except ValueError:
        pytest.skip("this diffusers' cache does not know the blocks of SD3")
    with pytest.raises(ras_dit.UnsupportedError, match="fbc_"):
        ras_dit.enable(pipe)


def test_a_processor_that_hides_its_attention_is_refused_whole() -> None:
    class Hidden(JointAttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return JointAttnProcessor2_0.__call__(self, *args, **kwargs)

    pipe = sd3_pipeline()
    pipe.transformer.transformer_blocks[2].attn.set_processor(Hidden())
    processors = processors_of(pipe.transformer)
    with pytest.raises(ras_dit.UnsupportedError, match="Hidden"):
        ras_dit.enable(pipe)
    assert is_stock(pipe, processors)


def test_a_reset_outside_the_run_fails_at_its_start_and_the_next_run_works() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.4, reset_steps=(8,)) as handle:
        with pytest.raises(ras_dit.RASError, match=r"reset_steps=\[8\]"):
            pipe(**sd3_inputs(1) | {"num_inference_steps": 6})
        assert handle.trace is None
        latents = pipe(**sd3_inputs(1)).images
    assert handle.trace is not None
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(1))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


def test_gradients_are_refused_and_the_next_run_works() -> None:
    pipe = sd3_pipeline()
    inputs = sd3_inputs(1)
    with ras_dit.enable(pipe, **SPARSE):
        pipe.scheduler.set_timesteps(10)
        with pytest.raises(ras_dit.RASError, match="no_grad"):
            pipe.transformer(
                hidden_states=torch.randn(1, 4, 12, 20),
                encoder_hidden_states=inputs["prompt_embeds"],
                pooled_projections=inputs["pooled_prompt_embeds"],
                timestep=torch.tensor([1000.0]),
            )
        pipe(**inputs)


def test_a_metric_of_another_shape_is_refused() -> None:
    pipe = sd3_pipeline()
    with (
        ras_dit.enable(pipe, metric=lambda noise: noise.mean(-1)),
        pytest.raises(ras_dit.RASError, match=r"returned \(1, 60, 4\).*\(1, 60\)"),
    ):
        pipe(**sd3_inputs(1))


def test_fewer_steps_than_warm_up_run_dense_and_warn_once() -> None:
    pipe = sd3_pipeline()
    stock = pipe(**sd3_inputs(1) | {"num_inference_steps": 3}).images
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=5):
        with pytest.warns(ras_dit.RASWarning, match="does nothing in this run"):
            latents = pipe(**sd3_inputs(1) | {"num_inference_steps": 3}).images
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(**sd3_inputs(1) | {"num_inference_steps": 3})
    assert torch.equal(latents, stock)


def test_a_preset_of_skips_says_when_it_saves_nothing_and_what_it_skips() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, "quality"):
        with pytest.warns(ras_dit.RASWarning, match="saves no work in this run"):
            pipe(**sd3_inputs(1) | {"num_inference_steps": 4})
        pipe(**sd3_inputs(1) | {"num_inference_steps": 9})
        assert "0, 1 in turn" in str(ras_dit.summary(pipe))
        assert ras_dit.summary(pipe).trace.num_dense_steps == 7


# -- schedules and replay -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "linear", "sample_ratio": 0.4},
        {"schedule": (1.0, 0.5, 0.3, 0.3, 1.0, 0.6, 0.2, 0.2, 0.2, 0.2)},
        {"starvation": "since_refresh", "sample_ratio": 0.3, "reset_steps": (6,)},
    ],
    ids=["linear", "list", "since refresh"],
)
def test_every_schedule_equals_the_reference(config: dict[str, Any]) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **config) as handle:
        latents = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    planned = plan_steps(handle.config, 10, 60)
    assert [step.num_active for step in handle.trace.steps] == [p.num_active for p in planned]
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(2))
    torch.testing.assert_close(latents, reference, atol=1e-4, rtol=0)


def test_what_is_no_trace_is_not_replayed() -> None:
    pipe = sd3_pipeline()
    with pytest.raises(ras_dit.RASError, match=r"replay=3; expected a ras_dit.Trace"):
        ras_dit.enable(pipe, replay=3)  # type: ignore[arg-type]
    assert hooks_of(pipe.transformer) == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sample_ratio": 0.5, "granularity": 1000}, "granularity=1000.; lower granularity"),
        ({"sample_ratio": 0.5, "warmup_steps": 99}, "or a smaller warmup_steps"),
        (
            {"schedule": "intervals", "intervals": (2, 3), "num_inference_steps": 7},
            r"no interval is longer than a quarter of the run, intervals=\[2, 3\]\); use more",
        ),
    ],
)
def test_a_dense_run_is_said_with_its_cause(knobs: dict[str, Any], message: str) -> None:
    pipe, call = sd3_pipeline(), sd3_inputs(1)
    call["num_inference_steps"] = knobs.pop("num_inference_steps", 10)
    with (
        ras_dit.enable(pipe, **knobs),
        pytest.warns(ras_dit.RASWarning, match=f"steps are all dense .*{message}"),
    ):
        pipe(**call)


def test_only_what_was_asked_for_is_said_to_do_nothing() -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = sd3_pipeline(scheduler=scheduler)
    for knobs, said in (
        ({"forecast": "linear"}, "forecast='linear' does nothing here"),
        ({"solver": "ab2", "correction_age": 2}, "solver='ab2' and correction_age=2 do nothing"),
    ):
        with (
            ras_dit.enable(pipe, **SPARSE, **knobs),
            pytest.warns(ras_dit.RASWarning, match=f"^{said}"),
        ):
            pipe(**sd3_inputs(1))


def test_a_replayed_trace_keeps_the_text_as_its_run_did() -> None:
    pipe = sd3_pipeline()
    traces = {}
    for text in ("keep", "fresh"):
        with ras_dit.enable(pipe, **SPARSE, text=text) as handle:
            expected = pipe(**sd3_inputs(2)).images
        trace = traces[text] = handle.trace
        with ras_dit.enable(pipe, replay=trace) as handle:
            assert torch.equal(pipe(**sd3_inputs(2)).images, expected)
            assert handle.trace is not None
            assert handle.trace.keeps_text == (text == "keep")
    with pytest.raises(ras_dit.RASError, match=r'text="keep" cannot be had with this trace'):
        ras_dit.enable(pipe, text="keep", replay=traces["fresh"])


def test_a_replayed_trace_gives_the_same_picture() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE | {"metric": "random", "seed": 7}) as handle:
        expected = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    recorded = ras_dit.Trace.from_json(handle.trace.to_json())
    with ras_dit.enable(pipe, replay=recorded) as handle:
        assert torch.equal(pipe(**sd3_inputs(2)).images, expected)
        assert handle.trace is not None
        assert handle.trace.to_json() == recorded.to_json()
        with pytest.raises(ras_dit.RASError, match=r"2 images, and this run makes 1"):
            pipe(**sd3_inputs(1))
        with pytest.raises(ras_dit.RASError, match=r"10 steps, and this is .* 8 steps"):
            pipe(**sd3_inputs(2) | {"num_inference_steps": 8})
        with pytest.raises(ras_dit.RASError, match=r"does not fit this run"):
            pipe(**sd3_inputs(2) | {"height": 40})
        assert torch.equal(pipe(**sd3_inputs(2)).images, expected)
        with pytest.raises(ras_dit.RASError, match="another trace to replay"):
            ras_dit.enable(pipe)
