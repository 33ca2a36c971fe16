"""Pictures that are made again because others are still to be compared with them.

An archive has their scores and the hashes and lengths of their files. Processors of another kind
round otherwise: measured with AVX2 and AVX-512 over 17 steps, latents differ by 1e-6 of their
scale, one value of 50,000 in a picture by one level, and a file of 15,000 bytes by three. Files
of another good sampler differ by .5 to 2.6 %, the median of a unit (six units looked at).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ras_dit.errors import RASError
from ras_dit.evaluation.files import dump, read_json
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.workshop import ARCHIVED, Product, unit_path

# Of a file's length.
_ROUNDING = 1e-3


def keep_archived(folder: Path, row: Row, product: Product) -> Product:
    """A unit's product, whose record still counts as archived if it is one that was made again.

    The archive's scores of such a unit stay, and units that are made from now on are compared with
    its pictures as they are here.

    Args:
        folder: The evaluation's folder.
        row: The unit's row.
        product: The unit as it was made here.

    Raises:
        RASError: If most of its pictures differ from those that were scored by more than rounding.
    """
    name = unit_path(row, product.task.unit)
    before = read_json(folder / name) if (folder / name).exists() else {}
    if not before.get(ARCHIVED):
        return product
    record = json.loads(product.files[name])
    # Most, not all: a single sample can take another turn at a hair's breadth.
    if median(_differences(before["pictures"], record["pictures"])) > _ROUNDING:
        raise RASError(
            f"this machine makes other pictures of unit {product.task.unit} of {row.name} than "
            "those that the archive's scores are of, and not by rounding alone; begin in a new "
            "folder without the archive"
        )
    return replace(product, files={**product.files, name: dump({**record, ARCHIVED: True})})


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[float]:
    """How much the length of each picture's file differs, in parts of it."""
    return [
        abs(now[name]["bytes"] - facts["bytes"]) / facts["bytes"] for name, facts in before.items()
    ]
