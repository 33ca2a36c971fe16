"""The plan of a run as a table, before the run: steps, active tokens, FLOPs, caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ras_dit.adapters.base import Work
from ras_dit.config import RASConfig
from ras_dit.cost import cache_bytes, forward_flops, plan_cost
from ras_dit.schedule import plan_steps
from ras_dit.tokens import TokenGrid

HEADINGS = ("steps", "kind", "active tokens", "FLOPs of a dense step")


@dataclass(frozen=True)
class PlanRow:
    """Consecutive steps that do the same.

    Attributes:
        first: Index of the first step.
        last: Index of the last step.
        kind: ``"dense"`` or ``"sparse"``.
        num_active: Active image tokens per image.
        cost: FLOPs of one step over those of a dense step, in (0, 1].
    """

    first: int
    last: int
    kind: str
    num_active: int
    cost: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, under :data:`HEADINGS`."""
        steps = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return steps, self.kind, str(self.num_active), f"{self.cost:.1%}"


@dataclass(frozen=True)
class PlanTable:
    """A planned run.

    Attributes:
        rows: Its steps, runs of equal ones in one row.
        grid: The image tokens of one picture.
        num_text_tokens: Text tokens T.
        dtype: The transformer's dtype.
        limit: FLOP limit of the denoising loop: the speed-up if FLOPs were all that takes time.
        cache_bytes: Bytes of all caches for one picture with its guidance branches; 0 for a run
            without a sparse step.
        branches: Guidance branches: 2 with classifier-free guidance.
    """

    rows: tuple[PlanRow, ...]
    grid: TokenGrid
    num_text_tokens: int
    dtype: torch.dtype
    limit: float
    cache_bytes: int
    branches: int

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
        sparse = [row for row in self.rows if row.kind == "sparse"]
        if not sparse:
            return None
        active = sum((row.last - row.first + 1) * row.num_active for row in sparse)
        return active / ((self.num_steps - self.num_dense) * self.grid.num_tokens)

    def facts(self) -> list[tuple[str, str]]:
        """What holds for the whole run, as (name, value)."""
        ratio = self.mean_ratio
        tokens = f"{self.grid.num_tokens} ({self.grid.height} x {self.grid.width})"
        size = self.cache_bytes / 2**20
        caches = f"{size:.1f} MiB" if size >= 1 or not size else f"{1024 * size:.1f} KiB"
        where = f"guidance {'on' if self.branches > 1 else 'off'}, {str(self.dtype)[6:]}"
        return [
            ("image tokens N", tokens),
            ("text rows T", str(self.num_text_tokens)),
            ("dense steps", f"{self.num_dense} of {self.num_steps}"),
            ("mean ratio of sparse steps", "no sparse step" if ratio is None else f"{ratio:.1%}"),
            ("FLOP limit of the loop", f"{self.limit:.2f}x"),
            ("caches per picture", f"{caches} ({where})"),
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
) -> PlanTable:
    """Plan a run of one picture and count what it costs.

    Args:
        work: The arithmetic of the transformer, ``description.work(transformer.config)``.
        config: How to sample.
        num_evaluations: Calls of ``scheduler.step`` that the run will make.
        grid: The image tokens of the picture.
        num_text_tokens: Text tokens T.
        dtype: The transformer's dtype, in which caches are kept.
        branches: Guidance branches: 2 with classifier-free guidance, 1 without.

    Raises:
        RASError: If the configuration does not fit the run.
    """
    count = grid.num_tokens
    plans = plan_steps(config, num_evaluations, count)

    def flops(num_active: int) -> int:
        return forward_flops(
            work,
            batch=branches,
            num_tokens=count,
            num_active=num_active,
            num_text_tokens=num_text_tokens,
        )

    rows = []
    for (kind, num_active), group in groupby(plans, lambda plan: (plan.kind, plan.num_active)):
        steps = [plan.index for plan in group]
        cost = flops(num_active) / flops(count)
        rows.append(PlanRow(steps[0], steps[-1], kind, num_active, cost))
    shape = {"batch": branches, "num_tokens": count, "num_text_tokens": num_text_tokens}
    sparse = any(row.kind == "sparse" for row in rows)
    return PlanTable(
        rows=tuple(rows),
        grid=grid,
        num_text_tokens=num_text_tokens,
        dtype=dtype,
        limit=plan_cost(work, plans, **shape).limit,
        cache_bytes=cache_bytes(work, dtype=dtype, **shape) if sparse else 0,
        branches=branches,
    )
