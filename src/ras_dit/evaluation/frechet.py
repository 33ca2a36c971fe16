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
    mean, centred = _centred(features)
    return Gaussian(mean, centred.T @ centred, len(features))


class Target:
    """A Gaussian that several sets of features are compared with.

    Args:
        gaussian: Of the reference.
    """

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian = gaussian
        self._root = symmetric_root(gaussian.covariance)

    def distance(self, features: NDArray[np.floating]) -> float:
        """``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson and Landau 1982).

        The trace of the root is the sum of the roots of the eigenvalues of ``S C1 S``, where S is
        the symmetric root of C2: nothing complex can come up, and no small number has to be added
        to covariances of low rank. With C1 = X^T X and fewer rows of X than columns, the nonzero
        ones are those of the smaller ``X S S X^T``.

        Args:
            features: ``[n, D]``, n at least 2.

        Raises:
            RASError: If there are fewer than 2, or they are not finite.
        """
        mean, centred = _centred(features)
        half = centred @ self._root
        inner = half @ half.T if len(half) < half.shape[1] else half.T @ half
        values = torch.linalg.eigvalsh(torch.from_numpy(inner)).clamp(min=0)
        shift = mean - self.gaussian.mean
        spread = float(np.square(centred).sum() + np.trace(self.gaussian.covariance))
        return float(shift @ shift) + spread - 2 * float(values.sqrt().sum())

    def error(self, features: NDArray[np.floating], *, resamples: int = RESAMPLES) -> float:
        """Bootstrap standard error of the distance, the reference taken as known.

        The draws themselves are no interval: pictures that are drawn twice lower the rank of the
        covariance, so that their distances are too large; only their spread is used.

        Args:
            features: ``[n, D]``.
            resamples: Number of bootstrap samples.
        """
        rng = np.random.default_rng(0)
        count = len(features)
        draws = [self.distance(features[rng.integers(0, count, count)]) for _ in range(resamples)]
        return float(np.std(draws))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The distance of :meth:`Target.distance` between two fitted Gaussians."""
    root = symmetric_root(second.covariance)
    inner = torch.from_numpy(root @ first.covariance @ root)
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0)
    shift = first.mean - second.mean
    spread = float(np.trace(first.covariance) + np.trace(second.covariance))
    return float(shift @ shift) + spread - 2 * float(values.sqrt().sum())


def distance_error(
    features: NDArray[np.floating], reference: Gaussian, *, resamples: int = RESAMPLES
) -> float:
    """The error of :meth:`Target.error`, for one set of features."""
    return Target(reference).error(features, resamples=resamples)


def symmetric_root(covariance: Matrix) -> Matrix:
    """The positive semi-definite root of a covariance."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(covariance)))
    root: Matrix = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).numpy()
    return root


def _centred(features: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    """Mean, and deviations over the root of n - 1, so that their product is the covariance."""
    if len(features) < 2:
        raise RASError(f"{len(features)} pictures have no covariance; expected at least 2")
    data = np.asarray(features, dtype=np.float64)
    if not np.isfinite(data).all():
        raise RASError("some features are not finite; look for damaged weights")
    mean: Matrix = data.mean(axis=0)
    return mean, (data - mean) / np.sqrt(len(data) - 1)
