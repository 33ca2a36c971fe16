"""The laws of halved steps: one guidance branch runs, the other follows from a difference."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch._dynamo.testing import CompileCounter

import ras_dit
from families import accelerated, distance, lumina_inputs, lumina_pipeline, sd3_kind
from family_laws import STEPS, Family, run, run_sparse
from pipelines import sd3_inputs, sd3_pipeline, sd3_transformer, take
from ras_dit.adapters import DESCRIPTIONS, describe
from ras_dit.config import RASConfig
from ras_dit.cost import plan_cost, trace_cost
from ras_dit.errors import RASError, RASWarning
from ras_dit.evaluation.rows import read_rows
from ras_dit.guidance import Half
from ras_dit.patch import find_engine
from ras_dit.planning import plan_table
from ras_dit.reference import masked_reference
from ras_dit.schedule import adapted, plan_steps
from ras_dit.tokens import TokenGrid
from ras_dit.trace import Trace
from ras_dit.trees import tree_map
from test_families import FAMILIES

N = 60
HALVED: dict[str, Any] = {
    "sample_ratio": 0.4,
    "warmup_steps": 2,
    "reset_steps": (),
    "guidance_every": 3,
}
DENSE: dict[str, Any] = {"sample_ratio": 1.0, "warmup_steps": 2, "guidance_every": 2}


def pattern(config: RASConfig, steps: int) -> str:
    """Upper case for steps with both branches: D and S, . for a skipped one."""
    letters = ""
    for plan in plan_steps(config, steps, N):
        letter = "." if plan.num_active == 0 else plan.kind[0]
        letters += letter if plan.halves_guidance else letter.upper()
    return letters


def halved(trace: Trace) -> list[int]:
    return [step.index for step in trace.steps if step.is_halved]


# -- which steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RASConfig(sample_ratio=1.0, guidance_every=1), "DDDDDDDDDDDD"),
        (RASConfig(sample_ratio=1.0, guidance_every=2), "DDDdDdDdDdDD"),
        (RASConfig(sample_ratio=1.0, guidance_every=3, warmup_steps=1), "DddDddDddDdD"),
        (RASConfig(sample_ratio=0.5, guidance_every=2, reset_steps=(6,)), "DDDsSsDsSsSS"),
        (RASConfig(sample_ratio=0.5, guidance_every=99, reset_steps=(6,)), "DDDsssDssssS"),
        # The tail's first dense step refreshes what sparse steps left old.
        (
            RASConfig(guidance_every=3, warmup_steps=2, stop_step=6, reset_steps=()),
            "DDssSsDddDdD",
        ),
        # Skipped steps count in the age, and put the next refresh off.
        (
            RASConfig(schedule=(1, 1, 1, 1, 0.5, 0, 0.5, 0, 0.5, 1, 1, 1), guidance_every=2),
            "DDDDs.S.SDdD",
        ),
    ],
)
def test_which_steps_run_both_branches(config: RASConfig, expected: str) -> None:
    assert pattern(config, 12) == expected


def test_a_step_that_changes_keeps_the_plan_right() -> None:
    plans = plan_steps(RASConfig(guidance_every=3, warmup_steps=2, reset_steps=()), 10, N)
    assert [plan.halves_guidance for plan in plans[2:6]] == [True, True, False, True]
    became_dense = adapted(plans, 2, N, N)
    assert became_dense[2].kind == "dense"
    assert not became_dense[2].halves_guidance
    skipped = adapted(plans, 4, 0, N)
    assert not skipped[4].halves_guidance
    assert not skipped[5].halves_guidance
    assert adapted(plans, 2, 15, N)[2].halves_guidance


# -- against a full-length reference ---------------------------------------------------------------


def families(*names: str) -> list[Family]:
    found = {str(family): family for family in FAMILIES}
    return [found[name] for name in names]


STACKED = families(
    "Stable Diffusion 3 controlnet",
    "Z-Image text-to-image",
    "HiDream text-to-image",
    "OmniGen text-to-image",
    "CogVideoX text-to-video",
    "Mochi text-to-video",
)
IN_TURN = families(
    "Qwen-Image text-to-image",
    "Lumina-Image-2 texts of all lengths",
    "Wan 2.2 text-to-video, two transformers",
)


@pytest.mark.parametrize("family", STACKED + IN_TURN, ids=str)
def test_a_halved_run_equals_the_reference(family: Family) -> None:
    """Two halved steps in a row, then both branches, at full length and step by step."""
    pipe = family.build()
    images = family.images if family.batched else 1
    latents, trace = run_sparse(pipe, family.call(images), reset_steps=(), guidance_every=3)
    assert {2, 3} <= set(halved(trace)) <= {2, 3, 4, 5}
    calls = trace.steps[2].calls
    if family in STACKED:
        assert [call.num_rows for call in calls] == [images]
    else:
        assert [call.num_rows for call in calls] == [images, 0]
    torch.manual_seed(0)
    reference = masked_reference(pipe, trace, **family.call(images))
    assert float((latents - reference).abs().max()) <= family.tolerance
    full, _ = run_sparse(pipe, family.call(images), reset_steps=())
    assert float((latents - full).abs().max()) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"text": "keep"}, {"sample_ratio": 1.0}], ids=str)
@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd35"])
def test_sd3_equals_the_reference(dual: bool, settings: dict[str, Any]) -> None:
    pipe = sd3_pipeline(dual=dual)
    latents, trace, reference = accelerated(pipe, lambda: sd3_inputs(2), **{**HALVED, **settings})
    assert len(halved(trace)) >= 4
    assert distance(latents, reference) <= 1e-4


def test_lumina_runs_its_first_half() -> None:
    pipe = lumina_pipeline()
    latents, trace, reference = accelerated(pipe, lambda: lumina_inputs(2), **HALVED)
    assert len(halved(trace)) >= 4
    assert distance(latents, reference) <= 1e-4
    other = ras_dit.adapters.DESCRIPTIONS["LuminaNextDiT2DModel"]
    assert other.conditional_first


# -- laws of the difference ------------------------------------------------------------------------


def test_every_step_is_the_run_without_it() -> None:
    pipe = sd3_pipeline()
    stock = pipe(**sd3_inputs(2)).images
    with ras_dit.enable(pipe, sample_ratio=1.0, guidance_every=1):
        assert torch.equal(pipe(**sd3_inputs(2)).images, stock)
    sparse = {key: value for key, value in HALVED.items() if key != "guidance_every"}
    with ras_dit.enable(pipe, **sparse):
        one = pipe(**sd3_inputs(2)).images
    with ras_dit.enable(pipe, **sparse, guidance_every=1):
        assert torch.equal(pipe(**sd3_inputs(2)).images, one)


class Blind(torch.nn.Module):
    """Sees nothing in its last argument, but remembers it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.unseen = torch.empty(0)

    def forward(self, *args: torch.Tensor) -> Any:
        self.unseen = args[-1]
        return self.module(*args[:-1], torch.zeros_like(args[-1]))


