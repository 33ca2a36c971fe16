"""``RASConfig``: every knob of region-adaptive sampling, validated when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from ras_dit.errors import RASError

if TYPE_CHECKING:
    import torch

Metric = Literal["std", "l2", "random"]
MetricFunction = Callable[["torch.Tensor"], "torch.Tensor"]
Keep = Literal["low", "high", "auto"]
ResetSteps = Literal["auto"] | tuple[int, ...] | tuple[float, ...]

METRICS: tuple[Metric, ...] = ("std", "l2", "random")
_KEEPS: tuple[Keep, ...] = ("low", "high", "auto")
# The paper's direction: a low standard deviation marks the main subject (Eq. 1), a large norm a
# region in need of refinement (supplementary material, section 6.1).
_PAPER_KEEP: Mapping[str, Literal["low", "high"]] = {"std": "low", "l2": "high", "random": "high"}


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
        stop_step: Index of the first step of a dense tail; ``None`` for no such tail.
        reset_steps: Dense steps inside the selective window ``[warmup_steps, stop_step)`` that
            refresh every cache. ``"auto"`` spreads one per nine steps evenly (12 and 20 of 28, as
            in the paper). Integers are step indices, floats in (0, 1) are fractions of the
            window; an empty sequence means none.
        metric: What scores a token: ``"std"`` (Eq. 1), ``"l2"`` (supplementary material,
            section 6.1), ``"random"`` (the control of Table 8), or a callable. A callable gets the
            guided noise prediction as float32 ``[B, N, P, C]`` (images, tokens, latent pixels
            per token, channels) and returns finite, non-negative scores ``[B, N]``.
        keep: Whether tokens with the ``"low"`` or the ``"high"`` scores stay active. ``"auto"``
            is the paper's direction: low for std, high for l2, and high for a callable.
        starvation_scale: Strength k >= 0 with which each dropped step pulls a token back
            towards being active, on the logarithm of the score (Eq. 1: ``exp(k * drops)``).
        granularity: The number of active tokens is a multiple of this (but never more than all
            tokens, and never fewer than one).
        seed: Seed of the ``"random"`` metric's own generator.

    Raises:
        RASError: If a value is outside its range.
    """

    sample_ratio: float = 0.5
    warmup_steps: int | None = None
    stop_step: int | None = None
    reset_steps: ResetSteps = "auto"
    metric: Metric | MetricFunction = "std"
    keep: Keep = "auto"
    starvation_scale: float = 0.1
    granularity: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_number("sample_ratio", self.sample_ratio, "in (0, 1]", lambda x: 0 < x <= 1)
        object.__setattr__(self, "sample_ratio", float(self.sample_ratio))
        _check_number("starvation_scale", self.starvation_scale, "a number >= 0", lambda x: x >= 0)
        object.__setattr__(self, "starvation_scale", float(self.starvation_scale))
        if self.warmup_steps is not None:
            _check_int("warmup_steps", self.warmup_steps, 1, "the caches need one dense step")
        if self.stop_step is not None:
            _check_int("stop_step", self.stop_step, 1, "use sample_ratio=1.0 for a dense run")
        _check_int("granularity", self.granularity, 1, "1 means any number of active tokens")
        _check_int("seed", self.seed, 0, "any non-negative integer will do")
        object.__setattr__(self, "reset_steps", _checked_resets(self.reset_steps))
        if not callable(self.metric) and self.metric not in METRICS:
            raise RASError(
                f"metric={self.metric!r} is unknown; expected one of {', '.join(METRICS)} "
                "or a callable that maps [B, N, P, C] to scores [B, N]"
            )
        if self.keep not in _KEEPS:
            raise RASError(f"keep={self.keep!r} is unknown; expected one of {', '.join(_KEEPS)}")
        if (
            self.stop_step is not None
            and self.warmup_steps is not None
            and self.stop_step <= self.warmup_steps
        ):
            raise RASError(
                f"stop_step={self.stop_step} leaves no sparse step after "
                f"warmup_steps={self.warmup_steps}; raise stop_step or lower warmup_steps"
            )

    @property
    def kept_scores(self) -> Literal["low", "high"]:
        """The direction of ``keep`` with ``"auto"`` resolved."""
        if self.keep != "auto":
            return self.keep
        return _PAPER_KEEP[self.metric] if isinstance(self.metric, str) else "high"

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
        if isinstance(source, Mapping):
            return cls._from_mapping(source, "the mapping")
        if not isinstance(source, str | Path):
            raise RASError(
                f"cannot read a configuration from {type(source).__name__}; expected a RASConfig, "
                "a preset name, a path to a YAML file or a mapping"
            )
        if isinstance(source, str) and source in presets():
            text = (resources.files("ras_dit") / "presets" / f"{source}.yaml").read_text("utf-8")
            return cls._from_mapping(yaml.safe_load(text), f"preset {source!r}")
        return cls._from_file(Path(source))

    @classmethod
    def _from_file(cls, path: Path) -> RASConfig:
        if path.suffix not in (".yaml", ".yml"):
            raise RASError(
                f"{str(path)!r} is neither a preset ({', '.join(presets())}) nor a path ending in "
                ".yaml or .yml"
            )
        try:
            data = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RASError(f"cannot read the configuration {str(path)!r}: {error}") from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise RASError(f"{str(path)!r} is not valid YAML: {reason}") from error
        return cls._from_mapping({} if data is None else data, repr(str(path)))

    @classmethod
    def _from_mapping(cls, data: object, where: str) -> RASConfig:
        if not isinstance(data, Mapping):
            raise RASError(f"{where} holds a {type(data).__name__}; expected fields of RASConfig")
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in data if key not in names)
        if unknown:
            raise RASError(
                f"{where} has the unknown field {', '.join(unknown)}; "
                f"RASConfig has {', '.join(names)}"
            )
        return cls(**data)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again.

        Raises:
            RASError: For an unknown field or a value out of range.
        """
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(self))
            raise RASError(f"RASConfig has no field {', '.join(unknown)}; it has {names}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that YAML and JSON can hold.

        Raises:
            RASError: If the metric is a callable, which files cannot hold.
        """
        if callable(self.metric):
            raise RASError(
                f"metric={self.metric!r} is a callable and cannot be written to a file; "
                f"use one of {', '.join(METRICS)} or keep this configuration in code"
            )
        data = dataclasses.asdict(self)
        if isinstance(self.reset_steps, tuple):
            data["reset_steps"] = list(self.reset_steps)
        return data


