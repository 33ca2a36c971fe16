"""Where the image tokens stand in a transformer, measured on the model itself.

Shape letters: R rows of the model batch, N image tokens, S length of an attended sequence,
H heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ras_dit.errors import RASError, UnsupportedError

# A row of keys counts as changed from this share of the largest key on: far above what a kernel
# that picks its order of summation by content could do, far below what the probe does.
_CHANGED = 1e-4
_PROBE_SEED = 0


@dataclass(frozen=True, eq=False)
class Operation:
    """One attention operation of a call at full length.

    Attributes:
        num_queries: Rows of queries per row of the model batch.
        tokens: The image token that each row of keys belongs to, int64 ``[R, S]``; -1: none.
    """

    num_queries: int
    tokens: torch.Tensor


def token_map(latents: torch.Tensor, patch_size: int | None) -> torch.Tensor:
    """The token that each latent belongs to, tokens counted in rows from the top left.

    Args:
        latents: ``[R, C, H, W]``, or packed ``[R, N, C]``.
        patch_size: Side of a token's patch in latents, for latents that are not packed.

    Returns:
        int64 ``[H, W]``, or ``[N, 1]`` for packed latents.

    Raises:
        RASError: If the latents have another form or do not divide into patches.
    """
    device = latents.device
    if latents.ndim == 3:
        return torch.arange(latents.shape[1], device=device).unsqueeze(1)
    if latents.ndim != 4 or not isinstance(patch_size, int):
        raise UnsupportedError(
            f"latents {list(latents.shape)} with patch_size={patch_size!r}; "
            "expected [R, N, C], or [R, C, H, W] and an integer"
        )
    height, width = latents.shape[-2:]
    if height % patch_size or width % patch_size:
        raise RASError(f"latents of {height} x {width} do not divide into patches of {patch_size}")
    rows = torch.arange(height, device=device) // patch_size
    columns = torch.arange(width, device=device) // patch_size
    return rows.unsqueeze(1) * (width // patch_size) + columns


def probe_attention(
    transformer: nn.Module,
    call: inspect.BoundArguments,
    latents: torch.Tensor,
    tokens: torch.Tensor,
) -> list[Operation]:
    """Measure which rows of each attended sequence belong to which image token.

    With attention silenced (it answers zeros), nothing carries one token to another. So the rows
    of keys that change when the latents of some tokens do are those tokens' own. Each token has
    a binary number; one call per digit changes the tokens with a one there, and the digits that
    a row of keys reacts to spell its token.

    Args:
        transformer: The transformer, without RAS enabled.
        call: The arguments of a call of its ``forward``.
        latents: Those among them that become image tokens.
        tokens: Their tokens, from :func:`token_map`.

    Returns:
        The attention operations in order.

    Raises:
        UnsupportedError: If the rows of keys do not spell each token once, or a token's latents
            change the noise prediction of another one.
    """
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    push = torch.randn(latents.shape, generator=generator).to(latents.device, latents.dtype)
    push = push + push.sign()  # at least one, so that no rounding can hide it
    num_tokens = int(tokens.max()) + 1
    silence, noise = _silent_call(transformer, call, latents, latents)
    keys = silence.keys
    codes = [torch.zeros_like(key[:, 0, :, 0], dtype=torch.int64) for key in keys]
    for digit in range(num_tokens.bit_length()):
        pushed = ((tokens + 1) >> digit) & 1 == 1
        probed = torch.where(pushed, latents + push, latents)
        again, new_noise = _silent_call(transformer, call, latents, probed)
        for code, old, new in zip(codes, keys, again.keys, strict=True):
            code.add_(_changed(old, new).any(3).any(1).long() << digit)
        if bool((_changed(noise, new_noise) & ~pushed).any()):
            raise UnsupportedError(
                f"in {type(transformer).__name__}, latents reach the noise prediction of other "
                "tokens without attention, so region-adaptive sampling does not apply"
            )
    operations = [
        Operation(num_queries, code - 1)
        for num_queries, code in zip(silence.num_queries, codes, strict=True)
    ]
    _check_operations(type(transformer).__name__, operations, num_tokens)
    return operations


def _check_operations(name: str, operations: list[Operation], num_tokens: int) -> None:
    """Every sequence with image tokens has each of them once, and there is such a sequence."""
    sequences = [row for operation in operations for row in operation.tokens]
    with_image = [row[row >= 0].sort().values for row in sequences if bool((row >= 0).any())]
    if not with_image:
        raise UnsupportedError(
            f"no scaled_dot_product_attention of {name} has seen the image tokens; use torch's "
            "own attention backend, and no compiled transformer"
        )
    expected = torch.arange(num_tokens, device=with_image[0].device)
    if not all(torch.equal(found, expected) for found in with_image):
        raise UnsupportedError(
            f"cannot tell where the {num_tokens} image tokens of {name} stand in its attention"
        )


def attention_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Arguments of ``scaled_dot_product_attention``: three tensors, and the rest by name."""
    names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    return query, key, value, {**dict(zip(names, args, strict=False)), **kwargs}


def noise_of(output: Any) -> torch.Tensor:
    """The noise prediction in a transformer's output."""
    if isinstance(output, torch.Tensor):
        return output
    noise: torch.Tensor = output[0] if isinstance(output, tuple) else output.sample
    return noise


class _Silence(TorchFunctionMode):
    """Attention that answers zeros and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[torch.Tensor] = []
        self.num_queries: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, _ = attention_call(*args, **kwargs)
        self.keys.append(key)
        self.num_queries.append(query.shape[2])
        batch, heads, length = query.shape[:3]
        # In memory as the fused kernels answer: some processors take a view of it by token.
        return query.new_zeros(batch, length, heads, value.shape[-1]).transpose(1, 2)


def _silent_call(
    transformer: nn.Module,
    call: inspect.BoundArguments,
    latents: torch.Tensor,
    replacement: torch.Tensor,
) -> tuple[_Silence, torch.Tensor]:
    """What attention was asked in a call, and the noise prediction, attention silenced."""

    def own(value: Any) -> Any:
        if value is latents:
            return replacement
        # Some models take entries out of the dictionaries they are given.
        return dict(value) if isinstance(value, dict) else value

    with torch.no_grad(), _Silence() as silence:
        output = transformer.forward(
            *(own(value) for value in call.args),
            **{name: own(value) for name, value in call.kwargs.items()},
        )
    return silence, noise_of(output)


def _changed(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return (new - old).abs() > _CHANGED * old.abs().max()
