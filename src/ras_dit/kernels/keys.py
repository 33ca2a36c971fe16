"""Norm, rotary embedding and scatter of projected keys in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit.kernels.specification import Norm
from ras_dit.kernels.tiles import token_tile


@triton.jit
def norm_rope_scatter_kernel(
    keys: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    angles: tl.tensor,
    rows: tl.tensor,
    cache: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    copies: tl.tensor,
    eps: tl.tensor,
    keys_sample: tl.tensor,
    keys_token: tl.tensor,
    keys_head: tl.tensor,
    keys_channel: tl.tensor,
    angles_sample: tl.tensor,
    angles_token: tl.tensor,
    angles_pair: tl.tensor,
    angles_part: tl.tensor,
    rows_sample: tl.tensor,
    rows_token: tl.tensor,
    cache_sample: tl.tensor,
    cache_token: tl.tensor,
    cache_head: tl.tensor,
    cache_channel: tl.tensor,
    head_width: tl.constexpr,
    has_norm: tl.constexpr,
    is_centred: tl.constexpr,
    is_across: tl.constexpr,
    has_weight: tl.constexpr,
    has_bias: tl.constexpr,
    has_angles: tl.constexpr,
    block_heads: tl.constexpr,
    block_width: tl.constexpr,
) -> None:
    """Some heads of one token, or all of them where the norm is across heads."""
    program = tl.program_id(0)
    sample = (program // num_tokens).to(tl.int64)
    token = (program % num_tokens).to(tl.int64)
    head = tl.program_id(1) * block_heads + tl.arange(0, block_heads)
    channel = tl.arange(0, block_width)
    there = (head < num_heads)[:, None] & (channel < head_width)[None, :]
    at = head[:, None] * keys_head + channel[None, :] * keys_channel
    key = tl.load(keys + sample * keys_sample + token * keys_token + at, mask=there, other=0.0)
    key = key.to(tl.float32)

    if has_norm:
        count = head_width
        if is_across:
            count = num_heads * head_width
        if is_centred:
            mean = tl.sum(key, axis=1)
            if is_across:
                mean = tl.sum(mean, axis=0) + tl.zeros_like(mean)
            key = tl.where(there, key - (mean / count)[:, None], 0.0)
        square = tl.sum(key * key, axis=1)
        if is_across:
            square = tl.sum(square, axis=0) + tl.zeros_like(square)
        key = key * tl.rsqrt(square / count + eps)[:, None]
        place = channel[None, :] + head[:, None] * (head_width if is_across else 0)
        if has_weight:
            key = key * tl.load(weight + place, mask=there, other=0.0).to(tl.float32)
        if has_bias:
            key = key + tl.load(bias + place, mask=there, other=0.0).to(tl.float32)

    if has_angles:
        pair = tl.arange(0, block_width // 2)
        angle = angles + sample * angles_sample + token * angles_token + pair * angles_pair
        cosine = tl.load(angle, mask=pair < head_width // 2, other=0.0)[None, :]
        sine = tl.load(angle + angles_part, mask=pair < head_width // 2, other=0.0)[None, :]
        even, odd = tl.split(tl.reshape(key, (block_heads, block_width // 2, 2)))
        turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
        key = tl.reshape(turned, (block_heads, block_width))

    row = tl.load(rows + sample * rows_sample + token * rows_token)
    start = cache + sample * cache_sample + row * cache_token
    values = key.to(cache.dtype.element_ty)
    for copy in range(copies):
        to = (head * copies + copy)[:, None] * cache_head + channel[None, :] * cache_channel
        tl.store(start + to, values, mask=there)


def norm_rope_scatter(
    cache: torch.Tensor,
    keys: torch.Tensor,
    norm: Norm | None,
    angles: torch.Tensor | None,
    rows: torch.Tensor,
) -> None:
    """As :func:`ras_dit.kernels.specification.norm_rope_scatter`, in fp32, rounded once.

    Args:
        cache: ``[B, S, H * R, D]`` of any float dtype, any strides, written in place.
        keys: ``[B, A, H, D]`` of any float dtype, any strides.
        norm: The norm, ``None`` for none; its weight and bias are contiguous.
        angles: Rotary embedding, complex64 ``[B or 1, A, D / 2]``, ``None`` for none.
        rows: int64 ``[B, A]``.
    """
    batch, num_tokens, num_heads, head_width = keys.shape
    if batch * num_tokens == 0:
        return
    across = norm is not None and norm.across
    tile = token_tile(num_heads, head_width, across=across)
    weight = None if norm is None else norm.weight
    bias = None if norm is None else norm.bias
    strides: tuple[int, ...] = 0, 0, 0, 0
    parts = keys
    if angles is not None:
        parts = torch.view_as_real(angles)
        sample, *others = parts.stride()
        strides = sample if parts.shape[0] > 1 else 0, *others
    with torch.cuda.device_of(keys):  # type: ignore[no-untyped-call]
        norm_rope_scatter_kernel[(batch * num_tokens, triton.cdiv(num_heads, tile.heads))](
            keys,
            keys if weight is None else weight,
            keys if bias is None else bias,
            parts,
            rows,
            cache,
            num_tokens,
            num_heads,
            cache.shape[2] // num_heads,
            0.0 if norm is None else norm.eps,
            *keys.stride(),
            *strides,
            *rows.stride(),
            *cache.stride(),
            head_width=head_width,
            has_norm=norm is not None,
            is_centred=norm is not None and norm.kind == "layer",
            is_across=across,
            has_weight=weight is not None,
            has_bias=bias is not None,
            has_angles=angles is not None,
            block_heads=tile.heads,
            block_width=tile.width,
            num_warps=tile.warps,
            enable_fp_fusion=True,
        )
