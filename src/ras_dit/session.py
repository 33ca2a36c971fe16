"""The state of one generation: plan, active tokens, drop counts, caches by branch, record.

A session knows nothing of hooks and modules. It is told when the transformer is about to be
called and what the scheduler is about to get; it answers what to compute, and what to hand on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ras_dit.cache import BranchCache, FreshRows, TokenOrder
from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.public_code import PublicCode
from ras_dit.recording import Recording
from ras_dit.schedule import StepPlan, plan_steps, selective_window
from ras_dit.selection import (
    METRIC_FUNCTIONS,
    choose,
    choose_as_public_code,
    count_drops,
    priority,
)
from ras_dit.tokens import TokenGrid, flat_rows
from ras_dit.trace import Call, StepTrace, Trace, pack_active


@dataclass(frozen=True)
class RunShape:
    """What is known of a run at its first transformer call.

    Attributes:
        transformer: Class name of the transformer.
        grid: Image tokens of one picture.
        num_text_tokens: Text tokens T.
        dtype: dtype of the transformer's input.
        num_evaluations: Calls of ``scheduler.step`` to come.
        sigmas: Noise levels of those calls and the last one, where the scheduler has them.
    """

    transformer: str
    grid: TokenGrid
    num_text_tokens: int
    dtype: torch.dtype
    num_evaluations: int
    sigmas: torch.Tensor | None


@dataclass
class TransformerCall:
    """One call of the transformer under way.

    Attributes:
        cache: The branch's caches, to be filled or used.
        num_tokens: Image tokens N.
        fills_caches: Whether a dense call has to leave keys, values and outputs behind.
        fresh: The rows that a sparse call computes; ``None`` in a dense call.
        rows: The same as row numbers in ``[B * N, ...]``.
    """

    cache: BranchCache
    num_tokens: int
    fills_caches: bool
    fresh: FreshRows | None = None
    rows: torch.Tensor | None = None


class Session:
    """One generation, from ``set_timesteps`` to the last ``scheduler.step``.

    Args:
        config: The configuration.
        order: Where image tokens stand in the attended sequence.
        shape: What is known of the run.
        by_token: Sorts the guided noise prediction by token, ``[B, N, P, C]``.
        replay: A recorded run whose active tokens are taken over.
        record: Whether to keep the noise and the latents of every step.

    Raises:
        RASError: If the configuration does not fit the run.
    """

    def __init__(
        self,
        config: RASConfig,
        order: TokenOrder,
        shape: RunShape,
        by_token: Callable[[torch.Tensor], torch.Tensor],
        replay: Trace | None = None,
        *,
        record: bool = False,
    ) -> None:
        self.config = config
        self.shape = shape
        self._replayed = replay
        self._record = record
        self._recorded: list[tuple[torch.Tensor, torch.Tensor]] = []
        if replay is None:
            self.plans = plan_steps(config, shape.num_evaluations, shape.grid.num_tokens)
        else:
            self.plans = replayed_plans(replay, shape)
        self.thread = threading.get_ident()
        self._order = order
        self._by_token = by_token
        self._index = 0
        self._branches: dict[int, BranchCache] = {}
        self._calls: list[Call] = []
        self._active: torch.Tensor | None = None
        self._drops: torch.Tensor | None = None
        self._generator: torch.Generator | None = None
        self._rows_by_batch: dict[int, tuple[FreshRows, torch.Tensor]] = {}
        self._images = 0
        self._cache_bytes = 0
        self._records: list[tuple[StepPlan, tuple[Call, ...], torch.Tensor | None]] = []

    @property
    def finished(self) -> bool:
        """Whether the last step was made."""
        return self._index >= len(self.plans)

    @property
    def called(self) -> bool:
        """Whether the transformer was called since the last step."""
        return bool(self._calls)

    @property
    def is_dense(self) -> bool:
        """Whether no step of the run is sparse."""
        return all(plan.kind == "dense" for plan in self.plans)

    def begin_call(self, batch: int, signature: object) -> TransformerCall:
        """Decide what the next transformer call computes.

        Calls are told apart by their number since the last step: guidance calls the transformer
        again for every branch that is not in the same batch.

        Args:
            batch: Rows of the model batch.
            signature: Everything about the call that has to be as in the call that filled the
                caches (shapes, dtype, device, skipped layers, ...).
        """
        plan = self.plans[self._index]
        branch = len(self._calls)
        cache = self._branches.get(branch)
        usable = (
            plan.kind == "sparse"
            and cache is not None
            and cache.filled
            and cache.signature == signature
            and batch % self._images == 0
        )
        num_tokens = self.shape.grid.num_tokens
        if usable:
            assert cache is not None
            fresh, rows = self._rows_for(batch)
            self._calls.append(Call(batch, plan.num_active))
            return TransformerCall(cache, num_tokens, False, fresh, rows)
        self._branches.pop(branch, None)
        cache = BranchCache(signature)
        fills = self._index + 1 < len(self.plans) and self.plans[self._index + 1].kind == "sparse"
        if fills:
            self._branches[branch] = cache
        self._calls.append(Call(batch, num_tokens))
        return TransformerCall(cache, num_tokens, fills)

    def transform(
        self, noise_pred: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the scheduler gets in place of the guided noise and the sample.

        Held outputs are merged by the transformer's own output already, so this is the identity.
        """
        if self._record:
            # Copies: pipelines and schedulers may write to either.
            kept = noise_pred.to("cpu", copy=True), sample.to("cpu", copy=True)
            self._recorded.append(kept)
        return noise_pred, sample

    def end_step(self, noise_pred: torch.Tensor) -> bool:
        """Record a step, choose the active tokens of the next; say whether it was the last.

        Args:
            noise_pred: The guided noise prediction of all tokens, as the scheduler gets it.

        Raises:
            RASError: If a metric of the caller's returns something else than scores.
        """
        plan = self.plans[self._index]
        self._images = noise_pred.shape[0]
        num_tokens = self.shape.grid.num_tokens
        if all(call.num_active == num_tokens for call in self._calls):
            # No branch could use its caches, so the step was a dense one, planned or not.
            plan = replace(plan, kind="dense", num_active=num_tokens)
        packed = None
        if plan.kind == "sparse" and self._active is not None:
            packed = pack_active(self._active, self.shape.grid.num_tokens)
        self._records.append((plan, tuple(self._calls), packed))
        self._cache_bytes = max(
            self._cache_bytes, sum(cache.nbytes for cache in self._branches.values())
        )
        self._calls.clear()
        self._rows_by_batch.clear()
        self._index += 1
        if self.finished:
            return True
        if plan.kind == "dense" and self.config.starvation == "since_refresh":
            self._drops = None
        if self.plans[self._index].kind == "sparse":
            self._active = self._select(noise_pred, self.plans[self._index])
        return False

    def close(self) -> None:
        """Free every tensor but the record's."""
        self._branches.clear()
        self._rows_by_batch.clear()
        self._active = self._drops = self._generator = None

    def trace(self) -> Trace:
        """The record as a :class:`Trace`; reads the noise levels from their device."""
        sigmas = None if self.shape.sigmas is None else self.shape.sigmas.tolist()
        grid = self.shape.grid
        return Trace(
            transformer=self.shape.transformer,
            grid=grid,
            num_text_tokens=self.shape.num_text_tokens,
            batch_size=self._images,
            dtype=str(self.shape.dtype).removeprefix("torch."),
            cache_bytes=self._cache_bytes,
            steps=tuple(
                StepTrace(
                    index=plan.index,
                    kind=plan.kind,
                    sigma=None if sigmas is None else sigmas[plan.index],
                    num_tokens=grid.num_tokens,
                    calls=calls,
                    packed=packed,
                )
                for plan, calls, packed in self._records
            ),
        )

    def recording(self) -> Recording | None:
        """What was recorded, if anything was to be."""
        if not self._record:
            return None
        noise_preds, samples = zip(*self._recorded, strict=True)
        return Recording(self.trace(), noise_preds, samples)

    def _rows_for(self, batch: int) -> tuple[FreshRows, torch.Tensor]:
        """The active set repeated over the guidance branches of one batch."""
        if batch not in self._rows_by_batch:
            assert self._active is not None
            active = self._active.repeat(batch // self._images, 1)
            num_tokens = self.shape.grid.num_tokens
            fresh = FreshRows(active, num_tokens, self._order, self._images)
            self._rows_by_batch[batch] = fresh, flat_rows(active, num_tokens)
        return self._rows_by_batch[batch]

    def _select(self, noise_pred: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """The active tokens of the next step."""
        if self._replayed is not None:
            return self._replayed_set(plan, noise_pred)
        if plan.repeats_active and self._active is not None:
            return self._active
        if self._drops is None:
            shape = noise_pred.shape[0], self.shape.grid.num_tokens
            self._drops = torch.zeros(shape, device=noise_pred.device)
        if self.config.public_code is None:
            ranks = priority(
                self._score(noise_pred),
                self._drops,
                self.config.kept_scores,
                self.config.starvation_scale,
            )
            active = choose(ranks, plan.num_active)
        else:
            active = self._select_as_public_code(self.config.public_code, noise_pred, plan)
        self._drops = count_drops(self._drops, active, self.config.starvation)
        return active

    def _select_as_public_code(
        self, public: PublicCode, noise_pred: torch.Tensor, plan: StepPlan
    ) -> torch.Tensor:
        sigmas, steps = self.shape.sigmas, len(self.plans)
        if sigmas is None or noise_pred.shape[0] != 1 or not isinstance(self.config.metric, str):
            raise RASError(
                f"the public code makes one image at a time with a scheduler that has sigmas; this "
                f"run has {noise_pred.shape[0]} images; use RASConfig.paper instead"
            )
        assert self._drops is not None
        start, _ = selective_window(self.config, steps)
        tokens = self.shape.grid.num_tokens
        dropped = public.count_dropped(plan.index, self.config.sample_ratio, start, steps, tokens)
        return choose_as_public_code(
            self._by_token(noise_pred),
            (sigmas[plan.index] - sigmas[plan.index - 1]).to(noise_pred.device),
            # Counts start at minus the number of noise levels, the last one included.
            self._drops - (steps + 1),
            public.split(dropped)[0],
            plan.num_active,
            METRIC_FUNCTIONS[self.config.metric],
        )

    def _replayed_set(self, plan: StepPlan, noise_pred: torch.Tensor) -> torch.Tensor:
        assert self._replayed is not None
        active = self._replayed.steps[plan.index].active
        assert active is not None
        if active.shape[0] != noise_pred.shape[0]:
            raise RASError(
                f"the replayed trace has {active.shape[0]} images, and this run makes "
                f"{noise_pred.shape[0]}; give as many prompts as the recorded run had"
            )
        return active.to(noise_pred.device, non_blocking=True)

    def _score(self, noise_pred: torch.Tensor) -> torch.Tensor:
        expected = noise_pred.shape[0], self.shape.grid.num_tokens
        metric = self.config.metric
        if metric == "random":
            if self._generator is None:
                self._generator = torch.Generator(noise_pred.device).manual_seed(self.config.seed)
            return torch.rand(expected, generator=self._generator, device=noise_pred.device)
        function = metric if callable(metric) else METRIC_FUNCTIONS[metric]
        score = function(self._by_token(noise_pred.float()))
        if getattr(score, "shape", None) != expected:
            got = tuple(getattr(score, "shape", ())) or type(score).__name__
            raise RASError(
                f"the metric {metric!r} returned {got}; expected one score per token, a tensor "
                f"of shape {expected} (images, tokens)"
            )
        return score.float()


def replayed_plans(trace: Trace, shape: RunShape) -> tuple[StepPlan, ...]:
    """The plan of a run that repeats the active tokens of a recorded one.

    Raises:
        RASError: If the run has another transformer, grid or number of steps.
    """
    recorded = trace.transformer, trace.grid, len(trace.steps)
    current = shape.transformer, shape.grid, shape.num_evaluations
    if recorded != current:
        raise RASError(
            "the replayed trace does not fit this run: it is of a {} with {} and {} steps, and "
            "this is a {} with {} and {} steps; use the recorded model, size and "
            "num_inference_steps".format(*recorded, *current)
        )
    return tuple(
        StepPlan(step.index, "dense" if step.kind == "dense" else "sparse", step.num_active)
        for step in trace.steps
    )
