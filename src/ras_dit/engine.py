"""The engine: the only file that registers hooks.

An engine belongs to one transformer. Per call of the transformer it asks the session what to
compute, gathers the active tokens before the first block, and puts the rows back together behind
the last layer; the scheduler tells it where steps begin and end.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ras_dit.adapters import TokenArgument, TransformerDescription
from ras_dit.attention import AttentionLayer
from ras_dit.checks import check_unhooked, checked_parameters, submodule
from ras_dit.config import RASConfig
from ras_dit.errors import RASError, RASWarning, UnsupportedError
from ras_dit.observe import observe, observers, unobserve
from ras_dit.recording import Recording
from ras_dit.session import RunShape, Session, TransformerCall
from ras_dit.signature import CallSignature
from ras_dit.tokens import TokenGrid, by_token, gather_rows, gather_table
from ras_dit.trace import Trace


class Engine:
    """Region-adaptive sampling on one transformer and the schedulers that drive it."""

    def __init__(
        self,
        transformer: nn.Module,
        description: TransformerDescription,
        config: RASConfig,
        replay: Trace | None = None,
        *,
        record: bool = False,
    ) -> None:
        self.transformer = transformer
        self.description = description
        self.config = config
        self.replay = replay
        self.record = record
        self.model_config = cast("Mapping[str, Any]", transformer.config)
        self.patch_size = int(self.model_config["patch_size"])
        self._session: Session | None = None
        self._armed_by: Any = None
        self._call: TransformerCall | None = None
        self._gathered: dict[str, tuple[Any, Any]] = {}
        self._finished: Session | None = None
        self._trace: Trace | None = None
        self._recording: Recording | None = None
        self._warned = False
        self._observed: list[Any] = []
        self._layers: list[AttentionLayer] = []
        self._handles: list[RemovableHandle] = []
        self._output: tuple[nn.Module, RemovableHandle] | None = None
        self._signature = inspect.signature(transformer.forward)
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

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
            session, self._finished = self._finished, None
            self._trace, self._recording = session.trace(), session.recording()

    # -- hooks ---------------------------------------------------------------------------------

    def _attach(self) -> None:
        description, transformer = self.description, self.transformer
        keep = self._handles.append
        keep(transformer.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        keep(transformer.register_forward_hook(self._after_transformer, always_call=True))
        blocks = [block for name in description.blocks for block in getattr(transformer, name)]
        for block in blocks:
            layers = []
            for path in description.attention:
                module = submodule(block, path)
                if module is not None:
                    layer = AttentionLayer(module, len(self._layers), self._current_call)
                    self._layers.append(layer)
                    layers.append(layer)
            parameters = checked_parameters(block, description)
            hook = functools.partial(self._before_block, layers, parameters)
            keep(block.register_forward_pre_hook(hook, with_kwargs=True))
        self._follow_replaced_modules()

    def _follow_replaced_modules(self) -> None:
        """Processors and the output layer may be others now (IP-adapters, LoRA)."""
        for layer in self._layers:
            layer.refresh()
        output = self.transformer.get_submodule(self.description.output)
        if self._output is None or self._output[0] is not output:
            if self._output is not None:
                self._output[1].remove()
            self._output = output, output.register_forward_hook(self._after_output)

    def detach(self) -> None:
        """Remove every hook and give everything its own class and processor back."""
        self.drop()
        for handle in self._handles:
            handle.remove()
        if self._output is not None:
            self._output[1].remove()
            self._output = None
        for layer in self._layers:
            layer.restore()
        for target in self._observed:
            unobserve(target, self)
        self._handles.clear()
        self._layers.clear()
        self._observed.clear()

    def _current_call(self) -> TransformerCall | None:
        return self._call

    def _before_transformer(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._call = None
        if self._armed_by is None and self._session is None:
            return None
        if torch.is_grad_enabled():
            self.drop()
            raise RASError(
                "RAS keeps keys and values between steps and cannot compute gradients; run under "
                "torch.no_grad() or torch.inference_mode(), or disable RAS first"
            )
        try:
            arguments = self._signature.bind(*args, **kwargs).arguments
            session = self._session or self._start(arguments)
            if session.finished or session.thread != threading.get_ident():
                return None
            self._follow_replaced_modules()
            settings = [layer.settings() for layer in self._layers]
            signature = CallSignature(arguments, self.description.fixed, settings)
            call = session.begin_call(arguments[self.description.latents].shape[0], signature)
        except BaseException:
            self.drop()
            raise
        self._call = call
        if call.fresh is None:
            return None
        return self._with_gathered_residuals(call, arguments)

    def _start(self, arguments: Mapping[str, Any]) -> Session:
        check_unhooked(self.transformer)
        scheduler, self._armed_by = self._armed_by, None
        latents = arguments[self.description.latents]
        text = arguments.get(self.description.text)
        first = int(getattr(scheduler, "begin_index", None) or 0)
        count = len(scheduler.timesteps) - first
        sigmas = getattr(scheduler, "sigmas", None)
        height, width = latents.shape[-2:]
        shape = RunShape(
            transformer=self.description.transformer,
            grid=TokenGrid(height // self.patch_size, width // self.patch_size),
            num_text_tokens=0 if text is None else text.shape[1],
            dtype=latents.dtype,
            num_evaluations=count,
            sigmas=sigmas[first : first + count + 1] if isinstance(sigmas, torch.Tensor) else None,
        )
        session = Session(
            self.config,
            self.description.token_order,
            shape,
            functools.partial(by_token, patch_size=self.patch_size),
            self.replay,
            record=self.record,
        )
        if session.is_dense and self.config.sample_ratio < 1 and not (self.replay or self._warned):
            self._warned = True
            warnings.warn(
                f"RAS does nothing in this run: its {count} scheduler steps are all dense "
                f"(warmup_steps={self.config.warmup_steps}, stop_step={self.config.stop_step}, "
                f"{shape.grid.num_tokens} tokens at sample_ratio={self.config.sample_ratio}); use "
                "more steps or a smaller warmup_steps",
                RASWarning,
                stacklevel=2,
            )
        self._session = session
        return session

    def _with_gathered_residuals(
        self, call: TransformerCall, arguments: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        present = [name for name in self.description.residuals if arguments.get(name) is not None]
        if not present:
            return None
        assert call.rows is not None
        for name in present:
            arguments[name] = [gather_rows(item, call.rows) for item in arguments[name]]
        return (), arguments

    def _after_transformer(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._call = None
        self._gathered.clear()

    def _before_block(
        self,
        layers: list[AttentionLayer],
        parameters: tuple[str, ...],
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._call
        if call is None:
            return None
        for layer in layers:
            layer.begin()
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        name = self.description.hidden
        hidden = arguments[name]
        is_whole = hidden.shape[1] == call.num_tokens
        if call.rows is None:
            if not is_whole:
                raise UnsupportedError(
                    f"{type(block).__name__} got {hidden.shape[1]} image tokens, and the latents "
                    f"have {call.num_tokens}; the description of {self.description.transformer} "
                    "does not fit this pipeline"
                )
            return None
        if is_whole:
            arguments[name] = gather_rows(hidden, call.rows)
        for argument in self.description.token_arguments:
            if arguments.get(argument.name) is not None:
                arguments[argument.name] = self._gather_once(argument, arguments[argument.name])
        # Whatever came by position goes back by position.
        return tuple(arguments.pop(parameter) for parameter in parameters[: len(args)]), arguments

    def _gather_once(self, argument: TokenArgument, value: Any) -> Any:
        """The active rows of what all blocks of one call are given."""
        known = self._gathered.get(argument.name)
        if known is None or known[0] is not value:
            known = value, self._gather(argument, value)
            self._gathered[argument.name] = known
        return known[1]

    def _gather(self, argument: TokenArgument, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._gather(argument, item) for item in value)
        assert self._call is not None
        assert self._call.fresh is not None
        num_tokens = self._call.num_tokens
        if argument.dim < 1 or value.shape[argument.dim : argument.dim + 1] != (num_tokens,):
            raise UnsupportedError(
                f"{argument.name} of {self.description.transformer}'s blocks is {list(value.shape)}"
                f"; the description says that dimension {argument.dim} holds the {num_tokens} "
                "image tokens, and dimension 0 the batch"
            )
        return gather_table(value, argument.dim, self._call.fresh.active)

    def _after_output(
        self, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor | None:
        call = self._call
        if call is None:
            return None
        if call.rows is not None:
            return call.cache.merge_output(output, call.rows)
        if call.fills_caches:
            call.cache.keep_output(output)
        return None

    # -- the run -------------------------------------------------------------------------------

    def watch(self, pipe: Any) -> None:
        """Follow a pipeline's scheduler; announce its calls."""
        observe(pipe, self, {"__call__": _run_pipeline})
        self._remember(pipe)
        observe(pipe.scheduler, self, {"set_timesteps": _run_set_timesteps, "step": _run_step})
        self._remember(pipe.scheduler)

    def _remember(self, target: Any) -> None:
        if not any(other is target for other in self._observed):
            self._observed.append(target)

    def begin_pipeline(self, pipe: Any) -> None:
        """A watched pipeline was called: nothing of an earlier run may be left.

        Raises:
            RASError: If the pipeline got another transformer meanwhile.
        """
        self.drop()
        if unwrap(pipe.transformer) is not self.transformer:
            raise RASError(
                "pipe.transformer was replaced after RAS was enabled; call ras_dit.disable(pipe) "
                "and enable it again"
            )
        if self not in observers(pipe.scheduler, Engine):
            self.watch(pipe)

    def arm(self, scheduler: Any) -> None:
        """A scheduler's ``set_timesteps`` was called: the next transformer call starts a run."""
        self.drop()
        self._armed_by = scheduler

    def drop(self) -> None:
        """End the run that is under way, if any, and free what it holds."""
        if self._session is not None:
            self._session.close()
        self._session = self._call = self._armed_by = None

    def before_step(
        self, noise_pred: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided noise and sample on their way to the scheduler: observed and handed on."""
        session = self._session
        if session is None or session.finished or not session.called:
            return noise_pred, sample
        noise_pred, sample = session.transform(noise_pred, sample)
        if session.end_step(noise_pred):
            self._finished = session
            self.drop()
        return noise_pred, sample


def unwrap(transformer: Any) -> Any:
    """The module behind ``torch.compile``."""
    return getattr(transformer, "_orig_mod", transformer)


def _run_pipeline(
    method: Any, watching: tuple[object, ...], pipe: Any, args: Any, kwargs: Any
) -> Any:
    engines = [engine for engine in watching if isinstance(engine, Engine)]
    for engine in engines:
        engine.begin_pipeline(pipe)
    try:
        return method(pipe, *args, **kwargs)
    finally:
        for engine in engines:
            engine.drop()


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
    for engine in watching:
        if isinstance(engine, Engine):
            bound.arguments["model_output"], bound.arguments["sample"] = engine.before_step(
                bound.arguments["model_output"], bound.arguments["sample"]
            )
    return method(*bound.args, **bound.kwargs)
