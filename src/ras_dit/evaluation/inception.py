"""FID and sFID through torch-fidelity's InceptionV3.

Resize: torch-fidelity's own, within the network: 8-bit RGB to 299 x 299 by bilinear interpolation
without antialiasing and without half-pixel centres, as TensorFlow 1 did, then ``(x - 128) / 128``.
pytorch-fid uses half-pixel centres instead, so its numbers differ a little (a few hundredths).

FID takes the 2048 features after the last pooling. sFID (Nash et al. 2021) takes the first 7 of
the 192 channels that the 1 x 1 branch of ``Mixed_6d`` gives after its ReLU, 17 x 17 each, flattened
to 2023 numbers: the ``mixed_6/conv`` of TensorFlow's graph, as in OpenAI's guided-diffusion.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ras_dit.evaluation.files import DiskFullError, checksum, read_json, write_bytes, write_json
from ras_dit.evaluation.frechet import Gaussian, Target, fit
from ras_dit.evaluation.images import folder_pictures, read_picture
from ras_dit.evaluation.scorers import (
    Measured,
    Picture,
    ScorerUnavailable,
    Statistic,
    Summary,
)

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
POOLED = 2048
SPATIAL_CHANNELS = 7
_Z = 1.96
_BATCH = 16
_HEADINGS = {"pool": "FID", "spatial": "sFID"}


class InceptionScorer:
    """FID and sFID to a folder of real pictures.

    Args:
        settings: ``reference`` (folder of pictures, read whatever their sizes are), ``weights``
            (torch-fidelity's file), ``device``, ``resamples`` (of the interval), ``count`` (the
            first so many reference pictures by name; all without it).

    Raises:
        ScorerUnavailable: If torch-fidelity, its weights or the reference folder are missing.
    """

    needs_partner = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._weights = Path(str(settings.get("weights", WEIGHTS)))
        self._device = torch.device(str(settings.get("device", "cpu")))
        self._resamples = int(settings.get("resamples", 100))
        self._network: Any = None
        self._release = _release()
        if not self._weights.is_file():
            raise ScorerUnavailable(
                f"fid needs {WEIGHTS} (91 MB, a release file of torch-fidelity); put it at "
                f"{str(self._weights)!r}, or say in scores.fid.weights where it is"
            )
        if "reference" not in settings:
            raise ScorerUnavailable("fid needs real pictures; say in scores.fid.reference where")
        folder = Path(str(settings["reference"]))
        if not folder.is_dir():
            raise ScorerUnavailable(
                f"fid needs real pictures; scores.fid.reference names no folder: {str(folder)!r}"
            )
        self._checksum = checksum(self._weights)
        self._reference = folder_pictures(folder)[: settings.get("count")]
        self._folder = folder
        self._gaussians: dict[str, Gaussian] = {}
        self._targets: dict[str, Target] = {}

    def identity(self) -> Mapping[str, Any]:
        """As :meth:`Scorer.identity`."""
        return {
            "torch-fidelity": self._release,
            "weights": self._checksum,
            "reference": self._reference_digest(),
            "resamples": self._resamples,
        }

    def measure(self, pictures: Sequence[Picture]) -> Measured:
        """Features of the pictures."""
        features = self.features([picture.path for picture in pictures])
        return Measured(tuple({} for _ in pictures), features)

    def summarise(self, measured: Measured, pictures: Sequence[Picture]) -> Summary:
        """Both distances; their intervals come from the bootstrap's spread."""
        statistics = []
        arrays: dict[str, NDArray[np.float64]] = {}
        if len(pictures) < 2:
            return Summary((), note="one picture has no covariance, so no FID")
        for name, heading in _HEADINGS.items():
            features = measured.arrays[name]
            own, target = fit(features), self._target(name)
            value = target.distance(features)
            error = target.error(features, resamples=self._resamples)
            arrays |= {f"{name}.mean": own.mean, f"{name}.covariance": own.covariance}
            statistics.append(
                Statistic(
                    name=heading,
                    value=value,
                    low=value - _Z * error,
                    high=value + _Z * error,
                    count=len(pictures),
                    better="lower",
                    error=error,
                )
            )
        note = f"FID and sFID to {len(self._reference)} pictures"
        if len(pictures) < POOLED:
            note += (
                f"; with {len(pictures)} pictures, fewer than the {POOLED} features, they are too "
                "large and compare only between rows of one length"
            )
        return Summary(tuple(statistics), arrays, note)

    def features(self, paths: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
        """Features of picture files of any sizes.

        Returns:
            ``pool``: ``[n, 2048]``; ``spatial``: ``[n, 2023]``.
        """
        network = self._loaded()
        pooled, spatial = [], []
        for start in range(0, len(paths), _BATCH):
            # One by one where sizes differ, as those of photographs do.
            for batch in _same_sized(
                [read_picture(path) for path in paths[start : start + _BATCH]]
            ):
                caught: list[torch.Tensor] = []
                hook = network.Mixed_6d.branch1x1.register_forward_hook(
                    lambda _, __, out, caught=caught: caught.append(out)
                )
                try:
                    with torch.no_grad():
                        (pool,) = network(batch.to(self._device))
                finally:
                    hook.remove()
                pooled.append(pool.float().cpu().numpy())
                maps = caught[0][:, :SPATIAL_CHANNELS]
                spatial.append(maps.flatten(1).float().cpu().numpy())
        return {"pool": np.concatenate(pooled), "spatial": np.concatenate(spatial)}

    def reference(self, name: str) -> Gaussian:
        """Statistics of the reference folder: computed once, then read from beside it."""
        if not self._gaussians:
            self._gaussians = self._stored() or self._computed()
        return self._gaussians[name]

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = Target(self.reference(name))
        return self._targets[name]

    def _computed(self) -> dict[str, Gaussian]:
        features = self.features(self._reference)
        gaussians = {key: fit(array) for key, array in features.items()}
        from safetensors.numpy import save

        arrays = {f"{key}.mean": g.mean for key, g in gaussians.items()}
        arrays |= {f"{key}.covariance": g.covariance for key, g in gaussians.items()}
        try:
            write_bytes(self._cache.with_suffix(".safetensors"), bytes(save(arrays)))
            write_json(self._cache, self._cache_key)
        except DiskFullError:
            raise
        except OSError as error:
            # A reference that cannot be written to is measured anew each time, and no less right.
            warnings.warn(f"the statistics of {str(self._folder)!r}: {error}", stacklevel=2)
        return gaussians

    def _stored(self) -> dict[str, Gaussian] | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not self._cache.exists() or read_json(self._cache) != self._cache_key:
            return None
        try:
            arrays = load(self._cache.with_suffix(".safetensors").read_bytes())
            return {
                name: Gaussian(
                    arrays[f"{name}.mean"], arrays[f"{name}.covariance"], len(self._reference)
                )
                for name in _HEADINGS
            }
        except (OSError, SafetensorError, KeyError):
            return None

    @property
    def _cache(self) -> Path:
        count = len(self._reference)
        return self._folder / f".ras-dit-inception-{self._checksum[:8]}-{count}.json"

    @property
    def _cache_key(self) -> dict[str, Any]:
        return {
            "torch-fidelity": self._release,
            "weights": self._checksum,
            "reference": self._reference_digest(),
        }

    def _reference_digest(self) -> str:
        facts = [f"{path.name}\0{path.stat().st_size}" for path in self._reference]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def _loaded(self) -> Any:
        if self._network is None:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            self._network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                [str(POOLED)],
                feature_extractor_weights_path=str(self._weights),
            ).to(self._device)
        return self._network


def _same_sized(pixels: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
    """Batches uint8 ``[B, 3, H, W]`` of neighbours of one size."""
    groups: list[list[NDArray[np.uint8]]] = []
    for array in pixels:
        if groups and groups[-1][0].shape == array.shape:
            groups[-1].append(array)
        else:
            groups.append([array])
    return [torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2) for group in groups]


def _release() -> str:
    try:
        version("torchvision")
        return version("torch-fidelity")
    except PackageNotFoundError as error:
        raise ScorerUnavailable(
            f"fid needs {error.name}; install it with pip install 'ras-dit[fidelity]', in an "
            "environment whose torch and torchvision fit"
        ) from error
