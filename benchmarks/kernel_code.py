"""The kernels as machine code for GPUs that need not be there: registers, spills, tensor cores.

What is compiled is what a launch would compile: the launcher itself is run on tensors without
memory, and its kernel's arguments are taken as Triton would take them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ras_dit.kernels.specification import Norm
from ras_dit.kernels.tiles import FULL, LARGE, SMALL, Tile

TARGETS = {"sm_80": 80, "sm_90": 90}
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Machine:
    """What a compiled kernel needs.

    Attributes:
        registers: Registers of a thread.
        spills: Bytes that a thread spills to memory, stores and loads together.
        shared: Bytes of shared memory of a block.
        tensor_cores: Tensor-core instructions in the code: ``mma.sync`` and ``wgmma``.
    """

    registers: int
    spills: int
    shared: int
    tensor_cores: dict[str, int]


class _Recorder:
    """Stands in for a kernel and keeps what it would have been launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launch: dict[str, Any] = {}

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launch = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs

        return launch


def compiled(module: Any, kernel: str, launch: Callable[[], None], target: str) -> Machine:
    """Compile what a launch would compile on a GPU that is not there.

    Args:
        module: The module of the kernel.
        kernel: The kernel's name in it.
        launch: Launches it, on tensors of any device.
        target: One of ``TARGETS``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    recorder = _Recorder(getattr(module, kernel))
    with mock.patch.object(module, kernel, recorder):
        launch()
    parameters = recorder.kernel.params
    given = {parameter.name: recorder.launch[parameter.name] for parameter in parameters}
    options = {name: value for name, value in recorder.launch.items() if name not in given}
    types = {
        parameter.name: "constexpr" if parameter.is_constexpr else _type(given[parameter.name])
        for parameter in parameters
    }
    source = ASTSource(
        recorder.kernel,
        signature=types,
        constexprs={name: value for name, value in given.items() if types[name] == "constexpr"},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, (name, value) in enumerate(given.items())
            if types[name] != "constexpr" and _is_aligned(value)
        },
    )
    made = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=options)
    ptx = made.asm["ptx"]
    log = assemble(ptx, target)
    return Machine(
        registers=int(_found(r"Used (\d+) registers", log)),
        spills=sum(int(number) for number in re.findall(r"(\d+) bytes spill", log)),
        shared=made.metadata.shared,
        tensor_cores={
            name: len(re.findall(pattern, ptx))
            for name, pattern in (("mma.sync", r"mma\.sync"), ("wgmma", r"wgmma\.mma_async"))
        },
    )


def assemble(ptx: str, target: str) -> str:
    """What ``ptxas -v`` says of a program; Triton brings one for old versions of PTX, one for new.

    Raises:
        RuntimeError: If neither of them takes it.
    """
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    suffix = "a" if TARGETS[target] >= 90 else ""
    said = []
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "kernel.ptx"
        source.write_text(ptx)
        for tool in sorted(folder.glob("ptxas*")):
            command = [tool, "-v", f"--gpu-name={target}{suffix}", source, "-o", f"{work}/cubin"]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode == 0:
                return ran.stderr
            said.append(ran.stderr)
    raise RuntimeError("no ptxas took the kernel: " + " ".join(said))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        return "constexpr"
    return "i32" if value < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


@dataclass(frozen=True)
class Case:
    """A kernel as a model uses it.

    Attributes:
        name: What it is.
        module: The kernel's module in ``ras_dit.kernels``.
        dtype: dtype of the model.
        tile: Block size of a projection.
        launch: Launches it.
    """

    name: str
    module: str
    dtype: torch.dtype
    tile: Tile | None
    launch: Callable[[], None]

    def machine(self, target: str) -> Machine:
        """What it needs when compiled for a target."""
        module = import_module(f"ras_dit.kernels.{self.module}")
        kernel = "linear_scatter_kernel" if self.module == "linear" else "norm_rope_scatter_kernel"
        return compiled(module, kernel, self.launch, target)


def cases() -> Iterator[Case]:
    """Everything that ships: each block size and norm with each dtype that it is for."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for tile in (FULL,) if dtype == torch.float32 else (LARGE, SMALL):
            yield _projection(dtype, tile)
        yield _keys("SD3.5, RMS norm per head", dtype, 38, 64, across=False)
        yield _keys("Lumina-Next, layer norm, rotary", dtype, 8, 72, across=True)


def _projection(dtype: torch.dtype, tile: Tile) -> Case:
    x = torch.empty(2, 1024, 1536, dtype=dtype, device="meta")
    weight = torch.empty(1536, 1536, dtype=dtype, device="meta")
    bias = torch.empty(1536, dtype=dtype, device="meta")
    cache = torch.empty(2, 24, 4429, 64, dtype=dtype, device="meta").transpose(1, 2)
    rows = torch.empty(2, 1024, dtype=torch.int64, device="meta")

    def launch() -> None:
        from ras_dit.kernels.linear import linear_scatter

        linear_scatter(cache, x, weight, bias, rows, tile)

    name = f"projection, {tile.tokens} x {tile.channels} x {tile.depth}"
    return Case(name, "linear", dtype, tile, launch)


def _keys(name: str, dtype: torch.dtype, heads: int, width: int, *, across: bool) -> Case:
    keys = torch.empty(2, 1024, heads, width, dtype=dtype, device="meta")
    rows = torch.empty(2, 1024, dtype=torch.int64, device="meta")
    channels = heads * width if across else width
    weight, bias = (torch.empty(channels, dtype=dtype, device="meta") for _ in range(2))
    if across:
        angles = torch.empty(1, 1024, width // 2, dtype=torch.complex64, device="meta")
        cache = torch.empty(2, 4096, 4 * heads, width, dtype=dtype, device="meta")
        norm = Norm("layer", across, 1e-5, weight, bias)
    else:
        angles = None
        cache = torch.empty(2, heads, 4429, width, dtype=dtype, device="meta").transpose(1, 2)
        norm = Norm("rms", across, 1e-6, weight)

    def launch() -> None:
        from ras_dit.kernels.keys import norm_rope_scatter

        norm_rope_scatter(cache, keys, norm, angles, rows)

    return Case(name, "keys", dtype, None, launch)


def compile_table(say: Callable[[str], object]) -> None:
    """Print what every kernel needs, as a markdown table."""
    say(
        "| kernel | dtype | target | registers | spilled bytes | shared KiB | mma.sync | wgmma |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for case in cases():
        for target in TARGETS:
            machine = case.machine(target)
            counts = machine.tensor_cores
            say(
                f"| {case.name} | {TYPES[case.dtype]} | {target} | {machine.registers} "
                f"| {machine.spills} | {machine.shared / 1024:g} | {counts['mma.sync']} "
                f"| {counts['wgmma']} |\n"
            )
