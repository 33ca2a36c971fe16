"""``ras-dit tune``: schedules within a budget, the search, and what comes of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler

import ras_dit
from pipelines import is_stock, processors_of, sd3_inputs, sd3_pipeline
from ras_dit import RASConfig
from ras_dit.cli import main
from ras_dit.cost import trace_cost
from ras_dit.diagnosis.runs import sparse_run
from ras_dit.errors import RASError
from ras_dit.generate import Job
from ras_dit.loading import load_pipeline
from ras_dit.options import read_prompt_file
from ras_dit.tuning import Candidate, Gauge, Measured, Target, Tuned, Tuning, schedules, tune
from ras_dit.tuning.commands import split
from ras_dit.tuning.report import preset_text, report_text, verdict, write_tuning
from ras_dit.tuning.search import Found, Plan, open_trials, search
from ras_dit.tuning.space import DIMENSIONS, Abilities, DenseSpace, Dimension, SparseSpace

EVERYTHING = Abilities(is_euler=True, takes_sigmas=True, keeps_text=True)
PRICES = {0.0: 0.0, 0.25: 0.36, 0.5: 0.58, 1.0: 1.0}


def price(candidate: Candidate) -> float:
    schedule = candidate.fields.get("schedule", (1.0,) * candidate.steps)
    kept = 0.8 if candidate.fields.get("text") == "keep" else 1.0
    return sum(PRICES[ratio] * (kept if ratio < 1 else 1.0) for ratio in schedule)


def within(budget: float) -> schedules.Fits:
    return lambda schedule: sum(PRICES[ratio] for ratio in schedule) <= budget


def is_preset(schedule: schedules.Schedule) -> bool:
    return schedule[0] == 1 and min(schedule) < 1 and set(schedule) <= set(PRICES)


@pytest.mark.parametrize("pattern", schedules.PATTERNS)
def test_a_built_schedule_is_as_long_as_the_budget_allows(pattern: str) -> None:
    for budget, warmup, tail, every in ((2.0, 4, 2, 0), (9.3, 3, 1, 4), (17.0, 5, 4, 0)):
        form = schedules.Form(warmup, pattern, tail, every)
        schedule = schedules.build(form, within(budget), 30)
        assert schedule is not None
        assert is_preset(schedule)
        assert within(budget)(schedule)
        if warmup + tail + 1 < budget:
            middle = len(schedule) - warmup - tail
            longer = form.schedule(middle + 1)
            assert len(longer) > 30 or not within(budget)(longer)
            assert all(a >= b for a, b in zip(schedule, form.schedule(middle), strict=True))
    assert schedules.build(schedules.Form(2, pattern), within(0.5), 30) is None


@pytest.mark.parametrize("pattern", schedules.INTERVALS)
def test_a_schedule_of_intervals_is_as_long_as_the_budget_allows(pattern: str) -> None:
    form = schedules.Form(3, pattern, 2, 4)
    for budget in (7.0, 9.5, 12.0):
        schedule = schedules.build(form, within(budget), 30)
        assert schedule is not None
        assert is_preset(schedule)
        assert within(budget)(schedule)
        plain = form.schedule(len(schedule) - 5)
        assert set(plain) == {0.0, 1.0}
        assert all(a >= b for a, b in zip(schedule, plain, strict=True))
        longer = form.schedule(len(schedule) - 4)
        assert len(longer) > 30 or not within(budget)(longer)
    # Runs too short for intervals are dense, and dense runs are not proposed.
    assert schedules.build(form, within(3.0), 30) is None


def test_changed_schedules_stay_within_the_budget_and_use_it() -> None:
    rng = random.Random(0)
    schedule = schedules.build(schedules.Form(3, "half", 1, 4), within(9.3), 20)
    assert schedule is not None
    seen = {schedule}
    for _ in range(300):
        near = schedules.changed(schedule, within(9.3), 20, rng)
        if near is None:
            continue
        assert is_preset(near)
        assert within(9.3)(near)
        assert len(near) <= 20
        # At most what raising any one step costs is left, unless that leaves no sparse step.
        assert sum(PRICES[ratio] for ratio in near) > 9.3 - 0.42 or near.count(1.0) + 1 >= len(near)
        seen.add(near)
        schedule = near
    assert len(seen) > 120
    assert len({len(each) for each in seen}) > 3


@pytest.mark.parametrize("budget", [1.4, 2.0, 6.5, 17.2])
def test_whatever_is_proposed_costs_no_more_than_the_budget(budget: float) -> None:
    rng = random.Random(1)
    fields: set[str] = set()
    for space in (SparseSpace(EVERYTHING, price, 30), DenseSpace(EVERYTHING, 30)):
        candidate = space.choose(lambda _, values: rng.choice(values), budget)
        for _ in range(60):
            chosen = space.choose(lambda _, values: rng.choice(values), budget)
            near = space.neighbour(candidate, budget, rng)
            for each in [chosen] if near is None else [chosen, near]:
                assert price(each) <= budget
                assert each.steps == len(each.fields.get("schedule", range(each.steps)))
                assert Candidate.from_dict(each.to_dict()) == each
                config = each.config
                assert (config is None) == (not each.fields)
                fields |= set(each.fields)
                if isinstance(space, DenseSpace):
                    assert config is None or config.sample_ratio == 1
                candidate = each
    assert {"solver", "forecast", "forecast_damping", "text", "schedule", "metric"} <= fields


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda each: each.field)
def test_every_value_that_is_chosen_is_the_candidates(dimension: Dimension) -> None:
    """The first value is left to the field's default, so it has to be that."""

    def choose(name: str, values: Any) -> Any:
        return value if name == dimension.field else fixed.get(name, values[-1])

    fixed = {"forecast": "linear"}
    for value in dimension.values:
        config = SparseSpace(EVERYTHING, price, 30).choose(choose, 6.5).config
        assert getattr(config, dimension.field) == value


