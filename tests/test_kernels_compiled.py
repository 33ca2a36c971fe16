"""Machine code of the kernels for two generations of GPUs, neither of which has to be there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_code
from benchmarks.kernel_code import TARGETS, Case, cases

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="needs Triton, which is made for Linux"
    ),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="interpreted kernels"),
]
# bfloat16 differs from float16 in the names of the instructions: the projection shows that.
CASES = [case for case in cases() if case.dtype != torch.bfloat16 or case.module == "linear"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.dtype}")
def test_kernels_fit_the_registers(
    case: Case, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    machine = case.machine(target)
    assert machine.registers <= 255
    assert machine.spills == 0
    # What every GPU of compute capability 8.0 and above has for one block.
    assert machine.shared <= 99 * 1024
    counts = machine.tensor_cores
    if case.module != "linear" or case.dtype == torch.float32:
        assert counts == {"mma.sync": 0, "wgmma": 0}
    else:
        kind, other = ("wgmma", "mma.sync") if target == "sm_90" else ("mma.sync", "wgmma")
        assert counts[kind] > 0
        assert counts[other] == 0


def test_code_that_does_not_assemble_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no ptxas took the kernel"):
        kernel_code.assemble("not a program", "sm_80")