class Shifted(torch.nn.Module):
    """Adds to the output of each row what another module did not see."""

    def __init__(self, module: torch.nn.Module, other: Blind) -> None:
        super().__init__()
        self.module, self.other = module, other

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.module(tokens) + 0.1 * self.other.unseen[:, None, :16]


def always_the_same(noise: torch.Tensor) -> torch.Tensor:
    return torch.arange(N, 0.0, -1, device=noise.device).expand(noise.shape[0], -1)


@pytest.mark.parametrize("settings", [DENSE, HALVED], ids=["dense", "sparse"])
def test_a_constant_difference_changes_nothing(settings: dict[str, Any]) -> None:
    """A model that sees no text, plus a constant that each branch has for its own."""
    pipe = sd3_pipeline()
    transformer = pipe.transformer
    transformer.context_embedder = Blind(transformer.context_embedder)
    transformer.time_text_embed = Blind(transformer.time_text_embed)
    transformer.proj_out = Shifted(transformer.proj_out, transformer.time_text_embed)
    # The same active tokens in every step: then keys and values of both branches are as old.
    settings = {**settings, "metric": always_the_same, "starvation_scale": 0, "max_dropped": None}
    with ras_dit.enable(pipe, **{**settings, "guidance_every": 1}):
        both = pipe(**sd3_inputs(2)).images
    with ras_dit.enable(pipe, **settings) as handle:
        one = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    assert len(halved(handle.trace)) >= 3
    assert distance(one, both) <= 2e-4
    unguided = pipe(**sd3_inputs(2) | {"guidance_scale": 1.0}).images
    assert distance(one, unguided) > 1e-2


