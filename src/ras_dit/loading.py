"""Pipelines from folders and hubs, with one clear error for whatever can be wrong with them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ras_dit.adapters import DESCRIPTIONS
from ras_dit.embedded import MODEL_DIR
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.published import published_models

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# What the hub's client raises where a file is neither there nor to be had.
_UNREACHABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CallDefaults:
    """Call arguments that suit a model better than its pipeline's own; ``None``: the pipeline's.

    Attributes:
        guidance_scale: Strength of classifier-free guidance.
        max_sequence_length: Text rows that the long text encoder is padded to.
    """

    guidance_scale: float | None = None
    max_sequence_length: int | None = None


# Captions of the embedded model's world are short: more rows would be padding, and dense work.
EMBEDDED_DEFAULTS = CallDefaults(guidance_scale=4.0, max_sequence_length=32)


def call_defaults(source: str | Path | None) -> CallDefaults:
    """The call arguments that suit the model of :func:`load_pipeline`'s ``source``."""
    if source is None or Path(source).expanduser().resolve() == MODEL_DIR.resolve():
        return EMBEDDED_DEFAULTS
    return CallDefaults()


def load_pipeline(
    source: str | Path | None = None, *, dtype: str = "auto", device: str = "auto"
) -> Any:
    """Load a diffusers pipeline, from safetensors only.

    Args:
        source: A folder, or a hub id such as ``"owner/name"``; ``None`` is the embedded model.
            What looks like a path is never looked up on a hub.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: float32 on a CPU,
            bfloat16 elsewhere.
        device: A torch device, or ``"auto"``: a CUDA device where there is one, else the CPU.

    Returns:
        The pipeline on its device, without a progress bar.

    Raises:
        RASError: If the dtype or device is unknown or absent, or the model cannot be loaded.
        UnsupportedError: If the model's transformer is not supported.
    """
    target = _device(device)
    torch_dtype = _dtype(dtype, target)
    return _load(locate(source), torch_dtype).to(target)


def locate(source: str | Path | None) -> str:
    """The folder or hub id of :func:`load_pipeline`'s ``source``.

    Raises:
        RASError: If what looks like a path is not the folder of a diffusers pipeline.
    """
    place = str(MODEL_DIR if source is None else source)
    return place if _is_hub_id(place) else str(_checked_folder(Path(place).expanduser()))


def choose_dtype(dtype: str = "auto", device: str = "auto") -> torch.dtype:
    """The dtype in which :func:`load_pipeline` would load.

    Raises:
        RASError: If the dtype or device is unknown or absent.
    """
    return _dtype(dtype, _device(device))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RASError(f"device {name!r} is unknown; expected auto, cpu, cuda, ...") from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        raise RASError(
            f"device {name!r} cannot be used: torch sees {present} {device.type} devices here; "
            "use cpu or auto"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise RASError(f"dtype {name!r} is unknown; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _checked_folder(folder: Path) -> Path:
    if not folder.exists():
        known = ""
        if str(folder).casefold() in published_models():
            known = (
                "; that name is known to `ras-dit plan` only, which reads no files: download the "
                "model and give its folder, or give its hub id, owner/name"
            )
        raise RASError(f"there is no model folder {str(folder)!r}{known}")
    if not folder.is_dir():
        raise RASError(f"{str(folder)!r} is a file; expected the folder of a diffusers pipeline")
    if not (folder / "model_index.json").is_file():
        raise RASError(
            f"{str(folder)!r} holds no model_index.json, so it is not the folder of a diffusers "
            "pipeline (write one with pipe.save_pretrained(folder))"
        )
    return folder


def _load(place: str, dtype: torch.dtype) -> Any:
    # Slow to import, and not needed to refuse a bad folder, dtype or device.
    from diffusers import DiffusionPipeline

    with reading(place):
        load_index(place)
        pipeline = DiffusionPipeline.from_pretrained(
            place, use_safetensors=True, **{_dtype_argument(): dtype}
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Whatever goes wrong while the files of a model are read, as one clear error."""
    try:
        with warnings.catch_warnings():
            # diffusers calls its own and the hub's deprecated arguments while it loads.
            warnings.simplefilter("ignore")
            yield
    except RASError:
        raise
    # Loaders raise anything, down to KeyError, for files that are damaged.
    except Exception as error:
        if _is_hub_id(place) and _is_unreachable(error):
            raise RASError(
                f"the model {place!r} cannot be loaded: the hub cannot be reached; check the "
                "connection, or download the model and give its folder"
            ) from error
        raise RASError(
            f"the model {place!r} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether no connection is behind an error, however far."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, ConnectionError) or type(error).__name__ in _UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def load_index(place: str) -> Mapping[str, Any]:
    """The ``model_index.json`` of a pipeline with a supported transformer.

    Raises:
        UnsupportedError: If the transformer is not supported, before gigabytes are read.
    """
    from diffusers import DiffusionPipeline

    index: Mapping[str, Any] = DiffusionPipeline.load_config(place)
    _check_supported(place, index)
    return index


def _check_supported(place: str, index: Mapping[str, Any]) -> None:
    entry = index.get("transformer")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in DESCRIPTIONS:
        found = f"has the transformer {name}" if name else "has no transformer"
        raise UnsupportedError(
            f"the model {place!r} ({index.get('_class_name')}) {found}; "
            f"supported transformers: {', '.join(sorted(DESCRIPTIONS))}"
        )


def _dtype_argument() -> str:
    # diffusers 0.40 renamed the argument, and warns of the old name.
    major, minor = (int(part) for part in version("diffusers").split(".")[:2])
    return "dtype" if (major, minor) >= (0, 40) else "torch_dtype"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else "no reason given"
