"""The kernels against their specification, in Triton's interpreter (run by test_kernels.py).

Tolerances: sums are made in fp32 in another order (1e-5), and rounded to the model's dtype once:
by half a unit in the last place in float16, and by a whole one in bfloat16, where the interpreter
cuts off instead of rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ras_dit.kernels import specification
from ras_dit.kernels.keys import norm_rope_scatter
from ras_dit.kernels.linear import linear_scatter
from ras_dit.kernels.specification import Norm
from ras_dit.kernels.tiles import FULL, LARGE, SMALL, Tile

TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: str(d)[6:])


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sets(batch: int, active: int, whole: int) -> torch.Tensor:
    """Different rows for each image, in no order."""
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(whole, generator=generator)[:active] for _ in range(batch)])


def empty_cache(
    batch: int, whole: int, heads: int, width: int, dtype: torch.dtype, *, heads_first: bool = False
) -> torch.Tensor:
    """``[B, S, H, D]`` with numbers that nobody may touch but where the rows say so."""
    if heads_first:
        return randn(batch, heads, whole, width, seed=3, dtype=dtype).transpose(1, 2)
    return randn(batch, whole, heads, width, seed=3, dtype=dtype)


class Projection:
    """Operands of a projection and scatter."""

    def __init__(self, dtype: torch.dtype, sizes: tuple[int, ...], **layout: bool) -> None:
        batch, active, whole, channels, heads, width, copies = sizes
        first = layout.get("heads_first", False)
        self.cache = empty_cache(batch, whole, heads * copies, width, dtype, heads_first=first)
        self.x = randn(batch, active, channels, seed=1, dtype=dtype)
        self.weight = randn(heads * width, channels, seed=2, dtype=dtype) / channels**0.5
        self.bias = randn(heads * width, seed=4, dtype=dtype) if layout.get("bias", True) else None
        self.rows = sets(batch, active, whole)
        if layout.get("strided", False):
            self.x = self.x.transpose(1, 2).contiguous().transpose(1, 2)
            self.weight = torch.stack([self.weight, self.weight], dim=-1)[..., 0]

    def compare(self, tile: Tile | None = None, **change: Any) -> None:
        """Kernel and specification from the same cache; ``change`` breaks the kernel's operands."""
        given = {"x": self.x, "weight": self.weight, "bias": self.bias, "rows": self.rows, **change}
        made, expected = self.cache.clone(), self.cache.clone()
        linear_scatter(made, **given, tile=tile)
        specification.linear_scatter(expected, self.x, self.weight, self.bias, self.rows)
        untouched = torch.ones(made.shape[:2], dtype=torch.bool)
        untouched[torch.arange(made.shape[0])[:, None], self.rows] = False
        assert torch.equal(made[untouched], self.cache[untouched])
        torch.testing.assert_close(made, expected, **TOLERANCE[self.cache.dtype])


# images, active tokens, whole sequence, channels, heads, head width, copies of each head
ONE = 1, 1, 5, 16, 1, 16, 1
ALL = 2, 9, 9, 33, 3, 5, 1
ODD = 3, 17, 40, 37, 3, 10, 2
BLOCKS = 3, 47, 60, 65, 5, 16, 1


