"""Reading the pictures of an evaluation, and of reference folders."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.evaluation.files import read_checked

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def encode_png(image: Image.Image) -> bytes:
    """A picture as PNG: the same pixels give the same bytes."""
    clean = Image.new("RGB", image.size)
    clean.paste(image.convert("RGB"))
    buffer = BytesIO()
    clean.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def check_picture(path: Path, sha256: str) -> None:
    """Refuse a picture that is not the one that was made.

    Raises:
        RASError: If it is missing, or its bytes do not hash to ``sha256``.
    """
    read_checked(path, sha256, "picture", "is not the one that was made")


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, ``[height, width, 3]``.

    Raises:
        RASError: If it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise RASError(f"the picture {str(path)!r} is missing") from error
    # PIL raises many kinds for damaged files, SyntaxError and struct.error among them.
    except Exception as error:
        raise RASError(f"the picture {str(path)!r} is damaged: {error}") from error


def read_batch(paths: Sequence[Path]) -> torch.Tensor:
    """Pictures of one size, uint8 ``[B, 3, height, width]``.

    Raises:
        RASError: If one is damaged or of another size.
    """
    pixels = [read_picture(path) for path in paths]
    for path, array in zip(paths, pixels, strict=True):
        if array.shape != pixels[0].shape:
            raise RASError(
                f"{str(path)!r} is {_size(array)} pixels and {str(paths[0])!r} {_size(pixels[0])}; "
                "compare pictures of one size"
            )
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def folder_pictures(folder: Path) -> tuple[Path, ...]:
    """All pictures of a reference folder, sorted by name, subfolders included.

    Raises:
        RASError: If there is no such folder or it has no picture.
    """
    if not folder.is_dir():
        raise RASError(f"there is no folder of pictures {str(folder)!r}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise RASError(f"{str(folder)!r} has no picture ({', '.join(SUFFIXES)})")
    return tuple(found)


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
