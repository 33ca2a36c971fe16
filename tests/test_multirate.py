"""The laws of each token's line: orders of accuracy, corrections, predicted errors."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

import ras_dit
from families_ltx import ltx_call, ltx_pipeline
from pipelines import hooks_of, sd3_inputs, sd3_pipeline, sd3_transformer, take
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cost import plan_cost
from ras_dit.multirate import Lines
from ras_dit.reference import masked_reference
from ras_dit.rules import LineRules
from ras_dit.schedule import plan_steps
from ras_dit.tokens import PixelMap, TokenGrid, TokenLayout, TokenSort

TOKENS = 6
SETS = {
    3: [[0, 1], [2, 5]],
    4: [[3, 1], [2, 4]],
    5: [[0, 5], [0, 1]],
    6: [[1, 4], [3, 5]],
    8: [[0, 1], [2, 3]],
}
SPARSE = {"sample_ratio": 0.4, "warmup_steps": 3, "reset_steps": (6,)}
BEST = {"forecast": "linear", "solver": "ab2", "correction_age": 3, "metric": "innovation"}


def latents(channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(0))


sort = TokenSort(2)


def merged(fresh: torch.Tensor, held: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Fresh outputs of active tokens, and the held ones of the others."""
    mask = torch.zeros(2, TOKENS).scatter_(1, active, 1.0)
    return torch.where(PixelMap(fresh, sort, TOKENS).spread(mask) > 0, fresh, held)


def drive(
    rules: LineRules,
    velocity: Any,
    times: torch.Tensor,
    sets: dict[int, list[list[int]]],
    start: torch.Tensor,
) -> tuple[torch.Tensor, Lines]:
    """A run whose velocity is known at every time; inactive tokens hold their last one."""
    lines = Lines(rules, PixelMap(start, sort, TOKENS), TOKENS, times)
    sample = held = start
    for step in range(len(times) - 1):
        noise = velocity(times[step])
        active = None
        if step in sets:
            active = torch.tensor(sets[step], dtype=torch.int64)
            noise = merged(noise, held, active)
        held = noise.clone()
        noise, sample = lines.advance(noise, sample, active, step)
        sample = sample + (times[step + 1] - times[step]) * noise
    return sample, lines


def uneven_times(steps: int = 10) -> torch.Tensor:
    shifted = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return 3 * shifted / (1 + 2 * shifted)


@pytest.mark.parametrize(
    "rules",
    [LineRules(linear=True, second_order=True), LineRules(True, None, True, damps_steps=True)],
)
def test_lines_are_exact_where_the_velocity_is_linear(rules: LineRules) -> None:
    """Whatever the sets and the steps: only the first step, of order 1, is in error."""
    base, slope = latents(), latents().flip(0)
    times = uneven_times()
    # The last step is of order 1 on purpose: end before it.
    end, lines = drive(
        rules,
        lambda t: base + slope * t,
        torch.cat([times, times[-1:]]),
        SETS,
        torch.zeros_like(base),
    )
    exact = -(base + slope / 2)
    first = slope * (times[1] - times[0]) ** 2 / 2
    torch.testing.assert_close(end.double(), (exact - first).double(), atol=2e-6, rtol=0)
    assert lines.predicted_errors(10).max() < 1e-4