def presets() -> tuple[str, ...]:
    """Names that :meth:`RASConfig.load` knows, sorted."""
    folder = resources.files("ras_dit") / "presets"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def _check_number(name: str, value: object, expected: str, accept: Callable[[float], bool]) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not accept(value):  # type: ignore[arg-type]
        raise RASError(f"{name}={value!r}; expected {expected}")


def _check_int(name: str, value: object, least: int, why: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RASError(f"{name}={value!r}; expected an integer >= {least} ({why})")


def _checked_resets(value: object) -> ResetSteps:
    if value == "auto":
        return "auto"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RASError(
            f'reset_steps={value!r}; expected "auto", step indices such as (12, 20), or '
            "fractions of the selective window such as (0.33, 0.67)"
        )
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
        raise RASError(f"reset_steps={value!r}; expected only integers or only floats")
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise RASError(
            f"reset_steps={value!r} mixes indices and fractions; give only integers or only floats"
        )
    if kinds == {float} and not all(0 < item < 1 for item in value):
        raise RASError(f"reset_steps={value!r}; fractions must lie strictly between 0 and 1")
    if kinds == {int} and not all(item >= 0 for item in value):
        raise RASError(f"reset_steps={value!r}; step indices must be >= 0")
    return tuple(sorted(set(value)))
