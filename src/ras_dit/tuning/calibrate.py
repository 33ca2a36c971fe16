"""The whole of it: search presets and dense controls, then compare the best on other pictures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ras_dit.adapters import describe
from ras_dit.entrance import uncompiled
from ras_dit.errors import RASError
from ras_dit.evaluation.statistics import bootstrap_means, interval
from ras_dit.tuning.candidates import Candidate
from ras_dit.tuning.gauge import Gauge, Measured
from ras_dit.tuning.search import Found, Plan, open_trials, search
from ras_dit.tuning.space import (
    Abilities,
    DenseSpace,
    Space,
    SparseSpace,
    check_budget,
    dimensions,
)
from ras_dit.tuning.target import Target

TRIALS = 60
MOST_STEPS = 50
# The best of either search that are measured on the other pictures.
FINALISTS = 3
# Gets the trials that are done and all of them.
OnTrial = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuned:
    """A candidate that came to the end.

    Attributes:
        candidate: How it samples.
        cost: Of a picture, in dense steps.
        searched: What it came to on the pictures of the search.
        checked: What it came to on the other pictures.
    """

    candidate: Candidate
    cost: float
    searched: Measured
    checked: Measured


@dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes:
        target: What was wanted.
        presets: The best of the search, by what they came to on the other pictures.
        controls: The best dense runs, likewise.
        ratio: Error of the preset over that of the control on the other pictures, the geometric
            mean over pictures.
        low: Lower end of its 95 % interval, by paired bootstrap over prompts; ``None`` with one
            prompt.
        high: Upper end.
        trials: Candidates of both searches.
        facts: Of the pictures of the search: model, tokens, prompts, seeds, references.
        check_facts: Of the other pictures.
    """

    target: Target
    presets: tuple[Tuned, ...]
    controls: tuple[Tuned, ...]
    ratio: float
    low: float | None
    high: float | None
    trials: int
    facts: dict[str, Any]
    check_facts: dict[str, Any]

    @property
    def preset(self) -> Tuned:
        """The preset."""
        return self.presets[0]

    @property
    def control(self) -> Tuned:
        """The dense control."""
        return self.controls[0]


def tune(
    gauge: Gauge,
    check: Gauge,
    target: Target,
    *,
    trials: int = TRIALS,
    most_steps: int = MOST_STEPS,
    seed: int = 0,
    storage: Path | None = None,
    on_trial: OnTrial | None = None,
) -> Tuning:
    """Search the preset that meets a target best, and a dense control in the same way.

    Args:
        gauge: Measures on the pictures of the search.
        check: Measures on others, with other prompts and seeds.
        target: What is wanted.
        trials: Candidates of each search; a control may have fewer different ones.
        most_steps: The most steps of a candidate.
        seed: Of the search. The same call gives the same result.
        storage: A file (``.db``) that keeps the trials: given again, the search goes on.
        on_trial: Called after each trial.

    Raises:
        RASError: If the budget leaves nothing to choose, nothing reaches the fidelity, the two
            gauges share a picture, optuna is not installed, or a number is out of range.
    """
    for name, value in (("trials", trials), ("most_steps", most_steps)):
        if value < 1:
            raise RASError(f"{name}={value}; expected at least 1")
    if most_steps >= gauge.reference_steps:
        raise RASError(
            f"most_steps={most_steps} of a candidate and {gauge.reference_steps} steps of the "
            "reference; expected more in the reference, at least twice as many"
        )
    _check_apart(gauge, check)
    able = _abilities(gauge)
    sparse = SparseSpace(able, gauge.cost, most_steps)
    if target.cost is not None:
        check_budget(sparse, target.cost)
    dense = DenseSpace(able, most_steps, any_steps=target.cost is None)
    plan = Plan(target, float(most_steps), trials, seed)
    names = [f"{kind} {_digest(gauge, plan)}" for kind in ("presets", "controls")]
    spaces: tuple[Space, ...] = (sparse, dense)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_trial is not None:
            on_trial(done, 2 * trials)

    with open_trials(storage, names) as searches:
        presets, controls = (
            search(own, space, gauge, plan, count)
            for own, space in zip(searches, spaces, strict=True)
        )
        tried = sum(len(own.measured) for own in searches)
    if target.fidelity is not None and presets[0].score >= plan.ceiling:
        best = max(found.measured.median_psnr for found in presets)
        raise RASError(
            f"no preset of {len(presets)} reached fidelity={target.fidelity:g} dB: the best came "
            f"to {best:.1f} dB; lower it, or raise trials or most_steps"
        )
    finalists = [_checked(found[:FINALISTS], check, plan) for found in (presets, controls)]
    ratio, low, high = _compared(finalists[0][0].checked, finalists[1][0].checked, check)
    return Tuning(
        target=target,
        presets=finalists[0],
        controls=finalists[1],
        ratio=ratio,
        low=low,
        high=high,
        trials=tried,
        facts=gauge.facts(),
        check_facts=check.facts(),
    )


def _abilities(gauge: Gauge) -> Abilities:
    description = describe(uncompiled(gauge.pipeline.transformer))
    return Abilities(
        is_euler=gauge.is_euler,
        takes_sigmas=gauge.takes_sigmas,
        keeps_text=description.text_arguments is not None,
    )


def _check_apart(gauge: Gauge, check: Gauge) -> None:
    if gauge.pipeline is not check.pipeline:
        raise RASError("the pictures of the search and of the check are of two pipelines")
    shared = sorted(set(gauge.job.seeds) & set(check.job.seeds))
    if shared:
        raise RASError(
            f"the search and the check share the seed {shared[0]}; give the check seeds of its own"
        )


def _digest(gauge: Gauge, plan: Plan) -> str:
    """Of all that decides a trial, but for how many there are."""
    facts = {
        **gauge.facts(),
        **gauge.surroundings(),
        "target": str(plan.target),
        "most": plan.ceiling,
        "seed": plan.seed,
        "dimensions": dimensions(),
        "weights": gauge.fingerprint(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _checked(found: Sequence[Found], check: Gauge, plan: Plan) -> tuple[Tuned, ...]:
    """The same on the other pictures, the best there first."""
    tuned = [
        Tuned(one.candidate, one.cost, one.measured, check.measure(one.candidate)) for one in found
    ]
    return tuple(
        sorted(tuned, key=lambda one: plan.target.score(one.checked, one.cost, plan.ceiling))
    )


def _compared(
    preset: Measured, control: Measured, check: Gauge
) -> tuple[float, float | None, float | None]:
    """Geometric mean of the ratio of their errors, and its interval."""
    tiny = np.finfo(np.float64).tiny
    logs = [np.log(np.maximum(one.errors, tiny)) for one in (preset, control)]
    moved = logs[0] - logs[1]
    prompts = check.job.prompts
    groups = [prompts.index(prompt) for prompt in prompts]
    ratio = math.exp(float(moved.mean()))
    if len(set(groups)) < 2:
        return ratio, None, None
    low, high = interval(bootstrap_means(moved, groups))
    return ratio, math.exp(low), math.exp(high)
