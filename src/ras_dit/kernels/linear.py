"""Projection and scatter in one kernel (the paper's supplement, Fig. 7).

A matrix product whose last step writes each row of a block to that token's place in the cache, so
that fresh keys and values never exist as a tensor of their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ras_dit.kernels.eligibility import interpreted
from ras_dit.kernels.tiles import Tile, projection_tile


@triton.jit
def linear_scatter_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    cache: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    width_in: tl.tensor,
    width_out: tl.tensor,
    copies: tl.tensor,
    x_sample: tl.tensor,
    x_token: tl.tensor,
    x_channel: tl.tensor,
    weight_out: tl.tensor,
    weight_in: tl.tensor,
    rows_sample: tl.tensor,
    rows_token: tl.tensor,
    cache_sample: tl.tensor,
    cache_token: tl.tensor,
    cache_head: tl.tensor,
    cache_channel: tl.tensor,
    head_width: tl.constexpr,
    has_bias: tl.constexpr,
    is_even: tl.constexpr,
    upcast: tl.constexpr,
    precision: tl.constexpr,
    block_tokens: tl.constexpr,
    block_channels: tl.constexpr,
    block_depth: tl.constexpr,
    block_group: tl.constexpr,
) -> None:
    """One block of tokens by one block of output channels; row ``r`` is token ``r % A``."""
    # Blocks near each other share what they read, so that the second finds it in the L2 cache.
    program = tl.program_id(0)
    across = tl.cdiv(width_out, block_channels)
    down = tl.cdiv(num_rows, block_tokens)
    group = program // (block_group * across)
    height = min(down - group * block_group, block_group)
    inside = program % (block_group * across)
    first_row = (group * block_group + inside % height) * block_tokens
    first_out = (inside // height) * block_channels

    # Rows and channels beyond the end are others once more; they are not stored.
    row = first_row + tl.arange(0, block_tokens)
    out = first_out + tl.arange(0, block_channels)
    near_row = row % num_rows
    near_out = out % width_out
    sample = (near_row // num_tokens).to(tl.int64)
    token = (near_row % num_tokens).to(tl.int64)
    depth = tl.arange(0, block_depth)
    x_at = x + (sample * x_sample + token * x_token)[:, None] + depth[None, :] * x_channel
    weight_at = weight + near_out.to(tl.int64)[None, :] * weight_out + depth[:, None] * weight_in

    total = tl.zeros((block_tokens, block_channels), dtype=tl.float32)
    for start in range(0, width_in, block_depth):
        if is_even:
            left = tl.load(x_at)
            right = tl.load(weight_at)
        else:
            there = depth < width_in - start
            left = tl.load(x_at, mask=there[None, :], other=0.0)
            right = tl.load(weight_at, mask=there[:, None], other=0.0)
        if upcast:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=precision)
        x_at += block_depth * x_channel
        weight_at += block_depth * weight_in
    if has_bias:
        total += tl.load(bias + near_out).to(tl.float32)[None, :]

    place = tl.load(rows + sample * rows_sample + token * rows_token)
    head = out // head_width
    channel = out % head_width
    cache_row = cache + (sample * cache_sample + place * cache_token)[:, None]
    inside_row = head * copies * cache_head + channel * cache_channel
    stored = (row < num_rows)[:, None] & (out < width_out)[None, :]
    values = total.to(cache.dtype.element_ty)
    for copy in range(copies):
        at = cache_row + (inside_row + copy * cache_head)[None, :]
        tl.store(at, values, mask=stored)


def linear_scatter(
    cache: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
    tile: Tile | None = None,
) -> None:
    """As :func:`ras_dit.kernels.specification.linear_scatter`, summed in fp32, rounded once.

    ``x``, ``weight`` and ``bias`` have the dtype of the cache: float32, float16 or bfloat16.
    Single precision is TF32 where torch may use it (``torch.backends.cuda.matmul``).

    Args:
        cache: ``[B, S, H * R, D]``, any strides, written in place.
        x: ``[B, A, C]``, any strides.
        weight: ``[H * D, C]``, any strides.
        bias: ``[H * D]``, contiguous, or ``None``.
        rows: int64 ``[B, A]``.
        tile: The block size; chosen by the size of the problem where it is not given.
    """
    batch, num_tokens, width_in = x.shape
    width_out, head_width = weight.shape[0], cache.shape[-1]
    num_rows = batch * num_tokens
    if num_rows == 0:
        return
    tile = tile or projection_tile(x.dtype, num_rows, width_out, _processors(x.device))
    blocks = triton.cdiv(num_rows, tile.tokens) * triton.cdiv(width_out, tile.channels)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        linear_scatter_kernel[(blocks,)](
            x,
            weight,
            weight if bias is None else bias,
            rows,
            cache,
            num_tokens,
            num_rows,
            width_in,
            width_out,
            cache.shape[2] * head_width // width_out,
            *x.stride(),
            *weight.stride(),
            *rows.stride(),
            *cache.stride(),
            head_width=head_width,
            has_bias=bias is not None,
            is_even=width_in % tile.depth == 0,
            # The interpreter multiplies with numpy, which has no bfloat16.
            upcast=interpreted() and x.dtype == torch.bfloat16,
            precision=_precision(x.dtype),
            block_tokens=tile.tokens,
            block_channels=tile.channels,
            block_depth=tile.depth,
            block_group=8,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )


def _precision(dtype: torch.dtype) -> str:
    """What the product of two fp32 numbers keeps; other products are exact in fp32."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
