"""FD-emoji: the Frechet distance between the judge's features of pictures and of real scenes.

The formula is the one of FID; the features are 128 numbers of a network that has only ever seen
emoji, so the value says nothing beyond this world and is never called FID. Statistics of rendered
held-out scenes are shipped, not the pictures. With them comes what real scenes themselves score:
the distance is never zero for a finite number of pictures, and falls about as one over it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from ras_dit.errors import RASError
from ras_dit.evaluation.frechet import Gaussian, fit, frechet_distance
from ras_dit.evaluation.judge import JUDGE_DIR, WEIGHTS

_NAME: Final = "reference-{width}x{height}.safetensors"


@dataclass(frozen=True)
class Reference:
    """Features of rendered held-out scenes of one size, drawn with the world's usual mixture.

    Attributes:
        gaussian: Their mean and covariance.
        halves: FD-emoji between the two halves of these scenes.
        real: FD-emoji of other real scenes to these, by how many there were.
        judge: Checksum of the weights that gave the features.
    """

    gaussian: Gaussian
    halves: float
    real: Mapping[int, float]
    judge: str

    def real_at(self, count: int) -> float:
        """What so many real scenes score: a straight line in one over the number.

        Raises:
            RASError: If there are fewer than two pictures.
        """
        if count < 2:
            raise RASError(f"FD-emoji of {count} pictures; expected at least 2")
        inverse = np.array([1 / number for number in self.real])
        values = np.array(list(self.real.values()))
        order = inverse.argsort()
        inverse, values = inverse[order], values[order]
        if inverse[0] <= 1 / count <= inverse[-1]:
            return float(np.interp(1 / count, inverse, values))
        # Outside of what was measured, in proportion to the nearest that was.
        nearest = 0 if 1 / count < inverse[0] else -1
        return float(values[nearest] / inverse[nearest] / count)


@functools.cache
def judge_checksum(folder: Path = JUDGE_DIR) -> str:
    """SHA-256 of the judge's weights, in hexadecimal digits."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def make_reference(
    features: NDArray[np.floating],
    others: NDArray[np.floating],
    counts: tuple[int, ...],
    judge: str,
) -> Reference:
    """The reference of features [n, 128], and what the first so many of `others` score."""
    middle = len(features) // 2
    whole = fit(features)
    return Reference(
        gaussian=whole,
        halves=frechet_distance(fit(features[:middle]), fit(features[middle:])),
        real={count: frechet_distance(fit(others[:count]), whole) for count in counts},
        judge=judge,
    )


def save_reference(reference: Reference, folder: Path, width: int, height: int) -> Path:
    """Write a reference beside the judge's weights."""
    path = folder / _NAME.format(width=width, height=height)
    facts = {
        "count": reference.gaussian.count,
        "halves": reference.halves,
        "real": {str(count): value for count, value in reference.real.items()},
        "judge": reference.judge,
    }
    arrays = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.covariance}
    save_file(arrays, path, metadata={"facts": json.dumps(facts)})
    return path


def load_reference(width: int, height: int, folder: Path = JUDGE_DIR) -> Reference:
    """The shipped reference for pictures of a size.

    Raises:
        RASError: If there is none for the size, or it belongs to another judge.
    """
    path = folder / _NAME.format(width=width, height=height)
    if not path.is_file():
        sizes = sorted(p.stem.removeprefix("reference-") for p in folder.glob("reference-*"))
        raise RASError(
            f"there are no statistics of real scenes of {width}x{height} pixels in {folder};"
            f" expected one of {', '.join(sizes) or 'none yet'}; make others with"
            " `python -m training.judge_measure --sizes`"
        )
    with safe_open(path, framework="numpy") as file:
        facts = json.loads((file.metadata() or {})["facts"])
        mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
    if facts["judge"] != judge_checksum(folder):
        raise RASError(
            f"the statistics {path} were made with another judge than the one beside them;"
            " make them anew with `python -m training.judge_measure`"
        )
    return Reference(
        gaussian=Gaussian(mean, covariance, int(facts["count"])),
        halves=float(facts["halves"]),
        real={int(count): float(value) for count, value in facts["real"].items()},
        judge=str(facts["judge"]),
    )
