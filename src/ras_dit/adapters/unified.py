"""Transformers whose blocks see one sequence of text and image, and their kin."""

from __future__ import annotations

from ras_dit.adapters.base import TransformerDescription

TRANSFORMERS: tuple[TransformerDescription, ...] = ()
