"""`ras_dit.verify`: is RAS right on this pipeline? Compared with the masked reference, and where
it is not, what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ras_dit.adapters import TransformerDescription
from ras_dit.config import RASConfig
from ras_dit.engine import denoisers
from ras_dit.errors import RASError
from ras_dit.findings import blame, first_difference, misplaced, watch_blocks
from ras_dit.patch import enable
from ras_dit.reference import masked_reference
from ras_dit.trace import StepTrace, Trace

_DEFAULTS: Mapping[str, Any] = {"num_inference_steps": 8}
_CHECKED = RASConfig(sample_ratio=0.4, warmup_steps=2)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found. ``str()`` of it is a report in markdown; true if all is well.

    Attributes:
        transformer: Class name of the transformer.
        dense_error: Largest difference of final latents between a run with ``sample_ratio=1.0``
            and the stock pipeline; anything but 0 is wrong.
        sparse_error: Largest difference of final latents between a sparse run and the masked
            reference.
        sparse_effect: Largest difference between the sparse run and the stock pipeline: what the
            error has to be small against.
        tolerance: The largest ``sparse_error`` that passes.
        findings: What is wrong, in words; empty where nothing is.
        trace: Of the sparse run.
    """

    transformer: str
    dense_error: float
    sparse_error: float
    sparse_effect: float
    tolerance: float
    findings: tuple[str, ...]
    trace: Trace | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "RAS is right here" if self.ok else "RAS is wrong here"
        lines = [
            f"{verdict} ({self.transformer})",
            "",
            "| check | difference of final latents |",
            "| --- | --- |",
            f"| ratio 1.0 against stock (has to be 0) | {self.dense_error:.3g} |",
            f"| sparse against the reference | {self.sparse_error:.3g} |",
            f"| the most that passes | {self.tolerance:.3g} |",
            f"| sparse against stock, for comparison | {self.sparse_effect:.3g} |",
            "",
            *(f"- {finding}" for finding in self.findings),
        ]
        return "\n".join(lines).rstrip()


def verify(
    pipe: Any,
    config: RASConfig | str | Path | Mapping[str, Any] | None = None,
    /,
    *,
    description: TransformerDescription | None = None,
    tolerance: float | None = None,
    **call: Any,
) -> Verification:
    """Compare accelerated runs of a pipeline with what they have to give.

    Three short runs and one slow one: stock, RAS at ratio 1, RAS with sparse steps, and the
    full-length masked reference with the same active tokens. The pipeline is left as it was
    found. Use several images of a size that is not square: some mistakes show only there.

    Args:
        pipe: A diffusers pipeline on which RAS is not enabled.
        config: What to check, as for :func:`ras_dit.enable`; by default ratio 0.4 after two dense
            steps.
        description: What the transformer looks like, where ras-dit does not know it.
        tolerance: Largest difference of final latents that passes; by default 1e-4 in float32,
            and in half precision a twentieth of what the sparse steps change.
        **call: Arguments of the pipeline's call: a prompt or embeddings, ``height``, ``width``,
            ... Eight inference steps unless given. Generators are copied, so that every run
            starts from the same noise.

    Raises:
        UnsupportedError: If RAS cannot be enabled on the pipeline at all.
        RASError: If no step of the run is sparse, so that nothing would be checked.
    """
    chosen = _CHECKED if config is None else RASConfig.load(config)
    # What is checked is what the transformer computes; the reference holds outputs.
    chosen = chosen.replace(
        forecast="hold", forecast_keys=0.0, forecast_age=None, solver="stock", correction_age=0
    )
    call = {**_DEFAULTS, **call}
    with torch.no_grad(), torch.random.fork_rng():
        with enable(pipe, sample_ratio=1.0, description=description) as handle:
            dense = _run(pipe, call)
            known = handle.description
        check = _Check(pipe, known, call)
        stock = check.first_call()
        try:
            with enable(pipe, chosen, description=description) as handle:
                sparse = _run(pipe, call)
        except (RASError, RuntimeError, IndexError, TypeError, AttributeError) as error:
            findings = (*check.places(), f"a sparse run fails: {error}")
            failed = float("inf")
            dense_error = _distance(dense, stock)
            return Verification(known.transformer, dense_error, failed, failed, 0.0, findings, None)
        trace = handle.trace
        assert trace is not None
        _check_sparse(trace)
        torch.manual_seed(0)
        reference = masked_reference(pipe, trace, description=description, **_fresh(call))
        errors = (_distance(dense, stock), _distance(sparse, reference), _distance(sparse, stock))
        if tolerance is None:
            tolerance = 1e-4 if stock.dtype == torch.float32 else errors[2] / 20
        found = []
        if errors[0] > 0:
            found.append("a run with sample_ratio=1.0 is not the stock pipeline, bitwise")
        if not errors[1] <= tolerance:
            found += check.places() or [check.blocks(trace)]
    return Verification(known.transformer, *errors, tolerance, tuple(found), trace)


class _Check:
    """Looks closer at a pipeline whose run is wrong, or may be."""

    def __init__(
        self, pipe: Any, description: TransformerDescription, call: Mapping[str, Any]
    ) -> None:
        self._pipe = pipe
        self._transformers = list(denoisers(pipe).values())
        self._description = description
        self._call = call
        self._arguments: dict[str, Any] = {}

    def first_call(self) -> torch.Tensor:
        """A stock run; what its first call of the transformer was given is kept."""
        with watch_blocks(self._transformers, self._description, 0) as outputs:
            latents = _run(self._pipe, self._call)
        self._arguments = outputs.arguments
        return latents

    def places(self) -> list[str]:
        """Findings about where the tokens stand."""
        return misplaced(self._transformers[0], self._description, self._arguments)

    def blocks(self, trace: Trace) -> str:
        """Finding about the first block that goes wrong."""
        step = next(step.index for step in trace.steps if step.active is not None)
        number = sum(len(before.calls) for before in trace.steps[:step])
        # With both guidance branches in every step blocks can be compared one to one.
        trace = replace(trace, steps=tuple(map(_with_all_branches, trace.steps)))
        description, transformers = self._description, self._transformers
        with (
            enable(self._pipe, replay=trace, description=description),
            watch_blocks(transformers, description, number) as fast,
        ):
            _run(self._pipe, self._call)
        with watch_blocks(transformers, description, number) as slow:
            torch.manual_seed(0)
            masked_reference(self._pipe, trace, description=description, **_fresh(self._call))
        block = first_difference(fast, slow, description, trace, step)
        return blame(block, description)


def _with_all_branches(step: StepTrace) -> StepTrace:
    return replace(step, calls=tuple(replace(call, rows_run=None) for call in step.calls))


def _check_sparse(trace: Trace) -> None:
    if not any(0 < step.num_active < step.num_tokens for step in trace.steps):
        raise RASError(
            f"no step of this run's {len(trace.steps)} computes a part of the tokens (they are "
            "dense or skipped), so there is nothing to check; give more num_inference_steps, a "
            "larger picture or a configuration with regions"
        )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = (one.float() - other.float()).abs().max()
    return float(difference) if difference.isfinite() else float("inf")


def _run(pipe: Any, call: Mapping[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)  # stochastic schedulers and encoders draw from the global generator
    output = pipe(**{**_fresh(call), "output_type": "latent", "return_dict": False})
    latents: torch.Tensor = output[0]
    return latents


def _fresh(call: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with generators in the state in which they were given."""

    def copy(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, list | tuple):
            return type(value)(copy(item) for item in value)
        return value

    return {name: copy(value) for name, value in call.items()}
