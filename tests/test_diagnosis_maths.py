"""The maths of a diagnosis on fields whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import ras_dit
from ras_dit.diagnosis import maths

# Steps of very different widths.
SIGMAS = torch.tensor([1.0, 0.97, 0.9, 0.7, 0.65, 0.4, 0.38, 0.1], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal(spread: float, number: int = 200_000) -> torch.Tensor:
    return (spread * drawn(number)).exp()


def along(line: torch.Tensor) -> torch.Tensor:
    return SIGMAS.view(-1, *(1,) * line.ndim) * line


def test_a_velocity_linear_in_sigma_has_its_slope_and_nothing_else() -> None:
    slope = drawn(20, 6)
    values = along(slope) + drawn(20, 6, seed=1)
    torch.testing.assert_close(maths.slopes(values, SIGMAS), slope.expand(7, -1, -1))
    zero = torch.zeros(6, 20, 6, dtype=torch.float64)
    torch.testing.assert_close(maths.curvatures(values, SIGMAS), zero, atol=1e-10, rtol=0)
    torch.testing.assert_close(maths.innovations(values, SIGMAS), zero, atol=1e-12, rtol=0)


def test_a_parabola_has_its_second_derivative_at_steps_of_any_width() -> None:
    half = drawn(20, 6)
    values = along(half) * SIGMAS[:, None, None] + along(drawn(20, 6, seed=1))
    torch.testing.assert_close(maths.curvatures(values, SIGMAS), (2 * half).expand(6, -1, -1))
    steps = (SIGMAS[2:] - SIGMAS[1:-1]) * (SIGMAS[2:] - SIGMAS[:-2])
    torch.testing.assert_close(maths.innovations(values, SIGMAS), steps[:, None, None] * half)


def test_float32_is_counted_in_float64() -> None:
    values = drawn(8, 20, 6).float()
    found = maths.curvatures(values, SIGMAS)
    assert found.dtype == torch.float64
    assert torch.equal(found, maths.curvatures(values.double(), SIGMAS))


@pytest.mark.parametrize("scale", [1e-6, 37.0])
def test_no_number_depends_on_the_scale(scale: float) -> None:
    first, second = drawn(500).abs(), drawn(500, seed=1).abs()
    field, latents = drawn(8, 9, 4), drawn(2, 4, 6, 6)
    for order in (1, 2):
        saved = maths.cost_saved(first, order, second)
        assert maths.cost_saved(scale * first, order, second / scale) == pytest.approx(saved)
    assert maths.log_spread(scale * first) == pytest.approx(maths.log_spread(first))
    correlation = maths.rank_correlation(first, second)
    assert maths.rank_correlation(scale * first, second) == pytest.approx(correlation)
    alike = maths.neighbour_correlation(field)
    assert maths.neighbour_correlation(scale * field) == pytest.approx(alike)
    error = maths.relative_error(latents + 0.1, latents)
    assert maths.relative_error(scale * (latents + 0.1), scale * latents) == pytest.approx(error)


def test_the_spread_is_that_of_logarithms() -> None:
    assert maths.log_spread(log_normal(0.7)) == pytest.approx(0.7, rel=0.01)
    assert maths.log_spread(torch.full((9,), 3.0)) == pytest.approx(0, abs=1e-12)
    assert maths.log_spread(torch.zeros(9)) == 0
    assert maths.log_spread(torch.tensor([1.0, math.e])) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_equal_constants_save_nothing(order: maths.Order) -> None:
    assert maths.cost_saved(torch.full((9,), 3.0), order) == pytest.approx(1)
    assert maths.cost_saved(torch.zeros(9), order) == 1


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_log_normal_constants_follow_the_formula(order: maths.Order, spread: float) -> None:
    formula = math.exp(2 * spread**2 / 3) if order == 1 else math.exp(0.4 * spread**2)
    assert maths.log_normal_saving(spread, order) == pytest.approx(formula)
    assert maths.cost_saved(log_normal(spread), order) == pytest.approx(formula, rel=0.02)


@pytest.mark.parametrize("order", [1, 2])
def test_a_saving_is_the_uniform_budget_that_errs_as_little(order: maths.Order) -> None:
    constants, guess = log_normal(0.6, 300), log_normal(0.6, 301)[1:]
    for believed in (constants, guess):
        number = believed.pow(2 / (2 * order + 1))
        error = (constants / number**order).square().mean()
        uniform = (constants.square().mean() / error) ** (1 / (2 * order))
        expected = float(uniform / number.mean())
        assert maths.cost_saved(constants, order, believed) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 2])
def test_no_guess_saves_more_than_knowledge_and_a_blind_one_loses(order: maths.Order) -> None:
    constants = log_normal(0.6, 2000)
    known = maths.cost_saved(constants, order)
    assert maths.cost_saved(constants, order, constants) == known
    noisy = constants * (0.3 * drawn(2000, seed=2)).exp()
    assert 1 < maths.cost_saved(constants, order, noisy) < known
    for power in (0.8, 1.2):
        assert maths.cost_saved(constants, order, constants**power) < known
    blind = constants[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    assert maths.cost_saved(constants, order, blind) < 1
    assert maths.cost_saved(constants, order, torch.ones(2000)) == pytest.approx(1)


def test_the_order_is_one_or_two() -> None:
    with pytest.raises(ras_dit.RASError, match="order=3; expected 1 or 2"):
        maths.cost_saved(torch.ones(3), 3)  # type: ignore[arg-type]


def test_rank_correlation_is_spearmans_with_ties() -> None:
    for seed in range(3):
        first = (3 * drawn(60, seed=seed)).round()
        second = first + (3 * drawn(60, seed=seed + 9)).round()
        expected = stats.spearmanr(first.numpy(), second.numpy()).statistic
        assert maths.rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    values = drawn(60)
    assert maths.rank_correlation(values, values.exp()) == pytest.approx(1)
    assert maths.rank_correlation(values, -values) == pytest.approx(-1)
    assert maths.rank_correlation(values, torch.ones(60)) == 0


def test_neighbours_of_known_fields() -> None:
    assert maths.neighbour_correlation(torch.ones(4, 5, 3)) == pytest.approx(1)
    board = (torch.arange(6)[:, None] + torch.arange(7)) % 2 * 2.0 - 1
    assert maths.neighbour_correlation(board[..., None]) == pytest.approx(-1)
    noise = drawn(200, 201, 3)
    assert maths.neighbour_correlation(noise) == pytest.approx(0, abs=0.01)
    # The mean of two columns shares half with its neighbour on the side, and nothing above.
    pairs = noise[:, 1:] + noise[:, :-1]
    assert maths.neighbour_correlation(pairs) == pytest.approx(0.25, abs=0.01)
    assert maths.neighbour_correlation(torch.zeros(4, 5, 3)) == 0


def test_edges_are_where_the_picture_changes() -> None:
    picture = torch.zeros(24, 40)
    picture[:, 15:] = 1
    strength = maths.edge_strength(picture, (6, 10)).view(6, 10)
    assert (strength > 0).nonzero()[:, 1].unique().tolist() == [3]
    # Two columns of four have a central difference of a half.
    torch.testing.assert_close(strength[:, 3], torch.full((6,), 0.25, dtype=torch.float64))


def test_relative_error_is_per_image() -> None:
    reference = drawn(2, 4, 6, 6)
    latents = reference * torch.tensor([1.1, 0.5], dtype=torch.float64).view(2, 1, 1, 1)
    assert maths.relative_error(latents, reference) == pytest.approx([0.1, 0.5])
    with pytest.raises(ras_dit.RASError, match=r"latents of \[1, 4, 6, 6\] and a reference"):
        maths.relative_error(latents[:1], reference)


def test_intervals_resample_prompts_not_images() -> None:
    values = drawn(40, 3)
    mean, low, high = maths.mean_with_interval(values, range(40))
    torch.testing.assert_close(mean, values.mean(0))
    expected = 1.96 * values.std(0) / math.sqrt(40)
    torch.testing.assert_close(high - mean, expected, rtol=0.2, atol=0)
    torch.testing.assert_close(mean - low, expected, rtol=0.2, atol=0)
    twice = maths.mean_with_interval(values.repeat(2, 1), [*range(40), *range(40)])
    for one, other in zip(twice, (mean, low, high), strict=True):
        torch.testing.assert_close(one, other)
    mean, low, high = maths.mean_with_interval(values, [7] * 40)
    torch.testing.assert_close(mean, values.mean(0))
    assert bool(low.isnan().all() & high.isnan().all())


def test_savings_of_steps_add_up_as_costs() -> None:
    # A step at half the cost and one at full cost make three quarters.
    assert float(maths.harmonic_mean(torch.tensor([[2.0, 1.0]]), 1)) == pytest.approx(4 / 3)


def test_steps_that_cannot_be_differentiated_are_refused() -> None:
    with pytest.raises(ras_dit.RASError, match=r"2 steps at 2 noise levels; expected .* 3"):
        maths.curvatures(torch.ones(2, 4), torch.tensor([1.0, 0.5]))
    with pytest.raises(ras_dit.RASError, match="3 steps at 2 noise levels"):
        maths.slopes(torch.ones(3, 4), torch.tensor([1.0, 0.5]))
    with pytest.raises(ras_dit.RASError, match=r"\[1.0, 0.5, 0.5\] do not fall"):
        maths.slopes(torch.ones(3, 4), torch.tensor([1.0, 0.5, 0.5]))