@pytest.mark.parametrize("settings", [DENSE, HALVED], ids=["dense", "sparse"])
def test_a_batch_equals_its_images_one_by_one(settings: dict[str, Any]) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **settings):
        together = pipe(**sd3_inputs(2)).images
        for image in range(2):
            alone = pipe(**take(sd3_inputs(2), image)).images
            assert distance(together[image : image + 1], alone) <= 1e-4


def test_inactive_tokens_keep_what_the_pipeline_saw_last() -> None:
    """Also those that a halved step made fresh: both branches of their outputs are of one time."""
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **HALVED, record=True) as handle:
        pipe(**sd3_inputs(1))
    recording, trace = handle.recording, handle.trace
    assert recording is not None
    assert trace is not None
    for step in trace.steps[2:]:
        assert step.active is not None
        inactive = torch.ones(1, N, dtype=torch.bool).scatter_(1, step.active, False)
        pixels = inactive.view(1, 1, 6, 10).repeat_interleave(2, 2).repeat_interleave(2, 3)
        now, before = (recording.noise_preds[step.index - i] for i in (0, 1))
        assert float(((now - before) * pixels).abs().max()) <= 1e-5
        assert float((now - before).abs().max()) > 1e-2


class Loop(StableDiffusion3Pipeline):
    """Guided sampling with both branches in one call, or in two."""

    stacked = True

    @torch.no_grad()
    def __call__(self, **call: Any) -> torch.Tensor:
        self.scheduler.set_timesteps(10)
        latents = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
        names = {"encoder_hidden_states": "prompt_embeds"}
        names["pooled_projections"] = "pooled_prompt_embeds"
        yes = {name: call[key] for name, key in names.items()}
        no = {name: call[f"negative_{key}"] for name, key in names.items()}
        for timestep in self.scheduler.timesteps:
            if self.stacked:
                both = {name: torch.cat([no[name], yes[name]]) for name in names}
                time = timestep.expand(4)
                noise = self.transformer(torch.cat([latents] * 2), timestep=time, **both).sample
                negative, positive = noise.chunk(2)
            else:
                time = timestep.expand(2)
                positive = self.transformer(latents, timestep=time, **yes, return_dict=False)[0]
                negative = self.transformer(latents, timestep=time, **no, return_dict=False)[0]
            guided = negative + 4 * (positive - negative)
            latents = self.scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents


