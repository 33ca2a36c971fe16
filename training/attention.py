"""Joint attention for training: plain products, which a CPU differentiates faster."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def _normed(rows: Tensor, norm: nn.Module | None) -> Tensor:
    """Root mean square norm in the precision of the rows."""
    if norm is None:
        return rows
    scale = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + norm.eps)
    return rows * scale * norm.weight.to(rows.dtype)


class PlainJointAttention:
    """What the stock processor computes, for short rows and without its fused kernel."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of image and text rows among each other, image first."""
        assert attention_mask is None
        batch, tokens, _ = hidden_states.shape

        def heads(rows: Tensor) -> Tensor:
            return rows.view(batch, -1, attn.heads, rows.shape[-1] // attn.heads).transpose(1, 2)

        query = torch.cat(
            [
                _normed(heads(attn.to_q(hidden_states)), attn.norm_q),
                _normed(heads(attn.add_q_proj(encoder_hidden_states)), attn.norm_added_q),
            ],
            dim=2,
        )
        key = torch.cat(
            [
                _normed(heads(attn.to_k(hidden_states)), attn.norm_k),
                _normed(heads(attn.add_k_proj(encoder_hidden_states)), attn.norm_added_k),
            ],
            dim=2,
        )
        value = torch.cat(
            [heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(encoder_hidden_states))],
            dim=2,
        )
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = weights.float().softmax(dim=-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).flatten(2)
        image, text = mixed[:, :tokens], mixed[:, tokens:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, (None if attn.context_pre_only else attn.to_add_out(text))


def use_plain_attention(transformer: SD3Transformer2DModel) -> None:
    """Train with plain attention; the weights and the configuration stay as they are."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(PlainJointAttention())