@DTYPES
@pytest.mark.parametrize("sizes", [ONE, ALL, ODD, BLOCKS], ids=["one", "all", "odd", "blocks"])
def test_projection(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    Projection(dtype, sizes).compare()


@pytest.mark.parametrize("tile", [LARGE, SMALL, FULL], ids=["large", "small", "full"])
def test_block_sizes_give_the_same(tile: Tile) -> None:
    Projection(torch.float16, BLOCKS).compare(tile)


@DTYPES
@pytest.mark.parametrize(
    "layout", [{"heads_first": True}, {"strided": True}, {"bias": False}], ids=str
)
def test_layouts_of_memory(dtype: torch.dtype, layout: dict[str, bool]) -> None:
    Projection(dtype, ODD, **layout).compare()


def test_guidance_branches_share_their_rows() -> None:
    work = Projection(torch.float32, (4, 6, 11, 16, 2, 8, 1))
    work.rows = sets(2, 6, 11).repeat(2, 1)
    work.compare()
    work.rows = sets(1, 6, 11).expand(4, -1)  # one set, without memory for each
    work.compare()


def test_rows_of_a_larger_table() -> None:
    """The image's share of the rows of image and text, as a layer has it."""
    work = Projection(torch.float32, (2, 6, 20, 16, 2, 8, 1))
    table = sets(2, 9, 20)
    work.rows = table[:, 3:]
    work.compare()


def test_no_tokens_write_nothing() -> None:
    work = Projection(torch.float32, (2, 0, 5, 16, 2, 8, 1))
    work.compare()
    made = work.cache.clone()
    keys = torch.empty(2, 0, 2, 8)
    norm_rope_scatter(made, keys, None, None, work.rows)
    assert torch.equal(made, work.cache)


@pytest.mark.parametrize("mutation", ["shifted", "shared", "no bias", "transposed"])
def test_a_wrong_projection_is_found(mutation: str) -> None:
    work = Projection(torch.bfloat16, (2, 6, 20, 16, 2, 8, 1))
    changes: dict[str, dict[str, Any]] = {
        "shifted": {"rows": (work.rows + 1) % 20},
        "shared": {"rows": work.rows[:1].expand(2, -1)},
        "no bias": {"bias": None},
        "transposed": {"weight": work.weight.T},
    }
    with pytest.raises(AssertionError):
        work.compare(**changes[mutation])


# -- keys ------------------------------------------------------------------------------------------


class Keys:
    """Operands of norm, rotary embedding and scatter: 3 heads of 10 channels, 2 copies of each."""

    def __init__(self, dtype: torch.dtype, kind: str, *, rotates: bool) -> None:
        batch, active, whole, heads, width = 2, 3, 7, 3, 10
        self.cache = empty_cache(batch, whole, 2 * heads, width, dtype, heads_first=rotates)
        # A mean far from zero, and heads of different size.
        keys = randn(batch, heads, active, width, seed=1, dtype=torch.float32)
        size = torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1)
        self.keys = ((keys + 0.7) * size).to(dtype).transpose(1, 2)
        self.norm = self._norm(kind, dtype, heads, width)
        turn = randn(batch, active, width // 2, seed=5, dtype=torch.float32) * 3
        self.angles = torch.polar(torch.ones_like(turn), turn) if rotates else None
        self.rows = sets(batch, active, whole)

    @staticmethod
    def _norm(kind: str, dtype: torch.dtype, heads: int, width: int) -> Norm | None:
        if kind == "none":
            return None
        name, _, extent = kind.partition(" ")
        across = extent == "across"
        channels = heads * width if across else width
        weight = 1 + randn(channels, seed=8, dtype=dtype)
        if name == "plain":
            return Norm("rms", across, 1e-6)
        if name == "rms":
            return Norm("rms", across, 1e-6, weight)
        return Norm("layer", across, 1e-5, weight, randn(channels, seed=9, dtype=dtype))

    def compare(self, **change: Any) -> None:
        """Kernel and specification from the same cache; ``change`` breaks the kernel's operands."""
        names = "keys", "norm", "angles", "rows"
        given = {name: change.get(name, getattr(self, name)) for name in names}
        made, expected = self.cache.clone(), self.cache.clone()
        norm_rope_scatter(made, **given)
        specification.norm_rope_scatter(expected, self.keys, self.norm, self.angles, self.rows)
        torch.testing.assert_close(made, expected, **TOLERANCE[self.cache.dtype])


@DTYPES
@pytest.mark.parametrize("rotates", [False, True], ids=["", "rotary"])
@pytest.mark.parametrize(
    "kind", ["none", "plain head", "rms head", "rms across", "layer head", "layer across"]
)
def test_keys(dtype: torch.dtype, kind: str, rotates: bool) -> None:
    Keys(dtype, kind, rotates=rotates).compare()


def test_one_table_of_angles_for_all_images() -> None:
    work = Keys(torch.float32, "layer across", rotates=True)
    assert work.angles is not None
    work.angles = work.angles[:1]
    work.compare()


@pytest.mark.parametrize("mutation", ["shifted", "first image's angles", "no norm", "per head"])
def test_wrong_keys_are_found(mutation: str) -> None:
    work = Keys(torch.bfloat16, "rms across", rotates=True)
    assert work.angles is not None
    changes: dict[str, dict[str, Any]] = {
        "shifted": {"rows": (work.rows + 1) % 7},
        "first image's angles": {"angles": work.angles[:1]},
        "no norm": {"norm": None},
        "per head": {"norm": Norm("rms", False, 1e-6)},
    }
    with pytest.raises(AssertionError):
        work.compare(**changes[mutation])
