"""Guidance with one branch: the other follows from the last difference between the two.

With classifier-free guidance the transformer runs for a conditional and an unconditional branch,
stacked in one batch or one call after the other. Their difference changes slowly. A step that
computes both keeps it, a halved one computes one branch and gives the pipeline the other as
``output - difference``. Which branch runs costs only quality: the difference is antisymmetric.

Shape letters: B images, R = 2 B rows of a model batch with both branches, L rows of a sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ras_dit.cache import BranchCache
from ras_dit.tokens import TokenOrder
from ras_dit.trees import tree_map

# Which call this is: its branch, its signature and its rows.
CallIdentity = tuple[tuple[int, int], object, int]


@dataclass(frozen=True)
class Half:
    """The branch that runs, of two that are stacked in one batch.

    Attributes:
        batch: R, rows of both.
        is_second: Whether it is the second half of the rows.
    """

    batch: int
    is_second: bool

    @property
    def count(self) -> int:
        """B, rows of one branch."""
        return self.batch // 2

    @property
    def first(self) -> int:
        """First row of the branch that runs."""
        return self.count if self.is_second else 0

    @property
    def other(self) -> Half:
        """The branch that does not run."""
        return Half(self.batch, not self.is_second)

    def take(self, value: Any, *, lists: bool, dim: int = 0) -> Any:
        """The rows of this half, views, of all tensors in a value that have R rows.

        Args:
            value: A tensor; a list, tuple or mapping of such values; anything else stays.
            lists: Whether a list of R members has one for each row.
            dim: Dimension of the rows.
        """

        def rows(value: Any) -> Any:
            if isinstance(value, list):
                return value[self.first : self.first + self.count]
            is_by_row = value.ndim > dim and value.shape[dim] == self.batch
            return value.narrow(dim, self.first, self.count) if is_by_row else value

        return tree_map(rows, value, lists=lambda value: lists and len(value) == self.batch)

    def arguments(
        self,
        arguments: Mapping[str, Any],
        *,
        lists: bool,
        shared: Collection[str],
        batch_dims: Mapping[str, int],
    ) -> dict[str, Any]:
        """A transformer's arguments for this half.

        Args:
            arguments: By name.
            lists: Whether the model takes a list with a member for each row.
            shared: Names of those that all rows share.
            batch_dims: Dimension of the rows, by name, where it is not the first.
        """
        return {
            name: value
            if name in shared
            else self.take(value, lists=lists, dim=batch_dims.get(name, 0))
            for name, value in arguments.items()
        }

    def joined(self, output: Any, other: Any) -> Any:
        """What both halves returned, as one call would have."""

        def both(own: Any, other: Any) -> Any:
            pair = [other, own] if self.is_second else [own, other]
            return pair[0] + pair[1] if isinstance(own, list) else torch.cat(pair)

        return tree_map(both, output, other, lists=lambda _: True)


@dataclass(frozen=True)
class Difference:
    """The branch that goes on running minus the other, float32.

    Attributes:
        calls: The calls of its step: one with both branches, or two with one each.
        output: Of what the transformer returned.
        tokens: Of the cached outputs of image tokens, ``[B, N, C]``; ``None`` without caches.
    """

    calls: tuple[CallIdentity, ...]
    output: Any
    tokens: torch.Tensor | None


@dataclass
class Guidance:
    """What one run knows of the difference between its guidance branches.

    Attributes:
        conditional_first: Whether the conditional branch, the one that goes on running, is the
            first of two that are stacked in one batch.
        by_operation: Whether attention makes one operation for each row of the model batch.
        order: Where the image tokens stand in a sequence that also holds text.
        num_image: N, image tokens with references.
    """

    conditional_first: bool = False
    by_operation: bool = False
    order: TokenOrder = "image_first"
    num_image: int = 0
    _difference: Difference | None = None
    _outputs: list[tuple[CallIdentity, Any]] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        """Whether there is a difference to go by."""
        return self._difference is not None

    def spares(self, identity: CallIdentity) -> Literal["half", "all"] | None:
        """What of a call need not be computed: half of its rows, all of it, or nothing."""
        if self._difference is None:
            return None
        calls = self._difference.calls
        if len(calls) == 1:
            return "half" if identity == calls[0] else None
        before = [known for known, _ in self._outputs]
        return "all" if (*before, identity) == calls else None

    def half(self, batch: int) -> Half:
        """The branch that runs."""
        return Half(batch, is_second=not self.conditional_first)

    def note(self, identity: CallIdentity, output: Any) -> Any:
        """Take in what a whole call returned, and hand it on."""
        # A copy: callers may write to it.
        self._outputs.append((identity, tree_map(torch.clone, output)))
        return output

    def end_step(self, images: int, caches: Mapping[tuple[int, int], BranchCache]) -> None:
        """Keep the difference of a step that computed two branches, and no others.

        In a halved step there is one whole call or none, and the difference stays.

        Args:
            images: B.
            caches: By branch, as they are after the step.
        """
        outputs, self._outputs = self._outputs, []
        calls = tuple(identity for identity, _ in outputs)
        rows = [batch for _, _, batch in calls]
        held = [self._image_output(caches.get(branch)) for branch, _, _ in calls]
        if rows == [2 * images]:
            half = self.half(2 * images)
            output, other = (part.take(outputs[0][1], lists=True) for part in (half, half.other))
            pair = [None if held[0] is None else _rows(held[0], h) for h in (half, half.other)]
        elif rows == [images, images] and calls[0][0][0] == calls[1][0][0]:
            (_, output), (_, other) = outputs
            pair = held
        else:
            if sum(rows) > images:
                self._difference = None
            return
        one, two = pair
        tokens = None if one is None or two is None else _minus(one, two)
        self._difference = Difference(calls, tree_map(_minus, output, other), tokens)

    def forget(self) -> None:
        """Free the difference: a step had other branches, or the run is over."""
        self._difference = None
        self._outputs.clear()

    def completed(self, half: Half, cache: BranchCache, output: Any, *, is_repeated: bool) -> Any:
        """What a call with both branches returns, from the half that ran.

        Args:
            half: The branch that ran.
            cache: The caches of both. In a sparse step held outputs of the other branch follow, so
                that a token that is left out keeps what the pipeline saw last.
            output: What the transformer returned for the branch that ran.
            is_repeated: Whether what is returned has to be kept for the next step.
        """
        if cache.output is not None:
            self._follow(*(cache.cut(h.first, h.count) for h in (half, half.other)))
        whole = half.joined(output, self._other(output))
        cache.returned = tree_map(torch.clone, whole) if is_repeated else None
        return whole

    def answer(self, cache: BranchCache, first: BranchCache | None) -> None:
        """Make what the second of two calls returns, from the first; it is left in its cache.

        Args:
            cache: That of the second. In a sparse step held outputs follow as well.
            first: That of the first, in a sparse step.
        """
        if first is not None:
            self._follow(first, cache)
        cache.returned = self._other(self._outputs[0][1])

    def _other(self, output: Any) -> Any:
        assert self._difference is not None
        return tree_map(_minus_in_dtype, output, self._difference.output)

    def _follow(self, cache: BranchCache, other: BranchCache) -> None:
        assert self._difference is not None
        tokens, one = self._difference.tokens, self._image_output(cache)
        if one is None or other.output is None or tokens is None:
            return
        value = _minus_in_dtype(one, tokens)
        rows = self._image_rows(other, other.output)
        if isinstance(rows, slice):
            other.output[:, rows] = value
        else:
            other.output.scatter_(1, rows.expand_as(value), value)

    def _image_output(self, cache: BranchCache | None) -> torch.Tensor | None:
        """Cached outputs of image tokens, ``[R, N, C]``; the text of branches may differ."""
        if cache is None or cache.output is None:
            return None
        rows = self._image_rows(cache, cache.output)
        if isinstance(rows, slice):
            return cache.output[:, rows]
        return cache.output.take_along_dim(rows, dim=1)

    def _image_rows(self, cache: BranchCache, output: torch.Tensor) -> slice | torch.Tensor:
        length = output.shape[1]
        if length == self.num_image or self.order == "image_first":
            return slice(0, self.num_image)
        if cache.starts is None:
            return slice(length - self.num_image, length)
        rows = torch.arange(self.num_image, device=output.device) + cache.starts.unsqueeze(1)
        return rows.unsqueeze(2)


def _rows(tensor: torch.Tensor, half: Half) -> torch.Tensor:
    return tensor.narrow(0, half.first, half.count)


def _minus(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one.float() - other.float()


def _minus_in_dtype(one: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    return (one.float() - difference).to(one.dtype)
