"""FID, sFID and LPIPS against the packages themselves, with random weights on both sides.

Not part of ``make test``: torch-fidelity and LPIPS need torchvision, which wants an environment of
its own (``make test-fidelity``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from ras_dit.evaluation.frechet import Target, fit
from ras_dit.evaluation.images import read_batch, read_picture
from ras_dit.evaluation.scorers import Picture, make_scorer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Inception network with random weights of a size that keeps features apart."""

    class Fresh(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            """Keep the random weights."""

    folder = tmp_path_factory.mktemp("weights")
    empty = folder / "empty.pth"
    torch.save({}, empty)
    torch.manual_seed(0)
    network = Fresh("random", ["2048"], feature_extractor_weights_path=str(empty))
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
    torch.save(network.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


def pictures(folder: Path, count: int, seed: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 72), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return sorted(folder.iterdir())


def test_fid_is_torch_fidelitys(weights: Path, tmp_path: Path) -> None:
    first, second = pictures(tmp_path / "a", 5, 1), pictures(tmp_path / "b", 4, 2)
    settings = {"reference": str(tmp_path / "b"), "weights": str(weights), "resamples": 3}
    scorer = make_scorer("fid", settings)
    made = [Picture(n, "x", n, n, path) for n, path in enumerate(first)]
    (fid, sfid) = scorer.summarise(scorer.measure(made), made).statistics
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(weights),
    )["frechet_inception_distance"]
    # Their matrix root adds 1e-6 to covariances of low rank.
    assert fid.value == pytest.approx(theirs, rel=1e-3)
    assert fid.low < fid.value < fid.high
    # sFID by an independent walk through the network up to the layer that is named.
    network = FeatureExtractorInceptionV3(
        "walk", ["2048"], feature_extractor_weights_path=str(weights)
    )

    def spatial(paths: list[Path]) -> np.ndarray:
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        x = torch.stack([torch.from_numpy(read_picture(p)).permute(2, 0, 1) for p in paths])
        x = interpolate_bilinear_2d_like_tensorflow1x(
            x.float(), size=(299, 299), align_corners=False
        )
        x = (x - 128) / 128
        for name in (
            *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
            *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
            *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d"),
        ):
            x = getattr(network, name)(x)
        # The 1 x 1 branch comes first in the block's output.
        return x[:, :7].reshape(len(paths), -1).numpy()

    ours, real = spatial(first), spatial(second)
    assert ours.shape[1] == 2023
    assert sfid.value == pytest.approx(Target(fit(real)).distance(ours), rel=1e-4)


def test_lpips_is_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), place / "alexnet-owt-7be5be79.pth")
    first, second = pictures(tmp_path / "a", 3, 1), pictures(tmp_path / "b", 3, 2)
    scorer = make_scorer("lpips", {"net": "alex", "weights": str(place)})
    made = [
        Picture(n, "x", n, n, path, partner=partner)
        for n, (path, partner) in enumerate(zip(first, second, strict=True))
    ]
    ours = [row["lpips"] for row in scorer.measure(made).rows]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for value, path, partner in zip(ours, first, second, strict=True):
        pair = [read_batch([p]).float() / 255 for p in (path, partner)]
        theirs = learned_perceptual_image_patch_similarity(*pair, net_type="alex", normalize=True)
        assert value == pytest.approx(float(theirs), rel=1e-4)
    assert min(ours) > 0
