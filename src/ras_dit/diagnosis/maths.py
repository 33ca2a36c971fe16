"""What a recorded velocity says of tokens: derivatives, spreads, orders, reachable gains.

Pure: tensors in, tensors or numbers out, float64 inside. Nothing here knows a pipeline.
Shape letters: n steps, N image tokens, F numbers of a token's velocity, h and w the token grid,
K images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from ras_dit.errors import RASError

Order = Literal[1, 2]

RESAMPLES = 2000
# Share of the largest constant below which a token counts as this small: none gets no evaluations.
_FLOOR = 1e-6
# Of the largest magnitude; what is smaller is zero for a logarithm.
_ZERO = 1e-12


def slopes(values: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """First divided differences in sigma, between neighbouring steps of any widths.

    Args:
        values: ``[n, ...]``, n >= 2.
        sigmas: ``[n]``, strictly monotone.

    Returns:
        float64 ``[n - 1, ...]``; entry i is the derivative between steps i and i + 1.

    Raises:
        RASError: If there are too few steps, or two of them at one noise level.
    """
    values, sigmas = _checked(values, sigmas, 2)
    return _by_step(values.diff(dim=0), sigmas.diff())


def curvatures(values: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Second derivatives in sigma: twice the second divided differences.

    Args:
        values: ``[n, ...]``, n >= 3.
        sigmas: ``[n]``, strictly monotone.

    Returns:
        float64 ``[n - 2, ...]``; entry i is the derivative over steps i to i + 2, exact for
        parabolas.

    Raises:
        RASError: As for :func:`slopes`.
    """
    values, sigmas = _checked(values, sigmas, 3)
    first = slopes(values, sigmas)
    return _by_step(2 * first.diff(dim=0), sigmas[2:] - sigmas[:-2])