def test_the_measured_damping() -> None:
    """How much of the last slopes went on, over refreshed tokens, per image, within [0, 1]."""
    times = torch.tensor([1.0, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0])
    base, slope = latents(), latents().flip(0)
    other = latents().roll(1, 2)
    other -= slope * ((other * slope).sum((1, 2, 3)) / slope.square().sum((1, 2, 3))).view(
        2, 1, 1, 1
    )
    factors = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1)
    slopes = [slope, factors * slope + other, 3 * (factors * slope + other), slope]
    rules = LineRules(linear=True, damping=None, second_order=True, damps_steps=True)
    lines = Lines(rules, PixelMap(base, sort, TOKENS), TOKENS, times)
    values = [base]
    for step, along in enumerate(slopes):
        values.append(values[-1] + along * (times[step + 1] - times[step]))
    made = [lines.advance(value, base, None, step)[0] for step, value in enumerate(values[:4])]
    half = ((times[1:] - times[:-1]) / 2).tolist()
    torch.testing.assert_close(made[0], values[0])
    torch.testing.assert_close(made[1], values[1] + half[1] * slopes[0])  # nothing to go by yet
    expected = values[2] + factors.clamp(min=0) * half[2] * slopes[1]
    torch.testing.assert_close(made[2], expected)
    torch.testing.assert_close(made[3], values[3] + half[3] * slopes[2])
    # One token is refreshed, with a fifth of its slope; all of the image go on by that.
    one = torch.tensor([[2], [2]])
    value = values[3] + 0.2 * slopes[2] * (times[4] - times[3])
    last, _ = lines.advance(merged(value, values[3], one), base, one, 4)
    fresh = value + 0.2 * half[4] * 0.2 * slopes[2]
    left = values[3] + 0.2 * (times[4] - times[3] + half[4]) * slopes[2]
    chosen = torch.zeros(2, TOKENS).scatter_(1, one, 1.0)[..., None, None] > 0
    torch.testing.assert_close(sort(last), torch.where(chosen, sort(fresh), sort(left)))


@pytest.mark.parametrize("longest", [1, 2])
def test_a_line_is_followed_to_its_age(longest: int) -> None:
    """With its mean over each step up to there, and held where it is from then on."""
    times = torch.tensor([1.0, 0.9, 0.7, 0.6, 0.4, 0.3, 0.0])
    rules = LineRules(linear=True, damping=0.5, second_order=True, longest=longest)
    base, slope = latents(), latents().flip(0)
    lines = Lines(rules, PixelMap(base, sort, TOKENS), TOKENS, times)
    one = torch.tensor([[0], [0]])
    held = base
    for step in range(5):
        fresh, active = base + slope * times[step], one if step > 1 else None
        held = fresh if active is None else merged(fresh, held, active)
        noise, _ = lines.advance(held, base, active, step)
        if step < 2:
            continue
        middle = (times[step] + times[step + 1]) / 2
        reached = middle if step < 1 + longest else times[1 + longest]
        expected = base + slope * (times[1] + 0.5 * (reached - times[1]))
        torch.testing.assert_close(sort(noise)[:, 1:], sort(expected)[:, 1:])


@pytest.mark.parametrize(
    "rules", [LineRules(correction_age=9), LineRules(True, 0.5, True, correction_age=9)]
)
def test_corrected_steps_are_the_trapezoidal_rule(rules: LineRules) -> None:
    """Exact for a linear velocity at a dense end, whatever was integrated in between."""
    base, slope = latents(), latents().flip(0)
    times = uneven_times()
    times = torch.cat([times, times[-1:]])  # a dense evaluation at the end, and no way to go
    end, _ = drive(rules, lambda t: base + slope * t, times, SETS, torch.zeros_like(base))
    torch.testing.assert_close(end, -(base + slope / 2), atol=2e-6, rtol=0)
    old, _ = drive(
        LineRules(correction_age=1), lambda t: base + slope * t, times, SETS, torch.zeros_like(base)
    )
    assert (old - end).abs().max() > 1e-2  # older steps stay as they were


def test_the_order_of_a_dense_run() -> None:
    """Twice as many steps: half the error of Euler, a quarter of Adams-Bashforth."""
    start = latents()
    errors: dict[bool, list[float]] = {}
    for second in (False, True):
        for steps in (40, 80):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            end, _ = drive(
                LineRules(second_order=second),
                lambda t: start * math.cos(5 * t),
                times,
                {},
                torch.zeros_like(start),
            )
            exact = -start * math.sin(5) / 5
            errors.setdefault(second, []).append(float((end - exact).abs().max()))
    assert errors[False][0] / errors[False][1] == pytest.approx(2, rel=0.1)
    assert errors[True][0] / errors[True][1] > 3.3


def test_held_tokens_get_what_the_pipeline_makes_of_their_last_output() -> None:
    """Which is another noise where guidance changed meanwhile."""
    base = latents()
    lines = Lines(LineRules(), PixelMap(base, sort, TOKENS), TOKENS, uneven_times())
    lines.advance(base, base, None, 0)
    for active in (torch.tensor([[1, 2], [0, 3]]), torch.empty(2, 0, dtype=torch.int64)):
        given = base + active.shape[1]
        noise, sample = lines.advance(given, base, active, 1)
        assert noise is given
        assert sample is base


