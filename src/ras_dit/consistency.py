"""Checks of what the fields of a configuration say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ras_dit.errors import RASError
from ras_dit.validation import check_int, check_number

if TYPE_CHECKING:
    from ras_dit.config import RASConfig


def check_forecasts(config: RASConfig) -> None:
    """Refuse forecasts out of range, and limits and dampings of none."""
    check_number("forecast_keys", config.forecast_keys, "in [0, 1]", lambda x: 0 <= x <= 1)
    if config.forecast_age is not None:
        check_int("forecast_age", config.forecast_age, 1, "None means no limit")
        if config.forecast == "hold" and not config.forecast_keys:
            raise RASError(
                f"forecast_age={config.forecast_age} limits forecasts, and there are none; leave "
                'it out, or give forecast="linear" or forecast_keys'
            )
    if config.forecast == "hold" and config.forecast_damping != type(config).forecast_damping:
        raise RASError(
            f"forecast_damping={config.forecast_damping!r} damps forecasts, and there are none; "
            'leave it out or give forecast="linear" (solver="damped-ab2" damps by itself)'
        )
    if config.forecast_keys and config.guidance_every > 1:
        raise RASError(
            f"forecast_keys={config.forecast_keys:g} cannot be had with guidance_every="
            f"{config.guidance_every}: keys of the branch that does not run have no last change; "
            "give forecast_keys=0 (forecast may stay) or guidance_every=1"
        )


def check_tolerances(config: RASConfig) -> None:
    """Refuse tolerances where every step is dense anyway."""
    schedule = config.schedule
    is_dense = schedule in ("constant", "linear") or (
        isinstance(schedule, tuple) and min(schedule) == 1
    )
    for name in ("tolerance", "reset_tolerance"):
        value = getattr(config, name)
        if value is not None and config.sample_ratio == 1 and is_dense:
            raise RASError(
                f"{name}={value:g} is for steps that are not dense, and with sample_ratio=1 "
                "there are none; leave it out or lower sample_ratio"
            )


def check_ratio(config: RASConfig, given: Mapping[str, Any]) -> None:
    """Refuse a ratio that was given where listed steps have another."""
    ratio = given.get("sample_ratio", config.sample_ratio)
    if ratio != config.sample_ratio:
        # Only the default comes here: of any other the constructor knows that it was given.
        raise RASError(
            f"sample_ratio={ratio} cannot be met: the schedule says what every step computes "
            f"(mean {config.sample_ratio:g} over its sparse steps); leave sample_ratio out, or "
            'give schedule="constant" and no cycle or intervals'
        )