@pytest.mark.parametrize("settings", [DENSE, HALVED], ids=["dense", "sparse"])
def test_one_call_and_two_give_the_same_picture(settings: dict[str, Any]) -> None:
    pipe = sd3_kind(Loop)
    found = []
    for stacked in (True, False):
        pipe.stacked = stacked
        with ras_dit.enable(pipe, **settings) as handle:
            found.append(pipe(**sd3_inputs(2)))
        assert handle.trace is not None
        assert len(halved(handle.trace)) >= 3
        rows = [sum(call.num_rows for call in step.calls) for step in handle.trace.steps]
        assert set(rows) == {2, 4}
    assert distance(*found) <= 1e-4


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [DENSE, HALVED], ids=["dense", "sparse"])
def test_a_plan_costs_what_the_run_did(settings: dict[str, Any]) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **settings) as handle:
        before = str(ras_dit.summary(pipe))
        pipe(**sd3_inputs(2))
        after = ras_dit.summary(pipe)
    trace, config = handle.trace, RASConfig(**settings)
    assert trace is not None
    work = describe(pipe.transformer).work(pipe.transformer.config)
    shape = {"batch": 4, "num_tokens": N, "num_text_tokens": trace.num_text_tokens}
    cost = trace_cost(work, trace)
    assert cost == plan_cost(work, plan_steps(config, 10, N), **shape) == after.cost
    full = plan_cost(work, plan_steps(config.replace(guidance_every=1), 10, N), **shape)
    assert cost.ras < full.ras
    assert cost.dense == full.dense
    if settings is DENSE:
        assert cost.ras / cost.dense == pytest.approx(1 - trace.num_halved / 20)
    assert "one branch" not in before
    assert f"one guidance branch | {trace.num_halved} |" in " ".join(str(after).split())


def test_plans_show_halved_steps() -> None:
    work = DESCRIPTIONS["SD3Transformer2DModel"].work(sd3_transformer().config)
    config = RASConfig(**DENSE)
    table = plan_table(work, config, 10, TokenGrid(6, 10), num_text_tokens=7)
    assert [row.first for row in table.rows if row.is_halved] == [2, 4, 6, 8]
    assert {row.cost for row in table.rows if row.is_halved} == {0.5}
    assert "dense, one branch" in table.markdown()
    assert 10 / table.limit == pytest.approx(8)
    assert table.num_graphs == 2
    assert (
        plan_table(work, RASConfig(**HALVED), 10, TokenGrid(6, 10), num_text_tokens=7).num_graphs
        == 4
    )
    alone = plan_table(work, config, 10, TokenGrid(6, 10), num_text_tokens=7, branches=1)
    assert alone.limit == 1


def test_traces_tell_of_halved_steps_and_replay_them() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **HALVED) as handle:
        latents = pipe(**sd3_inputs(2)).images
    assert handle.trace is not None
    read = Trace.from_json(handle.trace.to_json())
    assert [step.calls for step in read.steps] == [step.calls for step in handle.trace.steps]
    with ras_dit.enable(pipe, replay=read) as again:
        assert torch.equal(pipe(**sd3_inputs(2)).images, latents)
    assert again.trace is not None
    assert halved(again.trace) == halved(read)


def test_rows_of_an_evaluation_are_named_and_counted() -> None:
    def cost(config: RASConfig | None, steps: int) -> float:
        work = DESCRIPTIONS["SD3Transformer2DModel"].work(sd3_transformer().config)
        if config is None:
            return steps
        grid = TokenGrid(6, 10)
        return steps / plan_table(work, config, steps, grid, num_text_tokens=7).limit

    data = [{"steps": 28, "sample_ratio": 1.0, "guidance_every": every} for every in (1, 2)]
    one, two = read_rows(data, None, cost)
    assert two.name == f"{one.name}-guidance2"
    assert one.cost == 28
    assert two.cost == pytest.approx(22)


def test_verify_checks_halved_steps() -> None:
    pipe = sd3_pipeline()
    call = {**sd3_inputs(2), "num_inference_steps": 8}
    found = ras_dit.verify(pipe, HALVED, **call)
    assert found.ok, str(found)
    assert found.trace is not None
    assert found.trace.num_halved >= 3


# -- where there is nothing to halve ---------------------------------------------------------------


