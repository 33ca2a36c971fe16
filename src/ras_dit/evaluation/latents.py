"""Latents beside the pictures, and their distance to the reference row's.

Pictures are rounded to 8 bits and pass a decoder; latents are what a sampler itself gets wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ras_dit.errors import RASError
from ras_dit.evaluation.files import read_checked
from ras_dit.evaluation.scorers import Average, Measured, Picture, Stored, Summary
from ras_dit.evaluation.statistics import average_statistic

_COLUMN = "latent-rmse"
_AVERAGES: tuple[Average, ...] = ("median", "mean")


def encode_latents(latents: torch.Tensor) -> bytes:
    """Latents of one picture as an ``.npy`` file: the same latents give the same bytes.

    In float32, which holds every dtype that pipelines work in: in half of it rounding would be
    as large as the differences between good samplers.
    """
    buffer = BytesIO()
    array = np.ascontiguousarray(latents.float().cpu().numpy(), dtype="<f4")
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_latents(stored: Stored) -> NDArray[np.float32]:
    """The latents of a file.

    Raises:
        RASError: If it is missing or not the one that was made.
    """
    content = read_checked(stored.path, stored.sha256, "latents", "are not those that were made")
    array: NDArray[np.float32] = np.load(BytesIO(content), allow_pickle=False)
    return array


class LatentScorer:
    """Root mean square difference of latents to the reference's of the same prompt and seed."""

    needs_partner = True

    def identity(self) -> Mapping[str, Any]:
        """The column, float64 sums."""
        return {"name": _COLUMN}

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """One number per picture.

        Raises:
            RASError: If the evaluation kept no latents, or those of two rows have other shapes.
        """
        return Measured(tuple({_COLUMN: _distance(picture)} for picture in pictures))

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """Median and mean: single pictures can jump to another motif, which only the mean shows."""
        values = [row[_COLUMN] for row in measured.rows]
        return Summary(
            tuple(
                average_statistic(
                    f"{average} latent RMSE",
                    values,
                    pictures,
                    better="lower",
                    average=average,
                    column=_COLUMN,
                )
                for average in _AVERAGES
            )
        )


def latent_rmse(_: Mapping[str, Any]) -> LatentScorer:
    """Factory of the scorer ``latent-rmse``."""
    return LatentScorer()


def _distance(picture: Picture) -> float:
    if picture.latents is None or picture.partner_latents is None:
        raise RASError(
            f"{_COLUMN} compares latents, and this evaluation kept none; put `latents: true` into "
            "its YAML file and begin in a new folder, or leave the score out"
        )
    own, other = read_latents(picture.latents), read_latents(picture.partner_latents)
    if own.shape != other.shape:
        raise RASError(
            f"{str(picture.latents.path)!r} has the shape {own.shape} and "
            f"{str(picture.partner_latents.path)!r} {other.shape}; compare latents of one size"
        )
    difference = own.astype(np.float64) - other
    return float(np.sqrt(np.mean(np.square(difference))))


def latents_path(row: str, index: int) -> str:
    """Path of a picture's latents in the evaluation's folder."""
    return f"latents/{row}/{index:06d}.npy"


def stored_latents(folder: Path, record: Mapping[str, Any], row: str, index: int) -> Stored | None:
    """The latents that a unit's record tells of; ``None`` where none were kept."""
    name = latents_path(row, index)
    facts = record.get("latents", {}).get(name)
    return None if facts is None else Stored(folder / name, facts["sha256"])
