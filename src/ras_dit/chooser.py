"""The active tokens of the next step: scores and drop counts over one run.

The state that selection keeps from step to step; its formulas are in :mod:`ras_dit.selection`.
Shape letters: B images, N image tokens, A active tokens, P latent pixels per token, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.public_code import PublicCode
from ras_dit.schedule import StepPlan, count_active, selective_window
from ras_dit.selection import (
    METRIC_FUNCTIONS,
    PIXEL_FUNCTIONS,
    choose,
    choose_as_public_code,
    count_drops,
    overdue_first,
    priority,
)
from ras_dit.tokens import TokenSort


class Chooser:
    """Chooses active tokens, step after step.

    Args:
        config: The configuration.
        sort: Sorts the guided noise prediction by token.
        num_tokens: Image tokens N of one picture.
        num_steps: Steps of the run.
        sigmas: Noise levels of those steps and the last one, where there are any.
    """

    def __init__(
        self,
        config: RASConfig,
        sort: TokenSort,
        *,
        num_tokens: int,
        num_steps: int,
        sigmas: torch.Tensor | None,
    ) -> None:
        self._config = config
        self._sort = sort
        self._num_tokens = num_tokens
        self._num_steps = num_steps
        self._sigmas = sigmas
        self._drops: torch.Tensor | None = None
        self._in_a_row: torch.Tensor | None = None
        self._generator: torch.Generator | None = None
        self._has_checked = False

    def choose(
        self,
        noise_pred: torch.Tensor,
        plan: StepPlan,
        given: torch.Tensor | None,
        errors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The active tokens of the planned step, sorted, int64 ``[B, A]``.

        Args:
            noise_pred: The guided noise prediction of the step before, as the scheduler gets it.
            plan: The step.
            given: Tokens that are no work because they are given, bool ``[rows, N]``; the images
                are its first rows.
            errors: Scores of the ``"innovation"`` metric, ``[B, N]``.

        Raises:
            RASError: If a metric of the caller's returns something else than scores, or first
                scores that are negative or not finite, or the run is none that the public code
                could make.
        """
        if self._drops is None:
            shape = noise_pred.shape[0], self._num_tokens
            self._drops = torch.zeros(shape, device=noise_pred.device)
        if self._config.public_code is None:
            active = choose(self._priorities(noise_pred, given, errors), plan.num_active)
        else:
            active = self._as_public_code(self._config.public_code, noise_pred, plan)
        self._drops = count_drops(self._drops, active, self._config.starvation)
        if self._in_a_row is not None:
            self._in_a_row = count_drops(self._in_a_row, active, "since_refresh")
        return active

    def count(self, errors: torch.Tensor, planned: int) -> int:
        """As many active tokens as the expected errors ask for; reads two numbers back.

        Args:
            errors: As shares of the output's root mean square, ``[B, N]``.
            planned: Active tokens that the plan has for the step.
        """
        config = self._config
        too_wrong = errors > (config.tolerance or float("inf"))
        neediest = torch.stack([too_wrong.sum(1).max(), errors.square().mean(1).max().sqrt()])
        count, overall = neediest.tolist()
        if config.reset_tolerance is not None and overall > config.reset_tolerance:
            return self._num_tokens
        if config.tolerance is None:
            return planned
        granule, every = config.granularity, self._num_tokens
        # A planned skip has no number of its own to halve.
        whole = planned or count_active(config.sample_ratio, every, granule)
        half = min(whole, -(-whole // (2 * granule)) * granule)
        return next(level for level in (0, half, whole, every) if level >= count)

    def refreshed(self) -> None:
        """A dense step was made."""
        if self._config.starvation == "since_refresh":
            self._drops = None

    def forget(self) -> None:
        """Free every tensor."""
        self._drops = self._in_a_row = self._generator = None

    def _priorities(
        self, noise_pred: torch.Tensor, given: torch.Tensor | None, errors: torch.Tensor | None
    ) -> torch.Tensor:
        """What ranks the tokens of each image, ``[B, N]``."""
        score = self._score(noise_pred) if errors is None else errors
        # Given frames in front are no part of what the scheduler gets.
        missing = self._num_tokens - score.shape[1]
        if missing:
            score = F.pad(score, (missing, 0), value=1.0)
        assert self._drops is not None
        config = self._config
        ranks = priority(score, self._drops, config.kept_scores, config.drop_weight)
        if config.longest_drop is not None:
            if self._in_a_row is None:
                self._in_a_row = torch.zeros_like(ranks)
            ranks = overdue_first(ranks, self._in_a_row, config.longest_drop)
        if missing:
            ranks[:, :missing] = float("-inf")
        if given is not None:
            ranks.masked_fill_(given[: ranks.shape[0]], float("-inf"))
        return ranks

    def _score(self, noise_pred: torch.Tensor) -> torch.Tensor:
        metric = self._config.metric
        if isinstance(metric, str) and metric in PIXEL_FUNCTIONS:
            return self._pixel_score(PIXEL_FUNCTIONS[metric], noise_pred.float())
        if not callable(metric):
            if noise_pred.ndim > 3:  # sorting one channel tells the number of tokens
                dim = self._sort.channel_dim(noise_pred)
                noise_pred = noise_pred.narrow(dim, 0, 1)
            expected = tuple(self._sort(noise_pred).shape[:2])
            if self._generator is None:
                self._generator = torch.Generator(noise_pred.device).manual_seed(self._config.seed)
            return torch.rand(expected, generator=self._generator, device=noise_pred.device)
        noise = self._sort(noise_pred.float())
        expected = tuple(noise.shape[:2])
        score = metric(noise)
        if tuple(getattr(score, "shape", ())) != expected:
            got = tuple(getattr(score, "shape", ())) or type(score).__name__
            raise RASError(
                f"the metric {metric!r} returned {got}; expected one score per token, a tensor "
                f"of shape {expected} (images, tokens)"
            )
        score = score.float()
        if not self._has_checked:
            self._has_checked = True
            _check_scores(metric, score)
        return score

    def _pixel_score(
        self, function: Callable[[torch.Tensor, int], torch.Tensor], noise: torch.Tensor
    ) -> torch.Tensor:
        if noise.ndim == 3:  # packed: sorted by token already, channels before pixels
            return function(self._sort(noise).transpose(2, 3), 2).mean(dim=(2, 3))
        return self._sort.means(function(noise, self._sort.channel_dim(noise)))

    def _as_public_code(
        self, public: PublicCode, noise_pred: torch.Tensor, plan: StepPlan
    ) -> torch.Tensor:
        sigmas, steps = self._sigmas, self._num_steps
        if sigmas is None or noise_pred.shape[0] != 1 or not isinstance(self._config.metric, str):
            raise RASError(
                f"the public code makes one image at a time with a scheduler that has sigmas; this "
                f"run has {noise_pred.shape[0]} images; use RASConfig.paper instead"
            )
        assert self._drops is not None
        start, _ = selective_window(self._config, steps)
        tokens = self._num_tokens
        dropped = public.count_dropped(plan.index, self._config.sample_ratio, start, steps, tokens)
        return choose_as_public_code(
            self._sort(noise_pred),
            (sigmas[plan.index] - sigmas[plan.index - 1]).to(noise_pred.device),
            # Counts start at minus the number of noise levels, the last one included.
            self._drops - (steps + 1),
            public.split(dropped)[0],
            plan.num_active,
            METRIC_FUNCTIONS[self._config.metric],
        )


def _check_scores(metric: object, score: torch.Tensor) -> None:
    """Refuse scores that rank nothing; waits for the device, so once a run is enough."""
    smallest, wrong = torch.stack([score.min(), (~score.isfinite()).sum()]).tolist()
    if wrong:
        raise RASError(
            f"the metric {metric!r} returned {wrong:.0f} of {score.numel()} scores that are not "
            "finite; expected finite ones >= 0: guard its divisions and logarithms, or run the "
            "model in float32 if the noise that it gets is not finite"
        )
    if smallest < 0:
        raise RASError(
            f"the metric {metric!r} returned scores down to {smallest:g}; expected finite ones "
            ">= 0: return their absolute values, or their exponentials if only the order counts"
        )
