"""The host never waits for the device because of RAS once a run is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.overrides import TorchFunctionMode

import ras_dit
from families_flux import flux_call, flux_pipeline
from families_qwen import FAMILIES as QWEN
from families_sd3 import FAMILIES as SD3
from families_unified import FAMILIES as UNIFIED
from families_wan import FAMILIES as WAN
from family_laws import SPARSE, Family, run

# Functions of a tensor whose answer the host has to wait for.
WAITING = {
    "item", "tolist", "numpy", "cpu", "cuda", "nonzero", "argwhere", "masked_select", "unique",
    "equal", "allclose", "__bool__", "__int__", "__float__", "__index__", "__contains__",
}  # fmt: skip
MULTIRATE = {
    "forecast": "linear", "forecast_keys": 1.0, "forecast_age": 2, "solver": "damped-ab2",
    "forecast_damping": "auto", "correction_age": 3, "metric": "innovation",
}  # fmt: skip
MAIN = [family for family in (*SD3[:2], *QWEN, *UNIFIED, *WAN) if family.is_main]


class Waits(TorchFunctionMode):
    """Counts what makes the host wait, and copies to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        values = [*args[1:], *(kwargs or {}).values()]
        if name in WAITING:
            self.count[name] += 1
        if name == "to" and any(isinstance(value, str | torch.device) for value in values):
            self.count["to"] += 1
        return func(*args, **(kwargs or {}))


def waits_per_step(pipe: Any, call: Callable[[int], dict[str, Any]]) -> Counter[str]:
    """What two further sparse steps add to a run: what happens once a run does not count."""
    counts = []
    for steps in (5, 7):
        with Waits() as waits:
            run(pipe, call(1) | {"num_inference_steps": steps})
        counts.append(waits.count)
    return counts[1] - counts[0]


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_sparse_steps_wait_for_nothing(family: Family) -> None:
    pipe = family.build()
    stock = waits_per_step(pipe, family.call)
    with ras_dit.enable(pipe, **SPARSE | {"reset_steps": ()}):
        sparse = waits_per_step(pipe, family.call)
    assert not sparse - stock


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_forecasts_wait_for_nothing(family: Family) -> None:
    pipe = family.build()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock = waits_per_step(pipe, family.call)
    with ras_dit.enable(pipe, **SPARSE | {"reset_steps": ()}, **MULTIRATE):
        assert not waits_per_step(pipe, family.call) - stock


def test_a_metric_of_ones_own_is_waited_for_once_a_run() -> None:
    pipe = flux_pipeline()

    def waits(steps: int, metric: Any) -> Counter[str]:
        knobs = SPARSE | {"reset_steps": (), "metric": metric}
        with ras_dit.enable(pipe, **knobs), Waits() as waits:
            run(pipe, flux_call(1) | {"num_inference_steps": steps})
        return waits.count

    for steps in (5, 7):
        by_norm, by_own = (waits(steps, m) for m in ("l2", lambda x: x.abs().amax((-1, -2))))
        assert by_own - by_norm == Counter(tolist=1)


def test_waiting_would_be_found() -> None:
    pipe = flux_pipeline()
    stock = waits_per_step(pipe, flux_call)

    def curious(noise: torch.Tensor) -> torch.Tensor:
        score = noise.abs().amax((-1, -2))
        assert score.max().item() > 0
        return score

    with ras_dit.enable(pipe, **SPARSE | {"reset_steps": ()}, metric=curious):
        assert waits_per_step(pipe, flux_call) - stock == Counter(item=2)