def unchanged(pipe: Any, call: Any, message: str, **settings: Any) -> None:
    """Nothing is halved, and that is said once."""
    with ras_dit.enable(pipe, **{**settings, "guidance_every": 1}):
        whole = run(pipe, call())
    with ras_dit.enable(pipe, **settings) as handle:
        with pytest.warns(RASWarning, match=message):
            latents = run(pipe, call())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(pipe, call())
    assert handle.trace is not None
    assert not halved(handle.trace)
    assert torch.equal(latents, whole)


def test_without_guidance_it_does_nothing() -> None:
    def call() -> dict[str, Any]:
        inputs = sd3_inputs(2)
        del inputs["output_type"]
        return {**inputs, "guidance_scale": 1.0}

    unchanged(sd3_pipeline(), call, "one row per image", **HALVED)


def test_steps_that_all_need_both_branches_are_said() -> None:
    def call() -> dict[str, Any]:
        inputs = sd3_inputs(1) | {"num_inference_steps": 12}
        del inputs["output_type"]
        return inputs

    message = r"guidance_every=2 does nothing here: each of this run's 12 steps is skipped, or"
    spaced = {"schedule": "intervals", "intervals": (2,), "guidance_every": 2}
    unchanged(sd3_pipeline(), call, message, **spaced)


@pytest.mark.parametrize("name", ["perturbed attention", "perturbed attention alone"])
def test_branches_that_attention_mixes_run_whole(name: str) -> None:
    (family,) = families(f"PixArt-Sigma {name}")
    unchanged(family.build(), lambda: family.call(1), "guidance branches", **HALVED)


@pytest.mark.parametrize("name", ["Stable Diffusion 3.5", "HunyuanImage"])
def test_after_a_third_branch_steps_run_whole(name: str) -> None:
    (family,) = families(f"{name} skip-layer guidance")
    pipe = family.build()
    latents, trace = run_sparse(pipe, family.call(1), reset_steps=(), guidance_every=3)
    branches = 2
    for step in trace.steps:
        if step.is_halved:
            assert branches == 2
        else:
            branches = sum(call.batch for call in step.calls)
    torch.manual_seed(0)
    reference = masked_reference(pipe, trace, **family.call(1))
    assert float((latents - reference).abs().max()) <= family.tolerance


@pytest.mark.parametrize(
    "family",
    families("Wan 2.2 text-to-video, two transformers", "Z-Image truncated guidance"),
    ids=str,
)
def test_calls_of_another_kind_run_whole(family: Family) -> None:
    """Another transformer takes over, or guidance ends: the difference is none of theirs."""
    pipe = family.build()
    settings = {"sample_ratio": 1.0, "warmup_steps": 1, "guidance_every": 99}
    latents, trace = run_sparse(pipe, family.call(2), **settings)
    assert 0 < trace.num_halved < STEPS - 2
    torch.manual_seed(0)
    reference = masked_reference(pipe, trace, **family.call(2))
    assert float((latents - reference).abs().max()) <= family.tolerance


