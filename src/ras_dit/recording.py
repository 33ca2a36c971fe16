"""What the paper's figures need of a run beyond its trace: noise and latents of every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ras_dit.errors import RASError
from ras_dit.selection import METRIC_FUNCTIONS
from ras_dit.tokens import by_token
from ras_dit.trace import Trace


@dataclass(frozen=True, eq=False)
class Recording:
    """Every step of one run, on the CPU, in the dtypes of the run, before any forecast.

    It takes ``2 * steps`` times the memory of the latents: 28 steps of one 1024 x 1024 picture
    of Stable Diffusion 3 are 28 MiB in half precision.

    Attributes:
        trace: The record of the same run.
        noise_preds: Guided noise prediction of all tokens, per step ``[B, C, H, W]``.
        samples: Latents at the start of the step, ``[B, C, H, W]``.
    """

    trace: Trace
    noise_preds: tuple[torch.Tensor, ...]
    samples: tuple[torch.Tensor, ...]

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
            float32 ``[B, h, w]``.

        Raises:
            RASError: For another metric or a step outside the run.
        """
        self._check_step(step)
        if metric not in METRIC_FUNCTIONS:
            raise RASError(
                f"metric={metric!r} has no map; expected one of {', '.join(METRIC_FUNCTIONS)}"
            )
        noise, grid = self.noise_preds[step].float(), self.trace.grid
        score = METRIC_FUNCTIONS[metric](by_token(noise, noise.shape[-2] // grid.height))
        return score.view(-1, grid.height, grid.width)

    def predicted_latents(self, step: int) -> torch.Tensor:
        """The clean latents that a step's velocity points at: ``x - sigma * v``.

        Args:
            step: Index of the step.

        Returns:
            float32 ``[B, C, H, W]``.

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
