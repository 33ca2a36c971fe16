"""What every family of pipelines has to keep, as one row of data a pipeline.

A `Family` says how to build a small real pipeline with random weights and how to call it; the
laws are checked by `tests/test_families*.py` for every row, and `docs/models.md` is drawn from
the same rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ras_dit
from pipelines import hooks_of
from ras_dit.adapters import describe
from ras_dit.cost import cache_bytes, trace_cost
from ras_dit.engine import denoisers
from ras_dit.reference import masked_reference
from ras_dit.trace import Trace

SPARSE: dict[str, Any] = {"sample_ratio": 0.4, "warmup_steps": 2, "reset_steps": (5,)}
STEPS = 7
# Where a pipeline makes latents of one image in a batch from the same random numbers as alone.
LATENTS_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of pipeline and how its laws are tested.

    Attributes:
        name: What people call it, unique.
        build: Makes the pipeline, the same weights at every call.
        call: The arguments of a call that makes so many images, each the same whatever the batch;
            not square, with guidance where the pipeline has it; ``output_type`` is added.
        feature: What of the family this row is about: "text-to-image", "img2img", "inpaint",
            "edit", "controlnet", "image-to-video", ...
        images: How many images the tests make at once.
        main: Whether the row stands for its transformer although it is not text-to-image.
        wrong: A change of the description that is wrong, which the reference must find; the
            reversed token order where not given.
        batched: Whether the pipeline makes several images in one call.
        tolerance: Of final latents against the reference.
        caches_by_formula: Whether all rows of a batch have equally long caches, as the formula of
            their size takes for granted.
        uncounted: Parts of the transformer that work once a call, whatever the batch: no part of
            the formula of FLOPs.
    """

    name: str
    build: Callable[[], Any]
    call: Callable[[int], dict[str, Any]]
    feature: str = "text-to-image"
    images: int = 2
    main: bool = False
    wrong: dict[str, Any] = field(default_factory=dict)
    batched: bool = True
    tolerance: float = LATENTS_TOLERANCE
    caches_by_formula: bool = True
    uncounted: tuple[str, ...] = ()

    @property
    def is_main(self) -> bool:
        """Whether this row stands for its transformer, whose every law is tested."""
        return self.feature == "text-to-image" or self.main

    @property
    def count(self) -> int:
        """How many images the tests make in a call."""
        return self.images if self.batched else 1

    def __str__(self) -> str:
        return f"{self.name} {self.feature}"


def run(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """Final latents of a call."""
    torch.manual_seed(0)  # some pipelines encode pictures with the global generator
    output = pipe(**call, output_type="latent", return_dict=False)
    # VisualCloze answers with the output of another pipeline.
    latents: torch.Tensor = getattr(output[0], "images", output[0])
    return latents


def run_sparse(pipe: Any, call: dict[str, Any], **settings: Any) -> tuple[torch.Tensor, Trace]:
    """Final latents of an accelerated run, and its trace."""
    with ras_dit.enable(pipe, **SPARSE | settings) as handle:
        latents = run(pipe, call)
    assert handle.trace is not None
    return latents, handle.trace


@functools.cache
def stock_run(family: Family) -> torch.Tensor:
    """Final latents of the pipeline as it is built, once for all laws that look at them."""
    return run(family.build(), family.call(family.count))


@functools.cache
def plain_sparse_run(family: Family) -> tuple[torch.Tensor, Trace]:
    """An accelerated run of a pipeline as it is built, once for all laws that look at it."""
    return run_sparse(family.build(), family.call(family.count))


def reference_run(pipe: Any, family: Family, replay: Any) -> torch.Tensor:
    """Final latents of the full-length reference that masks what a trace or sets leave out."""
    torch.manual_seed(0)
    return masked_reference(pipe, replay, **family.call(family.count))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())


