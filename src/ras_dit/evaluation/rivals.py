"""What RAS is compared with on the same pipeline: second-order solvers, step caches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ras_dit.errors import RASError, UnsupportedError

# Names in YAML files, and the classes of diffusers.
SOLVERS: Mapping[str, str] = MappingProxyType(
    {"unipc": "UniPCMultistepScheduler", "dpmpp": "DPMSolverMultistepScheduler"}
)
_CACHE_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "first-block": "FirstBlockCacheConfig",
        "faster": "FasterCacheConfig",
        "mag": "MagCacheConfig",
        "pyramid": "PyramidAttentionBroadcastConfig",
        "sea": "SeaCacheConfig",
        "taylorseer": "TaylorSeerCacheConfig",
    }
)
CACHE_DIT = "cache-dit"
CACHES = (*_CACHE_CLASSES, CACHE_DIT)


@contextlib.contextmanager
def solver(pipeline: Any, name: str | None) -> Iterator[None]:
    """Put a second-order solver with flow sigmas in place of the pipeline's scheduler.

    The sigmas are those that the solver itself spaces, with the shift of the model's scheduler;
    everything else that both schedulers know is taken over.

    Args:
        pipeline: A diffusers pipeline for flow matching.
        name: One of :data:`SOLVERS`; ``None`` leaves the pipeline as it is.

    Raises:
        UnsupportedError: If the pipeline's own scheduler is not one for flow matching.
    """
    if name is None:
        yield
        return
    before = pipeline.scheduler
    pipeline.scheduler = _flow_solver(before, name)
    try:
        yield
    finally:
        pipeline.scheduler = before


def _flow_solver(own: Any, name: str) -> Any:
    import diffusers

    if not type(own).__name__.startswith("FlowMatch"):
        raise UnsupportedError(
            f"{name} with flow sigmas cannot replace {type(own).__name__}: the model is not one of "
            "flow matching with a FlowMatch scheduler"
        )
    kind = getattr(diffusers, SOLVERS[name])
    known = inspect.signature(kind.__init__).parameters
    kept = {key: value for key, value in own.config.items() if key in known}
    return kind.from_config(
        kept
        | {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": own.config.get("shift", 1.0),
            "solver_order": 2,
        }
    )


@contextlib.contextmanager
def step_cache(pipeline: Any, cache: Mapping[str, Any] | None) -> Iterator[None]:
    """Switch another library's step cache on, and off again.

    Args:
        pipeline: A diffusers pipeline.
        cache: ``name``, one of :data:`CACHES`, and options of its configuration class; ``None``
            leaves the pipeline as it is.

    Raises:
        UnsupportedError: If the library or the model does not allow it, with the reason.
        RASError: If an option is unknown.
    """
    if cache is None:
        yield
        return
    options = {key: value for key, value in cache.items() if key != "name"}
    if cache["name"] == CACHE_DIT:
        with _cache_dit(pipeline, options):
            yield
        return
    transformer = pipeline.transformer
    config = _cache_config(str(cache["name"]), options, pipeline)
    if not hasattr(transformer, "enable_cache"):
        raise UnsupportedError(
            f"diffusers has no enable_cache for {type(transformer).__name__}, so {cache['name']} "
            "cannot be had on this model; cache-dit may know it"
        )
    _check_announces(pipeline, str(cache["name"]))
    try:
        transformer.enable_cache(config)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UnsupportedError(
            f"diffusers refuses {cache['name']} on {type(transformer).__name__}: {error}; change "
            "its options, or leave the row out"
        ) from error
    try:
        yield
    finally:
        transformer.disable_cache()


def _cache_config(name: str, options: Mapping[str, Any], pipeline: Any) -> Any:
    import diffusers.hooks

    kind = getattr(diffusers.hooks, _CACHE_CLASSES[name], None)
    if kind is None:
        raise UnsupportedError(
            f"diffusers {diffusers.__version__} has no {_CACHE_CLASSES[name]}; install a newer one"
        )
    if "current_timestep_callback" in inspect.signature(kind).parameters:
        options = {"current_timestep_callback": lambda: pipeline.current_timestep, **options}
    return _configured(kind, options, name)


def _check_announces(pipeline: Any, name: str) -> None:
    # Without it the hooks of a step cache do not know which guidance branch is running, and raise.
    if "cache_context" not in inspect.getsource(type(pipeline).__call__):
        raise UnsupportedError(
            f"{type(pipeline).__name__} never enters cache_context, which diffusers' {name} cache "
            "needs; cache-dit may know this pipeline"
        )


@contextlib.contextmanager
def _cache_dit(pipeline: Any, options: Mapping[str, Any]) -> Iterator[None]:
    try:
        import cache_dit
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"cache-dit needs {error.name}; install it with pip install cache-dit"
        ) from error
    config = _configured(cache_dit.DBCacheConfig, options, CACHE_DIT)
    try:
        cache_dit.enable_cache(pipeline, cache_config=config)
    except (ValueError, NotImplementedError, AssertionError, KeyError) as error:
        raise UnsupportedError(
            f"cache-dit refuses {type(pipeline).__name__}: {error}; change its options, or leave "
            "the row out"
        ) from error
    try:
        yield
    finally:
        cache_dit.disable_cache(pipeline)


def _configured(kind: Any, options: Mapping[str, Any], name: str) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise RASError(f"the options {dict(options)} do not fit {name}: {error}") from error


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs as ``torch.utils.flop_counter`` does, of whatever runs under it.

    Its own mode walks the tree of modules, which has circles once cache-dit is on.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        packet = func._overloadpacket  # noqa: SLF001  (as flop_counter does)
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **given, out_val=out)
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # noqa: SLF001
            # The one attention that the registry lacks.
            query, key, value = (tensor.shape for tensor in args[:3])
            self.total += sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return out


@contextlib.contextmanager
def counted_flops(module: nn.Module) -> Iterator[Flops]:
    """Count the FLOPs of a module's calls."""
    flops = Flops()
    running: list[Flops] = []

    def start(*_: object) -> None:
        running.append(flops.__enter__())  # type: ignore[no-untyped-call]

    def stop(*_: object) -> None:
        if running:
            running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = [
        module.register_forward_pre_hook(start, prepend=True),
        module.register_forward_hook(stop, always_call=True),
    ]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()
        stop()
