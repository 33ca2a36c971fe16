"""What the kernels compute, in plain torch: the specification that tests hold them to.

Shape letters: B rows of the model batch, A fresh tokens, S tokens of the whole sequence, C input
channels, H heads of the projection, D head width, R copies of each head in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Norm:
    """The norm of a key.

    Attributes:
        kind: ``"rms"`` divides by the root mean square, ``"layer"`` takes the mean off first.
        across: Whether all channels of a token are one group; each head is one otherwise.
        eps: Added to the mean square.
        weight: Factor per channel, ``[D]``, or ``[H * D]`` with ``across``; ``None`` for 1.
        bias: Summand per channel of the same shape; ``None`` for 0.
    """

    kind: Literal["rms", "layer"]
    across: bool
    eps: float
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def linear_scatter(
    cache: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
) -> None:
    """Project fresh tokens and write them to their rows: ``cache[b, rows[b, a]] = W x[b, a] + c``.

    Args:
        cache: ``[B, S, H * R, D]``, any strides, written in place. Head ``h`` of the projection
            goes to heads ``h * R`` to ``h * R + R - 1``.
        x: ``[B, A, C]``, any strides.
        weight: ``[H * D, C]``.
        bias: ``[H * D]``.
        rows: int64 ``[B, A]``, each 0 to S - 1, none twice for one ``b``.
    """
    fresh = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    width = cache.shape[-1]
    _write(cache, fresh.view(*x.shape[:2], weight.shape[0] // width, width), rows)


def norm_rope_scatter(
    cache: torch.Tensor,
    keys: torch.Tensor,
    norm: Norm | None,
    angles: torch.Tensor | None,
    rows: torch.Tensor,
) -> None:
    """Normalise and rotate projected fresh keys and write them to their rows of the cache.

    Args:
        cache: ``[B, S, H * R, D]``, any strides, written in place.
        keys: ``[B, A, H, D]``, any strides.
        norm: The norm, ``None`` for none.
        angles: Rotary embedding: complex ``[B or 1, A, D / 2]`` of unit length, by which channels
            ``2 i`` and ``2 i + 1`` are multiplied as a complex number; ``None`` for none.
        rows: int64 ``[B, A]``, each 0 to S - 1, none twice for one ``b``.
    """
    fresh = keys.float()
    if norm is not None:
        fresh = _normalised(fresh, norm)
    if angles is not None:
        turned = torch.view_as_complex(fresh.reshape(*fresh.shape[:-1], -1, 2).contiguous())
        turned = turned * angles.unsqueeze(2)
        fresh = torch.view_as_real(turned).flatten(-2)
    _write(cache, fresh, rows)


def _normalised(keys: torch.Tensor, norm: Norm) -> torch.Tensor:
    grouped = keys.flatten(2) if norm.across else keys
    if norm.kind == "layer":
        grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + norm.eps)
    if norm.weight is not None:
        grouped = grouped * norm.weight.float()
    if norm.bias is not None:
        grouped = grouped + norm.bias.float()
    return grouped.view(keys.shape)


def _write(cache: torch.Tensor, fresh: torch.Tensor, rows: torch.Tensor) -> None:
    copies = cache.shape[2] // fresh.shape[2]
    sample = torch.arange(cache.shape[0], device=cache.device).unsqueeze(1)
    cache[sample, rows] = fresh.repeat_interleave(copies, dim=2).to(cache.dtype)
