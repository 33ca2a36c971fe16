"""What a scorer is, and the scorers by name.

A scorer looks at the pictures of one row (one configuration) in three steps, with files between:

1. ``measure``: pictures -> per-picture rows (JSON) and, where it needs them, arrays (features);
2. ``summarise``: everything measured of one row -> statistics with intervals (and arrays, such as
   the mean and covariance of a Frechet distance, that are stored beside them);
3. the report puts the statistics of all rows in one table and compares rows by their columns.

To add one: write a factory ``(settings) -> Scorer`` and name it in :data:`SCORERS`, or, from
another package, as an entry point in the group ``ras_dit.scorers``; name its settings in
:data:`SETTINGS`. The factory may raise :class:`ScorerUnavailable`, which the report repeats while
the other scorers run on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ras_dit.errors import RASError

Better = Literal["higher", "lower"]
Average = Literal["mean", "median"]

# Factories by name, imported when they are asked for.
SCORERS: Mapping[str, str] = {
    "psnr": "ras_dit.evaluation.pixels:psnr",
    "ssim": "ras_dit.evaluation.pixels:ssim",
    "lpips": "ras_dit.evaluation.pixels:lpips",
    "latent-rmse": "ras_dit.evaluation.latents:latent_rmse",
    "fid": "ras_dit.evaluation.inception:InceptionScorer",
    "clip": "ras_dit.evaluation.clip:clip_score",
    "pickscore": "ras_dit.evaluation.clip:pick_score",
    "geneval": "ras_dit.evaluation.geneval:GenEvalScorer",
    "emoji": "ras_dit.evaluation.emoji_scorers:emoji",
    "fd-emoji": "ras_dit.evaluation.emoji_scorers:fd_emoji",
}
# The settings that each has, so that a wrong one is refused before a picture is made for it.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "psnr": (),
    "ssim": (),
    "lpips": ("net", "weights", "device"),
    "latent-rmse": (),
    "fid": ("reference", "weights", "device", "resamples", "count"),
    "clip": ("weights", "device"),
    "pickscore": ("weights", "device"),
    "geneval": ("detector", "clip", "device"),
    "emoji": ("judge",),
    "fd-emoji": ("judge",),
}
_CHOICES = {"net": ("alex", "vgg", "squeeze")}
_COUNTS = ("resamples", "count")
_GROUP = "ras_dit.scorers"


class ScorerUnavailable(RASError):  # noqa: N818  (it is no fault of the program)
    """A scorer that cannot run here: the message says what to install or where to put weights."""


@dataclass(frozen=True)
class Stored:
    """A file as it was made.

    Attributes:
        path: Where it is.
        sha256: Of its bytes.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class Picture:
    """One picture of a row.

    Attributes:
        index: Number of the picture in the manifest, from 0.
        prompt: What it was made from.
        group: Number of the prompt: pictures of one prompt are resampled together.
        seed: Seed of its noise.
        path: The PNG file, RGB; read it with :func:`ras_dit.evaluation.images.read_picture`.
        sha256: Of the file, as it was made.
        metadata: What the prompt file says of the prompt beside its text (GenEval's rules, ...).
        partner: The reference row's picture of the same prompt and seed; ``None`` for scorers
            that need none.
        partner_sha256: Of that file.
        latents: The picture's latents, float32 ``.npy``, where the evaluation keeps them.
        partner_latents: Those of its partner.
        archived: Whether what was measured of it counts, whatever its files are now.
    """

    index: int
    prompt: str
    group: int
    seed: int
    path: Path
    sha256: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    partner: Path | None = None
    partner_sha256: str = ""
    latents: Stored | None = None
    partner_latents: Stored | None = None
    archived: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of it and its partner."""
        latents = (self.latents, self.partner_latents)
        paths = (self.path, self.partner, *(None if one is None else one.path for one in latents))
        return tuple(path for path in paths if path is not None)

    def moved(self, places: Mapping[Path, Path]) -> Picture:
        """The picture with its files elsewhere.

        Args:
            places: New place of each of :attr:`files`.
        """

        def there(stored: Stored | None) -> Stored | None:
            return None if stored is None else replace(stored, path=places[stored.path])

        return replace(
            self,
            path=places[self.path],
            partner=None if self.partner is None else places[self.partner],
            latents=there(self.latents),
            partner_latents=there(self.partner_latents),
        )


@dataclass(frozen=True)
class Measured:
    """What ``measure`` gives, and, joined over all units of a row, ``summarise`` gets.

    Attributes:
        rows: One mapping per picture, in the order of the pictures; JSON only (NaN is refused).
            Numbers under one name are a column that the report can compare between rows.
        arrays: Features, ``[pictures, ...]`` each; stored as safetensors.
    """

    rows: tuple[Mapping[str, Any], ...]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @staticmethod
    def join(parts: Sequence[Measured]) -> Measured:
        """Several parts as one, in their order."""
        names = parts[0].arrays if parts else ()
        return Measured(
            tuple(row for part in parts for row in part.rows),
            {name: np.concatenate([part.arrays[name] for part in parts]) for name in names},
        )


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number of one row.

    Attributes:
        name: Its heading in the report; unique over all scorers.
        value: The number.
        low: Lower end of the 95 % interval.
        high: Upper end.
        count: Pictures that it was computed from.
        better: Whether higher or lower is better.
        column: The per-picture column that ``value`` is an average of, so that two rows are
            compared picture by picture; ``None`` for a number of the whole set, which is compared
            by ``error``.
        average: Which average of it.
        error: Standard error of ``value``.
        unit: For the heading: "dB", "%", ...
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    better: Better
    column: str | None = None
    average: Average = "mean"
    error: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Summary:
    """What ``summarise`` gives.

    Attributes:
        statistics: The numbers.
        arrays: What they were computed from and is worth keeping; stored as safetensors.
        note: One line for the report, where there is something to say.
    """

    statistics: tuple[Statistic, ...]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    note: str = ""


class Scorer(Protocol):
    """A scorer, made by a factory from its settings in the YAML file."""

    @property
    def needs_partner(self) -> bool:
        """Whether it compares with the reference row's pictures; those are then never scored."""

    def identity(self) -> Mapping[str, Any]:
        """Everything that its numbers depend on beside the pictures: versions, checksums of
        weights, constants. JSON. When it changes, everything is measured again.
        """

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """Look at one unit of pictures. The same pictures give the same bytes."""

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """Statistics of a row, from everything measured of it."""