@pytest.mark.parametrize("forecast", ["hold", "linear"])
def test_a_change_of_guidance_is_no_change_of_a_token(forecast: str) -> None:
    """A line goes on from what its last output comes to now, with the slope that it had."""
    base, slope = latents(), latents().flip(0)
    times = uneven_times()
    rules = LineRules(linear=forecast == "linear")
    lines = Lines(rules, PixelMap(base, sort, TOKENS), TOKENS, times)
    for step in range(2):
        noise = base + slope * times[step].float()
        lines.advance(noise, base, None, step)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    handed_on, _ = lines.advance(noise + 3, base, nothing, 2)
    reached = times[2 if rules.linear else 1]
    torch.testing.assert_close(handed_on, base + 3 + slope * reached.float())


def test_steps_of_each_tokens_own_length_have_no_lines() -> None:
    """LTXConditionPipeline hands its scheduler a time for each token."""
    pipe = ltx_pipeline(LTXConditionPipeline)
    call = lambda: {**ltx_call(1), "num_inference_steps": 6, "output_type": "latent"}  # noqa: E731
    plain = {"sample_ratio": 0.5, "warmup_steps": 2}
    ends = []
    for knobs in ({}, {**BEST, "metric": "std", "forecast_keys": 0.5}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with ras_dit.enable(pipe, **plain, **knobs):
                ends.append(pipe(**call(), return_dict=False)[0])
        said = [str(one.message) for one in caught if one.category is ras_dit.RASWarning]
        assert [("one length for all tokens" in text) for text in said] == [True] * bool(knobs)
    assert torch.equal(*ends)


def rescaled(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
    if step == 3:
        pipe._guidance_scale = 8.0
    return {}


@pytest.mark.parametrize(
    "changes",
    [
        {"callback_on_step_end": rescaled},
        {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5},
    ],
    ids=["scale", "skipped layers"],
)
@pytest.mark.parametrize("knobs", [{"metric": "innovation"}, {"reset_tolerance": 100.0}])
def test_guidance_that_changes_in_mid_run_is_the_references(
    changes: dict[str, Any], knobs: dict[str, Any]
) -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=2, **knobs) as handle:
        sparse = pipe(**sd3_inputs(1), **changes).images
    assert handle.trace is not None
    assert handle.trace.num_dense_steps < len(handle.trace.steps)
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(1), **changes)
    torch.testing.assert_close(sparse, reference, rtol=1e-4, atol=1e-4)


def test_lines_keep_their_own_tensors() -> None:
    """It may write to them."""
    base, times = latents(), uneven_times()
    active = torch.tensor([[1, 2], [0, 3]])
    ends = []
    for harm in (False, True):
        lines = Lines(LineRules(linear=True), PixelMap(base, sort, TOKENS), TOKENS, times)
        for step, chosen in enumerate([None, None, active]):
            noise = base + float(times[step])
            handed_on, _ = lines.advance(noise, base, chosen, step)
            if harm:
                noise.zero_()
        ends.append(handed_on)
    assert torch.equal(*ends)


@given(st.integers(1, 4), st.floats(0.1, 0.9))
def test_predicted_errors_grow_with_a_power_of_the_distance(steps: int, scale: float) -> None:
    """In a run of held outputs with a linear velocity they are the errors."""
    base, slope = latents(), latents().flip(0) * scale
    times = uneven_times()
    velocity = lambda t: base + slope * t  # noqa: E731
    _, lines = drive(LineRules(), velocity, times[: steps + 2], {}, base)
    predicted = lines._constants
    assert predicted is not None
    size = sort(slope).square().mean((2, 3)).sqrt()
    torch.testing.assert_close(predicted, size, rtol=1e-3, atol=1e-3)
    step = len(times[: steps + 2]) - 1
    expected = size * float(times[step - 1] - times[step])
    torch.testing.assert_close(lines.predicted_errors(step), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["picture", "video", "frames first", "packed", "given frames"])
