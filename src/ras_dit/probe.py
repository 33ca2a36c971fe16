"""Where the image tokens stand in a transformer, measured on the model itself.

Shape letters: R rows of the model batch, N image tokens, S length of an attended sequence,
H heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ras_dit.errors import RASError, UnsupportedError
from ras_dit.tokens import Patch

# A row of keys counts as changed from this share of the largest key on: far above what a kernel
# that picks its order of summation by content could do, far below what the probe does.
_CHANGED = 1e-4
_PROBE_SEED = 0


@dataclass(frozen=True, eq=False)
class Operation:
    """One attention operation of a call at full length.

    Attributes:
        num_queries: Rows of queries per row of the operation's batch.
        tokens: The image token that each row of keys belongs to, int64 ``[R', S]``; -1: none.
        rows: The row of the model batch that each row of the operation's batch belongs to, int64
            ``[R']``: some models make an operation for each of them.
    """

    num_queries: int
    tokens: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, eq=False)
class Latents:
    """The argument of a transformer that becomes image tokens.

    Attributes:
        name: Name of the argument.
        tensor: ``[R, ...]``, stacked where the argument is a list with one entry per row.
        tokens: The token that each latent belongs to, to be broadcast against ``tensor[0]``.
        in_list: Whether the argument is a list.
    """

    name: str
    tensor: torch.Tensor
    tokens: torch.Tensor
    in_list: bool

    @property
    def num_tokens(self) -> int:
        """Image tokens, references included."""
        return int(self.tokens.max()) + 1

    def argument(self, tensor: torch.Tensor) -> Any:
        """The argument with other latents."""
        return list(tensor.unbind(0)) if self.in_list else tensor


def read_latents(
    arguments: Mapping[str, Any], name: str, patch: Patch, *, frames_first: bool
) -> Latents:
    """Find the latents of a call and number their tokens, in rows from the top left.

    Args:
        arguments: The transformer's arguments by name.
        name: That of the latents: ``[R, C, H, W]``, with frames ``[R, C, F, H, W]`` or
            ``[R, F, C, H, W]``, packed ``[R, N, C]``, or a list with an entry per row.
        patch: Frames, height and width of a token's patch, for latents that are not packed.
        frames_first: Whether frames stand before channels.

    Raises:
        UnsupportedError: If there is no such tensor.
        RASError: If the latents do not divide into patches.
    """
    value = arguments.get(name)
    in_list = isinstance(value, list | tuple)
    if isinstance(value, list | tuple):
        value = torch.stack(tuple(value))
    if not isinstance(value, torch.Tensor) or value.ndim not in {3, 4, 5}:
        raise UnsupportedError(
            f"the transformer was called without latents [R, C, (F,) H, W] or [R, N, C] as {name!r}"
        )
    if value.ndim == 3:
        tokens = torch.arange(value.shape[1], device=value.device).unsqueeze(1)
        return Latents(name, value, tokens, in_list)
    sizes = (1, *value.shape[-2:]) if value.ndim == 4 else value.shape[-3:]
    if frames_first and value.ndim == 5:
        sizes = value.shape[1], *value.shape[-2:]
    if any(size % side for size, side in zip(sizes, patch, strict=True)):
        raise RASError(f"latents of {tuple(sizes)} do not divide into patches of {patch}")
    f, h, w = (
        torch.arange(size, device=value.device) // side
        for size, side in zip(sizes, patch, strict=True)
    )
    rows, columns = sizes[1] // patch[1], sizes[2] // patch[2]
    tokens = (f[:, None, None] * rows + h[:, None]) * columns + w
    if frames_first and value.ndim == 5:
        tokens = tokens.unsqueeze(1)
    return Latents(name, value, tokens[0] if value.ndim == 4 else tokens, in_list)


def probe_attention(
    transformer: nn.Module, call: inspect.BoundArguments, latents: Latents
) -> list[Operation]:
    """Measure which rows of each attended sequence belong to which image token.

    With attention silenced (it answers zeros), nothing carries one token to another. So the rows
    of keys that change when the latents of some tokens do are those tokens' own. Each token of
    each row of the batch has a binary number; one call per digit changes the tokens with a one
    there, and the digits that a row of keys reacts to spell its token.

    Args:
        transformer: The transformer, without RAS enabled.
        call: The arguments of a call of its ``forward``.
        latents: Those among them that become image tokens.

    Returns:
        The attention operations in order.

    Raises:
        UnsupportedError: If the rows of keys do not spell each token once, or a token's latents
            change the noise prediction of another one.
    """
    stock = latents.tensor
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    push = torch.randn(stock.shape, generator=generator).to(stock.device, stock.dtype)
    push = push + push.sign()  # at least one, so that no rounding can hide it
    batch, num_tokens = stock.shape[0], latents.num_tokens
    firsts = torch.arange(batch, device=stock.device).view(-1, *(1,) * (stock.ndim - 1))
    numbers = firsts * num_tokens + latents.tokens + 1
    silence, noise = _silent_call(transformer, call, latents, stock)
    keys = silence.keys
    codes = [torch.zeros_like(key[:, 0, :, 0], dtype=torch.int64) for key in keys]
    for digit in range((batch * num_tokens).bit_length()):
        pushed = (numbers >> digit) & 1 == 1
        probed = torch.where(pushed, stock + push, stock)
        again, new_noise = _silent_call(transformer, call, latents, probed)
        for code, old, new in zip(codes, keys, again.keys, strict=True):
            code.add_(_changed(old, new).any(3).any(1).long() << digit)
        if bool((_changed(noise, new_noise) & ~pushed).any()):
            raise UnsupportedError(
                f"in {type(transformer).__name__}, latents reach the noise prediction of other "
                "tokens without attention, so region-adaptive sampling does not apply"
            )
    operations = [
        _operation(number, code - 1, num_tokens)
        for number, code in zip(silence.num_queries, codes, strict=True)
    ]
    _check_operations(type(transformer).__name__, operations, num_tokens)
    return operations


def _operation(num_queries: int, code: torch.Tensor, num_tokens: int) -> Operation:
    """The operation whose rows of keys spell these numbers, ``row * N + token``, or -1."""
    rows = torch.div(code, num_tokens, rounding_mode="floor").amax(dim=1).clamp(min=0)
    tokens = torch.where(code < 0, -1, code - rows.unsqueeze(1) * num_tokens)
    return Operation(num_queries, tokens, rows)


def _check_operations(name: str, operations: list[Operation], num_tokens: int) -> None:
    """Every sequence with image tokens has each of them once, and there is such a sequence."""
    sequences = [row for operation in operations for row in operation.tokens]
    with_image = [row[row != -1].sort().values for row in sequences if bool((row != -1).any())]
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
    """The noise prediction in a transformer's output, stacked where it is a list of rows."""
    noise = output
    if not isinstance(output, torch.Tensor):
        noise = output[0] if isinstance(output, tuple) else output.sample
    if isinstance(noise, list | tuple):
        noise = torch.stack(tuple(noise))
    assert isinstance(noise, torch.Tensor)
    return noise


def with_noise(output: Any, noise: torch.Tensor) -> Any:
    """A transformer's output, in its own form, with another noise prediction."""

    def like(old: Any) -> Any:
        return list(noise.unbind(0)) if isinstance(old, list | tuple) else noise

    if isinstance(output, torch.Tensor):
        return noise
    if isinstance(output, tuple):
        return (like(output[0]), *output[1:])
    output.sample = like(output.sample)
    return output


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
    latents: Latents,
    replacement: torch.Tensor,
) -> tuple[_Silence, torch.Tensor]:
    """What attention was asked in a call, and the noise prediction, attention silenced."""
    # Some models take entries out of the dictionaries and lists that they are given.
    arguments = {
        name: value.copy() if isinstance(value, dict | list) else value
        for name, value in call.arguments.items()
    }
    arguments[latents.name] = latents.argument(replacement)
    own = inspect.BoundArguments(call.signature, arguments)
    with torch.no_grad(), _Silence() as silence:
        output = transformer.forward(*own.args, **own.kwargs)
    return silence, noise_of(output)


def _changed(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return (new - old).abs() > _CHANGED * old.abs().max()