ScorerFactory = Callable[[Mapping[str, Any]], Scorer]


def scorer_names() -> tuple[str, ...]:
    """Names of all scorers, those of other packages included, sorted."""
    return tuple(sorted({*SCORERS, *(point.name for point in entry_points(group=_GROUP))}))


def check_scorer(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse an unknown scorer or wrong settings, whether or not the scorer can run here.

    Of a scorer of another package only the name is known; its factory checks the settings.

    Raises:
        RASError: If there is no scorer of this name, or its settings are wrong.
    """
    if name not in scorer_names():
        raise RASError(f"there is no scorer {name!r}; expected one of {', '.join(scorer_names())}")
    if name not in SETTINGS:
        return
    known = SETTINGS[name]
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        raise RASError(
            f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}: "
            f"change scores.{name} in the YAML file"
        )
    for key, value in settings.items():
        place = f"scores.{name}.{key}={value!r}"
        if key in _COUNTS:
            if type(value) is not int or value < 1:
                raise RASError(f"{place}; expected an integer of at least 1")
        elif not isinstance(value, str | Path):
            raise RASError(f"{place}; expected a text")
        elif value not in _CHOICES.get(key, (value,)):
            raise RASError(f"{place}; expected one of {', '.join(_CHOICES[key])}")


def make_scorer(name: str, settings: Mapping[str, Any] | None = None) -> Scorer:
    """A scorer by name.

    Args:
        name: One of :func:`scorer_names`.
        settings: Its settings, as under ``scores:`` in the YAML file.

    Raises:
        ScorerUnavailable: If a package or weights are missing.
        RASError: If there is no scorer of this name, or its settings are wrong.
    """
    given = dict(settings or {})
    check_scorer(name, given)
    return _factory(name)(given)


def _factory(name: str) -> ScorerFactory:
    if name in SCORERS:
        module, _, attribute = SCORERS[name].partition(":")
        factory: ScorerFactory = getattr(importlib.import_module(module), attribute)
        return factory
    (point, *_) = entry_points(group=_GROUP, name=name)
    loaded: ScorerFactory = point.load()
    return loaded
