"""What a search is after: the least error within a cost, or the least cost with a fidelity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ras_dit.errors import RASError
from ras_dit.tuning.gauge import Measured


@dataclass(frozen=True, kw_only=True)
class Target:
    """One of two aims.

    Attributes:
        cost: The most that a picture may cost, in dense steps.
        fidelity: The least median PSNR to the reference, in dB.

    Raises:
        RASError: If not exactly one is given, or it is no positive number.
    """

    cost: float | None = None
    fidelity: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise RASError(
                f"cost={self.cost} and fidelity={self.fidelity}; give one of them: the most dense "
                "steps that a picture may cost, or the least PSNR to the reference in dB"
            )
        ((name, value),) = given.items()
        if not (math.isfinite(value) and value > 0):
            raise RASError(f"{name}={value}; expected a number > 0")

    def score(self, measured: Measured, cost: float, ceiling: float) -> float:
        """What is minimised.

        With a fidelity all that reach it come before all that do not: those by cost, these by how
        much they lack.

        Args:
            measured: What a candidate came to.
            cost: Its cost in dense steps.
            ceiling: More than any candidate costs.
        """
        if self.fidelity is None:
            return measured.median
        lacking = self.fidelity - measured.median_psnr
        return cost if lacking <= 0 else ceiling + lacking

    def __str__(self) -> str:
        if self.fidelity is None:
            return f"at most {self.cost:g} dense steps"
        return f"at least {self.fidelity:g} dB"