def test_only_what_has_an_effect_is_searched() -> None:
    able = Abilities(is_euler=False, takes_sigmas=False, keeps_text=False)
    asked: set[str] = set()

    def choose(name: str, values: Any) -> Any:
        asked.add(name)
        return values[-1]

    for space in (SparseSpace(able, price, 30), DenseSpace(able, 30)):
        candidate = space.choose(choose, 6.5)
        assert candidate.shift is None
        near = [space.neighbour(candidate, 6.5, random.Random(n)) for n in range(40)]
        for each in near:
            assert each is None or set(each.fields) <= {"metric", "schedule"}
    assert asked == {"warmup", "tail", "reset_every", "pattern", "fewer"}


@dataclass
class PaperGauge:
    """Measures by a formula: the dearer the middle of a run, the better; the last step dense."""

    num_parts: int = 3
    calls: list[tuple[Candidate, int]] = field(default_factory=list)
    fails_after: int | None = None

    cost = staticmethod(price)

    def measure_part(self, candidate: Candidate, part: int) -> Measured:
        if self.fails_after == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append((candidate, part))
        schedule = candidate.fields.get("schedule", (1.0,) * candidate.steps)
        error = 1 / len(schedule) + (1 - schedule[-1]) * 0.2
        error += 0.1 if candidate.fields.get("solver") != "ab2" else 0.0
        return Measured((error, error * 1.5), (10 / error, 12 / error))


SPACE = SparseSpace(EVERYTHING, price, 30)


def searched(
    gauge: PaperGauge,
    trials: int,
    storage: Path | None = None,
    space: SparseSpace | DenseSpace = SPACE,
    **target: float,
) -> tuple[list[Found], list[Candidate]]:
    plan = Plan(Target(**target), 30.0, trials, 7)
    with open_trials(storage, ["of the tests"]) as (own,):
        found = search(own, space, gauge, plan, lambda: None)  # type: ignore[arg-type]
        return found, own.candidates


def test_a_search_is_better_than_its_start_and_repeats_itself() -> None:
    gauge = PaperGauge()
    found, trials = searched(gauge, 40, cost=9.0)
    assert len(trials) == 40
    assert found == sorted(found, key=lambda each: each.score)
    assert found[0].measured.median < 0.75 * 1.25 * (1 / 11)
    assert found[0].candidate.fields["solver"] == "ab2"
    assert found[0].score == found[0].measured.median
    # No candidate twice, the first part of each, and not the whole of bad ones.
    firsts = [candidate for candidate, part in gauge.calls if part == 0]
    assert len(firsts) == 40
    assert all(candidate not in firsts[:n] for n, candidate in enumerate(firsts))
    assert 5 <= len(found) <= 35
    assert len(gauge.calls) < 40 * 3
    assert max(price(candidate) for candidate, _ in gauge.calls) <= 9.0
    again, _ = searched(PaperGauge(), 40, cost=9.0)
    assert again == found


