"""When the kernels may stand in for torch: what is in their way, in words, or nothing.

A kernel reads a layer's weight itself, so it is right only where the layer does nothing but
multiply by that weight: LoRA, quantised weights, hooks and offloading all keep the torch path.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import nn

from ras_dit.kernels.specification import Norm
from ras_dit.kernels.tiles import LARGEST_TOKEN, power_of_two

_HALF = (torch.float16, torch.bfloat16)
# Offsets within one sample of a cache are 32 bits.
_LARGEST_SAMPLE = 2**31


def interpreted() -> bool:
    """Whether Triton interprets kernels instead of compiling them, which works on any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "yes", "on", "y"}


@functools.cache
def machine_obstacle() -> str | None:
    """Why no kernel can run on this machine at all; ``None`` if one can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'ras-dit[kernels]')"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "the block sizes are made for NVIDIA GPUs"
    return None


def tensor_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels do not work on tensors of this kind.

    In float32 they would work, but on a GPU torch's own product is the better one.
    """
    obstacle = machine_obstacle()
    if obstacle is not None:
        return obstacle
    known = (*_HALF, torch.float32) if interpreted() else _HALF
    if dtype not in known:
        return f"the model is {_name(dtype)}, not float16 or bfloat16"
    return None if interpreted() else _device_obstacle(device)


def _device_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses the dtype"
    return None


def linear_obstacle(name: str, layer: Any, like: torch.Tensor) -> str | None:
    """Why a projection is not just a product with its weight.

    Args:
        name: What to call it.
        layer: The module.
        like: A tensor of the model's dtype on its device.
    """
    if type(layer) is not nn.Linear:
        return f"{name} is {type(layer).__name__}, not a plain Linear"
    if not _is_unhooked(layer):
        return f"{name} has hooks"
    return _parameters_obstacle(name, layer, like)


def norm_obstacle(name: str, layer: Any, shape: tuple[int, ...], like: torch.Tensor) -> str | None:
    """Why a norm is none of those that the kernel has.

    Args:
        name: What to call it.
        layer: The module, ``None`` for no norm.
        shape: The channels that are to be one group.
        like: A tensor of the model's dtype on its device.
    """
    if layer is None:
        return None
    if _kind(layer) is None:
        return f"{name} is {type(layer).__name__}"
    if not _is_unhooked(layer):
        return f"{name} has hooks"
    if tuple(getattr(layer, "normalized_shape", None) or layer.dim) != shape:
        return f"{name} is over other channels than {list(shape)}"
    if not isinstance(layer.eps, float):
        return f"{name} has no eps"
    return _parameters_obstacle(name, layer, like)


def norm_of(layer: Any, *, across: bool) -> Norm | None:
    """What the kernel has to know of a norm without obstacle.

    Args:
        layer: The module, ``None`` for no norm.
        across: Whether it is over all channels of a token.
    """
    kind = None if layer is None else _kind(layer)
    if kind is None:
        return None
    return Norm(
        kind, across, layer.eps, layer.weight, layer.bias if hasattr(layer, "bias") else None
    )


def width_obstacle(heads: int, width: int) -> str | None:
    """Why keys of this many heads and channels are none for the kernel."""
    if width % 2 or power_of_two(heads) * power_of_two(width) > LARGEST_TOKEN:
        return f"keys of {heads} heads of {width} channels"
    return None


def cache_obstacle(cache: torch.Tensor, heads: int, width: int, like: torch.Tensor) -> str | None:
    """Why a cache ``[B, S, H, D]`` is not one that keys of ``like`` can be written to."""
    expected = (like.shape[0], heads, width)
    if (cache.shape[0], *cache.shape[2:]) != expected:
        return f"the cache holds {list(cache.shape)}"
    if cache.dtype != like.dtype or cache.device != like.device:
        return f"the cache is {_name(cache.dtype)} on {cache.device}"
    if (
        sum(size * stride for size, stride in zip(cache.shape[1:], cache.stride()[1:], strict=True))
        > _LARGEST_SAMPLE
    ):
        return "the cache is too large"
    return None


def _kind(layer: Any) -> Any:
    from diffusers.models.normalization import RMSNorm

    if type(layer) in {nn.RMSNorm, RMSNorm}:
        return "rms"
    return "layer" if type(layer) is nn.LayerNorm else None


def _parameters_obstacle(name: str, layer: nn.Module, like: torch.Tensor) -> str | None:
    for part in (layer.weight, getattr(layer, "bias", None)):
        if part is None:
            continue
        if type(part) is not nn.Parameter:
            return f"the weights of {name} are {type(part).__name__}"
        if part.dtype != like.dtype or part.device != like.device:
            return f"the weights of {name} are {_name(part.dtype)} on {part.device}"
    return None


def _is_unhooked(layer: nn.Module) -> bool:
    """Whether calling a module is its class's forward and nothing else."""
    own = vars(layer)
    return not (
        "forward" in own
        or own.get("_compiled_call_impl")
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
