"""The engine: one generation after the other on one pipeline's transformers and scheduler.

An engine belongs to the transformers of a pipeline: one, or two that take turns. Per call of a
transformer it asks the session what to compute; the scheduler tells it where steps begin and end.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ras_dit.adapters import TransformerDescription
from ras_dit.calls import RunShape, TransformerCall
from ras_dit.checks import check_unhooked
from ras_dit.config import RASConfig
from ras_dit.entrance import uncompiled
from ras_dit.errors import RASError, RASWarning
from ras_dit.guidance import Guidance
from ras_dit.hooks import TransformerHooks
from ras_dit.idle import idle_wishes
from ras_dit.observe import observe, unobserve
from ras_dit.recorder import Recorder
from ras_dit.recording import Recording
from ras_dit.session import Session
from ras_dit.signature import CallSignature
from ras_dit.storage import Buffers
from ras_dit.tokens import TokenSort
from ras_dit.trace import Trace

# The components of a pipeline that denoise; where there are two, they take turns.
COMPONENTS = ("transformer", "transformer_2")


class Engine:
    """Region-adaptive sampling on transformers and the schedulers that drive them.

    Args:
        transformers: What the pipeline calls, compiled or not; all of one class.
        config: The configuration.
        replay: A recorded run whose active tokens are taken over.
        record: Whether to keep the noise and the latents of every step.
    """

    def __init__(
        self,
        transformers: Sequence[nn.Module],
        description: TransformerDescription,
        config: RASConfig,
        replay: Trace | None = None,
        *,
        record: bool = False,
    ) -> None:
        self.description = description
        self.config = config
        self.replay = replay
        self.record = record
        self._session: Session | None = None
        self._armed_by: Any = None
        self._pipe: Any = None
        self._finished: Recorder | None = None
        self._trace: Trace | None = None
        self._recording: Recording | None = None
        self._warned: set[str] = set()
        self._buffers = Buffers()
        self._kept_for: object = None
        self._pipes: list[Any] = []
        self._schedulers: list[Any] = []
        self._parts: list[TransformerHooks] = []
        try:
            for called in transformers:
                part = TransformerHooks(
                    called,
                    description,
                    self._begin_call,
                    self,
                    may_skip=config.may_skip or (replay is not None and replay.leaves_out_calls),
                )
                self._parts.append(part)
        except BaseException:
            self.detach()
            raise

    @property
    def model_config(self) -> Mapping[str, Any]:
        """The configuration of the transformers."""
        return self._parts[0].model_config

    @property
    def trace(self) -> Trace | None:
        """The record of the last finished run."""
        self._collect()
        return self._trace

    @property
    def recording(self) -> Recording | None:
        """Noise and latents of the last finished run, if they were to be kept."""
        self._collect()
        return self._recording

    def _collect(self) -> None:
        """Read a finished run from its device, once somebody asks."""
        if self._finished is not None:
            recorder, self._finished = self._finished, None
            self._trace, self._recording = recorder.trace(), recorder.recording()

    def detach(self) -> None:
        """Remove every hook and give everything its own class and processor back."""
        self.drop()
        for part in self._parts:
            part.detach()
        self._buffers.clear()
        for target in (*self._pipes, *self._schedulers):
            unobserve(target, self)
        self._pipes, self._schedulers = [], []

    def part_of(self, called: nn.Module) -> TransformerHooks | None:
        """The hooks on a transformer, compiled or not, if they are this engine's."""
        transformer = uncompiled(called)
        return next((part for part in self._parts if part.transformer is transformer), None)

    def _begin_call(
        self, part: TransformerHooks, arguments: Mapping[str, Any]
    ) -> TransformerCall | None:
        if self._armed_by is None and self._session is None:
            return None
        if torch.is_grad_enabled():
            self.drop()
            raise RASError(
                "RAS keeps keys and values between steps and cannot compute gradients; run under "
                "torch.no_grad() or torch.inference_mode(), or disable RAS first"
            )
        try:
            session = self._session or self._start(part, arguments)
            if session.finished or session.thread != threading.get_ident():
                return None
            part.follow_replaced_modules()
            description = self.description
            return session.begin_call(
                self._parts.index(part),
                description.count_rows(arguments),
                CallSignature(arguments, description.fixed, part.settings()),
                starts=None if description.starts is None else description.starts(arguments),
                given=self._given(arguments, session),
                latents=description.first_latents(arguments).shape[1:],
                divisible=session.halves_steps and self._is_divisible(part, arguments, session),
            )
        except BaseException:
            self.drop()
            raise

    def _is_divisible(
        self, part: TransformerHooks, arguments: Mapping[str, Any], session: Session
    ) -> bool:
        """Whether one of two guidance branches can run without the other."""
        if part.is_perturbed:
            return False
        rows = self.description.count_rows(arguments)
        if rows % 2 or not isinstance(arguments[self.description.latents], list):
            return True
        # Texts of a list are filled up to the longest, which may be the other branch's.
        half = part.half_of(arguments, session.guidance.half(rows))
        return self.description.layout(half, part.model_config) == session.shape.layout

    def _given(self, arguments: Mapping[str, Any], session: Session) -> torch.Tensor | None:
        """Which image tokens of each row are given rather than made, bool ``[R, N]``."""
        name = self.description.token_timestep
        timestep = None if name is None else arguments[name]
        if timestep is not None and timestep.ndim == 3:
            timestep = timestep[..., 0]
        if timestep is None or timestep.ndim != 2:
            return None
        layout = session.shape.layout
        if timestep.shape[1] < layout.num_image:
            return None
        given: torch.Tensor = timestep[:, layout.offset :][:, : layout.grid.num_tokens] == 0
        return given

    def _start(self, part: TransformerHooks, arguments: Mapping[str, Any]) -> Session:
        for other in self._parts:
            check_unhooked(other.transformer)
        scheduler, self._armed_by = self._armed_by, None
        first, count = self._steps_to_come(scheduler)
        sigmas = getattr(scheduler, "sigmas", None)
        description = self.description
        shape = RunShape(
            transformer=description.transformer,
            layout=description.layout(arguments, part.model_config),
            dtype=description.first_latents(arguments).dtype,
            num_evaluations=count,
            sigmas=sigmas[first : first + count + 1] if isinstance(sigmas, torch.Tensor) else None,
            latents=description.first_latents(arguments).shape[1:],
            is_euler=is_flow_euler(scheduler),
        )
        kept_for = shape.latents, shape.dtype
        if self._kept_for != kept_for:
            self._buffers.clear()
            self._kept_for = kept_for
        session = Session(
            self.config,
            description.token_order,
            shape,
            TokenSort(description.patch(part.model_config), shape.layout, description.frames_first),
            self.replay,
            record=self.record,
            buffers=self._buffers,
            guidance=Guidance(
                description.conditional_first,
                description.attention_by_sample,
                description.token_order,
                shape.layout.num_image,
            ),
        )
        self._warn_of(session, description.first_latents(arguments).device)
        self._session = session
        return session

    def _warn_of(self, session: Session, device: torch.device) -> None:
        """Say once of each thing that was asked for that it does nothing here."""
        found = idle_wishes(
            self.config,
            session.shape,
            device,
            saves=not session.is_dense or session.halves_steps,
            halves=session.halves_steps,
            replays=self.replay is not None,
        )
        for kind, message in found.items():
            self._warn_once(kind, message)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RASWarning, stacklevel=2)

    def _warn_of_guidance(self, session: Session) -> None:
        """Behind the first step: say once if there are no two branches to take turns."""
        if not session.halves_steps or session.guidance.is_known:
            return
        found = f"{session.num_branches:g} guidance branches, or some that attention mixes"
        if session.num_branches == 1:
            found = "one row per image: guidance is off, or an input of the transformer"
        self._warn_once(
            "guidance",
            f"guidance_every={self.config.guidance_every} does nothing here: it needs two guidance "
            f"branches in a batch or in two calls, and this run has {found}",
        )

    def _steps_to_come(self, scheduler: Any) -> tuple[int, int]:
        """Index of the first timestep that is really run, and the calls of ``step`` from there."""
        number = len(scheduler.timesteps)
        first = getattr(scheduler, "begin_index", None)
        if first is not None:
            return int(first), number - int(first)
        # Pipelines that start late tell schedulers without a begin index nothing.
        announced = getattr(self._pipe, "num_timesteps", None)
        count = min(number, announced) if isinstance(announced, int) and announced > 0 else number
        return number - count, count

    # -- the run -------------------------------------------------------------------------------

    def watch(self, pipe: Any) -> None:
        """Follow a pipeline's scheduler, and no longer a former one; announce its calls."""
        observe(pipe, self, {"__call__": _run_pipeline})
        self._pipes = [*(other for other in self._pipes if other is not pipe), pipe]
        found = (getattr(watched, "scheduler", None) for watched in self._pipes)
        current = [scheduler for scheduler in found if scheduler is not None]
        for former in self._schedulers:
            if not any(former is scheduler for scheduler in current):
                unobserve(former, self)
        self._schedulers = current
        # All of them: one made by the class of another shares its observers.
        for scheduler in current:
            observe(scheduler, self, {"set_timesteps": _run_set_timesteps, "step": _run_step})

    def begin_pipeline(self, pipe: Any) -> None:
        """A watched pipeline was called: nothing of an earlier run may be left.

        Raises:
            RASError: If the pipeline got another transformer meanwhile.
        """
        self.drop()
        self._pipe = pipe
        for name, called in denoisers(pipe).items():
            part = self.part_of(called)
            if part is None:
                raise RASError(
                    f"pipe.{name} was replaced after RAS was enabled; call ras_dit.disable(pipe) "
                    "and enable it again"
                )
            part.follow_called(called)
        if not any(pipe.scheduler is scheduler for scheduler in self._schedulers):
            self.watch(pipe)

    def end_pipeline(self, *, failed: bool) -> None:
        """A watched pipeline is done, or has failed."""
        failed = failed or getattr(self._pipe, "interrupt", False)
        if not failed and self._session is not None and self._session.begun:
            # Some pipelines make fewer steps than their scheduler has.
            self._finished = self._session.recorder
        self.drop()
        self._pipe = None

    def arm(self, scheduler: Any) -> None:
        """A scheduler's ``set_timesteps`` was called: the next transformer call starts a run."""
        self.drop()
        self._armed_by = scheduler

    def drop(self) -> None:
        """End the run that is under way, if any, and free what it holds."""
        if self._session is not None:
            self._session.close()
        self._session = self._armed_by = None
        for part in self._parts:
            part.end_call()

    def before_step(
        self, noise_pred: torch.Tensor, sample: torch.Tensor, *, by_token: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided noise and sample on their way to the scheduler: observed and handed on.

        Args:
            noise_pred: The guided noise prediction.
            sample: The latents.
            by_token: Whether the scheduler takes steps of each token's own length.
        """
        session = self._session
        if session is None or session.finished or not session.called:
            return noise_pred, sample
        if by_token and session.shape.has_lines:
            session.without_lines()
            self._warn_of(session, noise_pred.device)
        handed_on = session.transform(noise_pred, sample)
        finished = session.end_step(noise_pred)
        if session.made_one_step:
            self._warn_of_guidance(session)
        if finished:
            self._finished = session.recorder
            self.drop()
        return handed_on


def is_flow_euler(scheduler: Any) -> bool:
    """Whether a scheduler's steps are ``x + (t_next - t) * v`` with noise levels t."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not getattr(
        scheduler.config, "stochastic_sampling", False
    )


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """What a pipeline calls to denoise, compiled or not, by the names of its components."""
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: part for name, part in found.items() if isinstance(part, nn.Module)}


