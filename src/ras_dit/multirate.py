"""Multirate sampling: a line in the noise level for every token, and what it was wrong by.

Region-adaptive sampling is a multirate method: an active token takes a short step, one that is left
out a long one. Held outputs make its order 1 (Eq. 2 of arXiv 2502.10389). Here every token keeps
its last fresh output v, its slope and the noise level t of that output, so that

- a token that is left out moves along its line, ``v + slope * (t_n - t)``;
- an active one takes a step of the two-step Adams-Bashforth method, whose steps may vary;
- the line's error at the next refresh, the *innovation*, is known for nothing: it predicts the
  error to come, and corrects the token's long step to the trapezoidal rule;
- how much of their last slopes tokens went on along is known as well: lines may be damped by it.

All of it becomes one noise prediction for an ordinary Euler scheduler, ``x + (t_next - t_n) * v``.
Shape letters: B images, N image tokens, A active tokens; L is the shape of the noise prediction.
"""

from __future__ import annotations

import torch

from ras_dit.rules import LineRules
from ras_dit.tokens import PixelMap

# Weight of the newest innovation in a token's error constant.
_NEWEST = 0.5


class Lines:
    """The lines of all tokens over one run, float32.

    Args:
        rules: What to do with them.
        pixels: Where each token's pixels are.
        num_tokens: N.
        times: Noise levels of the steps and the last one, or another measure of time, ``[S + 1]``.
    """

    def __init__(
        self, rules: LineRules, pixels: PixelMap, num_tokens: int, times: torch.Tensor
    ) -> None:
        self._rules = rules
        self._pixels = pixels
        self._num_tokens = num_tokens
        self._times = times.float()
        self._value: torch.Tensor | None = None
        self._slope: torch.Tensor | None = None
        self._travelled: torch.Tensor | None = None
        self._constants: torch.Tensor | None = None
        self._since = torch.empty(0)
        # Factor of the slopes, [B, 1] once it was measured.
        self._going_on: float | torch.Tensor = 1.0
        self._age = torch.empty(0)

    def advance(
        self, noise_pred: torch.Tensor, sample: torch.Tensor, active: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a step's outputs; what an Euler scheduler is to get in their place.

        Args:
            noise_pred: Fresh outputs of active tokens, the last ones of the others, which differ
                from what they were where guidance has changed since, L.
            sample: The latents that the step starts from, L.
            active: int64 ``[B, A]``; ``None`` where all are.
            step: Number of the step.

        Returns:
            Noise prediction and sample in their own dtypes; the ones given where nothing changes.
        """
        # Copied: pipelines may write to their own tensors.
        fresh_value = noise_pred.to(torch.float32, copy=True)
        now = self._times[step]
        if self._value is None:
            batch = noise_pred.shape[0]
            self._value = fresh_value
            self._age = torch.zeros(batch, self._num_tokens, device=noise_pred.device)
            self._since = self._age + now
            return self._hand_on(noise_pred, sample, None, step)
        self._age += 1
        if active is not None and active.shape[1] == 0:
            self._value = fresh_value
            nothing = torch.zeros_like(self._age, dtype=torch.bool)
            return self._hand_on(noise_pred, sample, nothing, step)
        gap = now - self._since
        fresh = None if active is None else _mask(self._age, active)
        moved = fresh_value - self._value
        self._learn(self._off_line(moved, step, self._age), gap, fresh)
        spread_fresh = None if fresh is None else self._pixels.spread(fresh)
        sample = self._corrected(sample, fresh_value, gap, fresh, spread_fresh)
        if self._rules.needs_slope:
            self._turn(moved.div_(self._pixels.spread(gap)), fresh, spread_fresh)
        self._value = fresh_value
        if fresh is None:
            self._since = torch.zeros_like(gap) + now
            self._age.zero_()
        else:
            self._since = torch.where(fresh, now, self._since)
            self._age.masked_fill_(fresh, 0)
        return self._hand_on(noise_pred, sample, fresh, step)

    def errors(self, noise_pred: torch.Tensor, step: int) -> torch.Tensor:
        """How wrong each token's line is when a step begins, by its fresh outputs.

        Args:
            noise_pred: Fresh outputs of all tokens in that step, which :meth:`advance` has not
                taken in yet, L.
            step: Number of the step, at least 1.

        Returns:
            float32 ``[B, N]``, root mean squares over a token's pixels and channels.
        """
        assert self._value is not None
        error = self._off_line(noise_pred.float() - self._value, step, self._age + 1)
        return self._pixels.mean(error.square()).sqrt_()

    def predicted_errors(self, step: int) -> torch.Tensor:
        """How wrong each token's line is expected to be when the given step begins.

        The innovation of its last refresh times the growth since: ``c * |t_step - t|^p`` with p of
        :attr:`LineRules.order` and ``c = innovation / |gap|^p``, averaged over its refreshes.

        Returns:
            float32 ``[B, N]``, root mean squares over a token's pixels and channels.
        """
        distance = (self._times[step] - self._since).abs()
        if self._constants is None:
            return distance
        return self._constants * distance**self._rules.order

    def expected_shares(self, step: int) -> torch.Tensor:
        """:meth:`predicted_errors` as a share of each image's root mean square output."""
        assert self._value is not None
        size = self._value.square().flatten(1).mean(1, keepdim=True).sqrt_()
        return self.predicted_errors(step) / size

    def _reached(self, step: int, age: torch.Tensor) -> torch.Tensor:
        """Up to when each line is followed at the beginning of a step, ``[B, N]`` or ``[]``."""
        longest = self._rules.longest
        if longest is None:
            return self._times[step]
        return self._times[(step - age + age.clamp(max=longest)).long()]

    def _off_line(self, moved: torch.Tensor, step: int, age: torch.Tensor) -> torch.Tensor:
        """What fresh outputs differ by from their lines, L.

        Args:
            moved: What they differ by from the last fresh ones, L.
            step: Number of the step.
            age: Its distance from each token's last refresh, in steps, ``[B, N]``.
        """
        if self._slope is None or not self._rules.linear:
            return moved
        followed = self._reached(step, age) - self._since
        return moved - self._slope * self._pixels.spread(followed * self._damping)

    def _learn(
        self, line_error: torch.Tensor, gap: torch.Tensor, fresh: torch.Tensor | None
    ) -> None:
        """Error constants of refreshed tokens."""
        error = self._pixels.mean(line_error.square()).sqrt_()
        constants = error / gap.abs() ** self._rules.order
        if self._constants is None:
            # Tokens without an innovation of their own yet get their image's mean.
            known = constants if fresh is None else torch.where(fresh, constants, float("nan"))
            mean = known.nanmean(dim=1, keepdim=True)
            self._constants = constants if fresh is None else torch.where(fresh, constants, mean)
            return
        newest = torch.lerp(self._constants, constants, _NEWEST)
        self._constants = newest if fresh is None else torch.where(fresh, newest, self._constants)

    @property
    def _damping(self) -> float | torch.Tensor:
        """Factor of the slopes along which tokens that are left out move."""
        return self._going_on if self._rules.damping is None else self._rules.damping

    def _turn(
        self,
        secant: torch.Tensor,
        fresh: torch.Tensor | None,
        spread_fresh: torch.Tensor | None,
    ) -> None:
        """Slopes of refreshed tokens, through their last two outputs."""
        if self._rules.measures_damping and self._slope is not None:
            self._measure(secant, self._slope, fresh)
        if spread_fresh is not None:
            old = 0.0 if self._slope is None else self._slope
            secant = torch.where(spread_fresh, secant, old)
        self._slope = secant

    def _measure(
        self, secant: torch.Tensor, slope: torch.Tensor, fresh: torch.Tensor | None
    ) -> None:
        """The factor with which each image's last slopes would have come nearest to its new ones.

        Least squares over refreshed tokens, ``<new, last> / <last, last>``, kept in [0, 1].
        """
        alike, size = self._pixels.mean(secant * slope), self._pixels.mean(slope.square())
        if fresh is not None:
            alike, size = alike * fresh, size * fresh
        alike, size = alike.sum(1, keepdim=True), size.sum(1, keepdim=True)
        self._going_on = torch.where(size > 0, (alike / size).clamp(0, 1), self._going_on)

    def _corrected(
        self,
        sample: torch.Tensor,
        fresh_value: torch.Tensor,
        gap: torch.Tensor,
        fresh: torch.Tensor | None,
        spread_fresh: torch.Tensor | None,
    ) -> torch.Tensor:
        """The sample after the trapezoidal rule over the long step of each refreshed token."""
        if self._travelled is None:
            return sample
        assert self._value is not None
        counts = self._age <= self._rules.correction_age
        counts = (counts if fresh is None else counts & fresh).float()
        change = (self._value + fresh_value).mul_(self._pixels.spread(counts * gap * 0.5))
        change.addcmul_(self._travelled, self._pixels.spread(counts), value=-1)
        if spread_fresh is None:
            self._travelled = None
        else:
            self._travelled.masked_fill_(spread_fresh, 0)
        return change.add_(sample).to(sample.dtype)

    def _hand_on(
        self,
        noise_pred: torch.Tensor,
        sample: torch.Tensor,
        fresh: torch.Tensor | None,
        step: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean output of every token over the step to come."""
        length = self._times[step + 1] - self._times[step]
        assert self._value is not None
        effective = self._value
        along = self._along(length, fresh, step)
        if self._slope is not None and along is not None:
            effective = torch.addcmul(effective, self._slope, self._pixels.spread(along))
        if self._rules.correction_age:
            distance = effective * length
            kept = self._travelled
            self._travelled = distance if kept is None else kept.add_(distance)
        if effective is self._value:
            return noise_pred, sample
        return effective.to(noise_pred.dtype), sample

    def _along(
        self, length: torch.Tensor, fresh: torch.Tensor | None, step: int
    ) -> torch.Tensor | None:
        """How far from its last output each token's mean output is, ``[B, N]``; ``None`` for 0.

        The mean of a line over a step is its value in the middle. At the clean image there is
        nothing to gain from a second order, and often something to lose.
        """
        rules = self._rules
        has_order_two = rules.second_order and step + 2 < len(self._times)
        ahead = torch.zeros_like(self._age)
        if has_order_two:
            ahead += length * 0.5 * (self._going_on if rules.damps_steps else 1.0)
        if fresh is None or not rules.linear:
            if not has_order_two:
                return None
            return ahead if fresh is None else ahead * fresh
        followed = self._reached(step, self._age) - self._since
        if has_order_two:
            goes_on = True if rules.longest is None else self._age < rules.longest
            followed = followed + length * 0.5 * goes_on
        return torch.where(fresh, ahead, followed * self._damping)


def _mask(like: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    return mask.scatter_(1, active, value=True)
