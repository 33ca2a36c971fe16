"""Rows of one cost: the sampling ratio that gives a row the cost that it is to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ras_dit.config import RASConfig
from ras_dit.errors import RASError

Cost = Callable[[RASConfig | None, int], float]
# Costs that are no further apart count as equal.
WITHIN = 0.03
# Ratios are looked for in steps of one in so many.
_GRAIN = 1000


def at_cost(
    config: RASConfig | None, steps: int, data: Mapping[str, Any], cost: Cost, place: str
) -> RASConfig:
    """A configuration with the ratio whose planned cost is nearest to the ``cost`` of a row.

    Args:
        config: Everything but the ratio.
        steps: Denoising steps.
        data: The row: ``cost`` in evaluations of the dense transformer, and no ``sample_ratio``.
        cost: Planned cost of a configuration and a number of steps, which does not fall with the
            ratio.
        place: Name of the row, for errors.

    Raises:
        RASError: If no ratio comes within :data:`WITHIN`, or none is to be found.
    """
    wanted = data["cost"]
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not wanted > 0:
        raise RASError(f"{place} has cost={wanted!r}; expected a number of dense steps above 0")
    if config is None or "sample_ratio" in data or config.schedule not in ("constant", "linear"):
        raise RASError(
            f"{place} has cost={wanted:g}, which sets sample_ratio; give it to a region-adaptive "
            "row without sample_ratio whose schedule is constant or linear"
        )

    # Plans know no errors, and a ratio of 1 takes no tolerance.
    by_plan = config.replace(tolerance=None, reset_tolerance=None)

    def planned(number: int) -> float:
        return cost(by_plan.replace(sample_ratio=number / _GRAIN), steps)

    low, high = 1, _GRAIN
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if planned(middle) < wanted else (low, middle)
    best = min({max(1, low - 1), low}, key=lambda number: abs(planned(number) - wanted))
    if abs(planned(best) / wanted - 1) > WITHIN:
        raise RASError(
            f"{place} cannot cost {wanted:g} with steps={steps}: ratios from {1 / _GRAIN:g} to 1 "
            f"cost {planned(1):.4g} to {planned(_GRAIN):.4g}; change steps, warmup_steps or "
            "reset_steps"
        )
    return config.replace(sample_ratio=best / _GRAIN)
