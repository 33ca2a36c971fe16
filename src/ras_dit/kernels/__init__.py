"""Kernels that write the active tokens' keys and values straight into the caches.

They are used by themselves where they can be: on NVIDIA GPUs, with Triton, in half precision, for
layers whose projections are plain. :func:`survey` says where that is so for a pipeline, and what
is in the way elsewhere. What they compute stands in :mod:`ras_dit.kernels.specification`.
"""

from __future__ import annotations

from ras_dit.kernels.eligibility import machine_obstacle
from ras_dit.kernels.processors import FusedProcessor, fused_processor
from ras_dit.kernels.survey import IN_USE, survey

__all__ = ["IN_USE", "FusedProcessor", "fused_processor", "machine_obstacle", "survey"]
