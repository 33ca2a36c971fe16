"""The plan of a run as a table, before the run: steps, active tokens, FLOPs, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ras_dit.adapters.base import Work
from ras_dit.config import RASConfig
from ras_dit.cost import RunCost, cache_bytes, forward_flops, packed_bytes, plan_cost
from ras_dit.errors import RASError
from ras_dit.schedule import plan_steps
from ras_dit.tokens import TokenGrid, TokenLayout

if TYPE_CHECKING:
    from ras_dit.model_outline import ModelOutline

HEADINGS = ("steps", "kind", "active tokens", "FLOPs of a dense step")


@dataclass(frozen=True)
class PlanRow:
    """Consecutive steps that do the same.

    Attributes:
        first: Index of the first step.
        last: Index of the last step.
        kind: ``"dense"``, ``"sparse"`` or ``"skipped"``.
        num_active: Active image tokens per image.
        cost: FLOPs of one step over those of a dense step, in (0, 1].
        is_halved: Whether one of two guidance branches runs only.
    """

    first: int
    last: int
    kind: str
    num_active: int
    cost: float
    is_halved: bool = False

    def cells(self) -> tuple[str, ...]:
        """The row as text, under :data:`HEADINGS`."""
        steps = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        kind = f"{self.kind}, one branch" if self.is_halved else self.kind
        return steps, kind, str(self.num_active), f"{self.cost:.1%}"


@dataclass(frozen=True)
class PlanTable:
    """A planned run.

    Attributes:
        rows: Its steps, runs of equal ones in one row.
        grid: The image tokens of one picture or video.
        num_text_tokens: Text tokens T.
        dtype: The transformer's dtype.
        cost: FLOPs of the denoising loop, dense and as planned.
        cache_bytes: Bytes of all caches for one picture with its guidance branches; 0 for a run
            without a sparse step.
        branches: Guidance branches: 2 with classifier-free guidance.
        num_references: Image tokens of given pictures.
    """

    rows: tuple[PlanRow, ...]
    grid: TokenGrid
    num_text_tokens: int
    dtype: torch.dtype
    cost: RunCost
    cache_bytes: int
    branches: int
    num_references: int = 0

    @property
    def limit(self) -> float:
        """FLOP limit of the denoising loop: the speed-up if FLOPs were all that takes time."""
        return self.cost.limit

    @property
    def num_steps(self) -> int:
        """Calls of ``scheduler.step``."""
        return self.rows[-1].last + 1

    @property
    def num_dense(self) -> int:
        """Steps with all image tokens."""
        return sum(row.last - row.first + 1 for row in self.rows if row.kind == "dense")

    @property
    def mean_ratio(self) -> float | None:
        """Mean share of active tokens over the sparse steps; ``None`` without one."""
        sparse = [(row.last - row.first + 1, row) for row in self.rows if row.kind == "sparse"]
        if not sparse:
            return None
        active = sum(steps * row.num_active for steps, row in sparse)
        return active / (sum(steps for steps, _ in sparse) * self.grid.num_tokens)

    @property
    def num_graphs(self) -> int:
        """The most graphs that ``torch.compile`` of the transformer makes.

        One of a dense call, one of a dense call that fills caches, and one for each number of
        active tokens; from the second number on a graph with a symbolic length may serve them all.
        Steps with one guidance branch have another batch size, and graphs of their own.
        """
        calls = {(row.num_active, row.is_halved) for row in self.rows if row.num_active}
        fills = any(row.kind == "sparse" and row.num_active for row in self.rows)
        return len(calls) + fills

    def facts(self) -> list[tuple[str, str]]:
        """What holds for the whole run, as (name, value)."""
        ratio = self.mean_ratio
        tokens = f"{self.grid.num_tokens} ({' x '.join(map(str, self.grid.shape))})"
        if self.num_references:
            tokens += f", and {self.num_references} of a given picture"
        caches = _in_bytes(self.cache_bytes)
        where = f"guidance {'on' if self.branches > 1 else 'off'}, {str(self.dtype)[6:]}"
        return [
            ("image tokens N", tokens),
            ("text rows T", str(self.num_text_tokens)),
            ("dense steps", f"{self.num_dense} of {self.num_steps}"),
            ("mean ratio of sparse steps", "no sparse step" if ratio is None else f"{ratio:.1%}"),
            ("FLOPs of the loop", f"{self.cost.ras:.4g} of {self.cost.dense:.4g}"),
            ("FLOP limit of the loop", f"{self.limit:.2f}x"),
            ("graphs, if compiled", f"at most {self.num_graphs}"),
            (
                f"caches per {'picture' if self.grid.frames == 1 else 'video'}",
                f"{caches} ({where})",
            ),
        ]

    def markdown(self) -> str:
        """Steps and facts as two markdown tables."""
        steps = [HEADINGS, ("---:", "---", "---:", "---:"), *(row.cells() for row in self.rows)]
        facts = [("of the whole run", ""), ("---", "---"), *self.facts()]
        tables: tuple[Sequence[tuple[str, ...]], ...] = (steps, facts)
        return "\n\n".join(
            "\n".join(f"| {' | '.join(cells)} |" for cells in table) for table in tables
        )


def plan_table(
    work: Work,
    config: RASConfig,
    num_evaluations: int,
    grid: TokenGrid,
    *,
    num_text_tokens: int,
    dtype: torch.dtype = torch.float32,
    branches: int = 2,
    num_references: int = 0,
    head_width: int | None = None,
) -> PlanTable:
    """Plan a run of one picture or video and count what it costs.

    Args:
        work: The arithmetic of the transformer, ``description.work(transformer.config)``.
        config: How to sample.
        num_evaluations: Calls of ``scheduler.step`` that the run will make.
        grid: The image tokens of the picture.
        num_text_tokens: Text tokens T.
        dtype: The transformer's dtype, in which caches are kept.
        branches: Guidance branches: 2 with classifier-free guidance, 1 without.
        num_references: Image tokens of given pictures, which dense steps compute and no other.
        head_width: Elements of a head's keys, which caches of eight bits are counted by.

    Raises:
        RASError: If the configuration does not fit the run, or keeps its caches in eight bits and
            no head width is given.
    """
    count = grid.num_tokens
    plans = plan_steps(config, num_evaluations, count)
    if branches != 2:
        plans = tuple(replace(plan, halves_guidance=False) for plan in plans)
    whole = count + num_references
    shape = {"batch": branches, "num_tokens": whole, "num_text_tokens": num_text_tokens}
    keeps_text = config.text == "keep"

    def with_references(num_active: int) -> int:
        return whole if num_active == count else num_active

    def flops(num_active: int) -> int:
        kept = keeps_text and num_active < count
        return forward_flops(work, num_active=with_references(num_active), keeps_text=kept, **shape)

    rows = []
    for (kind, num_active, is_halved), group in groupby(
        plans, lambda plan: (plan.kind, plan.num_active, plan.halves_guidance)
    ):
        steps = [plan.index for plan in group]
        cost = flops(num_active) / flops(count) / (2 if is_halved else 1)
        shown = kind if num_active else "skipped"
        rows.append(PlanRow(steps[0], steps[-1], shown, num_active, cost, is_halved))
    sparse = any(row.kind == "sparse" for row in rows)
    counted = [replace(plan, num_active=with_references(plan.num_active)) for plan in plans]
    return PlanTable(
        rows=tuple(rows),
        grid=grid,
        num_text_tokens=num_text_tokens,
        dtype=dtype,
        cost=plan_cost(work, counted, keeps_text=keeps_text, **shape),
        cache_bytes=_planned_caches(work, config, dtype, head_width, shape) if sparse else 0,
        branches=branches,
        num_references=num_references,
    )


def plan_outline(
    outline: ModelOutline,
    config: RASConfig,
    num_evaluations: int,
    layout: TokenLayout,
    *,
    dtype: torch.dtype = torch.float32,
    branches: int | None = None,
) -> PlanTable:
    """:func:`plan_table` of a pipeline that is known by its outline.

    Args:
        outline: The pipeline.
        config: How to sample.
        num_evaluations: Calls of ``scheduler.step`` that the run will make.
        layout: The tokens of a call, from :meth:`ModelOutline.layout`.
        dtype: The transformer's dtype, in which caches are kept.
        branches: Guidance branches; ``None`` is as the pipeline is used.

    Raises:
        RASError: If the configuration does not fit the run.
    """
    return plan_table(
        outline.work,
        config,
        num_evaluations,
        layout.grid,
        num_text_tokens=layout.num_text,
        dtype=dtype,
        branches=outline.branches if branches is None else branches,
        num_references=layout.num_references,
        head_width=outline.head_width,
    )


def _planned_caches(
    work: Work,
    config: RASConfig,
    dtype: torch.dtype,
    head_width: int | None,
    shape: Mapping[str, int],
) -> int:
    packed = None
    if config.cache_dtype != "model":
        if head_width is None:
            raise RASError(
                f"caches in {config.cache_dtype} have a scale for every head; give head_width"
            )
        packed = packed_bytes(head_width)
    return cache_bytes(
        work,
        dtype=dtype,
        kv_bytes_per_element=packed,
        forecasts_keys=config.forecast_keys > 0,
        **shape,
    )


def _in_bytes(size: float) -> str:
    """A size for people."""
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024 and (size >= 1 or unit == "KiB"):
            break
    return f"{size:.1f} {unit}"
