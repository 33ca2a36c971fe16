"""Every scheduler that a stock pipeline takes works with RAS; what it refuses stays refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from family_laws import Family, run, run_sparse
from family_schedulers import (
    SchedulerKind,
    evaluations,
    give_scheduler,
    kinds_for,
    refusal,
    short_call,
)
from ras_dit.adapters import describe
from ras_dit.engine import denoisers
from ras_dit.reference import masked_reference
from ras_dit.support import read_support
from ras_dit.tokens import TokenLayout, TokenSort
from support_table import one_of_each_transformer

FAMILIES: list[Family] = one_of_each_transformer(read_support().supported)
EARLY: dict[str, Any] = {"warmup_steps": 1, "reset_steps": ()}
ACROSS = {"Lumina-Image-2"}  # guidance is scaled by the norm of a whole row of the picture
# Second-order, multistep and stochastic ones, for velocity, noise and v-prediction.
COMPARED = (
    ("Stable Diffusion 3", "Heun"),
    ("Stable Diffusion 3", "DPM++ 2M SDE"),
    ("PixArt-alpha", "DPM2 ancestral"),
    ("PixArt-alpha", "LMS"),
    ("HunyuanDiT", "PNDM"),
    ("CogVideoX", "DDPM"),
    ("Flux.1", "UniPC"),
    ("LTX-Video", "Euler, stochastic"),
    ("Wan 2.1", "SA-Solver"),
    ("Z-Image", "LCM"),
)

# Schedulers of diffusers have their own ways with numpy.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]


def with_scheduler(family: Family, name: str) -> tuple[Any, SchedulerKind]:
    pipe = family.build()
    kind = next(kind for kind in kinds_for(pipe) if kind.name == name)
    give_scheduler(pipe, kind, pipe.scheduler.config)
    return pipe, kind


def check_held(pipe: Any, recording: Any) -> None:
    """Inactive tokens keep their noise, and what the scheduler was given nobody has written to."""
    part = next(iter(denoisers(pipe).values()))
    description, trace = describe(part), recording.trace
    layout = TokenLayout(trace.grid, trace.num_text_tokens)
    sort = TokenSort(description.patch(part.config), layout, description.frames_first)
    noises = [sort(noise) for noise in recording.noise_preds]
    for before, after, step in zip(noises, noises[1:], trace.steps[1:], strict=False):
        held = torch.ones(trace.batch_size, trace.num_tokens, dtype=torch.bool)
        held.scatter_(1, step.active, False)
        size = float(before.abs().max())
        assert float((after - before)[held].abs().max()) <= 1e-5 * size
        assert float((after - before)[~held].abs().max()) > 1e-3 * size


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_scheduler_is_taken_or_refused_as_by_the_stock_pipeline(family: Family) -> None:
    pipe = family.build()
    own = pipe.scheduler.config
    accepted = read_support().schedulers[family.name]
    assert len(accepted) >= 3
    for kind in kinds_for(pipe):
        give_scheduler(pipe, kind, own)
        if kind.name not in accepted:
            stock = refusal(pipe, family, kind)
            assert stock is not None, kind.name
            with ras_dit.enable(pipe, **EARLY):
                error = refusal(pipe, family, kind)
            # Bria asks for the method by which watched schedulers make themselves known.
            if "scale_model_input" not in str(stock):
                assert type(error) is type(stock), kind.name
            continue
        with ras_dit.enable(pipe, sample_ratio=0.4, record=True, **EARLY) as handle:
            latents = run(pipe, short_call(family, kind))
        assert latents.isfinite().all(), kind.name
        assert handle.recording is not None
        steps = [step.kind for step in handle.recording.trace.steps]
        assert steps == ["dense"] + ["sparse"] * (evaluations(kind) - 1), kind.name
        if family.name not in ACROSS:
            check_held(pipe, handle.recording)


@pytest.mark.parametrize("index", range(len(FAMILIES)), ids=[str(family) for family in FAMILIES])
def test_a_dense_run_is_stock_bitwise(index: int) -> None:
    """One scheduler for each family, so that every one gets its turn."""
    family = FAMILIES[index]
    accepted = read_support().schedulers[family.name]
    pipe, kind = with_scheduler(family, accepted[(4 * index + 1) % len(accepted)])
    stock = run(pipe, short_call(family, kind))
    with ras_dit.enable(pipe, sample_ratio=1.0):
        assert torch.equal(run(pipe, short_call(family, kind)), stock)


@pytest.mark.parametrize(("name", "scheduler"), COMPARED)
def test_a_sparse_run_is_the_masked_reference(name: str, scheduler: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    pipe, kind = with_scheduler(family, scheduler)
    latents, trace = run_sparse(pipe, short_call(family, kind, 2), **EARLY)
    torch.manual_seed(0)
    reference = masked_reference(pipe, trace, **short_call(family, kind, 2))
    size = max(1.0, float(reference.abs().max()))
    assert float((latents - reference).abs().max()) <= family.tolerance * size
