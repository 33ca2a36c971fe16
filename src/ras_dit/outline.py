"""Reading outlines of models: of one in a folder or on a hub, or of a published one by its name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ras_dit.errors import RASError
from ras_dit.loading import call_defaults, load_index, locate, reading
from ras_dit.model_outline import (
    CLIP_ROWS,
    ModelOutline,
    assemble_outline,
    check_planned,
    exported,
    outline_of,
    outline_of_published,
    with_defaults,
)
from ras_dit.published import published_models

__all__ = ["ModelOutline", "outline_of", "outline_of_published", "read_outline"]

# Compressions that pipelines do not ask their autoencoder for.
_COMPRESSION: Mapping[str, tuple[int, int]] = {
    "PRXPixelPipeline": (1, 1),
    "MochiPipeline": (8, 6),
    "LuminaPipeline": (8, 1),
    "Lumina2Pipeline": (8, 1),
    "BriaFiboPipeline": (8, 1),
}
_BY_HALVINGS = ("WanVACE", "WanVideoToVideo", "SkyReels")


def read_outline(
    source: str | Path | None = None, *, max_sequence_length: int | None = None
) -> ModelOutline:
    """Read the configuration files of a pipeline, not its weights.

    Args:
        source: As for :func:`ras_dit.loading.load_pipeline`: a folder, a hub id, or ``None`` for
            the embedded model; or the name of a published model (:mod:`ras_dit.published`), for
            which no file is read.
        max_sequence_length: Text rows of the long text encoder; ``None`` is the model's own.

    Raises:
        RASError: If the files cannot be read.
        UnsupportedError: If the model's transformer is not supported, or its runs cannot be
            planned.
    """
    if source is not None and not Path(source).expanduser().exists():
        if (found := published_models().get(str(source).casefold())) is not None:
            return outline_of_published(found, max_sequence_length=max_sequence_length)
        _suggest(str(source))
    place = locate(source)
    rows = max_sequence_length or call_defaults(source).max_sequence_length
    with reading(place):
        index = load_index(place)
        check_planned(index["_class_name"])
        has_vae = isinstance(index.get("vae"), list | tuple) and index["vae"][1] is not None
        return assemble_outline(
            place,
            index,
            transformer=index["transformer"][1],
            config=_read(place, "transformer/config.json"),
            compression=_compression(
                index["_class_name"],
                (index["vae"][1], _read(place, "vae/config.json")) if has_vae else None,
            ),
            rows=rows,
            clip_rows=_clip_rows(place, index),
            scheduler_order=exported(index["scheduler"][1]).order,
        )


def _compression(pipeline: str, vae: tuple[str, Mapping[str, Any]] | None) -> tuple[int, int]:
    """Pixels along the side of a latent pixel, and frames per latent frame."""
    if pipeline in _COMPRESSION:
        return _COMPRESSION[pipeline]
    if vae is None:
        return 8, 1
    config = with_defaults(exported(vae[0]), vae[1])
    halved = config.get("temperal_downsample")
    if halved is not None and (
        "scale_factor_spatial" not in config or pipeline.startswith(_BY_HALVINGS)
    ):
        return 2 ** len(halved), 2 ** sum(halved)
    if "scale_factor_spatial" in config:
        return config["scale_factor_spatial"], config["scale_factor_temporal"]
    space, time = config.get("spatial_compression_ratio"), config.get("temporal_compression_ratio")
    if "spatio_temporal_scaling" in config:
        shrunk = 2 ** sum(config["spatio_temporal_scaling"])
        return space or config["patch_size"] * shrunk, time or config["patch_size_t"] * shrunk
    channels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return space or 2 ** (len(channels or ()) - 1), time or 1


def _clip_rows(place: str, index: Mapping[str, Any]) -> int:
    if index["transformer"][1] != "SD3Transformer2DModel" or index["tokenizer"][1] is None:
        return CLIP_ROWS
    return int(_read(place, "tokenizer/tokenizer_config.json")["model_max_length"])


def _suggest(name: str) -> None:
    """Refuse what is neither a folder, a hub id nor a published model, and say what is near."""
    if "/" in name or "\\" in name:
        return
    models = published_models()
    near = difflib.get_close_matches(name.casefold(), models, n=3, cutoff=0.5)
    known = ", ".join(models[key].name for key in near or models)
    raise RASError(
        f"there is no model folder {name!r}, and no published model of that name; "
        f"{'near' if near else 'known'}: {known}"
    )


def _read(place: str, name: str) -> dict[str, Any]:
    path = Path(place) / name
    if not Path(place).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(place, name))
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict):
        raise RASError(f"{str(path)!r} holds no configuration")
    return data
