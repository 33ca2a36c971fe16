"""The Frechet distance against closed forms and against scipy's matrix root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from ras_dit.errors import RASError
from ras_dit.evaluation.frechet import (
    Gaussian,
    Target,
    distance_error,
    fit,
    frechet_distance,
    symmetric_root,
)


def features(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) / width**0.5
    return rng.standard_normal((count, width)) @ mixing + rng.standard_normal(width)


def by_scipy(first: np.ndarray, second: np.ndarray) -> float:
    """The distance as it is usually written: a general matrix root of the product."""
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = first.mean(axis=0) - second.mean(axis=0)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return float(shift @ shift + np.trace(c1 + c2) - 2 * np.trace(root).real)


@pytest.mark.parametrize("width", [1, 3, 40])
def test_it_is_the_usual_formula(width: int) -> None:
    first, second = features(300, width, 1), features(200, width, 2)
    distance = Target(fit(second)).distance(first)
    first, second = (data.reshape(-1, width) for data in (first, second))
    if width == 1:
        spread = first.std(ddof=1) - second.std(ddof=1)
        expected = float((first.mean() - second.mean()) ** 2 + spread**2)
    else:
        expected = by_scipy(first, second)
    assert distance == pytest.approx(expected, rel=1e-9)


def test_fewer_pictures_than_features() -> None:
    first, second = features(20, 50, 1), features(30, 50, 2)
    # scipy's root of a singular product is only good to about 1e-5 here.
    expected = by_scipy(first, second)
    assert Target(fit(second)).distance(first) == pytest.approx(expected, rel=1e-4)


def with_covariance(deviations: list[float], mean: list[float]) -> np.ndarray:
    """Features whose covariance is diagonal, exactly, with these standard deviations."""
    signs = scipy.linalg.hadamard(4)[:, 1:]
    return signs * np.array(deviations) * (3 / 4) ** 0.5 + np.array(mean)


def test_closed_forms() -> None:
    one = with_covariance([1, 2, 3], [0, 0, 0])
    other = with_covariance([2, 2, 4], [3, 0, 4])
    assert fit(other).covariance == pytest.approx(np.diag([4.0, 4, 16]), abs=1e-12)
    # The covariances commute: the sum of squared differences of standard deviations.
    assert Target(fit(other)).distance(one) == pytest.approx(25 + 1 + 0 + 1)
    assert Target(fit(one)).distance(other) == pytest.approx(27)
    assert Target(fit(one)).distance(one) == pytest.approx(0, abs=1e-12)
    shifted = Gaussian(np.array([3.0, 0, 0]), fit(one).covariance, 4)
    assert Target(shifted).distance(one) == pytest.approx(9)


@pytest.mark.parametrize("count", [12, 60])
def test_features_and_fitted_gaussians_give_one_distance(count: int) -> None:
    first, second = features(count, 25, 1), fit(features(80, 25, 2))
    direct = Target(second).distance(first)
    assert frechet_distance(fit(first), second) == pytest.approx(direct, rel=1e-6)


def test_the_root_is_the_root() -> None:
    covariance = fit(features(100, 12, 3)).covariance
    root = symmetric_root(covariance)
    assert root @ root == pytest.approx(covariance, abs=1e-12)
    assert root == pytest.approx(root.T, abs=1e-14)


@pytest.mark.parametrize("count", [15, 90])
def test_the_error_is_the_spread_over_resamples(count: int) -> None:
    data, real = features(count, 30, 1), features(200, 30, 2)
    error = distance_error(data, fit(real), resamples=20)
    rng = np.random.default_rng(0)
    draws = [by_scipy(data[rng.integers(0, count, count)], real) for _ in range(20)]
    assert error == pytest.approx(np.std(draws), rel=1e-3)


def test_what_has_no_covariance_is_refused() -> None:
    with pytest.raises(RASError, match="1 pictures have no covariance"):
        fit(np.zeros((1, 4)))
    with pytest.raises(RASError, match="not finite"):
        fit(np.array([[0.0, 1.0], [np.nan, 2.0]]))