def innovations(values: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """What each step brings beyond the straight line through the two steps before.

    Args:
        values: ``[n, ...]``, n >= 3.
        sigmas: ``[n]``, strictly monotone.

    Returns:
        float64 ``[n - 2, ...]``; entry i belongs to step i + 2.

    Raises:
        RASError: As for :func:`slopes`.
    """
    values, sigmas = _checked(values, sigmas, 3)
    first = slopes(values, sigmas)
    forecast = values[1:-1] + _times_step(first[:-1], sigmas[2:] - sigmas[1:-1])
    return values[2:] - forecast


def magnitudes(field: torch.Tensor) -> torch.Tensor:
    """Norm of each token's vector, ``[..., N, F]`` to float64 ``[..., N]``."""
    norms: torch.Tensor = torch.linalg.vector_norm(field.double(), dim=-1)
    return norms


def log_spread(sizes: torch.Tensor) -> float:
    """Standard deviation over tokens of the natural logarithm.

    Args:
        sizes: Non-negative ``[N]``. Where all are zero, none differs: 0.

    Returns:
        A number >= 0 that does not depend on the scale of ``sizes``.
    """
    sizes = sizes.double()
    largest = float(sizes.max())
    if largest == 0:
        return 0.0
    return float(sizes.clamp_min(_ZERO * largest).log().std(correction=0))


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each of ``[N]`` values, float64 from 0; equal values share their mean rank."""
    ordered = values.sort().values
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True) - 1
    return (first + last).double() / 2


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation of two ``[N]``, in [-1, 1]; 0 where one of them is constant."""
    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    size = math.sqrt(float(a.square().sum()) * float(b.square().sum()))
    return 0.0 if size == 0 else float((a * b).sum()) / size


def neighbour_correlation(field: torch.Tensor) -> float:
    """How alike the vectors of tokens side by side and one above the other are.

    The mean is not taken off: a value that all tokens share is what a neighbour could tell, too.

    Args:
        field: ``[h, w, F]``.

    Returns:
        In [-1, 1]: mean product of neighbours over their mean square; 1 for a constant field,
        near 0 for independent tokens, 0 for a field of zeros or without neighbours.
    """
    field = field.double()
    product = square = 0.0
    for one, other in ((field[:, :-1], field[:, 1:]), (field[:-1], field[1:])):
        product += float((one * other).sum())
        square += float(one.square().sum() + other.square().sum()) / 2
    return 0.0 if square == 0 else product / square


def cost_saved(constants: torch.Tensor, order: Order, guess: torch.Tensor | None = None) -> float:
    """How many times fewer evaluations reach the same squared error, if each token gets its own.

    A token whose error constant is c and that is evaluated m times errs by c/m (order 1) or
    c/m^2 (order 2). Evaluations go as c^(2/3) or c^(2/5), which is best, against the same number
    for every token. An upper bound: numbers are not rounded, tokens do not depend on each other,
    and choosing is free.

    Args:
        constants: Non-negative ``[N]``; only their ratios count.
        order: Order of the method.
        guess: What is believed of the constants, non-negative ``[N]``, where evaluations are
            dealt out by it; ``None``: they are known. With a bad guess the number is below 1.

    Returns:
        1 for equal constants; ``exp(2 s^2 / 3)`` or ``exp(0.4 s^2)`` for log-normal ones whose
        logarithms have standard deviation s; 1 where all constants are zero.

    Raises:
        RASError: For another order.
    """
    if order not in (1, 2):
        raise RASError(f"order={order}; expected 1 or 2")
    constants = constants.double()
    guess = constants if guess is None else guess.double()
    if float(constants.max()) == 0 or float(guess.max()) == 0:
        return 1.0
    constants = constants / constants.max()
    guess = (guess / guess.max()).clamp_min(_FLOOR)
    number = guess.pow(2 / (2 * order + 1))
    mean = float(number.mean())
    uniform = float(constants.square().mean())
    own = float((constants / number.pow(order)).square().mean()) * mean ** (2 * order)
    return float((uniform / own) ** (1 / (2 * order)))


def log_normal_saving(spread: float, order: Order) -> float:
    """:func:`cost_saved` of log-normal constants whose logarithms have this deviation."""
    return math.exp((2 / 3 if order == 1 else 0.4) * spread**2)


def relative_error(latents: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """Root mean square difference over that of the reference itself, per image of ``[K, ...]``.

    Raises:
        RASError: If the two differ in shape.
    """
    if latents.shape != reference.shape:
        raise RASError(
            f"latents of {list(latents.shape)} and a reference of {list(reference.shape)}"
        )
    difference = (latents.double() - reference.double()).flatten(1).square().mean(1).sqrt()
    size = reference.double().flatten(1).square().mean(1).sqrt()
    return [float(number) for number in difference / size]


def edge_strength(luminance: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean magnitude of the gradient over each token's pixels.

    Args:
        luminance: ``[H, W]``, at least two pixels each way.
        grid: h and w.

    Returns:
        float64 ``[N]``, tokens in rows from the top left.
    """
    down, right = torch.gradient(luminance.double())
    strength = torch.hypot(down, right)
    return torch.nn.functional.adaptive_avg_pool2d(strength[None], grid).flatten()


def mean_with_interval(
    values: torch.Tensor, groups: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means over images, with 95 % intervals by bootstrap over whole groups.

    Args:
        values: ``[K, ...]``.
        groups: The prompt of each image: images of one prompt are no independent draws.

    Returns:
        Mean, low and high end, float64 ``[...]``. With one group the ends are NaN: nothing is
        known of how prompts differ.
    """
    values = values.double()
    names = sorted(set(groups))
    member = torch.tensor([names.index(group) for group in groups])
    flat = values.flatten(1)
    sums = flat.new_zeros(len(names), flat.shape[1]).index_add_(0, member, flat)
    sizes = member.bincount(minlength=len(names)).double()
    mean = values.mean(0)
    if len(names) == 1:
        nothing = torch.full_like(mean, math.nan)
        return mean, nothing, nothing
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=generator)
    weights = torch.nn.functional.one_hot(drawn, len(names)).sum(1).double()
    means = (weights @ sums) / (weights @ sizes)[:, None]
    ends = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return mean, ends[0].view_as(mean), ends[1].view_as(mean)


def harmonic_mean(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Savings of single steps as one of the whole run: costs add up, savings do not."""
    return values.double().reciprocal().mean(dim).reciprocal()


def _checked(
    values: torch.Tensor, sigmas: torch.Tensor, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if values.shape[0] != sigmas.shape[0] or values.shape[0] < least:
        raise RASError(
            f"{values.shape[0]} steps at {sigmas.shape[0]} noise levels; expected as many, at "
            f"least {least}"
        )
    moved = sigmas.double().diff()
    if not (bool((moved > 0).all()) or bool((moved < 0).all())):
        raise RASError(
            f"the noise levels {[round(float(s), 4) for s in sigmas]} do not fall from step to "
            "step; use a scheduler with one evaluation per step"
        )
    return values.double(), sigmas.double()


def _times_step(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return values * step.view(-1, *(1,) * (values.ndim - 1))


def _by_step(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return values / step.view(-1, *(1,) * (values.ndim - 1))
