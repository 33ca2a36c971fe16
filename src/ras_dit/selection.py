"""Which tokens stay active: scores, starvation and the choice. Pure tensors.

Paper: Region-Adaptive Sampling for Diffusion Transformers, arXiv 2502.10389.
Shape letters: B images, N image tokens, A active tokens, P latent pixels per token, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch


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


METRIC_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "std": std_score,
    "l2": l2_score,
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
    log_score = score.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    sign = 1.0 if keep == "high" else -1.0
    return torch.add(drops * starvation_scale, log_score, alpha=sign)


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


def count_drops(drops: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Drop counts after a step in which only ``active`` went through.

    Args:
        drops: ``[B, N]`` counts before the step.
        active: int64 ``[B, A]``.

    Returns:
        ``[B, N]``: one more for every token that was left out.
    """
    return (drops + 1).scatter_add_(1, active, drops.new_full((1, 1), -1).expand(active.shape))
