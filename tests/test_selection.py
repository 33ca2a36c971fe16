"""Scores, starvation and choice, against the equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ras_dit
from ras_dit.chooser import Chooser
from ras_dit.config import RASConfig
from ras_dit.selection import (
    METRIC_FUNCTIONS,
    choose,
    count_drops,
    l2_score,
    overdue_first,
    priority,
    std_score,
)
from ras_dit.tokens import TokenGrid, TokenSort, by_token, flat_rows, gather_rows, scatter_rows


def test_std_is_the_mean_over_the_patch_of_the_unbiased_deviation_over_channels() -> None:
    noise = torch.randn(2, 5, 6, 4)
    tokens = by_token(noise, 2)
    assert tokens.shape == (2, 6, 4, 5)
    score = std_score(tokens)
    for row in range(3):
        for column in range(2):
            patch = noise[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = torch.stack(
                [patch[:, i, j].std(unbiased=True) for i in range(2) for j in range(2)]
            ).mean()
            assert score[1, 2 * row + column] == pytest.approx(expected.item(), rel=1e-5)
    norm = l2_score(tokens)
    expected = noise[0, :, 0:2, 0:2].norm(dim=0).mean()
    assert norm[0, 0] == pytest.approx(expected.item(), rel=1e-5)


def test_half_precision_noise_has_scores_that_can_be_told_apart() -> None:
    noise = torch.randn(1, 16, 64, 64).bfloat16()
    score = std_score(by_token(noise.float(), 2))
    assert score.dtype == torch.float32
    assert score.unique().numel() > 1000


@pytest.mark.parametrize("keep", ["low", "high"])
def test_a_dropped_token_always_comes_closer_to_being_active(keep: str) -> None:
    score = torch.rand(1, 50) + 0.1
    drops = torch.zeros(1, 50)
    drops[0, 7] = 3
    without = priority(score, torch.zeros(1, 50), keep, 0.1)  # type: ignore[arg-type]
    with_drops = priority(score, drops, keep, 0.1)  # type: ignore[arg-type]
    assert with_drops[0, 7] > without[0, 7]
    assert torch.equal(with_drops[0, :7], without[0, :7])


@pytest.mark.parametrize(("keep", "sign"), [("high", 1), ("low", -1)])
def test_priority_ranks_as_equation_1(keep: str, sign: int) -> None:
    score, drops = torch.rand(1, 40) + 0.1, torch.randint(0, 9, (1, 40)).float()
    by_equation = score * torch.exp(sign * 0.2 * drops)
    expected = (sign * by_equation).argsort(dim=1)
    assert torch.equal(priority(score, drops, keep, 0.2).argsort(dim=1), expected)  # type: ignore[arg-type]


def test_nothing_underflows() -> None:
    score = torch.tensor([[1e-30, 1e-31, 0.0]])
    drops = torch.tensor([[1000.0, 2000.0, 0.0]])
    ranks = priority(score, drops, "high", 10.0)
    assert ranks.isfinite().all()
    assert ranks.argmax() == 1


def test_choice_is_sorted_and_has_the_highest_priorities() -> None:
    priorities = torch.tensor([[0.1, 5.0, 3.0, 4.0], [9.0, 1.0, 2.0, 8.0]])
    assert choose(priorities, 2).tolist() == [[1, 3], [0, 3]]


def test_drops_count_the_steps_a_token_was_left_out() -> None:
    drops = torch.zeros(2, 4)
    for active in ([[0, 1], [2, 3]], [[0, 2], [2, 3]]):
        drops = count_drops(drops, torch.tensor(active))
    assert drops.tolist() == [[0, 1, 1, 2], [2, 2, 0, 0]]


@pytest.mark.parametrize("keep", ["low", "high"])
def test_starvation_reaches_every_token_within_a_run(keep: str) -> None:
    """28 steps at one half, scores that never change: nobody is dropped in all sparse steps."""
    score = torch.linspace(1, 2, 400).repeat(1, 1)
    drops, refreshed = torch.zeros(1, 400), torch.zeros(1, 400)
    for _ in range(22):
        active = choose(priority(score, drops, keep, 0.1), 200)  # type: ignore[arg-type]
        refreshed.scatter_(1, active, 1)
        drops = count_drops(drops, active)
    assert refreshed.all()


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.125])
def test_no_score_keeps_a_token_out_for_a_whole_run(ratio: float) -> None:
    """Scores that differ more than starvation can make up for in 22 sparse steps."""
    generator = torch.Generator().manual_seed(0)
    config = ras_dit.RASConfig(sample_ratio=ratio, starvation_scale=0.01)
    limit = config.longest_drop
    assert limit is not None
    score = torch.rand(3, 400, generator=generator) ** 9
    drops, in_a_row, refreshed = torch.zeros(3, 400), torch.zeros(3, 400), torch.zeros(3, 400)
    without = torch.zeros(3, 400)
    for _ in range(3 * limit):
        ranks = priority(score, drops, "low", config.drop_weight)
        without.scatter_(1, choose(ranks, round(400 * ratio)), 1)
        active = choose(overdue_first(ranks, in_a_row, limit), round(400 * ratio))
        refreshed.scatter_(1, active, 1)
        drops = count_drops(drops, active)
        in_a_row = count_drops(in_a_row, active, "since_refresh")
    assert refreshed.all()
    assert not without.all()


def test_the_longest_overdue_come_first() -> None:
    ranks = torch.tensor([[5.0, 4.0, -3.0, -9.0]])
    late = overdue_first(ranks, torch.tensor([[0.0, 7.0, 8.0, 9.0]]), 8)
    assert choose(late, 2).tolist() == [[2, 3]]
    assert late.argsort(descending=True).tolist() == [[3, 2, 0, 1]]


def test_rows_of_each_sample_are_its_own() -> None:
    tokens = torch.arange(24.0).view(2, 4, 3)
    active = torch.tensor([[0, 3], [1, 2]])
    rows = flat_rows(active, 4)
    picked = gather_rows(tokens, rows)
    assert torch.equal(picked[0], tokens[0, [0, 3]])
    assert torch.equal(picked[1], tokens[1, [1, 2]])
    scatter_rows(tokens, rows, -picked)
    assert (tokens[0, [0, 3]] <= 0).all()
    assert (tokens[1, [0, 3]] > 0).all()
    assert TokenGrid(3, 5).num_tokens == 15


def test_logarithm_and_exponential_agree_on_the_papers_constant() -> None:
    one = priority(torch.tensor([[2.0]]), torch.tensor([[5.0]]), "high", 0.1)
    assert one.item() == pytest.approx(math.log(2.0 * math.exp(0.5)), rel=1e-6)


def test_drops_since_the_refresh_start_again() -> None:
    drops = torch.zeros(1, 4)
    for active in ([[0, 1]], [[0, 2]], [[1, 2]]):
        drops = count_drops(drops, torch.tensor(active), "since_refresh")
    assert drops.tolist() == [[1, 0, 0, 3]]


@pytest.mark.parametrize("metric", ["std", "l2"])
@pytest.mark.parametrize("shape", [(2, 16, 6, 10), (2, 15, 64), (2, 4, 3, 6, 10), (2, 3, 4, 6, 10)])
def test_scores_by_pixel_are_those_by_token(metric: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    noise = torch.randn(shape) * 2 + 3
    frames_first = shape[1] == 3 and len(shape) == 5
    patch = 2 if len(shape) < 5 else (1, 2, 2)
    sort = TokenSort(patch, frames_first=frames_first)
    expected = METRIC_FUNCTIONS[metric](sort(noise))
    chooser = Chooser(
        RASConfig(metric=metric),
        sort,
        num_tokens=expected.shape[1],
        num_steps=9,
        sigmas=None,
    )
    torch.testing.assert_close(chooser._score(noise), expected, atol=1e-6, rtol=1e-6)
