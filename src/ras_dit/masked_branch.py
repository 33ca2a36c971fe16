"""One guidance branch of the masked reference: what its tokens last were while active.

Shape letters: R rows of the model batch, N image tokens, S length of an attended sequence,
H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ras_dit.errors import RASError
from ras_dit.probe import Operation

_ANOTHER_COMPUTATION = (
    "a call of the transformer has other attention operations or sequences than the first call of "
    "its branch; is RAS still enabled on it? Call ras_dit.disable(pipe) first"
)


@dataclass
class MaskedBranch:
    """A call of each step, or the two branches of guidance that one call has in its batch.

    Attributes:
        latents_shape: Of the call.
        fixed: Arguments that cached keys depend on as a whole.
        tokens: The token of each latent pixel.
        operations: The attention operations of a call, as measured.
        keeps_text: Whether sparse steps keep the text.
        caches: Keys and values ``[R, H, S, D]`` by operation.
        noise: The last noise prediction; ``previous`` the one before it.
    """

    latents_shape: torch.Size
    fixed: list[torch.Tensor]
    tokens: torch.Tensor
    operations: list[Operation]
    keeps_text: bool
    caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    noise: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    _mask: torch.Tensor | None = None
    _runs: torch.Tensor | None = None
    _made: int = 0

    def fits(self, latents: torch.Tensor, fixed: list[torch.Tensor]) -> bool:
        """Whether keys of a call with these arguments go together with the cached ones."""
        same = all(torch.equal(old, new) for old, new in zip(self.fixed, fixed, strict=True))
        return same and self.latents_shape == latents.shape

    def start(self, mask: torch.Tensor | None, runs: torch.Tensor | None) -> None:
        """Begin a call.

        Args:
            mask: Active tokens, bool ``[R, N]``; ``None`` where every token is.
            runs: Rows that go through the transformer, bool ``[R]``; ``None`` where all do.
        """
        self._mask = mask if self.noise is not None else None
        self._runs = runs if self.noise is not None else None
        self._made = 0
        if self._mask is None and self._runs is None:
            self.caches.clear()

    def recover(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, in_block: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 2 for one operation: ``[R, H, S, D]`` with the rows of inactive tokens recovered."""
        if self._made == len(self.operations):
            raise RASError(_ANOTHER_COMPUTATION)
        operation, index = self.operations[self._made], self._made
        if (query.shape[2], key.shape[2]) != (operation.num_queries, operation.tokens.shape[1]):
            raise RASError(_ANOTHER_COMPUTATION)
        self._made += 1
        if (self._mask is None and self._runs is None) or not in_block:
            self.caches[index] = key, value
            return key, value
        fresh = torch.ones_like(operation.tokens, dtype=torch.bool)
        if self._mask is not None:
            is_text = operation.tokens < 0
            in_mask = self._mask[operation.rows].gather(1, operation.tokens.clamp(min=0))
            fresh = torch.where(is_text, not self.keeps_text, in_mask)
        if self._runs is not None:
            fresh = fresh & self._runs[operation.rows].unsqueeze(1)
        fresh = fresh[:, None, :, None]
        old_key, old_value = self.caches[index]
        self.caches[index] = torch.where(fresh, key, old_key), torch.where(fresh, value, old_value)
        return self.caches[index]

    def finish(self, noise: torch.Tensor, first: MaskedBranch | None) -> torch.Tensor:
        """End a call: the noise prediction with that of inactive tokens held.

        Args:
            noise: What the transformer predicted.
            first: The first of two branches that are called one after the other.
        """
        if self._made != len(self.operations):
            raise RASError(_ANOTHER_COMPUTATION)
        if self._mask is not None:
            assert self.noise is not None
            # The noise has the form of the latents, but for the number of its channels.
            fresh = self._mask[:, self.tokens]
            fresh = fresh.unsqueeze(1) if fresh.ndim < noise.ndim else fresh
            noise = torch.where(fresh, noise, self.noise)
        if self._runs is not None:
            noise = self._without(noise, self._runs, first)
        self.previous, self.noise = self.noise, noise.clone()
        return noise

    def _without(
        self, noise: torch.Tensor, runs: torch.Tensor, first: MaskedBranch | None
    ) -> torch.Tensor:
        """The branch that does not run differs from the other by as much as in the last step."""
        assert self.noise is not None
        noise = noise.clone()
        if bool(runs.any()):
            noise[~runs] = noise[runs] - (self.noise[runs] - self.noise[~runs])
        else:
            assert first is not None
            assert first.noise is not None
            assert first.previous is not None
            noise = first.noise - (first.previous - self.noise)
        return noise
