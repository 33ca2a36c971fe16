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
# Trials that are measured to the end whatever they come to.
_NEVER_PRUNED = 4
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


class Trials:
    """The trials of one search: in memory, and those that are measured in a file, too.

    A file never holds half a trial. One that a killed search was at is drawn again.

    Args:
        study: Where they are drawn.
        file: Where they are kept, if anywhere.
    """

    def __init__(self, study: Study, file: Study | None) -> None:
        self.study = study
        self._file = file
        if file is not None:
            study.add_trials(file.get_trials(deepcopy=False))

    @property
    def measured(self) -> list[FrozenTrial]:
        """Those that were measured, to the end or until others were better."""
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=states)

    @property
    def found(self) -> list[Found]:
        """Those that were measured on all pictures, the best first."""
        from optuna.trial import TrialState

        whole = [_found(trial) for trial in self.measured if trial.state == TrialState.COMPLETE]
        return sorted(whole, key=lambda found: found.score)

    @property
    def candidates(self) -> list[Candidate]:
        """What was tried, in order."""
        return [Candidate.from_dict(trial.user_attrs["candidate"]) for trial in self.measured]

    def keep_last(self) -> None:
        """Write the newest one to the file."""
        if self._file is not None:
            self._file.add_trial(self.measured[-1])


def search(
    trials: Trials, space: Space, gauge: Gauge, plan: Plan, on_trial: Callable[[], None]
) -> list[Found]:
    """Try candidates until there are as many as wanted, those of an earlier call among them.

    Args:
        trials: From :func:`open_trials`.
        space: Where candidates come from.
        gauge: Measures them.
        plan: What is wanted.
        on_trial: Called after each.

    Returns:
        Those that were measured on all pictures, the best first.
    """
    while (number := len(trials.measured)) < plan.trials:
        rng = random.Random(f"{plan.seed} {number}")
        trial, candidate = _propose(trials, space, plan, rng, number)
        if candidate is None:
            break  # nothing new is left to try
        _try(trials.study, trial, candidate, gauge, plan)
        trials.keep_last()
        on_trial()
    return trials.found


@contextlib.contextmanager
def open_trials(storage: Path | None, names: Sequence[str]) -> Iterator[list[Trials]]:
    """The trials of the searches of these names, with what a file holds of them already.

    Raises:
        RASError: If optuna is not installed, or the file cannot be used.
    """
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        kept = _storage(optuna, storage)

        def study(name: str, place: Any) -> Study:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=_NEVER_PRUNED)
            made: Study = optuna.create_study(
                storage=place, study_name=name, load_if_exists=True, pruner=pruner
            )
            return made

        yield [
            Trials(study(name, None), None if kept is None else study(name, kept)) for name in names
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


def _propose(
    trials: Trials, space: Space, plan: Plan, rng: random.Random, number: int
) -> tuple[Trial, Candidate | None]:
    """The next trial and a candidate that was not tried yet."""
    import optuna

    study, known, best = trials.study, trials.candidates, trials.found[:_PARENTS]
    # A sampler of its own for every trial: what it draws depends on nothing that is not kept.
    study.sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**32))
    if number < len(space.starts):
        study.enqueue_trial(dict(space.starts[number]))
    trial = study.ask()
    if not best or number < _EXPLORING or number % _EXPLORE_ONE_IN == 0:
        budget = plan.target.cost or trial.suggest_float("budget", 2.0, plan.ceiling, log=True)
        candidate = space.choose(trial.suggest_categorical, budget)
        if candidate not in known:
            return trial, candidate
    for _ in range(_TRIES if best else 0):
        parent = rng.choice(best)
        near = space.neighbour(parent.candidate, _budget(plan, parent, rng), rng)
        if near is not None and near not in known:
            return trial, near
    return trial, None


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


def _found(trial: FrozenTrial) -> Found:
    kept = trial.user_attrs
    return Found(
        Candidate.from_dict(kept["candidate"]),
        kept["cost"],
        Measured(tuple(kept["errors"]), tuple(kept["psnr"])),
        float(trial.values[0]),
    )