def test_numbers_go_to_the_pixels_of_their_tokens(kind: str) -> None:
    frames_first = kind == "frames first"
    shape = {
        "picture": (2, 3, 4, 6),
        "video": (2, 3, 2, 4, 6),
        "frames first": (2, 2, 3, 4, 6),
        "packed": (2, 6, 12),
        "given frames": (2, 3, 2, 4, 6),
    }[kind]
    noise = torch.randn(shape)
    order = TokenSort((1, 2, 2) if noise.ndim == 5 else 2, frames_first=frames_first)
    missing = 6 if kind == "given frames" else 0
    count = order(noise).shape[1] + missing
    pixels = PixelMap(noise, order, count)
    numbers = torch.rand(2, count)
    spread = pixels.spread(numbers).expand_as(noise)
    expected = numbers[:, missing:, None, None].expand_as(order(noise))
    torch.testing.assert_close(order(spread.contiguous()), expected)
    means = pixels.mean(noise)
    torch.testing.assert_close(means[:, missing:], order(noise).mean((2, 3)))
    assert not means[:, :missing].any()


def test_a_pixel_without_a_token_is_refused() -> None:
    layout = TokenLayout(TokenGrid(2, 2), 0, num_references=2)
    with pytest.raises(ValueError, match="24 latent pixels, and 16 of them"):
        PixelMap(latents(), TokenSort(2, layout), TOKENS)


class ByTheBook(FlowMatchEulerDiscreteScheduler):
    """The same method, token by token in float64 lists, from a trace's active tokens."""

    trace: ras_dit.Trace
    rules = LineRules(True, 0.75, True, correction_age=3)
    patch = 2

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.lines: dict[tuple[int, int], dict[str, Any]] = {}
        self.going_on = defaultdict(lambda: 1.0)
        self.number = 0

    def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> Any:
        number, rules = self.number, self.rules
        self.number += 1
        now, then = float(self.sigmas[number]), float(self.sigmas[number + 1])
        middle = (then - now) / 2
        if number + 2 == len(self.sigmas) or not rules.second_order:
            middle = 0.0
        active = self.trace.steps[number].active
        noise, result = model_output.double(), sample.double().clone()
        tokens = noise.shape[-1] * noise.shape[-2] // self.patch**2
        for image in range(sample.shape[0]):
            chosen = set(range(tokens)) if active is None else set(active[image].tolist())
            alike = size = 0.0
            for token in chosen:
                line = self.lines.get((image, token))
                place = self.place(image, token, noise)
                new = {"value": noise[place], "number": number, "gone": 0.0}
                if line is not None:
                    gap = now - self.time_of(line)
                    if number - line["number"] <= rules.correction_age:
                        trapezoid = (line["value"] + new["value"]) / 2 * gap
                        result[place] += trapezoid - line["gone"]
                    new["slope"] = (new["value"] - line["value"]) / gap
                    if "slope" in line:
                        alike += float((new["slope"] * line["slope"]).sum())
                        size += float(line["slope"].square().sum())
                self.lines[image, token] = new
            if size:
                self.going_on[image] = min(1.0, max(0.0, alike / size))
            measured = self.going_on[image]
            for token in range(tokens):
                line, place = self.lines[image, token], self.place(image, token, noise)
                damping = measured if rules.damping is None else rules.damping
                along = damping * (now - self.time_of(line) + middle)
                if token in chosen:
                    along = middle * (measured if rules.damps_steps else 1.0)
                mean = line["value"] + line.get("slope", 0.0) * along
                line["gone"] = line["gone"] + mean * (then - now)
                result[place] += mean * (then - now)
        return (result.to(sample.dtype),)

    def time_of(self, line: dict[str, Any]) -> float:
        return float(self.sigmas[line["number"]])

    def place(self, image: int, token: int, noise: torch.Tensor) -> tuple[Any, ...]:
        row, column = divmod(token, noise.shape[-1] // self.patch)
        rows = slice(row * self.patch, (row + 1) * self.patch)
        return (image, slice(None), rows, slice(column * self.patch, (column + 1) * self.patch))


@pytest.mark.parametrize("measured", [False, True])
def test_a_sparse_run_equals_the_reference_with_the_same_forecasts(measured: bool) -> None:
    damped: dict[str, Any] = {"forecast_damping": 0.75}
    if measured:
        damped = {"forecast_damping": "auto", "solver": "damped-ab2"}
    pipe = sd3_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    with ras_dit.enable(pipe, **SPARSE, **(BEST | damped)) as handle:
        sparse = pipe(**sd3_inputs(2)).images
    trace = handle.trace
    assert trace is not None
    assert any(step.kind == "sparse" for step in trace.steps)
    pipe.scheduler = ByTheBook(shift=3.0)
    pipe.scheduler.trace = trace
    if measured:
        pipe.scheduler.rules = LineRules(True, None, True, damps_steps=True, correction_age=3)
    reference = masked_reference(pipe, trace, **sd3_inputs(2))
    torch.testing.assert_close(sparse, reference, atol=2e-4, rtol=0)
    with ras_dit.enable(sd3_pipeline(), replay=trace):
        held = pipe.__class__.__call__(sd3_pipeline(), **sd3_inputs(2)).images
    assert (held - sparse).abs().max() > 1e-2


SKIPPING = (1.0, 1.0, 0.0, 0.4, 0.4, 0.0, 0.0, 1.0, 0.4, 1.0)


@pytest.mark.parametrize("forecast", ["hold", "linear"])
def test_skipped_steps_do_not_run_the_transformer(forecast: Any) -> None:
    pipe = sd3_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    runs: list[None] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: runs.append(None))
    config = {"schedule": SKIPPING, "forecast": forecast, "solver": "stock"}
    with ras_dit.enable(pipe, **config) as handle:
        sparse = pipe(**sd3_inputs(2)).images
        assert torch.equal(pipe(**sd3_inputs(2)).images, sparse)
    trace = handle.trace
    assert trace is not None
    assert len(runs) == 2 * 7
    assert [step.num_active for step in trace.steps] == [60, 60, 0, 24, 24, 0, 0, 60, 24, 60]
    again = ras_dit.Trace.from_json(trace.to_json())
    assert [step.num_active for step in again.steps] == [step.num_active for step in trace.steps]
    if forecast == "linear":
        pipe.scheduler = ByTheBook(shift=3.0)
        pipe.scheduler.trace, pipe.scheduler.rules = trace, LineRules(linear=True)
    reference = masked_reference(pipe, trace, **sd3_inputs(2))
    torch.testing.assert_close(sparse, reference, atol=2e-4, rtol=0)
    with ras_dit.enable(pipe, replay=trace):
        runs.clear()
        pipe(**sd3_inputs(2))
    assert len(runs) == 7