def _run_pipeline(
    method: Any, watching: tuple[object, ...], pipe: Any, args: Any, kwargs: Any
) -> Any:
    engines = [engine for engine in watching if isinstance(engine, Engine)]
    for engine in engines:
        engine.begin_pipeline(pipe)
    failed = True
    try:
        result = method(pipe, *args, **kwargs)
        failed = False
        return result
    finally:
        for engine in engines:
            engine.end_pipeline(failed=failed)


def _run_set_timesteps(
    method: Any, watching: tuple[object, ...], scheduler: Any, args: Any, kwargs: Any
) -> Any:
    engines = [engine for engine in watching if isinstance(engine, Engine)]
    for engine in engines:
        engine.drop()
    result = method(scheduler, *args, **kwargs)
    for engine in engines:
        engine.arm(scheduler)
    return result


def _run_step(
    method: Any, watching: tuple[object, ...], scheduler: Any, args: Any, kwargs: Any
) -> Any:
    bound = inspect.signature(method).bind(scheduler, *args, **kwargs)
    own_times = (bound.arguments | kwargs).get("per_token_timesteps")
    for engine in watching:
        if isinstance(engine, Engine):
            bound.arguments["model_output"], bound.arguments["sample"] = engine.before_step(
                bound.arguments["model_output"],
                bound.arguments["sample"],
                by_token=own_times is not None,
            )
    return method(*bound.args, **bound.kwargs)
