"""``summary(pipe)``: what RAS does on a pipeline and what its last run cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ras_dit.config import RASConfig
from ras_dit.cost import RunCost, trace_cost
from ras_dit.errors import RASError
from ras_dit.model_outline import outline_of
from ras_dit.patch import find_engine
from ras_dit.planning import PlanTable, plan_outline
from ras_dit.trace import Trace


@dataclass(frozen=True, eq=False)
class Summary:
    """State of RAS on one pipeline; ``str()`` of it is markdown.

    Attributes:
        transformer: Class name of the transformer.
        config: The configuration in force.
        trace: The last finished run, ``None`` before the first.
        cost: FLOPs of that run, dense and as it ran.
        plan: Before the first run, the plan of one with the pipeline's own size and number of
            steps; ``None`` after it, and where only a call can say what its size is.
    """

    transformer: str
    config: RASConfig
    trace: Trace | None
    cost: RunCost | None
    plan: PlanTable | None = None

    @property
    def flops_saved(self) -> float | None:
        """Share of the dense run's FLOPs that was not spent, 0 to 1."""
        return None if self.cost is None else self.cost.saved

    @property
    def cache_bytes(self) -> int | None:
        """Largest size of all caches in the last run, in bytes.

        They are freed at its end. With ``static_cache`` they stay until RAS is disabled, or a run
        has another shape.
        """
        return None if self.trace is None else self.trace.cache_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts."""
        data: dict[str, Any] = {
            "transformer": self.transformer,
            "sample_ratio": self.config.sample_ratio,
        }
        if self.trace is None or self.cost is None:
            return data
        counts = [step.num_active for step in self.trace.steps]
        return data | {
            "steps": len(counts),
            "dense_steps": self.trace.num_dense_steps,
            "image_tokens": self.trace.num_tokens,
            "text_tokens": self.trace.num_text_tokens,
            "active_tokens": counts,
            "halved_steps": self.trace.num_halved,
            "flops_dense": self.cost.dense,
            "flops": self.cost.ras,
            "flops_saved": self.flops_saved,
            "flop_limit": self.cost.limit,
            "cache_bytes": self.cache_bytes,
        }

    @property
    def _kept_until(self) -> str:
        if self.config.static_cache:
            return "kept until RAS is disabled (static_cache)"
        return "freed at the end of the run"

    @property
    def _ratio(self) -> str:
        cycle, intervals = self.config.cycle, self.config.intervals
        if intervals is not None:
            return f"1 at intervals of {', '.join(map(str, intervals))} steps, 0 between"
        if cycle is None:
            return f"{self.config.sample_ratio:g}"
        return f"{', '.join(f'{ratio:g}' for ratio in cycle)} in turn"

    def __str__(self) -> str:
        rows = [
            ("transformer", self.transformer),
            ("sample ratio", self._ratio),
        ]
        trace, cost = self.trace, self.cost
        if trace is None or cost is None or self.flops_saved is None:
            rows.append(("last run", "none finished yet"))
            if self.plan is not None:
                rows.append(("planned steps", str(self.plan.num_steps)))
                rows += [(f"planned {name}", value) for name, value in self.plan.facts()]
        else:
            rows += [
                ("last run", trace.work),
                ("image tokens", f"{trace.num_tokens} ({' x '.join(map(str, trace.grid.shape))})"),
                ("text tokens", str(trace.num_text_tokens)),
                *(
                    [("steps with one guidance branch", str(trace.num_halved))]
                    if trace.num_halved
                    else []
                ),
                ("FLOPs", f"{cost.ras:.4g} of {cost.dense:.4g} ({self.flops_saved:.0%} saved)"),
                ("speed-up at most (FLOP limit)", f"{cost.limit:.2f}x"),
                ("caches", f"{trace.cache_bytes / 2**20:.1f} MiB, {self._kept_until}"),
            ]
        width = max(len(name) for name, _ in rows)
        table = [f"| {name:<{width}} | {value} |" for name, value in rows]
        return "\n".join([f"| {'RAS':<{width}} | |", f"| {'-' * width} | --- |", *table])


def summary(pipe: Any) -> Summary:
    """What RAS does on a pipeline, and what the last finished run cost.

    Raises:
        RASError: If RAS is not enabled on the pipeline.
    """
    engine = find_engine(pipe)
    if engine is None:
        raise RASError("RAS is not enabled on this pipeline; call ras_dit.enable(pipe) first")
    trace = engine.trace
    work = engine.description.work(engine.model_config)
    return Summary(
        transformer=engine.description.transformer,
        config=engine.config,
        trace=trace,
        cost=None if trace is None else trace_cost(work, trace),
        plan=_planned(pipe, engine.config) if trace is None else None,
    )


def _planned(pipe: Any, config: RASConfig) -> PlanTable | None:
    try:
        outline = outline_of(pipe)
        layout = outline.layout()
        return plan_outline(
            outline,
            config,
            outline.num_evaluations(outline.num_inference_steps),
            layout,
            dtype=pipe.transformer.dtype,
        )
    # A model described by hand, a size that only a call has, or a configuration for other steps.
    except RASError:
        return None
