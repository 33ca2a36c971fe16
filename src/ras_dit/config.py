"""``RASConfig``: every knob of region-adaptive sampling, validated when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from ras_dit.config_files import read_fields
from ras_dit.consistency import check_forecasts, check_ratio, check_tolerances
from ras_dit.errors import RASError
from ras_dit.public_code import PUBLIC_STARVATION_SCALE, PublicCode, check_public_knobs
from ras_dit.rules import CacheDtype, LineRules, Storage
from ras_dit.validation import (
    ResetSteps,
    check_choice,
    check_flag,
    check_int,
    check_number,
    check_stop,
    checked_cycle,
    checked_intervals,
    checked_ratios,
    checked_resets,
)

if TYPE_CHECKING:
    import torch

Metric = Literal["std", "l2", "random", "innovation"]
MetricFunction = Callable[["torch.Tensor"], "torch.Tensor"]
Keep = Literal["low", "high", "auto"]
NamedSchedule = Literal["constant", "linear", "cycle", "intervals"]
Schedule = NamedSchedule | tuple[float, ...] | Callable[[int, int], float]
Starvation = Literal["total", "since_refresh"]
Text = Literal["fresh", "keep"]
Forecast = Literal["hold", "linear"]
Solver = Literal["stock", "ab2", "damped-ab2"]

METRICS: tuple[Metric, ...] = get_args(Metric)
# Resets of the paper as fractions of the selective window: 12 and 20 of 28 and of 30 steps.
_PAPER_RESETS = {"sd3": (8 / 24, 16 / 24), "lumina": (8 / 26, 16 / 26)}
# The paper's direction: a low standard deviation marks the main subject (Eq. 1), a large norm a
# region in need of refinement (supplementary material, section 6.1).
_PAPER_KEEP: Mapping[str, Literal["low", "high"]] = {"std": "low"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RASConfig:
    """How region-adaptive sampling spends the transformer's work.

    Steps are counted as calls of ``scheduler.step`` from the first one that is really run, so
    a second-order scheduler such as Heun counts two per inference step.

    Args:
        sample_ratio: Share of the image tokens that goes through the transformer in a sparse
            step, in (0, 1]. 1.0 is the stock pipeline, bitwise.
        warmup_steps: Number of dense steps at the start, at least 1. ``None`` means
            ``min(4, steps // 4)``, at least 1 (the paper uses 4 of 28).
        stop_step: Index of the first step of a dense tail, counted from the end where it is
            negative (-1 for the last step); ``None`` for no such tail.
        reset_steps: Dense steps inside the selective window ``[warmup_steps, stop_step)`` that
            refresh every cache. ``"auto"`` spreads one per nine steps evenly (12 and 20 of 28, as
            in the paper), and none where a ``cycle`` has dense steps. Integers are step indices,
            floats in (0, 1) are fractions of the window, and its last step at most; an empty
            sequence means none.
        metric: What scores a token: ``"std"`` (Eq. 1), ``"l2"`` (supplementary material,
            section 6.1), ``"random"`` (the control of Table 8), ``"innovation"`` (the error that
            its forecast is expected to have, :mod:`ras_dit.multirate`), or a callable. A callable
            gets the guided noise prediction as float32 ``[B, N, P, C]`` (images, tokens, latent
            pixels per token, channels) and returns finite, non-negative scores ``[B, N]``; the
            first ones of a run are checked, which reads two numbers back from the device.
        keep: Whether tokens with the ``"low"`` or the ``"high"`` scores stay active. ``"auto"``
            is low for std (the paper's direction), high for everything else.
        starvation_scale: Strength k >= 0 with which each dropped step pulls a token back
            towards being active, on the logarithm of the score (Eq. 1: ``exp(k * drops)``).
            ``None`` means 0.1 (the public code's), and 0 for ``"innovation"``, which grows by
            itself while a token is left out.
        starvation: What counts as drops: ``"total"`` over the run (the paper), or
            ``"since_refresh"``, since the token last went through.
        max_dropped: Sparse steps in a row after which a token that was left out in all of them is
            active whatever its score (dense steps in between do not count). ``"auto"`` is
            ``ceil(4 / sample_ratio)``, so that no token sits out a whole run of usual length;
            ``None`` leaves it to ``starvation_scale`` alone.
        schedule: How the ratio runs over the sparse steps. ``"constant"``; ``"linear"`` from
            ``first_ratio`` on, with mean ``sample_ratio`` (the paper's dynamic sampling ratio);
            ``"cycle"``, the ratios of ``cycle`` over and over; ``"intervals"``, dense steps at
            ``intervals`` and none of the transformer's work between them;
            a sequence with one ratio per step of the whole run (1.0 is a dense step, 0.0 one
            without the transformer: every output is held or forecast), which sets
            ``sample_ratio`` to its mean over the sparse steps; or a callable that gets the step's
            index and the number of steps and returns the ratio of a selective step.
        first_ratio: Ratio of the first sparse step of a ``"linear"`` schedule, in (0, 1]:
            above ``sample_ratio`` it falls, below it rises. ``None`` means
            ``min(1, 1.5 * sample_ratio)``.
        cycle: Ratios of a ``"cycle"`` schedule, each in [0, 1], such as ``(0.5, 1.0, 0.0)`` for a
            sparse step, a dense one and one without the transformer. Sets ``sample_ratio`` to the
            mean over its sparse steps.
        intervals: Steps from each dense step to the next in an ``"intervals"`` schedule, such as
            ``(2, 2, 3, 4)``; the last one over and over. None is longer than a quarter of the run,
            so that few steps stay dense. Where they are longer than 1 in the end, the last dense
            step is the last but one of the run. Sets ``sample_ratio`` to 1.
        granularity: The number of active tokens is a multiple of this (but never more than all
            tokens, and never fewer than one).
        seed: Seed of the ``"random"`` metric's own generator.
        text: Whether a sparse step computes the text tokens anew (``"fresh"``, the paper), or
            keeps their keys and values of the last dense step (``"keep"``), which saves their
            work where text and image attend jointly. Not exact: text sees image and noise level.
        static_cache: Whether caches are copied to buffers that keep their addresses from step to
            step, and from run to run of the same shape until RAS is disabled (for CUDA graphs).
            Otherwise dense steps copy nothing and all is freed at the end of a run.
        cache_dtype: Keys and values are kept in the ``"model"``'s dtype, or in half of 16 bits or
            less: ``"int8"`` or ``"float8"`` (e4m3), with a scale for every row and head. Fresh rows
            are exact; those of inactive tokens are rounded.
        offload_cache: Whether keys and values are kept in CPU memory and come to the model's
            device for their layer only. Slow; for what does not fit otherwise.
        forecast: What stands for a token that is left out: ``"hold"``, its last output (the paper),
            or ``"linear"``, a line through its last two fresh outputs over the noise level. For
            flow matching with the Euler scheduler; with others outputs are held, with a warning.
        forecast_damping: Factor of that line's slope, in (0, 1]; or ``"auto"``, the factor with
            which the last slopes of the image's tokens would have come nearest to the new ones.
            With ``forecast="linear"`` only.
        forecast_keys: Factor, in [0, 1], with which the cached keys and values of tokens that are
            left out move on along their last change, over the noise level; 0 holds them (the
            paper). Takes as much memory again as the caches. Under the same condition, and not
            with ``guidance_every``.
        forecast_age: Scheduler steps after a token's refresh over which its output, keys and
            values are forecast; from then on they are held where they are. ``None`` for no limit.
        solver: ``"stock"``, the scheduler's own steps, or ``"ab2"``, those of the two-step
            Adams-Bashforth method for every token by itself, or ``"damped-ab2"``, these with
            slopes damped by the factor of ``forecast_damping="auto"``, which is better where steps
            are few. Under the same condition as ``forecast``.
        correction_age: When a token is refreshed, its step since its last refresh is corrected to
            the trapezoidal rule if it is no more than so many scheduler steps long; 0 for never.
            Under the same condition.
        tolerance: Largest error that a token's forecast is expected to have, as a share of the
            output's root mean square: a sparse step computes none, half of its ratio, all of it,
            or all tokens, the first that is enough for every image of the batch. A step that the
            schedule skips has ``sample_ratio`` for its ratio, or goes from none to all tokens
            where there are no caches: where no sparse step is planned between the dense ones
            around it. Reads one small tensor back from the device in every step.
        reset_tolerance: Expected error of the whole output, as the same share, from which a sparse
            step becomes a dense one. Reads the same tensor.
        guidance_every: With classifier-free guidance, the difference between its two branches is
            computed in every so many-th step; in the others only one branch goes through the
            transformer, which halves their work, and the last difference gives the other. 1 is off.
            Warm-up, resets, dense steps before sparse ones and the last step run both.
        public_code: Follow the paper's public code, quirks included; see :meth:`microsoft`.

    Raises:
        RASError: If a value is outside its range.
    """

    sample_ratio: float = 0.5
    warmup_steps: int | None = None
    stop_step: int | None = None
    reset_steps: ResetSteps = "auto"
    metric: Metric | MetricFunction = "std"
    keep: Keep = "auto"
    starvation_scale: float | None = None
    starvation: Starvation = "total"
    max_dropped: int | Literal["auto"] | None = "auto"
    schedule: Schedule = "constant"
    first_ratio: float | None = None
    cycle: tuple[float, ...] | None = None
    intervals: tuple[int, ...] | None = None
    granularity: int = 1
    seed: int = 0
    text: Text = "fresh"
    static_cache: bool = False
    cache_dtype: CacheDtype = "model"
    offload_cache: bool = False
    forecast: Forecast = "hold"
    forecast_damping: float | Literal["auto"] = 1.0
    forecast_keys: float = 0.0
    forecast_age: int | None = None
    solver: Solver = "stock"
    correction_age: int = 0
    tolerance: float | None = None
    reset_tolerance: float | None = None
    guidance_every: int = 1
    public_code: PublicCode | None = None

    def __post_init__(self) -> None:
        check_number("sample_ratio", self.sample_ratio, "in (0, 1]", lambda x: 0 < x <= 1)
        object.__setattr__(self, "sample_ratio", float(self.sample_ratio))
        if self.starvation_scale is not None:
            check_number(
                "starvation_scale", self.starvation_scale, "a number >= 0", lambda x: x >= 0
            )
            object.__setattr__(self, "starvation_scale", float(self.starvation_scale))
        check_choice("forecast", self.forecast, get_args(Forecast))
        check_choice("solver", self.solver, get_args(Solver))
        if self.forecast_damping != "auto":
            check_number(
                "forecast_damping",
                self.forecast_damping,
                'in (0, 1] or "auto"',
                lambda x: 0 < x <= 1,
            )
        check_int("correction_age", self.correction_age, 0, "0 corrects nothing")
        for name in ("tolerance", "reset_tolerance"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "a number > 0", lambda x: x > 0)
        if self.warmup_steps is not None:
            check_int("warmup_steps", self.warmup_steps, 1, "the caches need one dense step")
        if self.stop_step is not None:
            check_stop(self.stop_step, self.warmup_steps)
        check_int("granularity", self.granularity, 1, "1 means any number of active tokens")
        check_int("seed", self.seed, 0, "any non-negative integer will do")
        check_int("guidance_every", self.guidance_every, 1, "1 runs every branch in every step")
        object.__setattr__(self, "reset_steps", checked_resets(self.reset_steps))
        if not callable(self.metric) and self.metric not in METRICS:
            raise RASError(
                f"metric={self.metric!r} is unknown; expected one of {', '.join(METRICS)} "
                "or a callable that maps [B, N, P, C] to scores [B, N]"
            )
        check_choice("keep", self.keep, get_args(Keep))
        check_choice("starvation", self.starvation, get_args(Starvation))
        check_choice("text", self.text, get_args(Text))
        check_choice("cache_dtype", self.cache_dtype, get_args(CacheDtype))
        check_flag("static_cache", self.static_cache)
        check_flag("offload_cache", self.offload_cache)
        if self.max_dropped not in ("auto", None):
            check_int("max_dropped", self.max_dropped, 1, '"auto" or None will do, too')
        check_forecasts(self)
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule = self.schedule
        if self.first_ratio is not None:
            check_number("first_ratio", self.first_ratio, "in (0, 1]", lambda x: 0 < x <= 1)
            if schedule != "linear":
                raise RASError(
                    f'first_ratio={self.first_ratio} is for schedule="linear" only, and the '
                    f"schedule is {schedule!r}; leave it out or make the schedule linear"
                )
        if schedule == "linear":
            first, last = self.ratio_range
            if not 0 < last <= 1:
                raise RASError(
                    f"a linear schedule from first_ratio={first:g} with mean "
                    f"sample_ratio={self.sample_ratio:g} would end at {last:g}, outside (0, 1]; "
                    f"choose first_ratio between {max(2 * self.sample_ratio - 1, 0):g} and "
                    f"{min(2 * self.sample_ratio, 1):g}"
                )
        if schedule == "cycle" or self.cycle is not None:
            cycle = checked_cycle(schedule, self.cycle)
            object.__setattr__(self, "cycle", cycle)
            self._set_ratio(f"cycle={list(cycle)}", cycle)
        if schedule == "intervals" or self.intervals is not None:
            intervals = checked_intervals(schedule, self.intervals)
            object.__setattr__(self, "intervals", intervals)
            self._set_every_step(f"intervals={list(intervals)}", (), "say it with intervals")
        elif isinstance(schedule, str):
            check_choice("schedule", schedule, get_args(NamedSchedule))
        elif not callable(schedule):
            ratios = checked_ratios(schedule)
            object.__setattr__(self, "schedule", ratios)
            self._set_every_step(f"schedule={list(ratios)}", ratios, "write 1.0 for dense steps")
        check_tolerances(self)

    def _set_every_step(self, given: str, ratios: tuple[float, ...], instead: str) -> None:
        """The steps are all named: no other field says which are dense."""
        if (self.warmup_steps, self.stop_step, self.reset_steps) != (None, None, "auto"):
            raise RASError(
                f"{given} names every step; leave out warmup_steps, stop_step and reset_steps, and "
                f"{instead}"
            )
        self._set_ratio(given, ratios)

    def _set_ratio(self, given: str, ratios: tuple[float, ...]) -> None:
        """The mean over the sparse ones of some steps is the ``sample_ratio``."""
        sparse = [ratio for ratio in ratios if 0 < ratio < 1]
        mean = math.fsum(sparse) / len(sparse) if sparse else 1.0
        if self.sample_ratio not in (type(self).sample_ratio, mean):
            raise RASError(
                f"sample_ratio={self.sample_ratio} cannot be met: {given} has mean {mean:g} over "
                "its sparse steps; leave sample_ratio out"
            )
        object.__setattr__(self, "sample_ratio", mean)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """First and last ratio of a linear schedule."""
        first = self.first_ratio
        if first is None:
            first = min(1.0, 1.5 * self.sample_ratio)
        return first, 2 * self.sample_ratio - first

    @property
    def storage(self) -> Storage:
        """How caches are stored."""
        return Storage(self.cache_dtype, offload=self.offload_cache, static=self.static_cache)

    @property
    def kept_scores(self) -> Literal["low", "high"]:
        """The direction of ``keep`` with ``"auto"`` resolved."""
        if self.keep != "auto":
            return self.keep
        return _PAPER_KEEP.get(self.metric, "high") if isinstance(self.metric, str) else "high"

    @property
    def lists_steps(self) -> bool:
        """Whether a cycle or intervals say what steps compute."""
        return self.cycle is not None or self.intervals is not None

    @property
    def may_skip(self) -> bool:
        """Whether a call of the transformer may be left out."""
        schedule = self.schedule
        return (
            self.guidance_every > 1
            or self.tolerance is not None
            or callable(schedule)
            or 0.0 in (self.cycle or ())
            or self.intervals is not None
            or (not isinstance(schedule, str) and 0.0 in schedule)
        )

    @property
    def is_data_driven(self) -> bool:
        """Whether the number of active tokens follows from what is computed."""
        return self.tolerance is not None or self.reset_tolerance is not None

    @property
    def drop_weight(self) -> float:
        """``starvation_scale`` with ``None`` resolved."""
        if self.starvation_scale is not None:
            return self.starvation_scale
        return 0.0 if self.metric == "innovation" else PUBLIC_STARVATION_SCALE

    @property
    def line_rules(self) -> LineRules:
        """What a run does with each token's line."""
        return LineRules(
            linear=self.forecast == "linear",
            damping=None if self.forecast_damping == "auto" else self.forecast_damping,
            longest=self.forecast_age,
            second_order=self.solver != "stock",
            damps_steps=self.solver == "damped-ab2",
            correction_age=self.correction_age,
        )

    @property
    def longest_drop(self) -> int | None:
        """``max_dropped`` with ``"auto"`` resolved; the public code knows no limit."""
        if self.public_code is not None or self.max_dropped is None:
            return None
        return math.ceil(4 / self.sample_ratio) if self.max_dropped == "auto" else self.max_dropped

    @classmethod
    def paper(cls, model: Literal["sd3", "lumina"], sample_ratio: float) -> Self:
        """The paper's method on one of its models.

        The paper gives the warm-up (4), the resets (12 and 20, on 28 steps of SD3 and 30 of
        Lumina) and the metric. It gives no numbers for the rest, where these are ours: k = 0.1
        (its public code's), a ratio that falls linearly from ``min(1, 1.5 * sample_ratio)``, and
        a limit to the drops in a row, which the paper's starvation term is meant to prevent.
        For other numbers of steps the resets stay at the same fractions of the window.

        Raises:
            RASError: For an unknown model or a ratio outside (0, 1].
        """
        if model not in _PAPER_RESETS:
            raise RASError(f"model={model!r}; the paper has {' and '.join(_PAPER_RESETS)}")
        return cls(
            sample_ratio=sample_ratio,
            warmup_steps=4,
            reset_steps=_PAPER_RESETS[model],
            metric="std",
            starvation_scale=0.1,
            schedule="linear",
        )

    @classmethod
    def microsoft(
        cls,
        *,
        sample_ratio: float = 0.5,
        metric: Literal["std", "l2norm"] = "std",
        high_ratio: float = 1.0,
        starvation_scale: float = 0.1,
        skip_num_step: int = 0,
        skip_num_step_length: int = 0,
        error_reset_steps: Sequence[int] = (12, 22),
        scheduler_start_step: int = 4,
        scheduler_end_step: int = 30,
    ) -> Self:
        """What the paper's public code (microsoft/RAS at a9c5ec8) computes, quirks included.

        Names and defaults are that code's; :mod:`ras_dit.public_code` lists the quirks. It works
        for one image at a time, square, with the Euler scheduler.

        Raises:
            RASError: If a knob is out of the range in which that code works.
        """
        check_public_knobs(metric, starvation_scale)
        return cls(
            sample_ratio=sample_ratio,
            warmup_steps=scheduler_start_step,
            stop_step=scheduler_end_step + 1,
            reset_steps=tuple(error_reset_steps),
            metric="std" if metric == "std" else "l2",
            starvation_scale=PUBLIC_STARVATION_SCALE,
            public_code=PublicCode(
                high_ratio=high_ratio,
                skip_num_step=skip_num_step,
                skip_num_step_length=skip_num_step_length,
            ),
        )

    @classmethod
    def load(cls, source: RASConfig | str | Path | Mapping[str, Any] | None = None) -> RASConfig:
        """Make a configuration from whatever names one.

        Args:
            source: A configuration (returned as it is), a preset name, the path of a YAML file,
                a mapping of fields, or ``None`` for the defaults.

        Raises:
            RASError: For an unknown preset, a missing or malformed file, an unknown field or a
                value out of range.
        """
        if source is None:
            return cls()
        if isinstance(source, RASConfig):
            return source
        fields = read_fields(source, [field.name for field in dataclasses.fields(cls)])
        config = cls(**fields)
        check_ratio(config, fields)
        return config

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again.

        The damping of forecasts goes with them: ``forecast="hold"`` resets it.

        Raises:
            RASError: For an unknown field or a value out of range.
        """
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(self))
            hint = ""
            if "preset" in unknown:
                hint = ' (a preset is given by its name alone: enable(pipe, "fast"))'
            raise RASError(f"RASConfig has no field {', '.join(unknown)}{hint}; it has {names}")
        if changes.get("forecast") == "hold":
            changes = {"forecast_damping": type(self).forecast_damping} | changes
        usual = {}
        is_listed = self.lists_steps or isinstance(self.schedule, tuple)
        if is_listed and changes.keys() & {"schedule", "cycle", "intervals"}:
            # The ratio of listed ones is their mean: new ones have another.
            usual = {"sample_ratio": type(self).sample_ratio}
        config = dataclasses.replace(self, **(usual | changes))
        check_ratio(config, changes)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that YAML and JSON can hold.

        Raises:
            RASError: If the metric is a callable, which files cannot hold.
        """
        cures = {
            "metric": f"use one of {', '.join(METRICS)}",
            "schedule": "give one ratio per step",
        }
        for name, cure in cures.items():
            value = getattr(self, name)
            if callable(value):
                raise RASError(
                    f"{name}={value!r} is a callable and cannot be written to a file; {cure} or "
                    "keep this configuration in code"
                )
        data = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}
