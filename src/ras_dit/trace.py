"""What a run did, step by step: a plain record, small, JSON in and out."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ras_dit.errors import RASError
from ras_dit.tokens import TokenGrid

TRACE_VERSION = 1


@dataclass(frozen=True)
class Call:
    """One call of the transformer.

    Attributes:
        batch: Rows of the model batch (images times guidance branches in one batch).
        num_active: Image tokens per row that went through the transformer; 0 in a skipped step.
        rows_run: Rows that did; half of them or none where the other guidance branch stood for
            them (``guidance_every``). ``None`` is all.
    """

    batch: int
    num_active: int
    rows_run: int | None = None

    @property
    def num_rows(self) -> int:
        """``rows_run`` with ``None`` resolved."""
        return self.batch if self.rows_run is None else self.rows_run


@dataclass(frozen=True, eq=False)
class StepTrace:
    """One call of ``scheduler.step`` and the transformer calls before it.

    Attributes:
        index: Steps before this one.
        kind: ``"dense"`` or ``"sparse"``; a sparse step without active tokens was skipped.
        sigma: Noise level at which the transformer was called, ``None`` where the scheduler has
            no sigmas.
        num_tokens: Image tokens N per image.
        calls: The transformer calls. In a sparse step, a call whose caches were not yet filled
            runs dense by itself.
        packed: uint8 ``[B, ceil(N / 8)]`` bit mask of the active tokens, least significant bit
            first, wherever the run left it; ``None`` in dense steps.
    """

    index: int
    kind: str
    sigma: float | None
    num_tokens: int
    calls: tuple[Call, ...]
    packed: torch.Tensor | None = None

    @cached_property
    def active(self) -> torch.Tensor | None:
        """Sorted indices of the active tokens of each image, int64 ``[B, A]``; ``None``: dense."""
        if self.packed is None:
            return None
        return unpack_active(self.packed.cpu(), self.num_tokens)

    @property
    def is_halved(self) -> bool:
        """Whether only one of two guidance branches went through the transformer."""
        return any(call.num_rows < call.batch for call in self.calls)

    @property
    def num_active(self) -> int:
        """Active image tokens per image."""
        return self.num_tokens if self.active is None else self.active.shape[1]


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one finished run.

    Attributes:
        transformer: Class name of the transformer.
        grid: The image tokens of one picture.
        num_text_tokens: Text tokens T attended jointly with the image tokens.
        batch_size: Images B.
        dtype: Name of the transformer's dtype, for example ``"bfloat16"``.
        cache_bytes: Largest size of all caches during the run.
        steps: One record per step.
        num_references: Image tokens of given pictures (editing), never active in a sparse step.
        keeps_text: Whether sparse calls kept the text of the last dense step.
    """

    transformer: str
    grid: TokenGrid
    num_text_tokens: int
    batch_size: int
    dtype: str
    cache_bytes: int
    steps: tuple[StepTrace, ...]
    num_references: int = 0
    keeps_text: bool = False

    @property
    def num_tokens(self) -> int:
        """Image tokens N per image."""
        return self.grid.num_tokens

    @property
    def num_dense_steps(self) -> int:
        """Steps in which every image token was active."""
        return sum(step.kind == "dense" for step in self.steps)

    @property
    def num_skipped(self) -> int:
        """Steps that did not call the transformer."""
        return sum(step.num_active == 0 for step in self.steps)

    @property
    def num_halved(self) -> int:
        """Steps in which only one of two guidance branches went through the transformer."""
        return sum(step.is_halved for step in self.steps)

    @property
    def leaves_out_calls(self) -> bool:
        """Whether some calls of the pipeline were answered without the transformer."""
        return self.num_skipped > 0 or self.num_halved > 0

    @property
    def work(self) -> str:
        """What its steps did, in words: how many were dense, sparse and skipped."""
        counts = sorted({s.num_active for s in self.steps if s.kind == "sparse"} - {0})
        sparse = len(self.steps) - self.num_dense_steps - self.num_skipped
        words = [f"{len(self.steps)} steps: {self.num_dense_steps} dense"]
        if sparse:
            tokens = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
            words.append(f"{sparse} with {tokens} of {self.num_tokens} tokens")
        if self.num_skipped:
            words.append(f"{self.num_skipped} skipped")
        return ", ".join(words)

    def active_counts(self) -> torch.Tensor:
        """In how many steps each token was active, int64 ``[B, h, w]``, or ``[B, f, h, w]``."""
        counts = torch.zeros(self.batch_size, self.num_tokens, dtype=torch.int64)
        for step in self.steps:
            if step.active is None:
                counts += 1
            else:
                counts.scatter_add_(1, step.active, torch.ones_like(step.active))
        return counts.view(self.batch_size, *self.grid.shape)

    def to_json(self) -> str:
        """The trace as JSON, with bit-packed active tokens."""
        data = {
            "version": TRACE_VERSION,
            "transformer": self.transformer,
            "grid": [self.grid.height, self.grid.width, self.grid.frames],
            "num_text_tokens": self.num_text_tokens,
            "num_references": self.num_references,
            "keeps_text": self.keeps_text,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "cache_bytes": self.cache_bytes,
            "steps": [_step_data(step) for step in self.steps],
        }
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what :meth:`to_json` wrote.

        Raises:
            RASError: If the text is not a trace of this version.
        """
        try:
            data = json.loads(text)
            if data["version"] != TRACE_VERSION:
                raise RASError(
                    f"the trace has version {data['version']!r}; this release reads version "
                    f"{TRACE_VERSION}, so record the run again"
                )
            grid = TokenGrid(*(int(side) for side in data["grid"]))
            batch = int(data["batch_size"])
            return cls(
                transformer=str(data["transformer"]),
                grid=grid,
                num_text_tokens=int(data["num_text_tokens"]),
                num_references=int(data.get("num_references", 0)),
                keeps_text=bool(data.get("keeps_text", False)),
                batch_size=batch,
                dtype=str(data["dtype"]),
                cache_bytes=int(data["cache_bytes"]),
                steps=tuple(_step_from(step, batch, grid.num_tokens) for step in data["steps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RASError):
                raise
            raise RASError(f"this is not a trace written by Trace.to_json: {error!r}") from error


def never_refreshed(trace: Trace) -> float:
    """Share of the image tokens, over all images, that were active in no sparse step.

    Such tokens are computed anew in dense steps only. 0 for a run without a sparse step.
    """
    sparse = [step for step in trace.steps if step.kind == "sparse"]
    if not sparse:
        return 0.0
    counts = trace.active_counts() - (len(trace.steps) - len(sparse))
    return float((counts == 0).float().mean())


def pack_active(active: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Bit mask of active tokens, on their device and without synchronisation.

    Args:
        active: int64 ``[B, A]``.
        num_tokens: Tokens N per image.

    Returns:
        uint8 ``[B, ceil(N / 8)]``, least significant bit first.
    """
    width = -(-num_tokens // 8)
    mask = torch.zeros(active.shape[0], width * 8, dtype=torch.uint8, device=active.device)
    mask.scatter_(1, active, 1)
    bits = mask.view(-1, width, 8) << torch.arange(8, dtype=torch.uint8, device=active.device)
    return bits.sum(-1, dtype=torch.uint8)


def unpack_active(packed: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Sorted indices int64 ``[B, A]`` from :func:`pack_active`.

    Raises:
        RASError: If the mask does not fit the grid, or images differ in their number of tokens.
    """
    if packed.shape[1] != -(-num_tokens // 8):
        raise RASError(
            f"a mask of {packed.shape[1]} bytes does not describe {num_tokens} tokens; "
            f"expected {-(-num_tokens // 8)} bytes"
        )
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    mask = bits.flatten(1)[:, :num_tokens]
    counts = mask.sum(1, dtype=torch.int64)
    if bool((counts != counts[0]).any()):
        raise RASError(f"images differ in their number of active tokens: {counts.tolist()}")
    return mask.nonzero()[:, 1].view(packed.shape[0], -1)


def _step_data(step: StepTrace) -> dict[str, Any]:
    packed = None
    if step.packed is not None:
        packed = base64.b64encode(step.packed.cpu().numpy().tobytes()).decode("ascii")
    return {
        "index": step.index,
        "kind": step.kind,
        "sigma": step.sigma,
        "calls": [_call_data(call) for call in step.calls],
        "active": packed,
    }


def _call_data(call: Call) -> list[int]:
    data = [call.batch, call.num_active]
    return data if call.rows_run is None else [*data, call.rows_run]


def _step_from(data: dict[str, Any], batch: int, num_tokens: int) -> StepTrace:
    packed = None
    if data["active"] is not None:
        raw = bytearray(base64.b64decode(data["active"], validate=True))
        packed = torch.frombuffer(raw, dtype=torch.uint8).view(batch, -1)
        unpack_active(packed, num_tokens)
    calls: Sequence[Sequence[int]] = data["calls"]
    return StepTrace(
        index=int(data["index"]),
        kind=str(data["kind"]),
        sigma=None if data["sigma"] is None else float(data["sigma"]),
        num_tokens=num_tokens,
        calls=tuple(Call(*map(int, call)) for call in calls),
        packed=packed,
    )
