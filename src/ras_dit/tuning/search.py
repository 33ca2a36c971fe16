"""The search itself: optuna proposes, prunes and remembers; everything else is ours.

The trial of a number is drawn from the seed, that number and the trials before it, from nothing
else: a search that was stopped and goes on comes to the same result as one that was not.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.errors import RASError
from ras_dit.tuning.candidates import Candidate
from ras_dit.tuning.gauge import Gauge, Measured
from ras_dit.tuning.space import Space
from ras_dit.tuning.target import Target

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

# Trials whose choices come from the sampler before neighbours of the best are tried, too.
_EXPLORING = 16
_EXPLORE_ONE_IN = 3
_PARENTS = 3
_TRIES = 60
# What a neighbour may cost, as a share of its parent's cost, where a fidelity is wanted.
_CHEAPER = (0.85, 0.9, 0.95, 1.0)
_DEARER = (1.0, 1.1, 1.25)
_SUFFIXES = (".db", ".sqlite")


@dataclass(frozen=True)
class Found:
    """A candidate and what it came to on all pictures of the search."""

    candidate: Candidate
    cost: float
    measured: Measured
    score: float


@dataclass(frozen=True)
class Plan:
    """What a search is told.

    Attributes:
        target: What it is after.
        ceiling: More than any candidate costs.
        trials: Candidates that are tried.
        seed: Of what is drawn.
    """

    target: Target
    ceiling: float
    trials: int
    seed: int


def search(
    study: Study, space: Space, gauge: Gauge, plan: Plan, on_trial: Callable[[], None]
) -> list[Found]:
    """Try candidates until there are as many as wanted, those of an earlier call among them.

    Args:
        study: From :func:`open_studies`.
        space: Where they come from.
        gauge: Measures them.
        plan: What is wanted.
        on_trial: Called after each.

    Returns:
        Those that were measured on all pictures, the best first.
    """
    from optuna.trial import TrialState

    _close_killed(study)
    while (number := len(_finished(study))) < plan.trials:
        rng = random.Random(f"{plan.seed} {number}")
        trial, candidate = _propose(study, space, plan, rng, number)
        if candidate is None:
            # Nothing new is left to try.
            study.tell(trial, state=TrialState.FAIL)
            break
        _try(study, trial, candidate, gauge, plan)
        on_trial()
    whole = [_found(trial) for trial in _finished(study) if trial.state == TrialState.COMPLETE]
    return sorted(whole, key=lambda found: found.score)


@contextlib.contextmanager
def open_studies(storage: Path | None, names: Sequence[str], seed: int) -> Iterator[list[Study]]:
    """Studies of these names, of a file or in memory.

    Raises:
        RASError: If optuna is not installed, or the file cannot be used.
    """
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        kept = _storage(optuna, storage)
        yield [
            optuna.create_study(
                storage=kept,
                study_name=name,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            )
            for name in names
        ]
    finally:
        optuna.logging.set_verbosity(before)


def import_optuna() -> Any:
    """The package.

    Raises:
        RASError: If it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RASError(
            f"tuning needs {error.name}; install it with pip install 'ras-dit[tune]'"
        ) from error
    return optuna


def _storage(optuna: Any, file: Path | None) -> Any:
    if file is None:
        return None
    if file.suffix not in _SUFFIXES:
        raise RASError(
            f"storage {str(file)!r} is unknown; expected a file ending in {' or '.join(_SUFFIXES)}"
        )
    if not file.parent.is_dir():
        raise RASError(f"storage {str(file)!r} cannot be made: there is no folder {file.parent}")
    import sqlalchemy

    try:
        return optuna.storages.RDBStorage(
            f"sqlite:///{file.resolve()}", engine_kwargs={"poolclass": sqlalchemy.pool.NullPool}
        )
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise RASError(f"storage {str(file)!r} cannot be used: {reason}") from error


def _finished(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _close_killed(study: Study) -> None:
    """End the trials of a process that was killed; they are drawn again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _propose(
    study: Study, space: Space, plan: Plan, rng: random.Random, number: int
) -> tuple[Trial, Candidate | None]:
    """The next trial and a candidate that was not tried yet."""
    import optuna

    # A sampler of its own for every trial: what it draws depends on nothing that is not stored.
    study.sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**32))
    tried = _finished(study)
    known = [Candidate.from_dict(trial.user_attrs["candidate"]) for trial in tried]
    if number < len(space.starts) and not _waiting(study):
        study.enqueue_trial(dict(space.starts[number]))
    trial = study.ask()
    explores = number < _EXPLORING or number % _EXPLORE_ONE_IN == 0
    best = _best(tried)
    candidate = None
    if explores or not best:
        budget = plan.target.cost or _chosen_budget(trial, plan.ceiling)
        candidate = space.choose(trial.suggest_categorical, budget)
    for _ in range(_TRIES):
        if candidate is not None and candidate not in known:
            return trial, candidate
        parents = best or ([] if candidate is None else [_unmeasured(candidate)])
        if not parents:
            break
        parent = rng.choice(parents)
        candidate = space.neighbour(parent.candidate, _budget(plan, parent, rng), rng)
    return trial, None


def _waiting(study: Study) -> bool:
    from optuna.trial import TrialState

    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _chosen_budget(trial: Trial, ceiling: float) -> float:
    """Where a fidelity is wanted, what it may cost is one of the choices."""
    return trial.suggest_float("budget", 2.0, ceiling, log=True)


def _budget(plan: Plan, parent: Found, rng: random.Random) -> float:
    if plan.target.cost is not None:
        return plan.target.cost
    factors = _CHEAPER if parent.score < plan.ceiling else _DEARER
    return min(parent.cost * rng.choice(factors), plan.ceiling)


def _try(study: Study, trial: Trial, candidate: Candidate, gauge: Gauge, plan: Plan) -> None:
    """Measure a candidate part by part, and give up where others were better by then."""
    from optuna.trial import TrialState

    cost = gauge.cost(candidate)
    trial.set_user_attr("candidate", candidate.to_dict())
    trial.set_user_attr("cost", cost)
    measured, score = Measured(), 0.0
    for part in range(gauge.num_parts):
        measured += gauge.measure_part(candidate, part)
        score = plan.target.score(measured, cost, plan.ceiling)
        trial.report(score, len(measured.errors))
        if part + 1 < gauge.num_parts and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    trial.set_user_attr("errors", measured.errors)
    trial.set_user_attr("psnr", measured.psnr)
    study.tell(trial, score)


def _best(trials: Sequence[FrozenTrial]) -> list[Found]:
    from optuna.trial import TrialState

    whole = [_found(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(whole, key=lambda found: found.score)[:_PARENTS]


def _found(trial: FrozenTrial) -> Found:
    kept = trial.user_attrs
    return Found(
        Candidate.from_dict(kept["candidate"]),
        kept["cost"],
        Measured(tuple(kept["errors"]), tuple(kept["psnr"])),
        float(trial.values[0]),
    )


def _unmeasured(candidate: Candidate) -> Found:
    return Found(candidate, float(candidate.steps), Measured(), 0.0)
