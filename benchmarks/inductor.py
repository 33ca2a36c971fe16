"""Does torch.compile write the scatter of fresh rows into the projection itself?

    python -m benchmarks.inductor

Prints the kernels that Inductor generates for a projection and ``index_copy_``, and for a
projection and an activation, which it fuses; both as it is and with its own templates of the
matrix product. It generates code for the CPU; the rule that decides is the same for all devices.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

TEMPLATES = {"max_autotune": True, "max_autotune_gemm_backends": "CPP", "freezing": True}


def project_and_scatter(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """The torch path of a sparse step: ``[B * A, C]`` to rows of ``[B * S, C]``."""
    cache.index_copy_(0, rows, F.linear(x, weight, bias))
    return cache


def project_and_activate(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What a compiler fuses: nothing is written to but the result."""
    return F.silu(F.linear(x, weight, bias))


def generated(function: Callable[..., Any], *operands: torch.Tensor, **settings: Any) -> list[str]:
    """The kernels that a compiled function calls, in order."""
    torch.compiler.reset()
    with torch.no_grad(), config.patch(fx_graph_cache=False, **settings):
        _, (code, *_) = run_and_get_code(torch.compile(function), *operands)
    call = code[code.index("def call(") :]
    return re.findall(r"^ +(extern_kernels\.\w+|cpp_fused_\w+)\(", call, re.MULTILINE)


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Print a line for each function and setting."""
    x, cache = torch.randn(128, 256), torch.zeros(400, 256)
    weight, bias = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((256, 256), (256,)))
    rows = torch.randperm(400)[:128]
    for settings in ({}, TEMPLATES):
        for function, operands in (
            (project_and_scatter, (x, weight, bias, cache, rows)),
            (project_and_activate, (x, weight, bias)),
        ):
            kernels = generated(function, *operands, **settings)
            kind = "templates" if settings else "default"
            say(f"{function.__name__}, {kind}: {' -> '.join(kernels)}\n")


if __name__ == "__main__":
    main()
