"""What the paper's public code (microsoft/RAS at a9c5ec8) computes, written from its formulas.

It is here to compare with. Its quirks, which :meth:`ras_dit.RASConfig.microsoft` reproduces:

- a share ``high_ratio`` of the tokens to drop is taken from the *highest* scores and the rest from
  the lowest, each rounded down, so that one token more than asked for can stay active;
- scores are multiplied by ``exp(+0.1 * drops)`` whatever is dropped: at ``high_ratio=1`` a dropped
  token's score rises and it is dropped again, the reverse of what the paper wants;
- drops start at minus the number of noise levels; the ``starvation_scale`` option has no effect;
- scores are computed in the model's dtype;
- ``scheduler_end_step`` is itself sparse and repeats the active tokens of the step before it;
- the dynamic ratio moves in whole multiples of 64 tokens.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from ras_dit.errors import RASError, RASWarning

PUBLIC_STARVATION_SCALE = 0.1
_DYNAMIC_GRANULE = 64


@dataclass(frozen=True, kw_only=True)
class PublicCode:
    """Knobs that only the public code has.

    Args:
        high_ratio: Share of the tokens to drop that is taken from the highest scores, in (0, 1].
        skip_num_step: Tokens by which the number of dropped tokens changes.
        skip_num_step_length: Steps between two changes; 0 for a constant number.

    Raises:
        RASError: If a value is out of the range in which that code works.
    """

    high_ratio: float = 1.0
    skip_num_step: int = 0
    skip_num_step_length: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.high_ratio <= 1:
            raise RASError(f"high_ratio={self.high_ratio!r}; expected a number in (0, 1]")
        if self.skip_num_step_length < 0:
            raise RASError(
                f"skip_num_step_length={self.skip_num_step_length}; expected 0 (constant) or more"
            )

    def count_dropped(
        self, index: int, sample_ratio: float, start: int, num_steps: int, num_tokens: int
    ) -> int:
        """Tokens that the public code means to drop in a sparse step.

        Args:
            index: The step.
            sample_ratio: Mean ratio.
            start: First step that may be sparse.
            num_steps: Steps of the run.
            num_tokens: Image tokens N.
        """
        dropped = int((1 - sample_ratio) * num_tokens)
        length = self.skip_num_step_length
        if length == 0:
            return dropped
        middle = ((num_steps + start) // length) // 2
        dropped += self.skip_num_step * (index // length - middle)
        return dropped // _DYNAMIC_GRANULE * _DYNAMIC_GRANULE

    def split(self, dropped: int) -> tuple[int, int]:
        """How many of the dropped tokens have the lowest and the highest scores."""
        return int(dropped * (1 - self.high_ratio)), int(dropped * self.high_ratio)

    def count_active(
        self, index: int, sample_ratio: float, start: int, num_steps: int, num_tokens: int
    ) -> int:
        """Tokens that stay active in a sparse step.

        Raises:
            RASError: If none would, where the public code fails.
        """
        dropped = self.count_dropped(index, sample_ratio, start, num_steps, num_tokens)
        low, high = self.split(dropped)
        if high < 1 or dropped > num_tokens or low + high >= num_tokens:
            raise RASError(
                f"the public code cannot run step {index}: it would drop {dropped} of "
                f"{num_tokens} tokens, {low} from the lowest and {high} from the highest scores "
                f"(sample_ratio={sample_ratio}, high_ratio={self.high_ratio}, "
                f"skip_num_step={self.skip_num_step}); it needs at least one from the highest and "
                "one token left"
            )
        return num_tokens - low - high


def check_public_knobs(metric: str, starvation_scale: float) -> None:
    """Refuse a metric that the public code does not have; warn of a knob that does nothing."""
    if starvation_scale != PUBLIC_STARVATION_SCALE:
        warnings.warn(
            f"starvation_scale={starvation_scale} has no effect: the public code reads this "
            f"option and never uses it, so {PUBLIC_STARVATION_SCALE} is in force",
            RASWarning,
            stacklevel=3,
        )
    if metric not in ("std", "l2norm"):
        raise RASError(f"metric={metric!r}; the public code knows std and l2norm")
