"""What the paper's figures need of a run beyond its trace: noise and latents of every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ras_dit.errors import RASError
from ras_dit.selection import METRIC_FUNCTIONS
from ras_dit.tokens import TokenSort
from ras_dit.trace import Trace


@dataclass(frozen=True, eq=False)
class Recording:
    """Every step of one run, on the CPU, in the dtypes of the run, before any forecast.

    It takes ``2 * steps`` times the memory of the latents: 28 steps of one 1024 x 1024 picture
    of Stable Diffusion 3 are 28 MiB in half precision.

    Attributes:
        trace: The record of the same run.
        noise_preds: Guided noise prediction of all tokens, per step, as the scheduler gets it:
            ``[B, C, H, W]``, ``[B, C, F, H, W]`` or ``[B, F, C, H, W]`` (videos), or packed by
            the pipeline, ``[B, N, C * P]``.
        samples: Latents at the start of the step, of the same shape.
        sort: Sorts either by token.
    """

    trace: Trace
    noise_preds: tuple[torch.Tensor, ...]
    samples: tuple[torch.Tensor, ...]
    sort: TokenSort

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in (*self.noise_preds, *self.samples))

    def scores(self, step: int, metric: str = "std") -> torch.Tensor:
        """Score of every token after a step (Figs. 8 and 10).

        Args:
            step: Index of the step.
            metric: ``"std"`` or ``"l2"``.

        Returns:
            float32 ``[B, h, w]``, of a video ``[B, f, h, w]``. Tokens that the scheduler gets
            nothing of, as of given frames in front, have NaN.

        Raises:
            RASError: For another metric, a step outside the run, or one with other frames than
                the run began with.
        """
        self._check_step(step)
        if metric not in METRIC_FUNCTIONS:
            raise RASError(
                f"metric={metric!r} has no map; expected one of {', '.join(METRIC_FUNCTIONS)}"
            )
        score = METRIC_FUNCTIONS[metric](self.sort(self.noise_preds[step].float()))
        grid = self.trace.grid
        missing = grid.num_tokens - score.shape[1]
        if missing < 0:
            raise RASError(
                f"step {step} has {score.shape[1]} tokens, and the run began with "
                f"{grid.num_tokens}; expected a step before frames were added"
            )
        return F.pad(score, (missing, 0), value=float("nan")).view(-1, *grid.shape)

    def predicted_latents(self, step: int) -> torch.Tensor:
        """The clean latents that a step's velocity points at: ``x - sigma * v``.

        Args:
            step: Index of the step.

        Returns:
            float32, of the latents' shape.

        Raises:
            RASError: For a step outside the run or a scheduler without sigmas.
        """
        self._check_step(step)
        sigma = self.trace.steps[step].sigma
        if sigma is None:
            raise RASError(
                "the run's scheduler has no sigmas; record it with a flow-match scheduler"
            )
        return self.samples[step].float() - sigma * self.noise_preds[step].float()

    def _check_step(self, step: int) -> None:
        if not 0 <= step < len(self.samples):
            raise RASError(f"step={step}; the run has steps 0 to {len(self.samples) - 1}")
