"""Which tokens stay active: scores, starvation and the choice. Pure tensors.

Paper: Region-Adaptive Sampling for Diffusion Transformers, arXiv 2502.10389.
Shape letters: B images, N image tokens, A active tokens, P latent pixels per token, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

from ras_dit.config import Starvation
from ras_dit.public_code import PUBLIC_STARVATION_SCALE


def std_score(noise: torch.Tensor) -> torch.Tensor:
    """Standard deviation over channels, averaged over the token's patch (Eq. 1).

    Args:
        noise: float32 ``[B, N, P, C]``, the guided noise prediction.

    Returns:
        ``[B, N]``; low for the main subject.
    """
    return noise.std(dim=-1).mean(dim=-1)


def l2_score(noise: torch.Tensor) -> torch.Tensor:
    """Norm over channels, averaged over the token's patch (supplementary material, 6.1).

    Args:
        noise: float32 ``[B, N, P, C]``, the guided noise prediction.

    Returns:
        ``[B, N]``; high for regions in need of refinement.
    """
    norms: torch.Tensor = torch.linalg.vector_norm(noise, dim=-1)
    return norms.mean(dim=-1)


def pixel_std(noise: torch.Tensor, dim: int) -> torch.Tensor:
    """Standard deviation over channels of each latent pixel, ``dim`` kept with size 1.

    In two passes of plain sums: many times faster on a CPU than ``torch.std``, as exact.
    """
    centred = noise - noise.mean(dim, keepdim=True)
    squares = centred.square_().sum(dim, keepdim=True)
    return squares.mul_(1 / (noise.shape[dim] - 1)).sqrt_()


def pixel_norm(noise: torch.Tensor, dim: int) -> torch.Tensor:
    """Norm over channels of each latent pixel, ``dim`` kept with size 1."""
    return noise.square().sum(dim, keepdim=True).sqrt_()


# More than logarithms of float32 scores and a run's drops can make up for.
_OVERDUE = 1e4

METRIC_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "std": std_score,
    "l2": l2_score,
}
# The same by pixel, so that only one number per pixel has to be sorted by token.
PIXEL_FUNCTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "std": pixel_std,
    "l2": pixel_norm,
}


def priority(
    score: torch.Tensor, drops: torch.Tensor, keep: Literal["low", "high"], starvation_scale: float
) -> torch.Tensor:
    """Eq. 1 on the logarithm of the score; the highest priorities become active.

    ``exp(k * drops)`` multiplies a score that is to be high and divides one that is to be low,
    so that a dropped token always comes closer to being active. The logarithm keeps the order
    and cannot overflow.

    Args:
        score: Non-negative ``[B, N]``.
        drops: How often each token was dropped, ``[B, N]``.
        keep: Whether low or high scores are to be active.
        starvation_scale: k.

    Returns:
        float32 ``[B, N]``.
    """
    log_score = score.float().clamp_min(torch.finfo(torch.float32).tiny).log_()
    sign = 1.0 if keep == "high" else -1.0
    return torch.add(drops * starvation_scale, log_score, alpha=sign)


def overdue_first(
    priorities: torch.Tensor, dropped_in_a_row: torch.Tensor, limit: int
) -> torch.Tensor:
    """Priorities in which no score outweighs a drop of ``limit`` steps or more.

    Args:
        priorities: float32 ``[B, N]`` from :func:`priority`.
        dropped_in_a_row: In how many sparse steps each token was last left out, ``[B, N]``.
        limit: Steps from which a token is overdue; the longest overdue come first.

    Returns:
        float32 ``[B, N]``.
    """
    # Counts are whole numbers.
    overdue = F.threshold(dropped_in_a_row, limit - 0.5, 0.0)
    return torch.add(priorities, overdue, alpha=_OVERDUE)


def choose(priorities: torch.Tensor, num_active: int) -> torch.Tensor:
    """The tokens of highest priority in each image.

    Args:
        priorities: ``[B, N]``.
        num_active: A, between 1 and N.

    Returns:
        Sorted token indices, int64 ``[B, A]``.
    """
    chosen = priorities.topk(num_active, dim=1, sorted=False).indices
    return chosen.sort(dim=1).values


def choose_as_public_code(
    noise: torch.Tensor,
    delta_sigma: torch.Tensor,
    drops: torch.Tensor,
    num_low: int,
    num_active: int,
    score: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The active tokens by the rule of the paper's public code (:mod:`ras_dit.public_code`).

    Tokens are sorted by ``score * exp(0.1 * drops)``; those in the middle stay active.

    Args:
        noise: ``[1, N, P, C]`` guided noise in the model's dtype, in which all is computed.
        delta_sigma: Noise level of the next step minus that of this one.
        drops: float32 ``[1, N]``.
        num_low: How many tokens are dropped from the lowest scores.
        num_active: A; the rest is dropped from the highest scores.
        score: :func:`std_score` or :func:`l2_score`.

    Returns:
        Sorted token indices, int64 ``[1, A]``.
    """
    ranks = score(delta_sigma * noise).mul_(torch.exp(PUBLIC_STARVATION_SCALE * drops))
    middle = ranks.sort(dim=1).indices[:, num_low : num_low + num_active]
    return middle.sort(dim=1).values


def count_drops(
    drops: torch.Tensor, active: torch.Tensor, starvation: Starvation = "total"
) -> torch.Tensor:
    """Drop counts after a step in which only ``active`` went through.

    Args:
        drops: ``[B, N]`` counts before the step.
        active: int64 ``[B, A]``.
        starvation: Whether counts run over the whole run or start again at each refresh.

    Returns:
        ``[B, N]``: one more for every token that was left out.
    """
    if starvation == "since_refresh":
        return (drops + 1).scatter_(1, active, 0.0)
    return (drops + 1).scatter_add_(1, active, drops.new_full((1, 1), -1).expand(active.shape))
