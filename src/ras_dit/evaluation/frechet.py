"""The Frechet distance between Gaussians fitted to features, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ras_dit.errors import RASError

Matrix = NDArray[np.float64]
RESAMPLES = 100


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        mean: ``[D]``.
        covariance: ``[D, D]``, with n - 1 in the denominator.
        count: How many feature vectors n it was fitted to.
    """

    mean: Matrix
    covariance: Matrix
    count: int


def fit(features: NDArray[np.floating]) -> Gaussian:
    """Fit a Gaussian.

    Args:
        features: ``[n, D]``, n at least 2.

    Raises:
        RASError: If there are fewer than 2, or they are not finite.
    """
    if len(features) < 2:
        raise RASError(f"{len(features)} pictures have no covariance; expected at least 2")
    data = np.asarray(features, dtype=np.float64)
    if not np.isfinite(data).all():
        raise RASError("some features are not finite; look for damaged weights")
    mean = data.mean(axis=0)
    centred = data - mean
    return Gaussian(mean, centred.T @ centred / (len(data) - 1), len(data))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson and Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of ``S C1 S``, where S is the
    symmetric root of C2: nothing complex can come up, and no small number has to be added to
    covariances of low rank.
    """
    return _distance(first, second, symmetric_root(second.covariance))


def symmetric_root(covariance: Matrix) -> Matrix:
    """The positive semi-definite root of a covariance."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(covariance)))
    root: Matrix = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).numpy()
    return root


def distance_error(
    features: NDArray[np.floating], reference: Gaussian, *, resamples: int = RESAMPLES
) -> float:
    """Bootstrap standard error of the distance between features and a fixed reference.

    The draws themselves are no interval: pictures that are drawn twice lower the rank of the
    covariance, so that their distances are too large; only their spread is used.

    Args:
        features: ``[n, D]``.
        reference: The other Gaussian, taken as known.
        resamples: Number of bootstrap samples.
    """
    data = np.asarray(features, dtype=np.float64)
    root = symmetric_root(reference.covariance)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        drawn = data[rng.integers(0, len(data), len(data))]
        draws.append(_distance_of(drawn, reference, root))
    return float(np.std(draws))


def _distance(first: Gaussian, second: Gaussian, root: Matrix) -> float:
    inner = torch.from_numpy(root @ first.covariance @ root)
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0)
    shift = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return float(shift @ shift + spread - 2 * values.sqrt().sum().item())


def _distance_of(data: Matrix, reference: Gaussian, root: Matrix) -> float:
    """The distance from features; with fewer of them than dimensions the small matrix is used."""
    count, width = data.shape
    if count >= width:
        return _distance(fit(data), reference, root)
    mean = data.mean(axis=0)
    centred = (data - mean) / np.sqrt(count - 1)
    # The nonzero eigenvalues of S C1 S are those of X S S X^T, with C1 = X^T X.
    half = centred @ root
    values = torch.linalg.eigvalsh(torch.from_numpy(half @ half.T)).clamp(min=0)
    shift = mean - reference.mean
    spread = float(np.square(centred).sum() + np.trace(reference.covariance))
    return float(shift @ shift + spread - 2 * values.sqrt().sum().item())
