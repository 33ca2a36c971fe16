"""What is known of a run when it begins, and of a call of its transformer under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ras_dit.cache import BranchCache
from ras_dit.fresh import FreshRows
from ras_dit.guidance import Half
from ras_dit.tokens import TokenGrid, TokenLayout


@dataclass(frozen=True)
class RunShape:
    """What is known of a run at its first transformer call.

    Attributes:
        transformer: Class name of the transformer.
        layout: The tokens of its first call.
        dtype: dtype of the transformer's input.
        num_evaluations: Calls of ``scheduler.step`` to come.
        sigmas: Noise levels of those calls and the last one, where the scheduler has them.
        latents: Sizes of one image's latents in its first call.
        is_euler: Whether the scheduler takes Euler steps of a flow over its noise levels.
    """

    transformer: str
    layout: TokenLayout
    dtype: torch.dtype
    num_evaluations: int
    sigmas: torch.Tensor | None
    latents: torch.Size | None = None
    is_euler: bool = False

    @property
    def has_lines(self) -> bool:
        """Whether outputs, keys and values can be put on lines over the noise level."""
        return self.is_euler and self.sigmas is not None

    @property
    def grid(self) -> TokenGrid:
        """Image tokens of the picture that is made."""
        return self.layout.grid


@dataclass
class TransformerCall:
    """One call of the transformer under way.

    Attributes:
        cache: The branch's caches, to be filled or used.
        num_image: Image tokens, references included.
        fills_caches: Whether a dense call has to leave keys, values and outputs behind.
        fresh: The rows that a sparse call computes; ``None`` in a dense call.
        is_skipped: Whether the transformer is not run: what it returned last is returned again.
        is_repeated: Whether what it returns has to be kept for the next step.
        entered: Whether the first block was reached.
        length: Rows of a whole sequence, as the first block is given them.
        half: The guidance branch that runs, where two are stacked in one batch and one does;
            ``cache`` and ``fresh`` are those of its rows.
        finish: Gets what the transformer returned; gives what the pipeline is to get.
    """

    cache: BranchCache
    num_image: int
    fills_caches: bool
    fresh: FreshRows | None = None
    is_skipped: bool = False
    is_repeated: bool = False
    entered: bool = False
    length: int = 0
    half: Half | None = None
    finish: Callable[[Any], Any] | None = None
