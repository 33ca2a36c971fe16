"""The laws of region-adaptive sampling, for every family of pipelines."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from family_laws import (
    Family,
    check_batch,
    check_cost,
    check_dense,
    check_kept_text,
    check_reference,
    check_wrong_description,
)

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("families_*.py"))
FAMILIES: list[Family] = [
    family for name in MODULES for family in importlib.import_module(name).FAMILIES
]
MAIN = [family for family in FAMILIES if family.is_main]
BATCHED = [family for family in MAIN if family.batched]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_sparse_run_equals_the_masked_reference(family: Family) -> None:
    check_reference(family)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_dense_and_disabled_are_stock_bitwise(family: Family) -> None:
    check_dense(family)


@pytest.mark.parametrize("family", BATCHED, ids=str)
def test_a_batch_equals_its_images_one_by_one(family: Family) -> None:
    check_batch(family)


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_a_wrong_description_is_found(family: Family) -> None:
    check_wrong_description(family)


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_a_run_costs_what_its_trace_says(family: Family) -> None:
    check_cost(family)


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_text_is_kept_or_that_is_refused(family: Family) -> None:
    check_kept_text(family)