def test_texts_of_other_lengths_run_whole() -> None:
    """Z-Image fills texts up to the longest of the batch."""
    (family,) = families("Z-Image text-to-image")
    pipe = family.build()
    call = family.call(1)
    longest = max(len(text) for text in call["prompt_embeds"])
    call["negative_prompt_embeds"] = [
        torch.cat([text] * (2 + 64 // longest)) for text in call["negative_prompt_embeds"]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RASWarning)
        latents, trace = run_sparse(pipe, call, guidance_every=3)
    assert not halved(trace)
    assert latents.isfinite().all()


# -- storage, ends, arguments ----------------------------------------------------------------------


def test_static_caches_change_nothing() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **HALVED):
        plain = pipe(**sd3_inputs(2)).images
    with ras_dit.enable(pipe, **HALVED, static_cache=True):
        for _ in range(2):
            assert torch.equal(pipe(**sd3_inputs(2)).images, plain)


@pytest.mark.parametrize("cache_dtype", ["int8", "float8"])
def test_caches_in_eight_bits_stay_near(cache_dtype: str) -> None:
    pipe = sd3_pipeline()
    ends = []
    for settings in ({}, {"cache_dtype": cache_dtype}):
        with ras_dit.enable(pipe, **HALVED, **settings):
            ends.append(pipe(**sd3_inputs(2)).images)
    whole = pipe(**sd3_inputs(2)).images
    assert 0 < distance(*ends) < 0.3 * distance(ends[0], whole)


def test_skipped_steps_return_both_branches() -> None:
    schedule = (1.0, 1.0, 1.0, 0.4, 0.0, 0.4, 0.0, 0.4, 1.0, 1.0)
    pipe = sd3_kind(Loop)
    ends = []
    for stacked in (True, False):
        pipe.stacked = stacked
        with ras_dit.enable(pipe, schedule=schedule, guidance_every=9, record=True) as handle:
            ends.append(pipe(**sd3_inputs(2)))
        assert handle.trace is not None
        assert halved(handle.trace) == [3, 5, 7]
        recording = handle.recording
        assert recording is not None
        assert torch.equal(recording.noise_preds[4], recording.noise_preds[3])
    assert distance(*ends) <= 1e-4


def test_everything_is_freed_at_the_end() -> None:
    pipe = sd3_pipeline()
    sessions = []

    def look(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        engine = find_engine(pipe)
        assert engine is not None
        if engine._session is not None:
            sessions.append(engine._session)
            assert sessions[0].guidance.is_known
        return tensors

    with ras_dit.enable(pipe, **HALVED):
        pipe(**sd3_inputs(2), callback_on_step_end=look)
    assert len(sessions) == 9
    assert not sessions[0].guidance.is_known
    assert not sessions[0].guidance._outputs
    assert not sessions[0]._branches


def test_a_compiled_transformer_gets_a_second_batch_size() -> None:
    """Dense, filling the caches, sparse, sparse with one branch; none is made in a second run."""
    torch._dynamo.reset()
    pipe = sd3_pipeline(layers=1)
    with ras_dit.enable(pipe, **HALVED):
        plain = pipe(**sd3_inputs(2)).images
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter)
    with ras_dit.enable(pipe, **HALVED):
        for _ in range(2):
            assert distance(pipe(**sd3_inputs(2)).images, plain) <= 1e-5
            assert counter.frame_count == 4
    torch._dynamo.reset()


def test_the_number_is_checked() -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(RASError, match="guidance_every"):
            RASConfig(guidance_every=wrong)  # type: ignore[arg-type]


def test_halves_and_joins() -> None:
    half = Half(4, is_second=True)
    rows = torch.arange(4.0).view(4, 1)
    value = {"a": rows, "b": [rows, torch.ones(3)], "c": None, "d": torch.tensor(1.0)}
    taken = half.take(value, lists=False)
    assert taken["a"].flatten().tolist() == [2, 3]
    assert taken["b"][1].shape == (3,)
    assert taken["d"].ndim == 0
    named = half.arguments(
        {"table": rows, "layers": rows.T, "rows": rows},
        lists=False,
        shared={"table"},
        batch_dims={"layers": 1},
    )
    assert [v.numel() for v in named.values()] == [4, 2, 2]
    output = Transformer2DModelOutput(sample=rows)
    own, other = half.take(output, lists=True), half.other.take(output, lists=True)
    assert torch.equal(half.joined(own, other).sample, rows)
    listed = ([torch.zeros(2), torch.ones(2)],)
    assert len(half.joined(listed, listed)[0]) == 4
    assert tree_map(torch.neg, ("x", rows))[0] == "x"


def test_the_scheduler_may_be_any() -> None:
    pipe = sd3_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    torch.manual_seed(0)
    with ras_dit.enable(pipe, **HALVED) as handle:
        assert pipe(**sd3_inputs(1)).images.isfinite().all()
    assert handle.trace is not None
    assert halved(handle.trace)
