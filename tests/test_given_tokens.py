"""Videos: frames that are given are no work, and what is given matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import families_cogvideox
import families_hunyuan_video
import families_ltx
import families_wan
import ras_dit
from clips import picture
from family_laws import SPARSE, Family, run, run_sparse

ROWS = [
    *families_wan.FAMILIES,
    *families_ltx.FAMILIES,
    *families_hunyuan_video.FAMILIES,
    *families_cogvideox.FAMILIES,
]
GIVEN_FIRST = [
    "Wan 2.2 TI2V image-to-video",
    "LTX-Video image-to-video",
    "LTX-Video first frame given",
]
MEDIA = ("image", "cond_image", "last_image", "video", "control_video", "mask", "reference_images")


def row(name: str) -> Family:
    return next(family for family in ROWS if str(family) == name)


@pytest.mark.parametrize("ratio", [0.4, 0.8])
@pytest.mark.parametrize("name", GIVEN_FIRST)
def test_given_frames_are_active_only_where_nothing_else_is_left(name: str, ratio: float) -> None:
    family = row(name)
    images = family.images if family.batched else 1
    _, trace = run_sparse(family.build(), family.call(images), sample_ratio=ratio)
    assert trace.grid.frames == 4
    frame = trace.grid.height * trace.grid.width
    rest = trace.num_tokens - frame
    sets = [step.active for step in trace.steps if step.active is not None]
    assert sets
    for active in sets:
        made = (active >= frame).sum(1)
        assert made.tolist() == [min(active.shape[1], rest)] * images


@pytest.mark.parametrize(
    "name", ["LTX-Video key frames given", "HunyuanVideo image-to-video, first frame as it is"]
)
def test_given_frames_that_are_not_made_again_are_references(name: str) -> None:
    family = row(name)
    _, trace = run_sparse(family.build(), family.call(1))
    assert trace.num_references == trace.grid.height * trace.grid.width
    assert trace.grid.frames == (4 if name.startswith("LTX") else 3)


def other(value: Any) -> Any:
    """Something else of the same form."""
    if isinstance(value, torch.Tensor):
        return value.flip(-1)
    if isinstance(value, list):
        return [other(item) for item in value]
    return picture(value.height, value.width, seed=99)


CASES = [
    (family, name)
    for family in ROWS
    for name in MEDIA
    if name in family.call(1) and "two transformers" not in str(family)
]


@pytest.mark.parametrize(
    ("family", "name"), CASES, ids=[f"{family}: {name}" for family, name in CASES]
)
def test_what_is_given_matters(family: Family, name: str) -> None:
    pipe = family.build()
    call = {"num_inference_steps": 2}
    latents = run(pipe, family.call(1) | call)
    changed = run(pipe, family.call(1) | call | {name: other(family.call(1)[name])})
    assert float((latents - changed).abs().max()) > 1e-2


def test_frames_left_out_in_mid_run_end_the_sparse_steps() -> None:
    """ChronoEdit drops the frames between the first and the last after some steps."""
    family = row("ChronoEdit edit")
    pipe = family.build()
    call = {"enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 4, "num_frames": 13}
    with ras_dit.enable(pipe, **SPARSE) as handle:
        latents = run(pipe, family.call(2) | call)
    assert handle.trace is not None
    assert latents.shape[2] == 2
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["sparse"] * 2 + [
        "dense"
    ] * 3
