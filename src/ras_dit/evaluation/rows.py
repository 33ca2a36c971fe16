"""Rows of an evaluation: configurations, and the controls that are added to them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.evaluation.equal_cost import Cost, at_cost
from ras_dit.evaluation.rivals import CACHES, SOLVERS
from ras_dit.oracle import check_foreseeable

Role = Literal["row", "reference", "fewer steps", "second order", "random"]
CONTROLS: tuple[Role, ...] = ("fewer steps", "second order", "random")

_OWN = ("name", "steps", "scheduler", "cache", "oracle", "published", "images", "without", "cost")
_SOURCES = ("paper", "preset")
_LIMITS = ("images", "without")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration; one line of the report.

    Attributes:
        name: Its folder and its label: letters, digits and ``._+-``.
        steps: Denoising steps.
        role: What it is there for.
        config: Fields of its ``RASConfig`` that are not the defaults; ``None`` runs dense.
        scheduler: A solver of :data:`ras_dit.evaluation.rivals.SOLVERS` in place of the model's.
        cache: A step cache of another library, ``{"name": ..., options}``.
        oracle: Whether active tokens are those whose errors a dense run foresees
            (:mod:`ras_dit.oracle`); that run is not counted.
        published: Numbers of a paper, by heading, to stand beside ours.
        images: Only the first so many pictures of the manifest; ``None`` is all.
        without: Scorers that leave this row out.
        cost: Planned cost of one picture in dense steps; ``None`` where only a run can tell.
    """

    name: str
    steps: int
    role: Role = "row"
    config: Mapping[str, Any] | None = None
    scheduler: str | None = None
    cache: Mapping[str, Any] | None = None
    oracle: bool = False
    published: Mapping[str, float] = field(default_factory=dict)
    images: int | None = None
    without: tuple[str, ...] = ()
    cost: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether every token goes through the transformer in every step."""
        return self.config is None and self.cache is None

    @property
    def sampling(self) -> RASConfig | None:
        """Its configuration; ``None`` runs dense."""
        return None if self.config is None else RASConfig.load(self.config)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides the pictures; rows of one recipe make the same ones."""
        cache = None if self.cache is None else sorted(self.cache.items())
        return self.steps, self.scheduler, repr(self.config), repr(cache), self.oracle

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self) | {"without": list(self.without)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The row of :meth:`to_dict`, or of a release that stored default fields, too."""
        config = data["config"]
        if config is not None:
            config = changed_fields(RASConfig.load(config))
        return cls(**{**data, "config": config, "without": tuple(data["without"])})


def changed_fields(config: RASConfig) -> dict[str, Any]:
    """The fields that are not the defaults, so that new fields change no stored row.

    Raises:
        RASError: If a field is a callable.
    """
    usual = RASConfig().to_dict()
    return {key: value for key, value in config.to_dict().items() if value != usual[key]}


@dataclass(frozen=True)
class Controls:
    """Which controls are added.

    Attributes:
        roles: Those of :data:`CONTROLS`; for ``"second order"`` with the name of the solver.
        images: The most pictures that an added one has; ``None`` gives it as many as its row.
        without: Scorers that leave the added ones out, beside those that leave out their row.
    """

    roles: Mapping[Role, bool | str]
    images: int | None = None
    without: tuple[str, ...] = ()


def read_rows(rows: object, grid: object, cost: Cost) -> tuple[Row, ...]:
    """The rows that a YAML file asks for.

    Args:
        rows: Its ``rows``: a list of mappings with ``steps`` and fields of ``RASConfig``, or
            ``paper`` or ``preset`` with fields that replace theirs; none of these is a dense row.
            ``scheduler``, ``cache``, ``oracle``, ``name``, ``published``, ``images`` and
            ``without`` as in :class:`Row`; ``cost`` is what the row is to cost, and sets
            ``sample_ratio``.
        grid: Its ``grid``: the same fields with a list of values each; every combination is a
            row.
        cost: Planned cost of a configuration and a number of steps, in dense steps.

    Raises:
        RASError: If a row is not valid, or two have one name.
    """
    asked = [_mapping(row, f"row {number}") for number, row in enumerate(_list(rows, "rows"), 1)]
    for cell in _cells(grid):
        if not any(cell == row for row in asked):
            asked.append(cell)
    found = [_row(data, number, cost) for number, data in enumerate(asked, 1)]
    if not found:
        raise RASError("the evaluation has no rows; give rows or a grid")
    names = [row.name for row in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RASError(f"two rows are called {', '.join(twice)}; give each a name of its own")
    return tuple(found)


def add_reference(rows: Sequence[Row], steps: int | None, cost: Cost) -> tuple[Row, ...]:
    """Put the dense row first that the others are compared with picture by picture.

    Args:
        rows: The rows.
        steps: Its steps; ``None`` takes the most steps of any row.
        cost: As for :func:`read_rows`.
    """
    steps = steps or max(row.steps for row in rows)
    for row in rows:
        if row.is_dense and row.scheduler is None and row.steps == steps:
            found = row
            break
    else:
        found = Row(name=f"dense-{steps}", steps=steps, cost=cost(None, steps))
    rest = tuple(row for row in rows if row is not found)
    # The others need a picture of it for each of theirs.
    images = None if any(r.images is None for r in rows) else max((r.images or 0) for r in rows)
    return (replace(found, role="reference", images=images), *rest)


def add_controls(rows: Sequence[Row], wanted: Controls, cost: Cost) -> tuple[Row, ...]:
    """Add the controls at equal cost that are not there yet.

    For every region-adaptive row: dense with fewer steps of the model's own scheduler, dense with
    fewer steps of a second-order one (both with the whole number of steps nearest to its cost),
    and the same schedule with tokens chosen by chance.

    Args:
        rows: The rows, the reference among them.
        wanted: Which.
        cost: As for :func:`read_rows`.
    """
    found = list(rows)

    def add(row: Row) -> None:
        for number, other in enumerate(found):
            if other.recipe == row.recipe:
                # One control serves several rows, for as many pictures as any of them has.
                if other.images is not None and (row.images or other.images + 1) > other.images:
                    found[number] = replace(other, images=row.images)
                return
        found.append(row)

    for row in rows:
        sampling = row.sampling
        if sampling is None or row.scheduler is not None:
            continue
        steps = max(1, round(cost(sampling, row.steps)))
        limits = [number for number in (row.images, wanted.images) if number is not None]
        fewer: dict[str, Any] = {
            "images": min(limits, default=None),
            "without": tuple(dict.fromkeys((*row.without, *wanted.without))),
        }
        same: dict[str, Any] = {"steps": steps, **fewer}
        dense = cost(None, steps)
        if wanted.roles["fewer steps"]:
            add(Row(name=f"dense-{steps}", role="fewer steps", cost=dense, **same))
        solver = wanted.roles["second order"]
        if solver:
            solver = "unipc" if solver is True else solver
            add(
                Row(
                    name=f"{solver}-{steps}",
                    role="second order",
                    scheduler=solver,
                    cost=float(steps),
                    **same,
                )
            )
        guesses = sampling.metric != "random" or row.oracle
        chooses = sampling.sample_ratio < 1 and guesses
        if wanted.roles["random"] and chooses:
            config = changed_fields(sampling.replace(metric="random", keep="auto"))
            name = _free_name(f"random-{row.steps}-{sampling.sample_ratio:g}", found, config)
            by_chance = replace(row, name=name, role="random", config=config, oracle=False)
            add(replace(by_chance, published={}, **fewer))
    return tuple(found)


def read_controls(data: object) -> Controls:
    """Which controls a YAML file wants: all, unless it says no to one by name.

    Args:
        data: Its ``controls``: true or false for all, or a mapping with ``fewer_steps``,
            ``second_order``, ``random``, ``images`` and ``without``.

    Raises:
        RASError: If it names a control that there is not.
    """
    if isinstance(data, bool):
        return Controls(dict.fromkeys(CONTROLS, data))
    given = {} if data is None else _mapping(data, "controls")
    images = given.pop("images", None)
    if images is not None and (type(images) is not int or images < 1):
        raise RASError(f"controls.images={images!r}; expected at least 1")
    without = tuple(map(str, _list(given.pop("without", None), "controls.without")))
    names = {role.replace(" ", "_"): role for role in CONTROLS}
    roles: dict[Role, bool | str] = dict.fromkeys(CONTROLS, True)
    for key, value in given.items():
        role = names.get(key)
        if role is None:
            raise RASError(f"controls has {key!r}; expected {', '.join((*names, *_LIMITS))}")
        if isinstance(value, bool) or (role == "second order" and value in SOLVERS):
            roles[role] = value
        else:
            solvers = f" or {', '.join(SOLVERS)}" if role == "second order" else ""
            raise RASError(f"controls.{key}={value!r}; expected true or false{solvers}")
    return Controls(roles, images, without)


def _row(data: Mapping[str, Any], number: int, cost: Cost) -> Row:
    steps = data.get("steps")
    if type(steps) is not int or steps < 1:
        raise RASError(f"row {number} has steps={steps!r}; expected an integer of at least 1")
    config = _config(data, f"row {number}")
    if "cost" in data:
        config = at_cost(config, steps, data, cost, f"row {number}")
    cache = _cache(data.get("cache"), f"row {number}")
    scheduler = data.get("scheduler")
    if scheduler is not None and scheduler not in SOLVERS:
        raise RASError(
            f"row {number} has scheduler={scheduler!r}; expected one of {', '.join(SOLVERS)}, or "
            "none for the model's own"
        )
    if config is not None and cache is not None:
        raise RASError(f"row {number} has both a cache and RASConfig fields; make it two rows")
    oracle = _oracle(data.get("oracle", False), config, scheduler, f"row {number}")
    if cache is not None:
        planned = None
    elif scheduler is not None and config is None:
        planned = float(steps)
    else:
        planned = cost(config, steps)
    row = Row(
        name=str(data.get("name") or _own_name(steps, config, scheduler, cache, oracle=oracle)),
        steps=steps,
        config=None if config is None else changed_fields(config),
        scheduler=scheduler,
        cache=cache,
        oracle=oracle,
        published=_published(data.get("published"), f"row {number}"),
        images=data.get("images"),
        without=tuple(map(str, _list(data.get("without"), "without"))),
        cost=planned,
    )
    if _NAME.fullmatch(row.name) is None:
        raise RASError(f"the row name {row.name!r} is no file name; use letters, digits and ._+-")
    if row.images is not None and (type(row.images) is not int or row.images < 1):
        raise RASError(f"row {row.name} has images={row.images!r}; expected at least 1")
    return row


def _config(data: Mapping[str, Any], place: str) -> RASConfig | None:
    fields = {key: value for key, value in data.items() if key not in (*_OWN, *_SOURCES)}
    given = [key for key in _SOURCES if key in data]
    if len(given) == 2:
        raise RASError(f"{place} has both paper and preset; give one")
    if not given and not fields:
        return None
    try:
        if "paper" in data:
            ratio = fields.pop("sample_ratio", RASConfig.sample_ratio)
            return RASConfig.paper(data["paper"], ratio).replace(**fields)
        return RASConfig.load(data.get("preset")).replace(**fields)
    except (RASError, TypeError) as error:
        raise RASError(f"{place}: {error}") from error


def _cache(data: object, place: str) -> dict[str, Any] | None:
    if data is None:
        return None
    given = {"name": data} if isinstance(data, str) else _mapping(data, f"cache of {place}")
    if given.get("name") not in CACHES:
        raise RASError(
            f"{place} has the cache {given.get('name')!r}; expected one of {', '.join(CACHES)}"
        )
    return dict(given)


def _oracle(data: object, config: RASConfig | None, scheduler: object, place: str) -> bool:
    if not isinstance(data, bool):
        raise RASError(f"{place} has oracle={data!r}; expected true or false")
    if not data:
        return False
    if config is None or scheduler is not None:
        raise RASError(
            f"{place} has an oracle, which chooses tokens of a region-adaptive row with the "
            "model's own scheduler; give it RASConfig fields and no scheduler, or leave it out"
        )
    try:
        check_foreseeable(config)
    except RASError as error:
        raise RASError(f"{place}: {error}") from error
    return True


def _published(data: object, place: str) -> dict[str, float]:
    given = {} if data is None else _mapping(data, f"published of {place}")
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RASError(f"{place} has published.{key}={value!r}; expected a number")
    return {key: float(value) for key, value in given.items()}


def _own_name(
    steps: int,
    config: RASConfig | None,
    scheduler: str | None,
    cache: Mapping[str, Any] | None,
    *,
    oracle: bool,
) -> str:
    if config is not None:
        metric = config.metric if isinstance(config.metric, str) else "own"
        stem = f"ras-{steps}-{config.sample_ratio:g}-{'oracle' if oracle else metric}"
        if config.guidance_every > 1:
            stem += f"-guidance{config.guidance_every}"
    elif cache is not None:
        options = "-".join(str(value) for key, value in cache.items() if key != "name")
        stem = f"{cache['name']}-{steps}" + (f"-{options}" if options else "")
    else:
        return f"{scheduler or 'dense'}-{steps}"
    return f"{stem}-{scheduler}" if scheduler else stem


def _free_name(stem: str, rows: Sequence[Row], config: Mapping[str, Any]) -> str:
    """The stem, or the stem with a number where another recipe has it already."""
    taken = {row.name for row in rows if repr(row.config) != repr(config)}
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _cells(grid: object) -> list[dict[str, Any]]:
    if grid is None:
        return []
    given = _mapping(grid, "grid")
    lists = [value if isinstance(value, list) else [value] for value in given.values()]
    return [dict(zip(given, cell, strict=True)) for cell in itertools.product(*lists)]


def _mapping(data: object, place: str) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise RASError(f"{place} is {data!r}; expected a mapping")
    return dict(data)


def _list(data: object, place: str) -> list[Any]:
    if data is None:
        return []
    if not isinstance(data, list):
        raise RASError(f"{place} is a {type(data).__name__}; expected a list")
    return data


assert set(CONTROLS) < set(get_args(Role))
