"""The two verbs: enable and disable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from ras_dit.adapters import TransformerDescription, describe
from ras_dit.adapters.refused import check_pipeline
from ras_dit.checks import check_unhooked
from ras_dit.config import RASConfig
from ras_dit.engine import Engine, denoisers
from ras_dit.entrance import uncompiled
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.hooks import TransformerHooks
from ras_dit.observe import observers
from ras_dit.recording import Recording
from ras_dit.trace import Trace


class Handle:
    """What :func:`enable` returns: the way to the last run's trace, and back to stock.

    Use it as a context manager to disable at the end of a block.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def config(self) -> RASConfig:
        """The configuration in force."""
        return self._engine.config

    @property
    def description(self) -> TransformerDescription:
        """What is known of the transformer."""
        return self._engine.description

    @property
    def trace(self) -> Trace | None:
        """The record of the last finished run, ``None`` before the first; kept after disable."""
        return self._engine.trace

    @property
    def recording(self) -> Recording | None:
        """Noise and latents of the last finished run with ``enable(..., record=True)``."""
        return self._engine.recording

    @property
    def transformer_config(self) -> Mapping[str, Any]:
        """The transformer's own configuration."""
        return self._engine.model_config

    def disable(self) -> None:
        """Make everything stock again. Doing it twice is fine."""
        self._engine.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.disable()


def enable(
    pipe: Any,
    config: RASConfig | str | Path | Mapping[str, Any] | None = None,
    /,
    *,
    replay: Trace | None = None,
    record: bool = False,
    description: TransformerDescription | None = None,
    **overrides: Any,
) -> Handle:
    """Accelerate a diffusers pipeline by region-adaptive sampling.

    The pipeline is then used as always. Doing it again with the same configuration returns a
    handle on the same engine. Pipelines that share both transformer and scheduler are accelerated
    alike; one that shares only the transformer runs dense.

    Args:
        pipe: A diffusers pipeline with a supported ``transformer`` and a ``scheduler``.
        config: A :class:`RASConfig`, a preset name, the path of a YAML file, a mapping of fields,
            or ``None`` for the defaults.
        replay: A recorded run whose active tokens every run takes over, step by step, instead of
            choosing its own.
        record: Whether to keep every step's noise and latents for figures, in
            ``handle.recording``: twice the latents per step, in CPU memory.
        description: What the transformer looks like, where ras-dit does not know it.
        **overrides: Fields of :class:`RASConfig` that replace those of ``config``.

    Raises:
        UnsupportedError: If the pipeline, its transformer or a feature that is switched on cannot
            be combined with RAS.
        RASError: If the configuration is not valid, or another one is enabled already.
    """
    chosen = _replaying(RASConfig.load(config).replace(**overrides), replay)
    engine = find_engine(pipe)
    if engine is not None:
        _check_same(engine, chosen, replay, record=record)
        engine.watch(pipe)
        return Handle(engine)
    transformers = _checked_transformers(pipe, description)
    description = description or describe(uncompiled(transformers[0]))
    _check_text(chosen, description)
    engine = Engine(transformers, description, chosen, replay, record=record)
    try:
        engine.watch(pipe)
    except BaseException:
        engine.detach()
        raise
    return Handle(engine)


def _check_text(config: RASConfig, description: TransformerDescription) -> None:
    if config.text == "keep" and description.text_arguments is None:
        raise UnsupportedError(
            f'text="keep" cannot be had for {description.transformer}, whose description does not '
            "say where its blocks get the text (text_arguments): models with cross attention to "
            'the text compute nothing on it that could be saved; use text="fresh"'
        )


def _replaying(config: RASConfig, replay: Trace | None) -> RASConfig:
    """The configuration of a run that repeats another: its text goes the way of that one's."""
    if replay is None:
        return config
    if not isinstance(replay, Trace):
        raise RASError(
            f"replay={replay!r}; expected a ras_dit.Trace, such as handle.trace after a run"
        )
    if replay.num_halved and config.forecast_keys:
        raise RASError(
            f"forecast_keys={config.forecast_keys:g} cannot be had with this trace to replay, "
            f"{replay.num_halved} steps of which ran one guidance branch; give forecast_keys=0, or "
            "a trace of a run with guidance_every=1"
        )
    if replay.keeps_text:
        return config.replace(text="keep")
    if config.text == "keep":
        raise RASError(
            'text="keep" cannot be had with this trace to replay, whose run computed the text anew '
            "in every step; leave text out, or give a trace of a run that kept it"
        )
    return config


def _check_same(engine: Engine, config: RASConfig, replay: Trace | None, *, record: bool) -> None:
    if engine.config != config:
        difference = f"{engine.config}, and {config} was given"
    elif engine.replay is not replay:
        difference = "another trace to replay"
    elif engine.record != record:
        difference = f"record={engine.record}"
    else:
        return
    raise RASError(f"RAS is enabled already with {difference}; call ras_dit.disable(pipe) first")


def disable(pipe: Any) -> None:
    """Make a pipeline stock again. A pipeline without RAS stays as it is."""
    for engine in list(_engines(pipe)):
        engine.detach()


def find_engine(pipe: Any) -> Engine | None:
    """The engine on a pipeline's transformers, or on those that it had before, if there is one."""
    return next(_engines(pipe), None)


def _engines(pipe: Any) -> Iterator[Engine]:
    # The hooks are the one mark that an engine leaves on its transformer.
    for called in denoisers(pipe).values():
        transformer = uncompiled(called)
        for module in transformer.modules():
            for hook in module._forward_hooks.values():  # noqa: SLF001
                part = getattr(hook, "__self__", None)
                if type(part) is TransformerHooks and part.transformer is transformer:
                    assert isinstance(part.owner, Engine)
                    yield part.owner
    # Of transformers that were replaced.
    yield from observers(pipe, Engine)


def _checked_transformers(pipe: Any, description: TransformerDescription | None) -> list[nn.Module]:
    transformers = list(denoisers(pipe).values())
    scheduler = getattr(pipe, "scheduler", None)
    if not transformers or not callable(getattr(scheduler, "step", None)):
        raise UnsupportedError(
            f"{type(pipe).__name__} has no transformer with a scheduler; RAS works on diffusers "
            "pipelines of diffusion transformers (ras-dit models lists them)"
        )
    check_pipeline(pipe)
    for called in transformers:
        transformer = uncompiled(called)
        if description is None:
            describe(transformer)
        check_unhooked(transformer)
    return transformers