def test_a_small_space_is_tried_once() -> None:
    """Three solvers with three numbers of steps: a search has them all, and ends."""
    able = Abilities(is_euler=True, takes_sigmas=False, keeps_text=True)
    gauge = PaperGauge(num_parts=1)
    found, trials = searched(gauge, 30, space=DenseSpace(able, 30), cost=9.5)
    tried = [repr(candidate) for candidate in trials]
    assert len(tried) == len(gauge.calls) == len(set(tried))
    assert len(tried) < 15
    assert set(tried) >= {
        repr(Candidate(steps, {"sample_ratio": 1.0, "solver": "ab2"} if second else {}))
        for steps in (7, 8, 9)
        for second in (False, True)
    }
    assert found[0].candidate == Candidate(9, {"sample_ratio": 1.0, "solver": "ab2"})


def test_a_fidelity_is_reached_as_cheaply_as_can_be() -> None:
    found, _ = searched(PaperGauge(), 60, fidelity=90.0)
    best = found[0]
    assert best.measured.median_psnr >= 90.0
    assert best.score == best.cost
    reached = [each.cost for each in found if each.measured.median_psnr >= 90.0]
    assert best.cost == min(reached)
    missed = [each.score for each in found if each.measured.median_psnr < 90.0]
    assert missed
    assert min(missed) > 30.0
    assert best.cost < 8.5  # the best start is at twice that


@pytest.mark.parametrize("killed_at", [8, 13])
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, killed_at: int) -> None:
    """Between trials or within one: nothing is done twice, and the result is the same."""
    whole = PaperGauge()
    expected, trials = searched(whole, 14, cost=9.0)
    gauge = PaperGauge(fails_after=killed_at)
    file = tmp_path / "trials.db"
    with pytest.raises(KeyboardInterrupt):
        searched(gauge, 14, file, cost=9.0)
    gauge.fails_after = None
    again, resumed = searched(gauge, 14, file, cost=9.0)
    assert again == expected
    assert resumed == trials
    repeated = len(gauge.calls) - len(whole.calls)
    assert 0 <= repeated < gauge.num_parts  # the parts of the trial that was killed
    done = len(gauge.calls)
    assert searched(gauge, 14, file, cost=9.0)[0] == expected
    assert len(gauge.calls) == done
    more, _ = searched(gauge, 16, file, cost=9.0)
    assert more[0].score <= expected[0].score


def pictures(count: int, seed: int, words: str = "a fox,two hearts,an owl,a bus") -> Job:
    prompts = tuple(words.split(",")[:count])
    seeds = tuple(range(seed, seed + count))
    return Job(prompts=prompts, seeds=seeds, width=32, height=32, max_sequence_length=8)


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Any:
    return load_pipeline(model_folder)


@pytest.fixture(scope="module")
def gauges(pipe: Any) -> tuple[Gauge, Gauge]:
    search_job, check_job = pictures(3, 5), pictures(2, 50, "a cat,a tree")
    return (
        Gauge(pipe, search_job, reference_steps=20, batch=2),
        Gauge(pipe, check_job, reference_steps=20),
    )


@pytest.fixture(scope="module")
def tuning(gauges: tuple[Gauge, Gauge]) -> Tuning:
    return tune(*gauges, Target(cost=5.5), trials=6, most_steps=12)


def test_the_planned_cost_is_what_is_spent(gauges: tuple[Gauge, Gauge]) -> None:
    gauge, _ = gauges
    pipe, schedule = gauge.pipeline, (1.0, 1.0, 0.5, 0.0, 0.25, 1.0)
    job = replace(pictures(2, 0), num_inference_steps=6)
    for text in ("fresh", "keep"):
        candidate = Candidate(6, {"schedule": schedule, "text": text})
        config = candidate.config
        assert config is not None
        trace = sparse_run(pipe, job, config).trace
        assert trace is not None
        work = ras_dit.adapters.describe(pipe.transformer).work(pipe.transformer.config)
        spent = 6 / trace_cost(work, trace).limit
        # A session knows the rows of the text by its tensors, a plan by the pipeline's rules.
        assert gauge.cost(candidate) == pytest.approx(spent, rel=1e-9)
    assert gauge.cost(Candidate(9)) == 9
    assert gauge.cost(Candidate(9, {"sample_ratio": 1.0, "solver": "ab2"})) == 9


