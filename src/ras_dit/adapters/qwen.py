"""Qwen-Image: packed latents, text before image, positions apart for both."""

from __future__ import annotations

from ras_dit.adapters.base import TransformerDescription

TRANSFORMERS: tuple[TransformerDescription, ...] = ()
