"""Dense recorded runs, counted: every quantity of a diagnosis, per step and image.

Shape letters: n steps, B images of a run, N image tokens, F numbers of a token's velocity, h and w
the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ras_dit.adapters import TransformerDescription
from ras_dit.diagnosis import maths
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.recording import Recording
from ras_dit.selection import METRIC_FUNCTIONS
from ras_dit.tokens import TokenGrid, by_token

# Below, no second derivative has a partner three steps on.
LEAST_STEPS = 8
LEAST_SIDE = 4
LAGS = (1, 3)
_MOST_SIGMA = 1.01

FIRST, SECOND = "|dv/dσ|", "|d²v/dσ²|"  # noqa: RUF001
_DERIVATIVES: Mapping[maths.Order, tuple[str, str]] = {1: ("slope", FIRST), 2: ("bend", SECOND)}


@dataclass(frozen=True)
class Quantity:
    """One number per step.

    Attributes:
        name: In files.
        meaning: In words.
        is_saving: Whether it is a factor of cost, so that its mean over steps is the harmonic one.
    """

    name: str
    meaning: str
    is_saving: bool = False


def _quantities() -> tuple[Quantity, ...]:
    found = []
    for order, (word, sign) in _DERIVATIVES.items():
        found += [
            Quantity(f"{word}_size", f"root mean square {sign} over that of v"),
            Quantity(f"{word}_spread", f"standard deviation over tokens of ln {sign}"),
            *(
                Quantity(f"{word}_persistence_{lag}", f"rank correlation of {sign}, {_ahead(lag)}")
                for lag in LAGS
            ),
            Quantity(f"{word}_saving", f"cost saved at equal error, order {order}, known", True),
            *(
                Quantity(
                    f"{word}_saving_{lag}",
                    f"cost saved at equal error, order {order}, by {sign} {_before(lag)}",
                    True,
                )
                for lag in LAGS
            ),
        ]
    found += [
        Quantity("slope_std", f"rank correlation of {FIRST} with the std score"),
        Quantity("slope_l2", f"rank correlation of {FIRST} with the l2 score"),
        Quantity("slope_edges", f"rank correlation of {FIRST} with the picture's edges"),
        Quantity("neighbours", "correlation of innovations of neighbouring tokens"),
    ]
    return tuple(found)


def _ahead(lag: int) -> str:
    return "one step to the next" if lag == 1 else f"one step to {lag} steps on"


def _before(lag: int) -> str:
    return "one step before" if lag == 1 else f"{lag} steps before"


QUANTITIES = _quantities()


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity over the steps.

    Attributes:
        sigmas: Noise level of each entry, float64 ``[m]``.
        values: float64 ``[B, m]``.
    """

    sigmas: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, eq=False)
class Fields:
    """A recorded run as velocities of tokens.

    Attributes:
        grid: The tokens of one image.
        sigmas: float64 ``[n]``.
        noise: ``[n, B, N, P, C]``: velocity by token, latent pixel and channel.
        edges: float64 ``[B, N]``, how much edge there is in each token's part of the picture.
    """

    grid: TokenGrid
    sigmas: torch.Tensor
    noise: torch.Tensor
    edges: torch.Tensor

    def velocities(self, image: int) -> torch.Tensor:
        """float64 ``[n, N, F]``."""
        return self.noise[:, image].double().flatten(2)


def read_fields(
    recording: Recording,
    images: tuple[Image.Image, ...],
    description: TransformerDescription,
    transformer_config: Any,
) -> Fields:
    """Sort what was recorded by token.

    Args:
        recording: Of a dense run.
        images: Its pictures.
        description: What is known of the transformer.
        transformer_config: Its configuration.

    Raises:
        UnsupportedError: If the scheduler has no noise levels, or none of flow matching, or more
            than one evaluation at one of them.
        RASError: If there are too few steps or tokens, or a velocity is not finite.
    """
    trace = recording.trace
    sigmas = flow_sigmas([step.sigma for step in trace.steps])
    grid = trace.grid
    if min(grid.height, grid.width) < LEAST_SIDE:
        raise RASError(
            f"pictures of {grid.height} x {grid.width} tokens are too small to tell tokens apart; "
            f"expected at least {LEAST_SIDE} x {LEAST_SIDE}, so make them larger with --size"
        )
    patch = description.patch(transformer_config)
    noise = torch.stack(
        [
            by_token(step.float(), patch, frames_first=description.frames_first)
            for step in recording.noise_preds
        ]
    )
    if noise.shape[2] != grid.num_tokens:
        raise UnsupportedError(
            f"the scheduler gets {noise.shape[2]} tokens, and the picture has {grid.num_tokens}; "
            "pictures with given parts cannot be diagnosed"
        )
    if not bool(noise.isfinite().all()):
        raise RASError(
            f"a velocity is not finite in {trace.dtype}; load the model with --dtype float32"
        )
    edges = [maths.edge_strength(_luminance(image), (grid.height, grid.width)) for image in images]
    return Fields(grid, sigmas, noise, torch.stack(edges))


