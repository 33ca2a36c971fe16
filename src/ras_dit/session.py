"""The state of one generation: plan, active tokens, drop counts, caches by branch, record.

A session knows nothing of hooks and modules. It is told when the transformer is about to be
called and what the scheduler is about to get; it answers what to compute, and what to hand on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ras_dit.cache import BranchCache, FreshRows, TokenOrder
from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.schedule import StepPlan, plan_steps
from ras_dit.selection import METRIC_FUNCTIONS, choose, count_drops, priority
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
        sigmas: Noise levels of those calls, where the scheduler has them.
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
        by_token: Sorts the guided noise prediction by token, float32 ``[B, N, P, C]``.

    Raises:
        RASError: If the configuration does not fit the run.
    """

    def __init__(
        self,
        config: RASConfig,
        order: TokenOrder,
        shape: RunShape,
        by_token: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.config = config
        self.shape = shape
        self.plans = plan_steps(config, shape.num_evaluations, shape.grid.num_tokens)
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
        if self.plans[self._index].kind == "sparse":
            self._active = self._select(noise_pred, self.plans[self._index].num_active)
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

    def _rows_for(self, batch: int) -> tuple[FreshRows, torch.Tensor]:
        """The active set repeated over the guidance branches of one batch."""
        if batch not in self._rows_by_batch:
            assert self._active is not None
            active = self._active.repeat(batch // self._images, 1)
            num_tokens = self.shape.grid.num_tokens
            fresh = FreshRows(active, num_tokens, self._order)
            self._rows_by_batch[batch] = fresh, flat_rows(active, num_tokens)
        return self._rows_by_batch[batch]

    def _select(self, noise_pred: torch.Tensor, num_active: int) -> torch.Tensor:
        score = self._score(noise_pred)
        if self._drops is None:
            self._drops = torch.zeros_like(score)
        ranks = priority(score, self._drops, self.config.kept_scores, self.config.starvation_scale)
        active = choose(ranks, num_active)
        self._drops = count_drops(self._drops, active)
        return active

    def _score(self, noise_pred: torch.Tensor) -> torch.Tensor:
        expected = noise_pred.shape[0], self.shape.grid.num_tokens
        metric = self.config.metric
        if metric == "random":
            if self._generator is None:
                self._generator = torch.Generator(noise_pred.device).manual_seed(self.config.seed)
            return torch.rand(expected, generator=self._generator, device=noise_pred.device)
        function = metric if callable(metric) else METRIC_FUNCTIONS[metric]
        score = function(self._by_token(noise_pred))
        if getattr(score, "shape", None) != expected:
            got = tuple(getattr(score, "shape", ())) or type(score).__name__
            raise RASError(
                f"the metric {metric!r} returned {got}; expected one score per token, a tensor "
                f"of shape {expected} (images, tokens)"
            )
        return score.float()


def structure(value: Any) -> object:
    """What of a call's arguments the caches depend on: shapes and plain values, no contents."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, structure(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(structure(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value)
