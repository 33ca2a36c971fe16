"""Video transformers of diffusers, one description each."""

from __future__ import annotations

from ras_dit.adapters.base import TransformerDescription

TRANSFORMERS: tuple[TransformerDescription, ...] = ()
