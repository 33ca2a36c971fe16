"""FLOPs and bytes of a plan or of a finished run, from the description alone, without weights.

FLOPs are those of the transformer (matrix products, convolutions and attention, 2 per
multiply-add, as ``torch.utils.flop_counter`` counts). Choosing the active tokens, the scheduler,
text encoders and the autoencoder are left out. A call that skips layers, as skip-layer guidance
does, counts as a whole one.

Letters: N image tokens, n active ones, T text tokens; ``batch`` always counts rows of the model
batch: images times guidance branches, whether these run in one call or in several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ras_dit.adapters.base import Work
from ras_dit.errors import RASError
from ras_dit.schedule import StepPlan
from ras_dit.trace import Call, Trace


@dataclass(frozen=True)
class RunCost:
    """FLOPs of the transformer in one run.

    Attributes:
        dense: With every image token in every step, as the stock pipeline runs.
        ras: As planned or really run; dense and reset steps and all text tokens are counted.
    """

    dense: int
    ras: int

    @property
    def limit(self) -> float:
        """FLOP limit of the denoising loop: the speed-up if FLOPs were all that takes time."""
        return self.dense / self.ras

    @property
    def saved(self) -> float:
        """Share of the dense FLOPs that is not spent, in [0, 1)."""
        return 1 - self.ras / self.dense


def forward_flops(
    work: Work,
    *,
    batch: int,
    num_tokens: int,
    num_active: int,
    num_text_tokens: int,
    keeps_text: bool = False,
) -> int:
    """FLOPs of one call of the transformer.

    Args:
        work: The arithmetic of the transformer, ``description.work(transformer.config)``.
        batch: Rows of the model batch.
        num_tokens: Image tokens N per row.
        num_active: Image tokens n per row that go through the blocks; N for a dense call, 0
            for one that is skipped.
        num_text_tokens: Text tokens T per row.
        keeps_text: Whether the text of an earlier call is kept.

    Raises:
        RASError: If a number is out of range.
    """
    _check_shape(batch, num_tokens, num_text_tokens)
    if not 0 <= num_active <= num_tokens:
        raise RASError(
            f"num_active={num_active} of num_tokens={num_tokens}; "
            f"expected between 0 and {num_tokens}"
        )
    if num_active == 0:
        return 0
    fresh_text = 0 if keeps_text else num_text_tokens
    row = (
        work.per_sample
        + work.per_embedded_token * num_tokens
        + work.per_image_token * num_active
        + work.per_text_token * fresh_text
        + work.per_kept_text_token * (num_text_tokens - fresh_text)
        + work.joint_pair * (num_active + fresh_text) * (num_tokens + num_text_tokens)
        + work.image_pair * num_active * num_tokens
        + work.cross_pair * num_active * num_text_tokens
        + work.embedded_pair * num_tokens**2
        + work.text_pair * num_text_tokens**2
    )
    return batch * row


def plan_cost(
    work: Work,
    plans: Iterable[StepPlan],
    *,
    batch: int,
    num_tokens: int,
    num_text_tokens: int,
    keeps_text: bool = False,
) -> RunCost:
    """FLOPs of a planned run.

    Args:
        work: The arithmetic of the transformer.
        plans: One plan per call of ``scheduler.step``, from :func:`ras_dit.schedule.plan_steps`.
        batch: Rows of the model batch in each step, over all guidance branches; two of them where
            the plan has halved steps.
        num_tokens: Image tokens N per row.
        num_text_tokens: Text tokens T per row.
        keeps_text: Whether sparse steps keep the text of the last dense one.

    Raises:
        RASError: If the plan is empty or a number is out of range.
    """
    return _run_cost(
        work,
        [
            Call(batch, plan.num_active, batch // 2 if plan.halves_guidance else None)
            for plan in plans
        ],
        num_tokens,
        num_text_tokens,
        "the plan",
        keeps_text=keeps_text,
    )


def trace_cost(work: Work, trace: Trace) -> RunCost:
    """FLOPs of a finished run, from the calls of the transformer that were really made.

    Args:
        work: The arithmetic of the transformer.
        trace: The record of the run.

    Raises:
        RASError: If the trace holds no call of the transformer.
    """
    # A call that is not sparse computes the references, too.
    whole, references = trace.num_tokens, trace.num_references
    calls = [
        replace(call, num_active=whole + references) if call.num_active == whole else call
        for step in trace.steps
        for call in step.calls
    ]
    return _run_cost(
        work,
        calls,
        whole + references,
        trace.num_text_tokens,
        "the trace",
        keeps_text=trace.keeps_text,
    )


def cache_bytes(
    work: Work,
    *,
    batch: int,
    num_tokens: int,
    num_text_tokens: int,
    dtype: torch.dtype,
    kv_bytes_per_element: float | None = None,
    forecasts_keys: bool = False,
) -> int:
    """Bytes of all key, value and output caches of a run.

    Args:
        work: The arithmetic of the transformer.
        batch: Rows of the model batch, over all guidance branches.
        num_tokens: Image tokens N per row.
        num_text_tokens: Text tokens T per row.
        dtype: The transformer's dtype, in which everything is cached.
        kv_bytes_per_element: Bytes that a cached key or value takes, scales with it; ``None``
            where they are kept in the transformer's dtype. See :func:`packed_bytes`.
        forecasts_keys: Whether the last change of each key and value is kept beside it.

    Raises:
        RASError: If a number is out of range.
    """
    _check_shape(batch, num_tokens, num_text_tokens)
    each = dtype.itemsize if kv_bytes_per_element is None else kv_bytes_per_element
    if not 0 < each <= dtype.itemsize:
        raise RASError(
            f"kv_bytes_per_element={each}; expected above 0 and at most {dtype.itemsize}, the size "
            f"of {str(dtype)[6:]}"
        )
    elements = work.joint_kv * (num_tokens + num_text_tokens) + work.image_kv * num_tokens
    elements *= 2 if forecasts_keys else 1
    return batch * (math.ceil(elements * each) + work.output * num_tokens * dtype.itemsize)


def packed_bytes(head_width: int) -> float:
    """Bytes of a cached key or value in eight bits: a byte, and a 16-bit scale for every head's
    row of ``head_width`` elements.

    Raises:
        RASError: If ``head_width`` is below 1.
    """
    if head_width < 1:
        raise RASError(f"head_width={head_width}; expected at least 1")
    return 1 + 2 / head_width


def _run_cost(
    work: Work,
    calls: list[Call],
    num_tokens: int,
    num_text_tokens: int,
    where: str,
    *,
    keeps_text: bool,
) -> RunCost:
    """Sum over calls."""
    if not calls:
        raise RASError(f"{where} holds no call of the transformer, so nothing can be compared")

    def flops(batch: int, num_active: int) -> int:
        return batch and forward_flops(
            work,
            batch=batch,
            num_tokens=num_tokens,
            num_active=num_active,
            num_text_tokens=num_text_tokens,
            keeps_text=keeps_text and num_active < num_tokens,
        )

    return RunCost(
        dense=sum(flops(call.batch, num_tokens) for call in calls),
        ras=sum(flops(call.num_rows, call.num_active) for call in calls),
    )


def _check_shape(batch: int, num_tokens: int, num_text_tokens: int) -> None:
    if batch < 1 or num_tokens < 1 or num_text_tokens < 0:
        raise RASError(
            f"batch={batch}, num_tokens={num_tokens}, num_text_tokens={num_text_tokens}; "
            "expected at least 1, 1 and 0"
        )