def test_skipping_leaves_nothing_behind() -> None:
    pipe = sd3_pipeline()
    stock, before = pipe(**sd3_inputs(1)).images, dict(vars(pipe.transformer))
    with ras_dit.enable(pipe, schedule=SKIPPING):
        pipe(**sd3_inputs(1))
    assert vars(pipe.transformer).keys() == before.keys()
    assert hooks_of(pipe.transformer) == 0
    assert torch.equal(pipe(**sd3_inputs(1)).images, stock)


def test_skipped_steps_of_a_compiled_transformer() -> None:
    plain, pipe = sd3_pipeline(layers=1), sd3_pipeline(layers=1)
    pipe.transformer.compile(backend="eager")
    with ras_dit.enable(plain, schedule=SKIPPING), ras_dit.enable(pipe, schedule=SKIPPING):
        expected, found = (p(**sd3_inputs(1)).images for p in (plain, pipe))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_skipped_steps_cost_nothing() -> None:
    planned = plan_steps(ras_dit.RASConfig(schedule=SKIPPING), 10, 60)
    work = DESCRIPTIONS["SD3Transformer2DModel"].work(sd3_transformer().config)
    shape: dict[str, int] = {"batch": 1, "num_tokens": 60, "num_text_tokens": 7}
    cost = plan_cost(work, planned, **shape)
    rest = plan_cost(work, [plan for plan in planned if plan.num_active], **shape)
    assert cost.ras == rest.ras
    assert cost.limit == pytest.approx(rest.limit * 10 / 7)


