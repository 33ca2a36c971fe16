"""GenEval: a detector (Mask2Former) and CLIP for colours, both through transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.evaluation.clip import ClipModel
from ras_dit.evaluation.files import checksum
from ras_dit.evaluation.geneval_rules import COLOURS, THRESHOLD, Detection, judge
from ras_dit.evaluation.images import read_picture
from ras_dit.evaluation.prompts import GENEVAL_TAGS
from ras_dit.evaluation.scorers import Measured, Picture, ScorerUnavailable, Statistic, Summary
from ras_dit.evaluation.statistics import average_statistic, bootstrap_means, interval

_PHRASES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}")
_ANY_PHRASE = "a photo of a {colour} object"
_GREY = (153, 153, 153)


class GenEvalScorer:
    """The six tasks of GenEval, with a reason for each picture that fails.

    Args:
        settings: ``detector`` (folder of a Mask2Former for instances of COCO classes), ``clip``
            (folder of a CLIP model), ``device``.

    Raises:
        ScorerUnavailable: If weights are missing.
        RASError: If weights are damaged.
    """

    needs_partner = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._device = str(settings.get("device", "cpu"))
        folder = Path(str(settings.get("detector", "weights/mask2former")))
        if not (folder / "config.json").is_file():
            raise ScorerUnavailable(
                "geneval needs a detector; put facebook/mask2former-swin-small-coco-instance into "
                f"{str(folder)!r}, or say in scores.geneval.detector where it is"
            )
        clip = Path(str(settings.get("clip", "weights/clip-large")))
        self._clip = ClipModel(clip, self._device, "geneval", "openai/clip-vit-large-patch14")
        self._model, self._processor = _detector(folder, self._device)
        self._classifiers: dict[str, torch.Tensor] = {}
        self._identity = {
            "detector": checksum(folder),
            "clip": self._clip.checksum(),
            "transformers": version("transformers"),
        }

    def identity(self) -> Mapping[str, Any]:
        """As :meth:`Scorer.identity`."""
        return self._identity

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """For each picture: its task, whether it is correct, why not, and what was found."""
        return Measured(tuple(self._judged(picture) for picture in pictures))

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """The share of correct pictures of each task, and the mean of the tasks."""
        correct = np.array([float(row["correct"]) for row in measured.rows])
        tags = [str(row["tag"]) for row in measured.rows]
        tasks = [tag for tag in GENEVAL_TAGS if tag in tags]
        statistics, draws = [], []
        for task in tasks:
            chosen = [number for number, tag in enumerate(tags) if tag == task]
            members = [pictures[number] for number in chosen]
            statistics.append(
                average_statistic(f"GenEval {task}", correct[chosen], members, better="higher")
            )
            draws.append(bootstrap_means(correct[chosen], [p.group for p in members]))
        overall = np.mean(draws, axis=0)
        low, high = interval(overall)
        statistics.append(
            Statistic(
                name="GenEval overall",
                value=float(np.mean([statistic.value for statistic in statistics])),
                low=low,
                high=high,
                count=len(pictures),
                better="higher",
                error=float(overall.std()),
            )
        )
        missing = [task for task in GENEVAL_TAGS if task not in tasks]
        note = f"GenEval without {', '.join(missing)}" if missing else ""
        return Summary(tuple(statistics), note=note)

    def _judged(self, picture: Picture) -> dict[str, Any]:
        if picture.metadata.get("tag") not in GENEVAL_TAGS:
            raise RASError(
                f"picture {picture.index} has no rules of GenEval; use prompts of the source "
                "geneval, or leave the scorer geneval out"
            )
        image = Image.fromarray(read_picture(picture.path))
        found = self.detect(image)

        def colours_of(objects: Sequence[Detection], name: str) -> list[str]:
            return self.colours(image, objects, name)

        verdict = judge(picture.metadata, found, colours_of)
        return {
            "tag": picture.metadata["tag"],
            "prompt": picture.prompt,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "details": [
                [d.label, round(d.score, 4), *(round(side, 1) for side in d.box)] for d in found
            ],
        }

    def detect(self, image: Image.Image) -> list[Detection]:
        """Objects in a picture that are surer than the lower threshold."""
        inputs = self._processor(images=[image], return_tensors="pt").to(self._device)
        with torch.no_grad():
            outputs = self._model(**inputs)
        (result,) = self._processor.post_process_instance_segmentation(
            outputs,
            threshold=THRESHOLD,
            target_sizes=[(image.height, image.width)],
            return_binary_maps=True,
        )
        masks = result["segmentation"]
        found = []
        for number, facts in enumerate(result["segments_info"]):
            mask = masks[number].cpu().numpy().astype(bool)
            if mask.any():
                rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
                box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                label = self._model.config.id2label[int(facts["label_id"])]
                sides = tuple(map(float, box))
                assert len(sides) == 4
                found.append(Detection(label, float(facts["score"]), sides, mask))
        return found

    def colours(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        """The likeliest colour of each object: cut out, in front of grey, by CLIP."""
        if not objects:
            return []
        if name not in self._classifiers:
            phrases = (*_PHRASES, _ANY_PHRASE)
            texts = [p.format(colour=colour, name=name) for colour in COLOURS for p in phrases]
            vectors = self._clip.texts(texts).view(len(COLOURS), len(phrases), -1).mean(dim=1)
            self._classifiers[name] = vectors / vectors.norm(dim=-1, keepdim=True)
        crops = [_cut_out(image, thing) for thing in objects]
        nearest = (self._clip.images(crops) @ self._classifiers[name].T).argmax(dim=1)
        return [COLOURS[int(index)] for index in nearest]


def _cut_out(image: Image.Image, thing: Detection) -> Image.Image:
    shown = image
    if thing.mask is not None:
        mask = Image.fromarray(thing.mask)
        shown = Image.composite(image, Image.new("RGB", image.size, _GREY), mask)
    left, top, right, bottom = (round(side) for side in thing.box)
    return shown.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _detector(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    try:
        model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, use_safetensors=True)
        processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    # Loaders raise anything, down to KeyError, for files that are damaged.
    except Exception as error:
        raise RASError(
            f"the detector {str(folder)!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return model.to(device).eval(), processor
