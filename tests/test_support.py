"""Every pipeline of diffusers with a transformer is supported and tested, or refused."""

from __future__ import annotations

import pytest

from ras_dit.support import Support, read_support
from support_table import MARK, PAGE, draw, page, pipelines_with_transformers


@pytest.fixture(scope="module")
def drawn() -> Support:
    """Schedulers are tried by ``test_schedulers.py``."""
    return draw(read_support().schedulers)


def test_every_pipeline_of_diffusers_is_in_one_list() -> None:
    support = read_support()
    supported = {row.pipeline for row in support.supported}
    exported = set(pipelines_with_transformers())
    assert len(exported) > 140
    assert exported - supported - set(support.refused) == set()
    assert supported & set(support.refused) == set()


def test_the_table_is_what_the_tests_say(drawn: Support) -> None:
    """`make models` draws it anew."""
    assert read_support() == drawn


def test_the_page_is_the_table(drawn: Support) -> None:
    text = PAGE.read_text("utf-8")
    assert MARK in text
    assert text == page(drawn)


def test_every_refusal_says_why() -> None:
    for name, reason in read_support().refused.items():
        assert len(reason) > 15, name