@pytest.mark.parametrize("rules", [LineRules(), LineRules(linear=True, second_order=True)])
def test_a_skipped_step_teaches_nothing(rules: LineRules) -> None:
    """Not even where it comes before the first innovation."""
    base, times = latents(), uneven_times()
    nothing: list[list[int]] = [[], []]
    rising = lambda t: base + base * t  # noqa: E731
    _, skipping = drive(rules, rising, times[:5], {1: nothing, 3: nothing}, base)
    _, twice = drive(rules, rising, times[[0, 2, 3]], {}, base)
    assert skipping._constants is not None
    torch.testing.assert_close(skipping._constants, twice._constants)
    assert (skipping._age == 1).all()
    assert (skipping._since == times[2].float()).all()


def test_the_first_step_cannot_be_skipped() -> None:
    with pytest.raises(ras_dit.RASError, match=r"schedule\[0\]=0.0"):
        ras_dit.RASConfig(schedule=(0.0, 1.0))


def test_ratio_one_without_a_solver_is_stock_bitwise() -> None:
    pipe = sd3_pipeline()
    stock = pipe(**sd3_inputs(2)).images
    with ras_dit.enable(pipe, sample_ratio=1.0, forecast="linear", metric="innovation"):
        assert torch.equal(pipe(**sd3_inputs(2)).images, stock)
    with ras_dit.enable(pipe, sample_ratio=1.0, solver="ab2"):
        assert not torch.equal(pipe(**sd3_inputs(2)).images, stock)
    assert torch.equal(pipe(**sd3_inputs(2)).images, stock)


def test_a_batch_equals_its_images_alone() -> None:
    """Forecasts and choices are every image's own."""
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, **SPARSE, **BEST):
        both = pipe(**sd3_inputs(2)).images
        for image in range(2):
            one = pipe(**take(sd3_inputs(2), image)).images
            torch.testing.assert_close(one[0], both[image], atol=1e-4, rtol=0)


def test_other_schedulers_hold_outputs_and_say_so() -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = sd3_pipeline(scheduler=scheduler)
    with ras_dit.enable(pipe, **SPARSE, **BEST) as handle:
        with pytest.warns(ras_dit.RASWarning, match="outputs are held"):
            sparse = pipe(**sd3_inputs(2)).images
        again = pipe(**sd3_inputs(2)).images  # no second warning
    assert torch.equal(sparse, again)
    assert handle.trace is not None
    reference = masked_reference(pipe, handle.trace, **sd3_inputs(2))
    torch.testing.assert_close(sparse, reference, atol=1e-4, rtol=0)


def test_the_number_of_active_tokens_follows_the_expected_errors() -> None:
    counts, levels = [], {0, 12, 24, 60}
    for tolerance in (1e-6, 1.2, 2.5, 1e6):
        pipe = sd3_pipeline()
        with ras_dit.enable(pipe, **SPARSE, metric="innovation", tolerance=tolerance) as handle:
            sparse = pipe(**sd3_inputs(2)).images
        trace = handle.trace
        assert trace is not None
        assert {step.num_active for step in trace.steps} <= levels
        counts.append(sum(step.num_active for step in trace.steps))
        reference = masked_reference(pipe, trace, **sd3_inputs(2))
        torch.testing.assert_close(sparse, reference, atol=2e-4, rtol=0)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 600  # nothing is good enough: dense
    assert counts[-1] == 240  # everything is: only planned dense steps are left
    assert counts[0] > counts[1] > counts[2] > counts[3]


def test_dense_steps_come_on_demand() -> None:
    dense = []
    for tolerance in (1e-6, 1e6):
        pipe = sd3_pipeline()
        with ras_dit.enable(pipe, **SPARSE, **BEST, reset_tolerance=tolerance) as handle:
            pipe(**sd3_inputs(2))
        assert handle.trace is not None
        dense.append(handle.trace.num_dense_steps)
    assert dense == [10, 4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("forecast", "cubic"),
        ("solver", "heun"),
        ("forecast_damping", 0.0),
        ("forecast_damping", 1.5),
        ("forecast_damping", "measured"),
        ("correction_age", -1),
        ("tolerance", 0.0),
        ("reset_tolerance", float("nan")),
    ],
)
def test_wrong_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ras_dit.RASError, match=field):
        ras_dit.RASConfig(**{field: value})
