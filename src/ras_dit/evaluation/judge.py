"""The judge of the embedded world: what a picture of emoji shows, read from its pixels.

    judge = Judge.load()
    reading = judge.read(Image.open("fox.png"))
    reading.things[0].thing.label, reading.background.colour

A small network (`judge_network`) names the things and says where they stand; the background is
measured, not learned (`judge_background`). The judge knows the things of `ras_dit.world` and
nothing else: whatever it is shown, it can only answer with one of them or with "nothing".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from ras_dit.errors import RASError
from ras_dit.evaluation.judge_background import SeenBackground, measure_background
from ras_dit.evaluation.judge_network import (
    STRIDE,
    TYPICAL_SIZE,
    Answers,
    JudgeNetwork,
    judged_things,
)
from ras_dit.world import Thing

JUDGE_DIR: Final = Path(__file__).resolve().parents[1] / "embedded" / "judge"
WEIGHTS: Final = "judge.safetensors"
SURE: Final = 0.5  # certainty from which a thing counts as seen
_POSSIBLE: Final = 0.3  # certainty from which the background is not measured there
_LEAST: Final = 32  # pixels of the shorter side
_SMALL: Final = 128  # pixels; pictures with a shorter side below are read enlarged to it
_SAME = 0.35  # distance of two answers about the same thing, in its sizes
_COVERED = 0.5


@dataclass(frozen=True, slots=True)
class SeenThing:
    """A thing in a picture.

    Attributes:
        thing: What it is.
        x: Its middle from the left, in pixels.
        y: Its middle from the top, in pixels.
        size: Width and height, in pixels.
        certainty: How sure it is that something stands there, 0 to 1.
        share: Probability of the name among all names, 0 to 1.
    """

    thing: Thing
    x: float
    y: float
    size: float
    certainty: float
    share: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in pixels."""
        half = self.size / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows.

    Attributes:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        things: Everything seen with a certainty of at least `SURE`, the surest first.
        best: The surest thing, also where it is not sure: the answer to "name one thing".
        background: What is behind the things.
        features: ``[128]`` float32: the network's last layer, averaged over the picture.
    """

    width: int
    height: int
    things: tuple[SeenThing, ...]
    best: SeenThing
    background: SeenBackground
    features: NDArray[np.float32]


class Judge:
    """The trained network with its rules of reading. Reads one picture at a time, so that what it
    says of a picture does not depend on the others.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self._network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._things = judged_things()

    @classmethod
    def load(cls, folder: Path = JUDGE_DIR) -> Judge:
        """The shipped judge, or one that `training.judge` wrote to another folder.

        Raises:
            RASError: If the weights are missing, or were trained for another list of things.
        """
        path = folder / WEIGHTS
        if not path.is_file():
            raise RASError(
                f"the judge's weights are not at {path}; expected the file that is shipped with"
                " ras-dit or made by `make train-judge`"
            )
        things = [thing.label for thing in judged_things()]
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get("things", "[]"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if known != things:
            raise RASError(
                f"the judge at {path} knows {len(known)} things, the world has {len(things)}, or"
                " their order differs; train it anew with `make train-judge`"
            )
        network = JudgeNetwork(len(things))
        network.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}
        )
        return cls(network)

    def read(self, image: Image.Image) -> Reading:
        """What a picture shows.

        Args:
            image: At least 32 x 32 pixels. Things of 40 to 100 pixels are known, as they are in
                scenes of 128 pixels and more; smaller pictures are read enlarged to 128.

        Raises:
            RASError: If the picture is smaller.
        """
        pixels, answers, scale = self._look(image)
        seen = self._things_of(answers, scale)
        return Reading(
            width=image.width,
            height=image.height,
            things=tuple(thing for thing in seen if thing.certainty >= SURE),
            best=seen[0],
            background=measure_background(
                pixels.astype(np.float64),
                [thing.box for thing in seen if thing.certainty >= _POSSIBLE],
            ),
            features=_pooled(answers),
        )

    def features(self, image: Image.Image) -> NDArray[np.float32]:
        """Only the features of `read`, ``[128]``, in less time."""
        return _pooled(self._look(image)[1])

    def read_all(self, images: Sequence[Image.Image]) -> list[Reading]:
        """What each of several pictures shows."""
        return [self.read(image) for image in images]

    @torch.inference_mode()
    def _look(self, image: Image.Image) -> tuple[NDArray[np.float32], Answers, float]:
        """Pixels [H, W, 3] of 0 to 1, what the network says, and how much it was enlarged."""
        width, height = image.size
        if min(width, height) < _LEAST:
            raise RASError(
                f"the judge was given a picture of {width}x{height} pixels; expected at least"
                f" {_LEAST}x{_LEAST}"
            )
        pixels: NDArray[np.float32] = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
        scale = max(1.0, _SMALL / min(width, height))
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] * 2 - 1
        if scale > 1:
            larger = (round(height * scale), round(width * scale))
            picture = F.interpolate(picture, size=larger, mode="bilinear")
        right, below = (-side % STRIDE for side in (picture.shape[3], picture.shape[2]))
        if right or below:
            picture = F.pad(picture, (0, right, 0, below), mode="replicate")
        return pixels, self._network(picture.contiguous(memory_format=torch.channels_last)), scale

    def _things_of(self, answers: Answers, scale: float) -> list[SeenThing]:
        """Things, the surest first and at least one."""
        shares = answers.logits[0].flatten(1).softmax(dim=0).double().numpy()
        boxes = answers.boxes[0].double().numpy()
        down, across = (np.indices(boxes.shape[1:]) + 0.5) * STRIDE
        x = (across + boxes[0] * STRIDE).ravel() / scale
        y = (down + boxes[1] * STRIDE).ravel() / scale
        size = np.exp2(boxes[2].clip(-3, 3)).ravel() * TYPICAL_SIZE / scale
        places = np.stack([across.ravel(), down.ravel()]) / scale
        return self._gather(shares, np.stack([x, y]), size, places)

    def _gather(
        self,
        shares: NDArray[np.float64],
        middles: NDArray[np.float64],
        sizes: NDArray[np.float64],
        places: NDArray[np.float64],
    ) -> list[SeenThing]:
        """Things from the answers of all places: the surest answer first takes to itself those
        that mean the same thing, which have a say in its name, then those that it covers.
        """
        certainty = 1 - shares[-1]
        left = np.ones(len(certainty), dtype=bool)
        found: list[SeenThing] = []
        while left.any():
            peak = int(np.where(left, certainty, -1).argmax())
            if found and certainty[peak] < _POSSIBLE:
                break
            apart = np.linalg.norm(middles - middles[:, peak : peak + 1], axis=0)
            covered = np.linalg.norm(places - middles[:, peak : peak + 1], axis=0)
            same = left & (apart < _SAME * sizes[peak])
            same[peak] = True
            weights = certainty[same] / certainty[same].sum()
            names = shares[:-1, same] @ weights
            best = int(names.argmax())
            x, y = middles[:, same] @ weights
            size = math.exp(float(np.log(sizes[same]) @ weights))
            found.append(
                SeenThing(
                    thing=self._things[best],
                    x=round(float(x), 2),
                    y=round(float(y), 2),
                    size=round(size, 2),
                    certainty=round(float(certainty[peak]), 4),
                    share=round(float(names[best] / names.sum()), 4),
                )
            )
            left &= ~same & (covered >= _COVERED * sizes[peak])
            left[peak] = False
        return found


def _pooled(answers: Answers) -> NDArray[np.float32]:
    """Features averaged over the picture."""
    return answers.features.mean(dim=(2, 3))[0].numpy().astype(np.float32)
