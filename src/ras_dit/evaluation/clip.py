"""CLIP score and PickScore, through transformers' CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.evaluation.files import checksum
from ras_dit.evaluation.images import read_picture
from ras_dit.evaluation.scorers import Measured, Picture, ScorerUnavailable, Summary
from ras_dit.evaluation.statistics import average_statistic


class ClipModel:
    """A CLIP model with its processor, from a local folder.

    Args:
        folder: As ``save_pretrained`` writes it.
        device: A torch device.
        scorer: Whose weights they are, for the message.
        usual: What is usually put there.

    Raises:
        ScorerUnavailable: If there is no such folder.
        RASError: If it is damaged.
    """

    def __init__(self, folder: Path, device: str, scorer: str, usual: str) -> None:
        if not (folder / "config.json").is_file():
            raise ScorerUnavailable(
                f"{scorer} needs a CLIP model; put {usual} (config, safetensors, tokenizer and "
                f"preprocessor files) into {str(folder)!r}, or say in scores.{scorer} where it is"
            )
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

        try:
            self._model = CLIPModel.from_pretrained(folder, use_safetensors=True)
            self._tokenizer = CLIPTokenizerFast.from_pretrained(folder)
            self._processor = CLIPImageProcessorPil.from_pretrained(folder)
        # Loaders raise anything, down to KeyError, for files that are damaged.
        except Exception as error:
            raise RASError(
                f"the CLIP model {str(folder)!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self._model.to(device).eval()
        self._device = device
        self._folder = folder

    @property
    def scale(self) -> float:
        """The model's own factor of its similarities."""
        return float(self._model.logit_scale.detach().exp())

    def checksum(self) -> str:
        """SHA-256 of the files of the folder."""
        return checksum(self._folder)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors ``[B, D]`` of texts; what is too long is cut."""
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)
        with torch.no_grad():
            return _unit(self._model.get_text_features(**tokens))

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors ``[B, D]`` of pictures."""
        pixels = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.no_grad():
            return _unit(self._model.get_image_features(pixel_values=pixels["pixel_values"]))


class ClipScorer:
    """The scaled similarity of each picture and its prompt, and its mean.

    Args:
        name: Name of the scorer and of its column.
        heading: Heading in the report.
        model: The CLIP model.
        factor: What the cosine is multiplied by.
        clamped: Whether negative similarities count as 0.
    """

    needs_partner = False

    def __init__(
        self, name: str, heading: str, model: ClipModel, factor: float, *, clamped: bool
    ) -> None:
        self._name = name
        self._heading = heading
        self._model = model
        self._factor = factor
        self._clamped = clamped
        self._checksum = model.checksum()

    def identity(self) -> Mapping[str, Any]:
        """As :meth:`Scorer.identity`."""
        return {
            "name": self._name,
            "factor": self._factor,
            "weights": self._checksum,
            "transformers": version("transformers"),
        }

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """One similarity per picture, and the features of both sides."""
        texts = self._model.texts([picture.prompt for picture in pictures])
        images = self._model.images(
            [Image.fromarray(read_picture(picture.path)) for picture in pictures]
        )
        values = self._factor * (texts * images).sum(-1)
        if self._clamped:
            values = values.clamp(min=0)
        arrays = {"image": images.cpu().numpy(), "text": texts.cpu().numpy()}
        return Measured(
            tuple({self._name: float(value)} for value in values),
            {key: np.asarray(array, dtype=np.float32) for key, array in arrays.items()},
        )

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """The mean."""
        values = [row[self._name] for row in measured.rows]
        return Summary(
            (
                average_statistic(
                    self._heading, values, pictures, better="higher", column=self._name
                ),
            )
        )


def clip_score(settings: Mapping[str, Any]) -> ClipScorer:
    """100 x cosine of picture and prompt, at least 0 (Hessel et al. 2021, without its 2.5).

    Args:
        settings: ``weights``, a folder; ``device``.
    """
    model = _model(settings, "clip", "openai/clip-vit-base-patch32")
    return ClipScorer("clip", "CLIP score", model, 100.0, clamped=True)


def pick_score(settings: Mapping[str, Any]) -> ClipScorer:
    """The preference score of Kirstain et al. 2023: the model's own scale x cosine.

    Args:
        settings: ``weights``, a folder; ``device``.
    """
    model = _model(settings, "pickscore", "yuvalkirstain/PickScore_v1")
    return ClipScorer("pickscore", "PickScore", model, model.scale, clamped=False)


def _model(settings: Mapping[str, Any], name: str, usual: str) -> ClipModel:
    folder = Path(str(settings.get("weights", f"weights/{name}")))
    return ClipModel(folder, str(settings.get("device", "cpu")), name, usual)


def _unit(features: Any) -> torch.Tensor:
    # transformers 5 gives an output object, older releases the tensor.
    tensor: torch.Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(tensor, dim=-1)
