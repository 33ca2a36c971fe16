"""The judge as scorers of the harness: `emoji` (are captions kept?) and `fd-emoji`.

Their prompts are captions of `ras_dit.world`; with others `emoji` refuses to score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.evaluation.emoji_distance import judge_checksum, load_reference
from ras_dit.evaluation.frechet import distance_error, fit, frechet_distance
from ras_dit.evaluation.images import read_picture
from ras_dit.evaluation.judge import JUDGE_DIR, Judge, Reading
from ras_dit.evaluation.judge_rules import TASKS, judge_tasks, recognised, verdicts
from ras_dit.evaluation.scorers import Measured, Picture, Statistic, Summary
from ras_dit.evaluation.statistics import average_statistic
from ras_dit.world import ColourCheck, Scene, parse

NUMBERS: Final = ("recognised", *TASKS, "background colours")
_RULES = 1  # raised whenever the rules of reading or of judging change
_Z = 1.96


def scene_of(prompt: str) -> Scene:
    """The scene that a caption describes; a full stop at its end is allowed.

    Raises:
        RASError: If it is no caption of this world.
    """
    try:
        return parse(prompt.strip().removesuffix("."))
    except ValueError as error:
        raise RASError(
            f"the judge of the embedded world cannot read the prompt {prompt!r} ({error}); expected"
            ' a caption like "two foxes on a blue background"'
        ) from error


def judged_row(scene: Scene, reading: Reading) -> dict[str, Any]:
    """What is written down of one picture.

    Tasks that the caption does not belong to are left out. `kept` is the share of its tasks that
    the picture passes; `reasons` say of each other task what is wrong. `recognised` is there for
    one thing alone: whether the surest answer of all names is its name. `background colours` is
    there for all: without a background in the caption it has to be white.
    """
    results = judge_tasks(scene, reading)
    backdrop = [v.right for v in verdicts(scene, reading) if isinstance(v.check, ColourCheck)]
    row: dict[str, Any] = {str(result.task): float(result.right) for result in results}
    row["kept"] = float(np.mean([result.right for result in results]))
    row["background colours"] = float(all(backdrop))
    known = recognised(scene, reading)
    if known is not None:
        row["recognised"] = float(known)
    row["seen"] = [
        {"thing": t.thing.label, "x": t.x, "y": t.y, "size": t.size, "certainty": t.certainty}
        for t in reading.things
    ]
    row["background"] = {
        "kind": reading.background.kind,
        "colour": reading.background.colour,
        "second": reading.background.second,
        "rgb": list(reading.background.rgb),
        "second_rgb": list(reading.background.second_rgb),
    }
    row["reasons"] = {str(r.task): r.reason for r in results if not r.right}
    return row


class EmojiScorer:
    """Shares of pictures that keep what their captions promise, by task."""

    needs_partner = False

    def __init__(self, folder: Path = JUDGE_DIR) -> None:
        self._folder = folder
        self._judge = Judge.load(folder)

    def identity(self) -> Mapping[str, Any]:
        """Checksum of the weights, and the version of the rules."""
        return {"judge": judge_checksum(self._folder), "rules": _RULES}

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """One row a picture."""
        scenes = [scene_of(picture.prompt) for picture in pictures]
        images = [Image.fromarray(read_picture(picture.path)) for picture in pictures]
        readings = self._judge.read_all(images)
        return Measured(tuple(judged_row(s, r) for s, r in zip(scenes, readings, strict=True)))

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """The mean of each task over the pictures that belong to it, 0 to 1."""
        statistics = [
            average_statistic(
                "emoji kept",
                [row["kept"] for row in measured.rows],
                pictures,
                better="higher",
                column="kept",
            )
        ]
        for task in NUMBERS:
            both = list(zip(measured.rows, pictures, strict=True))
            chosen = [(row[task], picture) for row, picture in both if task in row]
            if chosen:
                statistics.append(
                    average_statistic(
                        f"emoji {task}",
                        [value for value, _ in chosen],
                        [picture for _, picture in chosen],
                        better="higher",
                        column=task,
                    )
                )
        return Summary(tuple(statistics))


class EmojiDistanceScorer:
    """FD-emoji to the shipped statistics of rendered held-out scenes of the pictures' size."""

    needs_partner = False

    def __init__(self, folder: Path = JUDGE_DIR) -> None:
        self._folder = folder
        self._judge = Judge.load(folder)

    def identity(self) -> Mapping[str, Any]:
        """Checksum of the weights; the references are bound to it."""
        return {"judge": judge_checksum(self._folder)}

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """Features ``[pictures, 128]``, and the sizes."""
        images = [Image.fromarray(read_picture(picture.path)) for picture in pictures]
        return Measured(
            tuple({"size": [image.width, image.height]} for image in images),
            {"features": np.stack([self._judge.features(image) for image in images])},
        )

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """The distance; its note says what as many real scenes score."""
        sizes = {(int(row["size"][0]), int(row["size"][1])) for row in measured.rows}
        if len(sizes) != 1 or len(pictures) != len(measured.rows):
            raise RASError(
                f"FD-emoji of {len(pictures)} pictures, {len(measured.rows)} of them measured, of"
                f" the sizes {sorted(sizes)}; expected all of them, and one size"
            )
        width, height = sizes.pop()
        reference = load_reference(width, height, self._folder)
        features = measured.arrays["features"]
        found = fit(features)
        value = frechet_distance(found, reference.gaussian)
        error = distance_error(features, reference.gaussian)
        statistic = Statistic(
            name="FD-emoji",
            value=value,
            low=max(0.0, value - _Z * error),
            high=value + _Z * error,
            count=len(features),
            better="lower",
            error=error,
        )
        note = (
            f"FD-emoji (not FID): {len(features)} real scenes score"
            f" {reference.real_at(len(features)):.3g}, two halves of"
            f" {reference.gaussian.count} real scenes {reference.halves:.3g}"
        )
        return Summary((statistic,), {"mean": found.mean, "covariance": found.covariance}, note)


def _folder(settings: Mapping[str, Any]) -> Path:
    return Path(str(settings.get("judge", JUDGE_DIR)))


def emoji(settings: Mapping[str, Any]) -> EmojiScorer:
    """Factory of the scorer `emoji`."""
    return EmojiScorer(_folder(settings))


def fd_emoji(settings: Mapping[str, Any]) -> EmojiDistanceScorer:
    """Factory of the scorer `fd-emoji`."""
    return EmojiDistanceScorer(_folder(settings))