def check_reference(family: Family) -> None:
    """A sparse run with sets of its own for each image equals the full-length reference."""
    latents, trace = plain_sparse_run(family)
    sets = [step.active for step in trace.steps if step.active is not None]
    assert len(sets) >= 3
    assert all(active.shape[0] == family.count for active in sets)
    if family.count > 1:
        assert any(not torch.equal(active[0], active[1]) for active in sets)
    pipe = family.build()
    assert latents.isfinite().all()
    assert distance(latents, reference_run(pipe, family, trace)) <= family.tolerance
    assert distance(latents, stock_run(family)) > 1e-2
    # The reference is dense where every token is active.
    everything = [None] * len(trace.steps)
    assert torch.equal(reference_run(pipe, family, everything), stock_run(family))


def check_dense(family: Family) -> None:
    """Ratio 1 is the stock pipeline bitwise, and so is the pipeline after ``disable``."""
    pipe = family.build()
    hooks = [hooks_of(part) for part in denoisers(pipe).values()]
    with ras_dit.enable(pipe, sample_ratio=1.0):
        assert torch.equal(run(pipe, family.call(family.count)), stock_run(family))
    run_sparse(pipe, family.call(1))
    assert torch.equal(run(pipe, family.call(family.count)), stock_run(family))
    assert hooks == [hooks_of(part) for part in denoisers(pipe).values()]


def check_cost(family: Family, **settings: Any) -> tuple[torch.Tensor, Trace]:
    """FLOPs and cache bytes by formula are those that torch counts and the caches take.

    Gives the final latents and the trace.
    """
    pipe = family.build()
    transformer = next(iter(denoisers(pipe).values()))
    description = describe(transformer)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        latents, trace = run_sparse(pipe, family.call(family.count), **settings)
    work = description.work(transformer.config)
    cost = trace_cost(work, trace)
    # Autoencoders that read a given picture are no part of it.
    counts, name = counter.get_flop_counts(), type(transformer).__name__
    shared = sum(sum(counts[f"{name}.{part}"].values()) for part in family.uncounted)
    assert sum(counts[name].values()) - shared == cost.ras < cost.dense
    if family.caches_by_formula:
        assert trace.cache_bytes == sum(
            cache_bytes(
                work,
                batch=call.batch,
                num_tokens=trace.num_tokens + trace.num_references,
                num_text_tokens=trace.num_text_tokens,
                dtype=torch.float32,
            )
            for call in trace.steps[2].calls
        )
    return latents, trace


def check_kept_text(family: Family) -> None:
    """Text is kept as in a reference where text is inactive, too, or that is refused."""
    pipe = family.build()
    description = describe(next(iter(denoisers(pipe).values())))
    if description.text_arguments is None:
        with pytest.raises(ras_dit.UnsupportedError, match="text_arguments"):
            ras_dit.enable(pipe, text="keep")
        return
    latents, trace = check_cost(family, text="keep")
    assert trace.keeps_text
    assert distance(latents, reference_run(pipe, family, trace)) <= family.tolerance
    sets = [step.active for step in trace.steps]
    assert distance(latents, reference_run(pipe, family, sets)) > 1e-2


def check_batch(family: Family) -> None:
    """Each image of a batch is the one that it is alone."""
    pipe = family.build()
    latents, _ = plain_sparse_run(family) if family.count == 2 else run_sparse(pipe, family.call(2))
    alone, _ = run_sparse(pipe, family.call(1))
    assert latents.shape[0] == 2 * alone.shape[0]
    assert distance(latents[:1], alone[:1]) <= family.tolerance


def check_wrong_description(family: Family) -> None:
    """The reference tells a wrong description from the right one."""
    pipe = family.build()
    right = describe(next(iter(denoisers(pipe).values())))
    change = family.wrong
    if not change:
        turned = {"image_first": "text_first", "text_first": "image_first"}
        change = {"token_order": turned[right.token_order]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            latents, trace = run_sparse(
                pipe, family.call(family.count), description=replace(right, **change)
            )
        except (ras_dit.RASError, RuntimeError):
            return  # it shows at once
    assert distance(latents, reference_run(pipe, family, trace)) > 10 * family.tolerance
