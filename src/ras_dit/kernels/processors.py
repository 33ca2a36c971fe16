"""Sparse attention calls of two families by the kernels, from the equations of their layers.

Each takes the place of a diffusers processor in sparse calls alone: queries are made by torch, as
there; fresh keys and values go straight into the cache; then one attention operation over the
whole cache (Eq. 2). Where anything is in the way, it returns ``None`` before it has written, and
the re-bound processor makes the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ras_dit.cache import KVCache
from ras_dit.errors import UnsupportedError
from ras_dit.fresh import FreshRows
from ras_dit.kernels.eligibility import (
    cache_obstacle,
    linear_obstacle,
    norm_obstacle,
    norm_of,
    tensor_obstacle,
    width_obstacle,
)


class Layer(Protocol):
    """The attention layer that a call belongs to."""

    def sparse_operation(self, batch: int, num_fresh: int) -> tuple[KVCache, FreshRows] | None:
        """The cache of the operation to come and its fresh rows; ``None`` in a dense call.

        Args:
            batch: Rows of the model batch in the operation.
            num_fresh: Tokens that come with it.
        """


@dataclass(frozen=True)
class FusedProcessor:
    """What makes the sparse calls of one kind of processors.

    Attributes:
        replaces: Name of the processor's class in ``diffusers.models.attention_processor``.
        obstacle: Why it cannot for an attention module, ``None`` if it can. Gets the module and
            a tensor of the model's dtype on its device.
        attend: Makes a call, with the layer and then the processor's own arguments; ``None``
            where it cannot.
    """

    replaces: str
    obstacle: Callable[[Any, torch.Tensor], str | None]
    attend: Callable[..., Any]

    def fits(self, processor: Any) -> bool:
        """Whether a processor is of the class that this replaces, and no other of that name."""
        kind = type(processor)
        home = "diffusers.models.attention_processor"
        return (kind.__module__, kind.__name__) == (home, self.replaces)


@dataclass(frozen=True)
class _Target:
    """Where a sparse call writes: whole keys and values ``[B, S, H, D]``, rows ``[B, A + T]``."""

    cached: KVCache
    fresh: FreshRows
    keys: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor


def _target(
    layer: Layer, tokens: torch.Tensor, num_fresh: int, heads: tuple[int, int]
) -> _Target | None:
    """Where a call writes, if it is sparse and its caches are such as kernels can write to."""
    sparse = layer.sparse_operation(tokens.shape[0], num_fresh)
    if sparse is None or tensor_obstacle(tokens.device, tokens.dtype) is not None:
        return None
    cached, fresh = sparse
    whole = cached.by_token()
    if whole is None or any(cache_obstacle(part, *heads, tokens) for part in whole):
        return None
    return _Target(cached, fresh, *whole, fresh.positions(cached.num_keys))


# -- Stable Diffusion 3 ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stream:
    """The projections of one kind of tokens: the image's or the text's."""

    names: tuple[str, str, str]
    query: Any
    key: Any
    value: Any
    norm_query: Any
    norm_key: Any


def _image(attn: Any) -> _Stream:
    names = "to_k", "to_v", "norm_k"
    return _Stream(names, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)


def _text(attn: Any) -> _Stream:
    return _Stream(
        ("add_k_proj", "add_v_proj", "norm_added_k"),
        attn.add_q_proj,
        attn.add_k_proj,
        attn.add_v_proj,
        attn.norm_added_q,
        attn.norm_added_k,
    )


def _joint_obstacle(attn: Any, like: torch.Tensor) -> str | None:
    streams = [_image(attn)]
    if getattr(attn, "add_k_proj", None) is not None:
        streams.append(_text(attn))
    return next(filter(None, (_stream_obstacle(attn, part, like) for part in streams)), None)


def _stream_obstacle(attn: Any, stream: _Stream, like: torch.Tensor) -> str | None:
    key, value, norm = stream.names
    obstacle = linear_obstacle(key, stream.key, like) or linear_obstacle(value, stream.value, like)
    if obstacle is not None or stream.norm_key is None:
        return obstacle
    width = stream.key.out_features // attn.heads
    return norm_obstacle(norm, stream.norm_key, (width,), like) or width_obstacle(attn.heads, width)


def joint_attention(
    layer: Layer,
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    *_args: Any,
    **_kwargs: Any,
) -> Any:
    """Attention over image and text, or over the image alone, as SD3's blocks have it.

    Each kind of tokens has its own projections and, in SD3.5, an RMS norm of queries and keys per
    head; image rows stand before text rows.

    Args:
        layer: The attention layer.
        attn: Its module.
        hidden_states: Active image tokens, ``[B, A, C]``.
        encoder_hidden_states: Text tokens, ``[B, T, C]``, or ``None``.

    Returns:
        What the processor returns: ``[B, A, C]``, with the text ``[B, T, C]`` beside it where
        that was given.
    """
    parts = [(hidden_states, _image(attn))]
    if encoder_hidden_states is not None:
        parts.append((encoder_hidden_states, _text(attn)))
    num_fresh = sum(tokens.shape[1] for tokens, _ in parts)
    width = attn.to_q.out_features // attn.heads
    target = _target(layer, hidden_states, num_fresh, (attn.heads, width))
    if target is None or any(_stream_obstacle(attn, stream, hidden_states) for _, stream in parts):
        return None
    keys, values, rows = target.keys, target.values, target.rows
    queries, first = [], 0
    for tokens, stream in parts:
        places = rows[:, first : first + tokens.shape[1]]
        first += tokens.shape[1]
        query = stream.query(tokens).unflatten(-1, (attn.heads, width)).transpose(1, 2)
        queries.append(query if stream.norm_query is None else stream.norm_query(query))
        _write_keys(keys, tokens, stream.key, norm_of(stream.norm_key, across=False), None, places)
        _write(values, tokens, stream.value, places)
    query = torch.cat(queries, dim=2) if len(queries) > 1 else queries[0]
    attended = F.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))
    attended = attended.transpose(1, 2).flatten(2)

    image = attended[:, : hidden_states.shape[1]]
    for module in attn.to_out:
        image = module(image)
    if encoder_hidden_states is None:
        return image
    text = attended[:, hidden_states.shape[1] :]
    return image, text if attn.context_pre_only else attn.to_add_out(text)


# -- Lumina-Next -----------------------------------------------------------------------------------


def _lumina_obstacle(attn: Any, like: torch.Tensor) -> str | None:
    obstacle = linear_obstacle("to_k", attn.to_k, like) or linear_obstacle("to_v", attn.to_v, like)
    if obstacle is not None:
        return obstacle
    channels = attn.to_k.out_features
    width = attn.to_q.out_features // attn.heads
    return norm_obstacle("norm_k", attn.norm_k, (channels,), like) or width_obstacle(
        channels // width, width
    )


def lumina_attention(
    layer: Layer,
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    query_rotary_emb: torch.Tensor | None = None,
    key_rotary_emb: torch.Tensor | None = None,
    base_sequence_length: int | None = None,  # noqa: ARG001 - the dense step's scale holds
) -> torch.Tensor | None:
    """Attention over the image as Lumina-Next has it: grouped heads, norm, rotary embedding.

    The softmax scale depends on the length of the sequence; it is that of the dense step.

    Args:
        layer: The attention layer.
        attn: Its module.
        hidden_states: Active image tokens, ``[B, A, C]``.
        encoder_hidden_states: The same.
        attention_mask: Which of all image tokens count, ``[B, N]``.
        query_rotary_emb: Complex ``[B or 1, A, D / 2]``.
        key_rotary_emb: The same for keys.
        base_sequence_length: Not needed.

    Returns:
        ``[B, A, H, D]``.
    """
    if hidden_states.ndim != 3 or encoder_hidden_states is not hidden_states:
        return None
    batch, num_active = hidden_states.shape[:2]
    width = attn.to_q.out_features // attn.heads
    target = _target(layer, hidden_states, num_active, (attn.heads, width))
    if (
        target is None
        or _lumina_obstacle(attn, hidden_states)
        or attention_mask is None
        or not (_is_table(query_rotary_emb, hidden_states) and query_rotary_emb is key_rotary_emb)
    ):
        return None
    from diffusers.models.embeddings import apply_rotary_emb

    keys, values, cached = target.keys, target.values, target.cached
    query = attn.to_q(hidden_states)
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    query = query.unflatten(-1, (attn.heads, width))
    query = apply_rotary_emb(query, query_rotary_emb, use_real=False)
    norm = norm_of(attn.norm_k, across=True)
    _write_keys(keys, hidden_states, attn.to_k, norm, key_rotary_emb, target.rows)
    _write(values, hidden_states, attn.to_v, target.rows)

    mask = attention_mask.bool().view(batch, 1, 1, -1).expand(-1, attn.heads, num_active, -1)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=cached.mask_of(mask, num_active, target.fresh),
        scale=cached.scale,
    )
    return attended.transpose(1, 2)


def _is_table(angles: Any, tokens: torch.Tensor) -> bool:
    return (
        isinstance(angles, torch.Tensor)
        and angles.dtype == torch.complex64
        and angles.ndim == 3
        and angles.shape[0] in {1, tokens.shape[0]}
        and angles.shape[1] == tokens.shape[1]
    )


def _write_keys(
    cache: torch.Tensor,
    tokens: torch.Tensor,
    projection: nn.Linear,
    norm: Any,
    angles: torch.Tensor | None,
    rows: torch.Tensor,
) -> None:
    if norm is None and angles is None:
        _write(cache, tokens, projection, rows)
        return
    from ras_dit.kernels.keys import norm_rope_scatter

    keys = projection(tokens).unflatten(-1, (-1, cache.shape[-1]))
    norm_rope_scatter(cache, keys, norm, angles, rows)


def _write(
    cache: torch.Tensor, tokens: torch.Tensor, projection: nn.Linear, rows: torch.Tensor
) -> None:
    from ras_dit.kernels.linear import linear_scatter

    linear_scatter(cache, tokens, projection.weight, projection.bias, rows)


_FUSED: Mapping[str, FusedProcessor] = MappingProxyType(
    {
        "joint": FusedProcessor("JointAttnProcessor2_0", _joint_obstacle, joint_attention),
        "lumina": FusedProcessor("LuminaAttnProcessor2_0", _lumina_obstacle, lumina_attention),
    }
)


def fused_processor(name: str) -> FusedProcessor:
    """The kernels' processor that a description names.

    Raises:
        UnsupportedError: If there is none of that name.
    """
    if name not in _FUSED:
        raise UnsupportedError(
            f"there are no kernels of the name {name!r}; fused= of a description is None or one of "
            f"{', '.join(sorted(_FUSED))}"
        )
    return _FUSED[name]
