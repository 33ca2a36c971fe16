"""The state of one generation: plan, active tokens, drop counts, caches by branch, record.

A session knows nothing of hooks and modules. It is told when the transformer is about to be
called and what the scheduler is about to get; it answers what to compute, and what to hand on.
"""

from __future__ import annotations

import functools
import itertools
import threading
from dataclasses import replace

import torch

from ras_dit.cache import BranchCache
from ras_dit.calls import RunShape, TransformerCall
from ras_dit.chooser import Chooser
from ras_dit.config import RASConfig
from ras_dit.fresh import FreshRows
from ras_dit.guidance import CallIdentity, Guidance
from ras_dit.key_clock import KeyClock
from ras_dit.multirate import Lines
from ras_dit.recorder import Recorder
from ras_dit.replay import replayed_plans, replayed_set
from ras_dit.rules import LineRules
from ras_dit.schedule import StepPlan, adapted, plan_steps
from ras_dit.storage import Buffers
from ras_dit.tokens import PixelMap, TokenOrder, TokenSort
from ras_dit.trace import Call, Trace


class Session:
    """One generation, from ``set_timesteps`` to the last ``scheduler.step``.

    Args:
        config: The configuration.
        order: Where image tokens stand in the attended sequence.
        shape: What is known of the run.
        sort: Sorts the guided noise prediction by token.
        replay: A recorded run whose active tokens are taken over.
        record: Whether to keep the noise and the latents of every step.
        buffers: Memory that outlives the run, for ``static_cache``.
        guidance: How guidance branches are stacked.

    Raises:
        RASError: If the configuration does not fit the run.
    """

    def __init__(
        self,
        config: RASConfig,
        order: TokenOrder,
        shape: RunShape,
        sort: TokenSort,
        replay: Trace | None = None,
        *,
        record: bool = False,
        buffers: Buffers | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        self.config = config
        self._storage = config.storage
        self._buffers = Buffers() if buffers is None else buffers
        self.shape = shape
        self._replayed = replay
        self.recorder = Recorder(
            shape, sort, keeps_text=config.text == "keep", keeps_latents=record
        )
        if replay is None:
            self.plans = plan_steps(config, shape.num_evaluations, shape.grid.num_tokens)
        else:
            self.plans = replayed_plans(replay, shape)
        self.guidance = Guidance() if guidance is None else guidance
        self.thread = threading.get_ident()
        self._order = order
        self._chooser = Chooser(
            config,
            sort,
            num_tokens=shape.grid.num_tokens,
            num_steps=len(self.plans),
            sigmas=shape.sigmas,
        )
        self._sort = sort
        self._lines: Lines | None = None
        self._times: torch.Tensor | None = None
        self._index = 0
        self._branches: dict[tuple[int, int], BranchCache] = {}
        self._first_part = 0
        self._calls: list[Call] = []
        self._active: torch.Tensor | None = None
        self._given: torch.Tensor | None = None
        self._fresh_by_batch: dict[int, FreshRows] = {}
        self._images = 0
        self.num_branches = 0.0
        self._outgrown = False

    @property
    def finished(self) -> bool:
        """Whether the last step was made."""
        return self._index >= len(self.plans)

    @property
    def begun(self) -> bool:
        """Whether a step was made."""
        return self._index > 0

    @property
    def made_one_step(self) -> bool:
        """Whether exactly one step was made."""
        return self._index == 1

    @property
    def called(self) -> bool:
        """Whether the transformer was called since the last step."""
        return bool(self._calls)

    @property
    def is_dense(self) -> bool:
        """Whether no step of the run is sparse."""
        return all(plan.kind == "dense" for plan in self.plans)

    @property
    def halves_steps(self) -> bool:
        """Whether some step is to run one guidance branch only."""
        return any(plan.halves_guidance for plan in self.plans)

    def begin_call(
        self,
        part: int,
        batch: int,
        signature: object,
        *,
        starts: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
        latents: torch.Size | None = None,
        divisible: bool = False,
    ) -> TransformerCall:
        """Decide what the next transformer call computes.

        Calls are told apart by their number since the last step: guidance calls the transformer
        again for every branch that is not in the same batch.

        Args:
            part: Which of the pipeline's transformers is called.
            batch: Rows of the model batch.
            signature: Everything about the call that has to be as in the call that filled the
                caches (shapes, dtype, device, skipped layers, ...).
            starts: First image token of each row, int64 ``[batch]``, where that is a matter of
                the row.
            given: Tokens that are no work because they are given, bool ``[batch, N]``.
            latents: Sizes of one image's latents.
            divisible: Whether one guidance branch of the batch may run without the other, in a run
                with halved steps.
        """
        if latents is not None and self.shape.latents not in {None, latents}:
            # Frames were added or left out in mid-run: what is known of tokens is of others now.
            self._outgrown = True
        plan = self.plans[self._index]
        if not self._calls and part != self._first_part:
            # Its turn is over: Wan 2.2 has one transformer for high noise levels, one for low.
            self._first_part = part
            self._branches = {key: kept for key, kept in self._branches.items() if key[0] == part}
        branch = part, len(self._calls)
        cache = self._branches.get(branch)
        self._given = given
        usable = (
            not self._outgrown
            and plan.kind == "sparse"
            and cache is not None
            and (cache.filled or plan.num_active == 0)
            and cache.signature == signature
            and batch % self._images == 0
        )
        layout = self.shape.layout
        repeats = not self._outgrown and self._may_skip_next()
        identity = branch, signature, batch
        fills = not self._outgrown and self._sparse_follows(within=2 if self._moves_keys else 1)
        may_halve = usable if plan.kind == "sparse" else not (fills or self._outgrown)
        if plan.halves_guidance and divisible and may_halve:
            spared = self._begin_spared(identity, plan, starts, repeats=repeats)
            if spared is not None:
                return spared
        finish = functools.partial(self.guidance.note, identity) if divisible else None
        if usable and (plan.num_active or (cache is not None and cache.returned is not None)):
            assert cache is not None
            self._calls.append(Call(batch, plan.num_active))
            if plan.num_active == 0:
                return TransformerCall(cache, layout.num_image, False, is_skipped=True)
            fresh = self._fresh_rows(branch, batch, starts, cache.clock)
            return TransformerCall(
                cache, layout.num_image, False, fresh, is_repeated=repeats, finish=finish
            )
        before = self._branches.pop(branch, None)
        cache = BranchCache(signature, self._storage, branch, self._buffers, starts=starts)
        if fills and self._moves_keys:
            self._start_clock(cache, before)
        if fills or repeats:
            self._branches[branch] = cache
        self._calls.append(Call(batch, layout.grid.num_tokens))
        num_image = 0 if self._outgrown else layout.num_image
        return TransformerCall(cache, num_image, fills, is_repeated=repeats, finish=finish)

    def _begin_spared(
        self,
        identity: CallIdentity,
        plan: StepPlan,
        starts: torch.Tensor | None,
        *,
        repeats: bool,
    ) -> TransformerCall | None:
        """A call of which one guidance branch is not computed; ``None`` where both have to be."""
        branch, signature, batch = identity
        spared = self.guidance.spares(identity)
        if spared is None:
            return None
        cache = self._branches.get(branch)
        is_sparse = plan.kind == "sparse"
        if not is_sparse:
            # Caches are refreshed before they are used again; this one knows what was returned.
            cache = BranchCache(signature, self._storage, branch, self._buffers)
            self._branches.pop(branch, None)
            if repeats:
                self._branches[branch] = cache
        assert cache is not None
        num_image = self.shape.layout.num_image
        if spared == "all":
            self._calls.append(Call(batch, plan.num_active, 0))
            part, number = branch
            first = self._branches.get((part, number - 1)) if is_sparse else None
            self.guidance.answer(cache, first)
            return TransformerCall(cache, num_image, False, is_skipped=True)
        half = self.guidance.half(batch)
        self._calls.append(Call(batch, plan.num_active, half.count))
        fresh, used = None, cache
        if is_sparse:
            first_rows = None if starts is None else half.take(starts, lists=False)
            fresh = self._fresh_rows(branch, half.count, first_rows, None)
            used = cache.cut(half.first, half.count, by_operation=self.guidance.by_operation)
        finish = functools.partial(self.guidance.completed, half, cache, is_repeated=repeats)
        return TransformerCall(used, num_image, False, fresh, half=half, finish=finish)

    def _sparse_follows(self, *, within: int = 1) -> bool:
        """Whether one of the next steps that are not skipped is a sparse one."""
        kinds = (plan.kind for plan in self.plans[self._index + 1 :] if plan.num_active)
        return "sparse" in itertools.islice(kinds, within)

    @property
    def _moves_keys(self) -> bool:
        return self.config.forecast_keys > 0 and self.shape.has_lines

    def _start_clock(self, cache: BranchCache, before: BranchCache | None) -> None:
        """Forecast the keys of a dense call, whose changes are since the branch's last ones."""
        if before is None or not before.filled or before.signature != cache.signature:
            before = None
        cache.clock = KeyClock(
            self.config.forecast_keys,
            self.config.forecast_age,
            self._index,
            None if before is None else before.clock,
        )
        if before is not None:
            for layer in before.layers.values():
                layer.hold()
        if self._sparse_follows():
            cache.before = {} if before is None else before.layers

    def _may_skip_next(self) -> bool:
        """Whether the next step may do without the transformer."""
        following = self.plans[self._index + 1 : self._index + 2]
        adapts = self.config.tolerance is not None
        return any(plan.num_active == 0 or adapts for plan in following if plan.kind == "sparse")

    def without_lines(self) -> None:
        """Nothing is put on lines: the scheduler's steps are others than its noise levels say."""
        if self._moves_keys:
            # What was made ready to move is computed anew.
            self._branches.clear()
        self.shape = replace(self.shape, is_euler=False)

    def transform(
        self, noise_pred: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the scheduler gets in place of the guided noise and the sample.

        Held outputs are merged by the transformer's own output already, so this is the identity
        but for forecasts, solvers and corrections (:mod:`ras_dit.multirate`).
        """
        self.recorder.before_step(noise_pred, sample)
        if self._wants_lines and not self._outgrown:
            if self._lines is None:
                self._lines = self._new_lines(noise_pred)
            active = None if self._was_dense else self._active
            noise_pred, sample = self._lines.advance(noise_pred, sample, active, self._index)
        return noise_pred, sample

    def end_step(self, noise_pred: torch.Tensor) -> bool:
        """Record a step, choose the active tokens of the next; say whether it was the last.

        Args:
            noise_pred: The guided noise prediction of all tokens, held outputs among them.

        Raises:
            RASError: If a metric of the caller's returns something else than scores.
        """
        plan = self.plans[self._index]
        self._images = noise_pred.shape[0]
        num_tokens = self.shape.grid.num_tokens
        if self._was_dense:
            # No branch could use its caches, so the step was a dense one, planned or not.
            plan = replace(plan, kind="dense", num_active=num_tokens)
        self.recorder.end_step(
            plan,
            tuple(self._calls),
            self._active if plan.kind == "sparse" else None,
            images=self._images,
            cache_bytes=sum(cache.nbytes for cache in self._branches.values()),
        )
        self.num_branches = sum(call.batch for call in self._calls) / self._images
        if self.halves_steps:
            self.guidance.end_step(self._images, self._branches)
        self._calls.clear()
        self._fresh_by_batch.clear()
        self._index += 1
        if self.finished:
            return True
        if plan.kind == "dense":
            self._chooser.refreshed()
        if self.plans[self._index].kind == "sparse" and not self._outgrown:
            if self.config.is_data_driven and self._lines is not None and self._replayed is None:
                errors = self._lines.expected_shares(self._index)
                count = self._chooser.count(errors, self.plans[self._index].num_active)
                self.plans = adapted(self.plans, self._index, count, num_tokens)
            self._active = self._select(noise_pred, self.plans[self._index])
        return False

    def _select(self, noise_pred: torch.Tensor, plan: StepPlan) -> torch.Tensor | None:
        """The active tokens of the next step; ``None`` if all are."""
        if self._replayed is not None:
            return replayed_set(self._replayed, plan.index, noise_pred)
        if plan.repeats_active and self._active is not None:
            return self._active
        if plan.kind == "dense":
            return None
        if plan.num_active == 0:
            return torch.empty(self._images, 0, dtype=torch.int64, device=noise_pred.device)
        errors = None
        if self.config.metric == "innovation" and self._lines is not None:
            errors = self._lines.predicted_errors(plan.index)
        return self._chooser.choose(noise_pred, plan, self._given, errors)

    @property
    def _was_dense(self) -> bool:
        """Whether all calls of the step computed all tokens, planned or not."""
        num_tokens = self.shape.grid.num_tokens
        return all(call.num_active == num_tokens for call in self._calls)

    @property
    def _wants_lines(self) -> bool:
        is_changed = self.shape.has_lines and self.config.line_rules.changes_steps
        return is_changed or self.config.metric == "innovation" or self.config.is_data_driven

    def _new_lines(self, noise_pred: torch.Tensor) -> Lines:
        """Over the scheduler's noise levels, or, where it has no Euler steps, over step numbers."""
        shape = self.shape
        if shape.has_lines:
            assert shape.sigmas is not None
            rules, times = self.config.line_rules, shape.sigmas.to(noise_pred.device)
        else:
            rules = LineRules()
            times = torch.arange(len(self.plans) + 1, device=noise_pred.device)
        num_tokens = shape.grid.num_tokens
        pixels = PixelMap(noise_pred, self._sort, num_tokens)
        return Lines(rules, pixels, num_tokens, times)

    def close(self) -> None:
        """Free every tensor but the record's."""
        self._branches.clear()
        if not self._storage.static:
            self._buffers.clear()
        self._fresh_by_batch.clear()
        self._chooser.forget()
        self.guidance.forget()
        self._active = self._given = self._lines = self._times = None

    def _fresh_rows(
        self,
        branch: tuple[int, int],
        batch: int,
        starts: torch.Tensor | None,
        clock: KeyClock | None,
    ) -> FreshRows:
        """The active set repeated over the guidance branches of one batch."""
        is_shared = starts is None and clock is None
        if is_shared and batch in self._fresh_by_batch:
            return self._fresh_by_batch[batch]
        assert self._active is not None
        layout = self.shape.layout
        active = self._active.repeat(batch // self._images, 1)
        if layout.offset:
            active = active + layout.offset
        keeps_text = self.config.text == "keep"
        ahead = None
        if clock is not None:
            assert self.shape.sigmas is not None
            if self._times is None:
                self._times = self.shape.sigmas.to(active.device, torch.float32)
            ahead = clock.advance(
                self._times, self._index, active, layout.num_image, keeps_text=keeps_text
            )
        fresh = FreshRows(
            active,
            layout.num_image,
            self._order,
            self._images,
            starts,
            keeps_text=keeps_text,
            ahead=ahead,
            keep=functools.partial(self._keep_rows, branch) if self._storage.static else None,
        )
        if is_shared:
            self._fresh_by_batch[batch] = fresh
        return fresh

    def _keep_rows(self, branch: object, name: object, rows: torch.Tensor) -> torch.Tensor:
        return self._buffers.keep((branch, name, tuple(rows.shape)), rows)