def test_a_preset_loads_and_comes_to_what_it_says(
    gauges: tuple[Gauge, Gauge], tuning: Tuning, tmp_path: Path
) -> None:
    gauge, check = gauges
    for run in (*tuning.presets, *tuning.controls):
        assert run.cost <= 5.5
        assert gauge.cost(run.candidate) == run.cost
    assert tuning.preset.candidate.config is not None
    assert min(tuning.preset.candidate.fields["schedule"]) < 1
    preset, page = write_tuning(tuning, tmp_path / "preset.yaml")
    loaded = RASConfig.load(preset)
    assert loaded == tuning.preset.candidate.config
    # With diffusers' own call, as people make it.
    pipe, job, call = gauge.pipeline, check.job, tuning.preset.candidate.call
    reference = check._reference(0).latents
    with ras_dit.enable(pipe, str(preset)):
        made = pipe(
            list(job.prompts),
            width=32,
            height=32,
            max_sequence_length=8,
            generator=[torch.Generator().manual_seed(seed) for seed in job.seeds],
            output_type="latent",
            **call,
        ).images
    errors = (made.double() - reference.double()).square().flatten(1).mean(1).sqrt()
    assert tuple(errors.tolist()) == tuning.preset.checked.errors
    text = preset.read_text()
    assert f"num_inference_steps={call['num_inference_steps']}" in text
    assert f"{tuning.preset.checked.median:.4f}" in text
    assert verdict(tuning) in text
    assert verdict(tuning) in page.read_text()
    assert yaml.safe_load(text)["metric"] == "innovation"


def test_the_control_is_searched_in_the_same_way(
    gauges: tuple[Gauge, Gauge], tuning: Tuning
) -> None:
    assert len(tuning.controls) == 3
    for control in tuning.controls:
        config = control.candidate.config
        assert config is None or config.sample_ratio == 1
        assert len(control.searched.errors) == 3
        assert len(control.checked.errors) == 2
    assert len({repr(control.candidate) for control in tuning.controls}) == 3
    assert tuning.trials == 12
    scores = [control.checked.median for control in tuning.controls]
    assert scores == sorted(scores)
    again = tune(*gauges, Target(cost=5.5), trials=6, most_steps=12)
    assert preset_text(again) == preset_text(tuning)
    candidate = tuning.preset.candidate
    words = f"--steps {candidate.steps}"
    if candidate.sigmas is not None:
        words += f" --sigmas {','.join(map(repr, candidate.sigmas))}"
    assert f"--config THIS_FILE {words}.\n" in preset_text(tuning)
    assert report_text(again) == report_text(tuning)


def test_other_schedulers_are_searched_with_held_outputs(model_folder: Path) -> None:
    pipe = load_pipeline(model_folder)
    own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    pipe.scheduler = UniPCMultistepScheduler(**own)
    gauges = [Gauge(pipe, pictures(1, seed), reference_steps=12) for seed in (5, 50)]
    found = tune(*gauges, Target(cost=3.5), trials=3, most_steps=8)
    for run in (*found.presets, *found.controls):
        assert run.candidate.shift is None
        assert set(run.candidate.fields) <= {"metric", "schedule", "text"}
    assert found.low is None
    assert "one prompt" in verdict(found)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(RASError, match="FlowMatchHeunDiscreteScheduler makes 2 steps"):
        Gauge(pipe, pictures(1, 5))


def test_a_schedule_for_another_number_of_steps_says_what_to_pass() -> None:
    pipe = sd3_pipeline()
    processors = processors_of(pipe.transformer)
    inputs = sd3_inputs()
    with ras_dit.enable(pipe, schedule=(1.0, 0.5, 0.0, 1.0)):
        with pytest.raises(RASError, match=r"names 4 steps.*makes 10.*num_inference_steps=4"):
            pipe(**inputs)
        pipe(**(inputs | {"num_inference_steps": 4}))
    assert is_stock(pipe, processors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"cost": 1.1}}, "below the cheapest run: .* cost 1.[0-9]+ here"),
        ({"target": {"cost": 12.0}}, "pays for 12 dense steps"),
        ({"trials": 0}, "trials=0; expected at least 1"),
        ({"most_steps": 20}, "most_steps=20 of a candidate and 20 steps of the reference"),
        ({"storage": Path("trials.txt")}, "'trials.txt' is unknown; expected a file ending in .db"),
        ({"storage": Path("/nowhere/trials.db")}, "there is no folder /nowhere"),
        ({"target": {"fidelity": 200.0}}, "no preset of [1-9] reached fidelity=200 dB"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    gauges: tuple[Gauge, Gauge], changes: dict[str, Any], message: str
) -> None:
    target = Target(**changes.pop("target", {"cost": 5.5}))
    with pytest.raises(RASError, match=message):
        tune(*gauges, target, **({"trials": 2, "most_steps": 12} | changes))


