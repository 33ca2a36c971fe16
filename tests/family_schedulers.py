"""Which schedulers people put into the pipelines of a family, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers

from family_laws import Family, run

_STEPS = 3  # multistep schedulers reach their order
_PNDM_STEPS = 4  # it makes no fewer


@dataclass(frozen=True)
class SchedulerKind:
    """A scheduler as people make it from the pipeline's own: ``kind.from_config(own, ...)``.

    Attributes:
        name: What people call it.
        scheduler: Its class in diffusers.
        settings: What they set beside the pipeline's own configuration.
    """

    name: str
    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)


_VELOCITY = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

FLOW = (
    SchedulerKind("Euler", "FlowMatchEulerDiscreteScheduler"),
    SchedulerKind(
        "Euler, stochastic", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}
    ),
    SchedulerKind("Euler ancestral", "LTXEulerAncestralRFScheduler"),
    SchedulerKind("Heun", "FlowMatchHeunDiscreteScheduler"),
    SchedulerKind("LCM", "FlowMatchLCMScheduler"),
    SchedulerKind("UniPC", "UniPCMultistepScheduler", _VELOCITY),
    SchedulerKind("DPM++ 2M", "DPMSolverMultistepScheduler", _VELOCITY),
    SchedulerKind("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _VELOCITY | _SDE),
    SchedulerKind("DPM++ 2S", "DPMSolverSinglestepScheduler", _VELOCITY),
    SchedulerKind("DEIS", "DEISMultistepScheduler", _VELOCITY),
    SchedulerKind("SA-Solver", "SASolverScheduler", _VELOCITY),
)
DIFFUSION = (
    SchedulerKind("DDIM", "DDIMScheduler"),
    SchedulerKind("DDPM", "DDPMScheduler"),
    SchedulerKind("Euler", "EulerDiscreteScheduler"),
    SchedulerKind("Euler ancestral", "EulerAncestralDiscreteScheduler"),
    SchedulerKind("Heun", "HeunDiscreteScheduler"),
    SchedulerKind("DPM2", "KDPM2DiscreteScheduler"),
    SchedulerKind("DPM2 ancestral", "KDPM2AncestralDiscreteScheduler"),
    SchedulerKind("LMS", "LMSDiscreteScheduler"),
    SchedulerKind("PNDM", "PNDMScheduler"),
    SchedulerKind("DPM++ 2M", "DPMSolverMultistepScheduler"),
    SchedulerKind("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _SDE),
    SchedulerKind("DPM++ 2S", "DPMSolverSinglestepScheduler"),
    SchedulerKind("UniPC", "UniPCMultistepScheduler"),
    SchedulerKind("DEIS", "DEISMultistepScheduler"),
    SchedulerKind("SA-Solver", "SASolverScheduler"),
    SchedulerKind("LCM", "LCMScheduler"),
    SchedulerKind("TCD", "TCDScheduler"),
    SchedulerKind("CogVideoX DDIM", "CogVideoXDDIMScheduler"),
    SchedulerKind("CogVideoX DPM", "CogVideoXDPMScheduler"),
)
# These pipelines always hand over a shift by picture size, as `set_timesteps(mu=...)`, and these
# schedulers take it only if told so.
_SHIFTED = {"FluxPipeline", "HiDreamImagePipeline"}
_UNSHIFTED = ("DPMSolver", "DEIS")
_TWICE = {"Heun", "DPM2", "DPM2 ancestral"}  # two evaluations in all steps but the last


def kinds_for(pipe: Any) -> tuple[SchedulerKind, ...]:
    """Those that predict what the pipeline's model does: velocity of a flow, or else noise."""
    own = pipe.scheduler
    is_flow = type(own).__name__.startswith("FlowMatch") or own.config.get("use_flow_sigmas")
    return FLOW if is_flow else DIFFUSION


def give_scheduler(pipe: Any, kind: SchedulerKind, own: Any) -> None:
    """Put a scheduler into a pipeline, as people do, from the configuration of its own."""
    settings = dict(kind.settings)
    if type(pipe).__name__ in _SHIFTED and kind.scheduler.startswith(_UNSHIFTED):
        settings["use_dynamic_shifting"] = True
    pipe.scheduler = getattr(diffusers, kind.scheduler).from_config(own, **settings)


def short_call(family: Family, kind: SchedulerKind, images: int = 1) -> dict[str, Any]:
    """A call of few steps."""
    steps = _PNDM_STEPS if kind.name == "PNDM" else _STEPS
    return family.call(images) | {"num_inference_steps": steps}


def evaluations(kind: SchedulerKind) -> int:
    """How often a run of so few steps calls ``scheduler.step``."""
    if kind.name == "PNDM":
        return 12 + _PNDM_STEPS - 3  # twelve to get going, which stand for the first three
    return 2 * _STEPS - 1 if kind.name in _TWICE else _STEPS


def refusal(pipe: Any, family: Family, kind: SchedulerKind) -> Exception | None:
    """What the pipeline says in a short run against its scheduler; ``None`` if it takes it."""
    try:
        run(pipe, short_call(family, kind))
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        return error
    return None


def accepted_schedulers(family: Family) -> tuple[str, ...]:
    """Names of the kinds with which the stock pipeline runs."""
    pipe = family.build()
    own = pipe.scheduler.config
    accepted = []
    for kind in kinds_for(pipe):
        give_scheduler(pipe, kind, own)
        if refusal(pipe, family, kind) is None:
            accepted.append(kind.name)
    return tuple(accepted)
