"""Takes down what a run does while it is under way."""

from __future__ import annotations

import torch

from ras_dit.calls import RunShape
from ras_dit.recording import Recording
from ras_dit.schedule import StepPlan
from ras_dit.tokens import TokenSort
from ras_dit.trace import Call, StepTrace, Trace, pack_active


class Recorder:
    """The steps of one run, of which a :class:`Trace` is made when somebody asks for it.

    Args:
        shape: What is known of the run.
        sort: Sorts its latents by token.
        keeps_text: Whether sparse steps keep the text.
        keeps_latents: Whether to keep the noise and the latents of every step, on the CPU.
    """

    def __init__(
        self, shape: RunShape, sort: TokenSort, *, keeps_text: bool, keeps_latents: bool
    ) -> None:
        self._shape = shape
        self._sort = sort
        self._keeps_text = keeps_text
        self._keeps_latents = keeps_latents
        self._latents: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._steps: list[tuple[StepPlan, tuple[Call, ...], torch.Tensor | None]] = []
        self._images = 0
        self._cache_bytes = 0

    def before_step(self, noise_pred: torch.Tensor, sample: torch.Tensor) -> None:
        """Keep what the scheduler is about to get, if that is wanted."""
        if self._keeps_latents:
            # Copies: pipelines and schedulers may write to either.
            kept = noise_pred.to("cpu", copy=True), sample.to("cpu", copy=True)
            self._latents.append(kept)

    def end_step(
        self,
        plan: StepPlan,
        calls: tuple[Call, ...],
        active: torch.Tensor | None,
        *,
        images: int,
        cache_bytes: int,
    ) -> None:
        """Take down a step.

        Args:
            plan: What it turned out to be.
            calls: Its calls of the transformer.
            active: Its active tokens, int64 ``[B, A]``; ``None`` in a dense step.
            images: B.
            cache_bytes: What the caches take.
        """
        # Packed when somebody asks for the trace: a step's time counts, a set's memory does not.
        self._steps.append((plan, calls, active))
        self._images = images
        self._cache_bytes = max(self._cache_bytes, cache_bytes)

    def trace(self) -> Trace:
        """The record as a :class:`Trace`; reads the noise levels from their device."""
        shape = self._shape
        sigmas = None if shape.sigmas is None else shape.sigmas.tolist()
        num_tokens = shape.grid.num_tokens
        return Trace(
            transformer=shape.transformer,
            grid=shape.grid,
            num_text_tokens=shape.layout.num_text,
            num_references=shape.layout.num_references,
            batch_size=self._images,
            dtype=str(shape.dtype).removeprefix("torch."),
            cache_bytes=self._cache_bytes,
            keeps_text=self._keeps_text,
            steps=tuple(
                StepTrace(
                    index=plan.index,
                    kind=plan.kind,
                    sigma=None if sigmas is None else sigmas[plan.index],
                    num_tokens=num_tokens,
                    calls=calls,
                    packed=None if active is None else pack_active(active, num_tokens),
                )
                for plan, calls, active in self._steps
            ),
        )

    def recording(self) -> Recording | None:
        """What was recorded, if anything was to be."""
        if not self._keeps_latents:
            return None
        noise_preds, samples = zip(*self._latents, strict=True)
        return Recording(self.trace(), noise_preds, samples, self._sort)