def test_a_storage_keeps_other_schedulers_and_packages_apart(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load_pipeline(model_folder)
    stock = pipe.scheduler

    def new_trials(scheduler: Any) -> int:
        pipe.scheduler, tried = scheduler, []
        gauges = [Gauge(pipe, pictures(1, seed), reference_steps=9) for seed in (5, 50)]
        tune(
            *gauges,
            Target(cost=3.5),
            trials=1,
            most_steps=8,
            storage=tmp_path / "trials.db",
            on_trial=lambda done, _: tried.append(done),
        )
        return len(tried)

    assert new_trials(stock) == 2
    # Of a copy, diffusers notes something else about which settings were given.
    assert new_trials(type(stock).from_config(stock.config)) == 0
    assert new_trials(type(stock).from_config(stock.config, shift=7.0)) == 2
    monkeypatch.setattr("ras_dit.tuning.gauge.version", lambda name: f"another {name}")
    assert new_trials(stock) == 2


def test_settings_that_json_does_not_know_are_told_apart(gauges: tuple[Gauge, Gauge]) -> None:
    gauge, _ = gauges
    told = []
    for last in (0.1, 0.2, 0.2):
        scheduler = UniPCMultistepScheduler(trained_betas=np.array([0.05, last]))
        other = Gauge(gauge.pipeline, gauge.job)
        other.pipeline = SimpleNamespace(scheduler=scheduler)
        told.append(other.surroundings())
    assert told[0] != told[1] == told[2]


def test_a_damaged_storage_is_refused(gauges: tuple[Gauge, Gauge], tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_text("something else")
    with pytest.raises(RASError, match=r"trials.db' cannot be used: file is not a database"):
        tune(*gauges, Target(cost=5.5), storage=tmp_path / "trials.db", most_steps=12)


def test_search_and_check_share_no_picture(gauges: tuple[Gauge, Gauge]) -> None:
    with pytest.raises(RASError, match="share the seed 5"):
        tune(gauges[0], gauges[0], Target(cost=5.5), most_steps=12)


@pytest.mark.parametrize("target", [{}, {"cost": 5.0, "fidelity": 30.0}, {"cost": -1.0}])
def test_a_target_is_one_positive_number(target: dict[str, float]) -> None:
    with pytest.raises(RASError, match=r"give one of them|expected a number > 0"):
        Target(**target)


def test_few_prompts_serve_several_pictures() -> None:
    prompts = read_prompt_file(None, None, seed=3, scenes=10)
    first, second = split(prompts, 3, 2)
    assert (len(first), len(second)) == (3, 2)
    assert len({*first, *second}) == 5
    first, second = split(prompts[:3], 4, 4)
    assert (len(first), len(second)) == (4, 4)
    assert not set(first) & set(second)
    with pytest.raises(RASError, match="one prompt only"):
        split(prompts[:1], 3, 2)
    with pytest.raises(RASError, match="--prompts FILE"):
        read_prompt_file(None, "some/model", seed=3, scenes=10)


@pytest.fixture
def told(tuning: Tuning) -> Callable[..., str]:
    def tell(**changes: Any) -> str:
        return verdict(replace(tuning, **changes))

    return tell


def test_the_verdict_says_who_wins(told: Callable[..., str], tuning: Tuning) -> None:
    assert told(ratio=0.8, low=0.7, high=0.9).startswith("The preset beats")
    assert told(ratio=1.2, low=1.1, high=1.3).startswith("The best dense control beats")
    assert "not told apart" in told(ratio=0.9, low=0.8, high=1.1)

    def run(psnr: float, cost: float) -> tuple[Tuned]:
        measured = Measured((0.1,), (psnr,))
        return (Tuned(Candidate(4), cost, measured, measured),)

    wanted = Target(fidelity=30.0)
    for preset, control, start in (
        (run(31, 4), run(31, 5), "The preset beats"),
        (run(31, 5), run(31, 5), "The best dense control is as cheap"),
        (run(29, 4), run(31, 5), "The preset misses 30 dB"),
        (run(31, 5), run(29, 4), "The preset beats"),
    ):
        assert told(target=wanted, presets=preset, controls=control).startswith(start)


def test_the_command(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\nan owl\ntwo hearts\n")
    words = ["tune", str(model_folder), "--prompts", str(file), "--size", "32x32"]
    words += ["--max-sequence-length", "8", "--images", "2", "--check", "1", "--trials", "2"]
    words += ["--reference-steps", "10", "--most-steps", "6", "--out", str(tmp_path / "p.yaml")]
    assert main([*words, "--cost", "3.5"]) == 0
    assert (tmp_path / "p.md").exists()
    assert RASConfig.load(tmp_path / "p.yaml").schedule != "constant"
    assert "dense" in capsys.readouterr().out
    assert main(words) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main([*words, "--cost", "3.5", "--out", str(tmp_path / "p.txt")]) == 2
    assert "ending in .yaml" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "--cost", "9"]) == 2
    assert "optuna; install it with pip install 'ras-dit[tune]'" in capsys.readouterr().err
