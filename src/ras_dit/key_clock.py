"""When keys and values were computed, and how far ahead of that a step asks for them.

Held keys and values couple a token that is computed to old ones of the others, an error of order 0
in the noise level. Moved along their last change, from one refresh of a token to the next, they are
good to order 1: ``K + w * (K - K_before)`` with ``w = damping * (t_n - t) / (t - t_before)``. The
weight w is one number per token and step, the same for every layer.

Shape letters: R rows of the model batch, N image tokens, A active ones.
"""

from __future__ import annotations

import torch

# Before the first refresh.
_NEVER = -1


class KeyClock:
    """The steps of each token's last two refreshes, within one guidance branch.

    Made by a dense call, which refreshes everything; text counts as one more token.

    Args:
        damping: Factor of every change, in (0, 1].
        longest: Steps after a refresh over which a change goes on; ``None`` for no limit.
        step: The step of the dense call.
        before: The clock of the branch's earlier keys, if these are known.
    """

    def __init__(
        self,
        damping: float,
        longest: int | None,
        step: int,
        before: KeyClock | None = None,
    ) -> None:
        self._damping = damping
        self._longest = longest
        # One number as long as it is that of all tokens.
        self.last: int | torch.Tensor = step
        self._before: int | torch.Tensor = _NEVER if before is None else before.last

    def advance(
        self,
        times: torch.Tensor,
        step: int,
        active: torch.Tensor,
        num_tokens: int,
        *,
        keeps_text: bool,
    ) -> torch.Tensor:
        """What a sparse step asks for; what it computes counts as refreshed from then on.

        Args:
            times: Noise levels of the steps, float32 ``[S]`` or longer.
            step: Number of the step.
            active: int64 ``[R, A]``.
            num_tokens: N.
            keeps_text: Whether text is left out, too.

        Returns:
            Weights of the last changes, float32 ``[R, N + 1]``, the last for text; 0 for what is
            fresh or was computed only once yet.
        """
        fresh = torch.zeros(active.shape[0], num_tokens + 1, dtype=torch.bool, device=active.device)
        fresh[:, num_tokens] = not keeps_text
        fresh.scatter_(1, active, value=True)
        last, before = (
            torch.zeros_like(fresh, dtype=torch.int64) + known
            for known in (self.last, self._before)
        )
        reached = torch.full_like(last, step)
        if self._longest is not None:
            reached = reached.minimum(last + self._longest)
        then = times[last]
        gap = then - times[before.clamp_min(0)]
        weights = self._damping * (times[reached] - then) / gap
        weights = weights.masked_fill_(fresh | (before == _NEVER), 0)
        self._before = torch.where(fresh, last, before)
        self.last = torch.where(fresh, step, last)
        return weights
