"""PSNR, SSIM and LPIPS to the reference row's picture of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ras_dit.evaluation.files import checksum
from ras_dit.evaluation.images import read_batch
from ras_dit.evaluation.scorers import Better, Measured, Picture, ScorerUnavailable, Summary
from ras_dit.evaluation.statistics import average_statistic

# Equal pictures have no finite PSNR; a mean needs one.
MOST_DECIBELS = 100.0
_LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PairScorer:
    """A number per pair of pictures, and its mean.

    Args:
        name: Name of the column.
        heading: Heading in the report.
        compare: Two batches, uint8 ``[B, 3, H, W]``, to ``[B]``.
        better: Whether higher or lower is better.
        facts: What the numbers depend on.
        unit: For the heading.
    """

    needs_partner = True

    def __init__(
        self,
        name: str,
        heading: str,
        compare: Compare,
        better: Better,
        facts: Mapping[str, Any],
        unit: str = "",
    ) -> None:
        self._name = name
        self._heading = heading
        self._compare = compare
        self._better = better
        self._facts = facts
        self._unit = unit

    def identity(self) -> Mapping[str, Any]:
        """As :meth:`Scorer.identity`."""
        return {"name": self._name, **self._facts}

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """One number per picture."""
        partners = [picture.partner for picture in pictures if picture.partner is not None]
        both = read_batch([*(picture.path for picture in pictures), *partners])
        with torch.no_grad():
            values = self._compare(both[: len(pictures)], both[len(pictures) :])
        return Measured(tuple({self._name: float(value)} for value in values))

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """The mean."""
        statistic = average_statistic(
            self._heading,
            [row[self._name] for row in measured.rows],
            pictures,
            better=self._better,
            column=self._name,
            unit=self._unit,
        )
        return Summary((statistic,))


def psnr(_: Mapping[str, Any]) -> PairScorer:
    """Peak signal-to-noise ratio over all pixels and channels, at most 100 dB a picture."""
    functional = _torchmetrics()

    def compare(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = functional.image.peak_signal_noise_ratio(
            first.double(), second.double(), data_range=255.0, dim=(1, 2, 3), reduction="none"
        )
        return values.clamp(max=MOST_DECIBELS)

    facts = {"torchmetrics": version("torchmetrics"), "most": MOST_DECIBELS}
    return PairScorer("psnr", "PSNR", compare, "higher", facts, "dB")


def ssim(_: Mapping[str, Any]) -> PairScorer:
    """Structural similarity: Gaussian window of sigma 1.5 over 11 x 11 pixels, RGB."""
    functional = _torchmetrics()

    def compare(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = functional.image.structural_similarity_index_measure(
            first.float() / 255, second.float() / 255, data_range=1.0, reduction="none"
        )
        return values.reshape(-1)

    facts = {"torchmetrics": version("torchmetrics")}
    return PairScorer("ssim", "SSIM", compare, "higher", facts)


def lpips(settings: Mapping[str, Any]) -> PairScorer:
    """Learned perceptual similarity, through torchmetrics and torchvision.

    Args:
        settings: ``net`` (``"alex"``, ``"vgg"`` or ``"squeeze"``) and ``weights``, a folder with
            torchvision's file for that network.
    """
    net = str(settings.get("net", "alex"))
    functional = _torchmetrics()
    try:
        version("torchvision")
    except ModuleNotFoundError as error:
        raise ScorerUnavailable(
            "lpips needs torchvision; install it with pip install 'ras-dit[fidelity]' in an "
            "environment whose torch fits it"
        ) from error
    file = _LPIPS_FILES[net]
    place = Path(str(settings.get("weights", "weights"))) / file
    if not place.is_file():
        raise ScorerUnavailable(
            f"lpips needs {file}, torchvision's weights of the network; put the file into "
            f"{str(place.parent)!r}, or say in scores.lpips.weights where it is"
        )
    device = torch.device(str(settings.get("device", "cpu")))
    measure = _perceptual(functional, net, place).to(device)

    def compare(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        pair = (batch.to(device).float() / 127.5 - 1 for batch in (first, second))
        values: torch.Tensor = measure(*pair)
        return values.reshape(-1)

    facts = {"net": net, "weights": checksum(place), "torchmetrics": version("torchmetrics")}
    return PairScorer("lpips", f"LPIPS ({net})", compare, "lower", facts)


def _perceptual(functional: Any, net: str, place: Path) -> Any:
    """The network of torchmetrics, with its backbone's weights from a file."""
    network = functional.image.lpips._LPIPS(  # noqa: SLF001  (its public class downloads weights)
        pretrained=True, net=net, pnet_rand=True
    )
    state = torch.load(place, map_location="cpu", weights_only=True)
    # torchvision numbers the layers within "features"; torchmetrics deals them out into slices.
    layers = {key.removeprefix("features."): value for key, value in state.items()}
    own = network.net.state_dict()
    network.net.load_state_dict({key: layers[key.partition(".")[2]] for key in own})
    return network.eval().requires_grad_(requires_grad=False)


def _torchmetrics() -> Any:
    try:
        import torchmetrics.functional
        import torchmetrics.functional.image
    except ModuleNotFoundError as error:
        raise ScorerUnavailable(
            f"this scorer needs {error.name}; install it with pip install 'ras-dit[evaluation]'"
        ) from error
    return torchmetrics.functional
