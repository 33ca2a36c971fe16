"""What settings.json says of the manifest, so that a manifest that was lost is written anew.

Only for the evaluation that was begun: pictures of another one would be taken for its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.errors import RASError
from ras_dit.evaluation.files import PART, fingerprint, read_json

if TYPE_CHECKING:
    from ras_dit.evaluation.manifest import Manifest

_MADE = ("units", "images", "latents", "scores", "times", "refused", "report")


def identity(manifest: Manifest) -> dict[str, Any]:
    """Fingerprints of a manifest: of each row, which may come and go, and of the rest."""
    data = manifest.to_dict()
    rows = data.pop("rows")
    return {
        "digest": fingerprint(data),
        "reference": manifest.reference.name,
        "rows": {row["name"]: fingerprint(row) for row in rows},
    }


def check_restorable(folder: Path, manifest: Manifest, own: tuple[str, str]) -> None:
    """Refuse a folder without a manifest, unless it is empty or all in it is of this evaluation.

    Args:
        folder: The folder.
        manifest: The evaluation.
        own: Names of the files of the manifest and of the settings.

    Raises:
        RASError: If it holds something else.
    """
    # A run that was killed while it wrote its first file has begun nothing.
    nothing = {".lock", *(f"{name}{PART}" for name in own)}
    names = sorted({item.name for item in folder.iterdir()} - nothing)
    if not names:
        return
    settings = folder / own[1]
    foreign = next((name for name in names if name not in {*_MADE, own[1]}), None)
    stored = read_json(settings).get("manifest") if settings.exists() else None
    if foreign is not None or stored is None:
        raise RASError(
            f"{str(folder)!r} holds {foreign or names[0]!r} and no evaluation; give a new folder"
        )
    fresh = identity(manifest)
    common = stored["rows"].keys() & fresh["rows"].keys()
    if any(stored[key] != fresh[key] for key in ("digest", "reference")) or any(
        stored["rows"][name] != fresh["rows"][name] for name in common
    ):
        raise RASError(
            f"{str(folder)!r} has lost its {own[0]} and was begun with another evaluation, or with "
            "other versions of the packages; give the file that it was begun with, or a new folder"
        )
