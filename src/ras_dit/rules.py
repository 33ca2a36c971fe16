"""What a configuration means for the parts that carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CacheDtype = Literal["model", "int8", "float8"]


@dataclass(frozen=True)
class LineRules:
    """What a run does with the line of each token (:mod:`ras_dit.multirate`).

    Attributes:
        linear: Whether tokens that are left out move along their line; otherwise their last output
            is held.
        damping: Factor of the slope for them, in (0, 1]; ``None`` for the measured one.
        second_order: Whether steps are those of the two-step Adams-Bashforth method.
        damps_steps: Whether the slope has the measured factor in these.
        correction_age: Steps up to which a refreshed token's long step is corrected; 0 for never.
        longest: Steps after a refresh over which a line is followed; ``None`` for no limit.
    """

    linear: bool = False
    damping: float | None = 1.0
    second_order: bool = False
    damps_steps: bool = False
    correction_age: int = 0
    longest: int | None = None

    @property
    def changes_steps(self) -> bool:
        """Whether the scheduler gets anything else than fresh and held outputs."""
        return self.linear or self.second_order or self.correction_age > 0

    @property
    def needs_slope(self) -> bool:
        """Whether anything follows from a line's slope."""
        return self.linear or self.second_order

    @property
    def measures_damping(self) -> bool:
        """Whether a factor of the slopes has to be measured."""
        return (self.linear and self.damping is None) or (self.second_order and self.damps_steps)

    @property
    def order(self) -> int:
        """Power of the noise level's distance with which a line's error grows."""
        return 2 if self.linear else 1


@dataclass(frozen=True)
class Storage:
    """How a run stores its caches.

    Attributes:
        dtype: ``"model"`` for the model's own; ``"int8"`` and ``"float8"`` (e4m3) keep a scale
            for every row of every head.
        offload: Whether keys and values stay in CPU memory and come over for their layer only.
        static: Whether buffers keep their addresses from step to step and run to run.
    """

    dtype: CacheDtype = "model"
    offload: bool = False
    static: bool = False

    @property
    def packs(self) -> bool:
        """Whether keys and values have to be copied at all."""
        return self.static or self.offload or self.dtype != "model"
