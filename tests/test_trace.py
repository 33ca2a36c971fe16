"""The record of a run: small, exact, and JSON in and out."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ras_dit import RASError, StepTrace, Trace
from ras_dit.tokens import TokenGrid
from ras_dit.trace import Call, pack_active, unpack_active


def make_trace() -> Trace:
    active = torch.tensor([[0, 3, 6], [1, 2, 14]])
    steps = (
        StepTrace(0, "dense", 1.0, 15, (Call(4, 15),)),
        StepTrace(1, "sparse", 0.5, 15, (Call(4, 3),), pack_active(active, 15)),
    )
    return Trace("SD3Transformer2DModel", TokenGrid(3, 5), 7, 2, "float32", 1024, steps)


@given(st.integers(1, 300), st.integers(1, 4), st.data())
def test_packing_is_exact(num_tokens: int, batch: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, num_tokens))
    active = torch.stack([torch.randperm(num_tokens)[:count].sort().values for _ in range(batch)])
    packed = pack_active(active, num_tokens)
    assert packed.dtype == torch.uint8
    assert packed.shape == (batch, -(-num_tokens // 8))
    assert torch.equal(unpack_active(packed, num_tokens), active)


def test_json_round_trip() -> None:
    trace = make_trace()
    again = Trace.from_json(trace.to_json())
    assert again.to_json() == trace.to_json()
    assert again.grid == TokenGrid(3, 5)
    assert again.num_tokens == 15
    assert [step.kind for step in again.steps] == ["dense", "sparse"]
    assert again.steps[0].active is None
    assert again.steps[1].active is not None
    assert again.steps[1].active.dtype == torch.int64
    assert again.steps[1].active.tolist() == [[0, 3, 6], [1, 2, 14]]
    assert again.steps[1].calls == (Call(4, 3),)
    assert again.num_dense_steps == 1


def test_active_counts_lie_on_the_grid() -> None:
    counts = make_trace().active_counts()
    assert counts.shape == (2, 3, 5)
    assert counts[0].flatten().tolist() == [2, 1, 1, 2, 1, 1, 2] + [1] * 8
    assert counts[1, 2, 4] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"steps": [{}]}, "not a trace"),
        ({"grid": [3]}, "not a trace"),
        ({"grid": [4, 5]}, "does not describe"),
    ],
)
def test_a_foreign_file_is_refused(change: dict[str, object], message: str) -> None:
    data = json.loads(make_trace().to_json()) | change
    with pytest.raises(RASError, match=message):
        Trace.from_json(json.dumps(data))
    with pytest.raises(RASError, match="not a trace"):
        Trace.from_json("no json")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((6, 6), "2 steps: 2 dense"),
        ((6, 0, 6, 0), "4 steps: 2 dense, 2 skipped"),
        ((6, 2, 2), "3 steps: 1 dense, 2 with 2 of 6 tokens"),
        ((6, 3, 0, 2), "4 steps: 1 dense, 2 with 2 to 3 of 6 tokens, 1 skipped"),
    ],
)
def test_what_steps_did_in_words(counts: tuple[int, ...], expected: str) -> None:
    steps = []
    for index, count in enumerate(counts):
        packed = None if count == 6 else pack_active(torch.arange(count)[None], 6)
        kind = "dense" if count == 6 else "sparse"
        steps.append(StepTrace(index, kind, 1.0, 6, (), packed))
    assert Trace("T", TokenGrid(2, 3), 5, 1, "float32", 0, tuple(steps)).work == expected