def flow_sigmas(found: list[float | None]) -> torch.Tensor:
    """Noise levels of a run as float64 ``[n]``, if a diagnosis can be made at them.

    Raises:
        UnsupportedError: If there are none, or none of flow matching, or they do not fall.
        RASError: If there are fewer than :data:`LEAST_STEPS`.
    """
    levels = [sigma for sigma in found if sigma is not None]
    if len(levels) < len(found):
        raise UnsupportedError(
            "the model's scheduler has no noise levels (sigmas), and derivatives are taken in "
            "them; expected a flow-matching scheduler, such as FlowMatchEulerDiscreteScheduler"
        )
    if len(levels) < LEAST_STEPS:
        raise RASError(
            f"{len(levels)} steps are too few for second derivatives and how they persist; give "
            f"--steps {LEAST_STEPS} or more (56 tell most)"
        )
    sigmas = torch.tensor(levels, dtype=torch.float64)
    if float(sigmas.max()) > _MOST_SIGMA:
        raise UnsupportedError(
            f"the noise levels begin at {float(sigmas[0]):.3g}; expected those of flow matching, "
            "from 1 to 0, where the model's output is the velocity of the latents"
        )
    if not bool((sigmas.diff() < 0).all()):
        raise UnsupportedError(
            "the scheduler asks for several evaluations at one noise level; expected one per "
            "step, as FlowMatchEulerDiscreteScheduler does"
        )
    return sigmas


def measure_fields(fields: Fields) -> dict[str, Series]:
    """Every quantity of every image, by name."""
    per_image = [_measure_image(fields, image) for image in range(len(fields.edges))]
    return {
        quantity.name: Series(
            per_image[0][quantity.name][0],
            torch.stack([found[quantity.name][1] for found in per_image]),
        )
        for quantity in QUANTITIES
    }


def _measure_image(fields: Fields, image: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    velocity, sigmas = fields.velocities(image), fields.sigmas
    sizes: dict[maths.Order, torch.Tensor] = {
        1: maths.magnitudes(maths.slopes(velocity, sigmas)),
        2: maths.magnitudes(maths.curvatures(velocity, sigmas)),
    }
    speeds = maths.magnitudes(velocity)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for order, (word, _) in _DERIVATIVES.items():
        size, middle = sizes[order], _middles(sigmas, order)

        def keep(name: str, values: list[float], at: torch.Tensor, word: str = word) -> None:
            found[f"{word}_{name}"] = at, torch.tensor(values, dtype=torch.float64)

        each = range(len(size))
        keep("size", [_rms(size[i]) / _rms(speeds[i : i + order + 1]) for i in each], middle)
        keep("spread", [maths.log_spread(size[i]) for i in each], middle)
        keep("saving", [maths.cost_saved(size[i], order) for i in each], middle)
        for lag in LAGS:
            pairs = list(zip(size[:-lag], size[lag:], strict=True))
            keep(
                f"persistence_{lag}",
                [maths.rank_correlation(old, new) for old, new in pairs],
                middle[lag:],
            )
            keep(
                f"saving_{lag}",
                [maths.cost_saved(new, order, old) for old, new in pairs],
                middle[lag:],
            )
    # The score of a step chooses the tokens of the next one, so it is held against the change
    # that comes after it.
    middle = _middles(sigmas, 1)
    for name, function in METRIC_FUNCTIONS.items():
        scores = function(fields.noise[:, image])
        found[f"slope_{name}"] = middle, _against(sizes[1], scores[:-1])
    edges = fields.edges[image].expand(len(middle), -1)
    found["slope_edges"] = middle, _against(sizes[1], edges)
    shape = fields.grid.height, fields.grid.width, -1
    news = maths.innovations(velocity, sigmas)
    alike = [maths.neighbour_correlation(new.view(shape)) for new in news]
    found["neighbours"] = sigmas[2:], torch.tensor(alike, dtype=torch.float64)
    return found


def _middles(sigmas: torch.Tensor, order: int) -> torch.Tensor:
    """Where a divided difference over ``order + 1`` steps stands: at their mean."""
    return sigmas.unfold(0, order + 1, 1).mean(1)


def _against(sizes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    pairs = zip(sizes, others, strict=True)
    return torch.tensor([maths.rank_correlation(*pair) for pair in pairs], dtype=torch.float64)


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny))


def _luminance(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float64) / 255)
