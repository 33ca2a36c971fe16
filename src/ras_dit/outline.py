"""What a plan needs to know of a model, read from its small configuration files only."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ras_dit.adapters import DESCRIPTIONS, Work
from ras_dit.errors import RASError
from ras_dit.generate import Job, check_size
from ras_dit.loading import call_defaults, load_index, locate, reading
from ras_dit.tokens import TokenGrid

_CLIP_ROWS = 77
_MOST_TEXT_ROWS = 256  # of pipelines that pad a prompt no further than needed


@dataclass(frozen=True)
class ModelOutline:
    """A pipeline without its weights.

    Attributes:
        place: Folder or hub id.
        transformer: Class name of the transformer.
        config: The transformer's configuration, defaults included.
        pixels_per_latent: Side of a latent pixel in pixels.
        num_text_tokens: Text tokens T attended to; where the pipeline pads a prompt no further
            than needed, the most that it can be.
        scheduler_order: Calls of ``scheduler.step`` per inference step.
    """

    place: str
    transformer: str
    config: Mapping[str, Any]
    pixels_per_latent: int
    num_text_tokens: int
    scheduler_order: int

    @property
    def work(self) -> Work:
        """The arithmetic of a forward pass."""
        return DESCRIPTIONS[self.transformer].work(self.config)

    def grid(self, width: int | None = None, height: int | None = None) -> TokenGrid:
        """The image tokens of a picture.

        Args:
            width: In pixels; ``None`` is the model's own.
            height: In pixels; ``None`` is the model's own.

        Raises:
            RASError: If the size does not fit the model.
        """
        stand_in = SimpleNamespace(
            vae_scale_factor=self.pixels_per_latent,
            transformer=SimpleNamespace(config=_Fields(self.config)),
        )
        check_size(stand_in, Job(prompts=("any",), seeds=(0,), width=width, height=height))
        own = self.config["sample_size"] * self.pixels_per_latent
        side = self.pixels_per_latent * self.config["patch_size"]
        return TokenGrid((height or own) // side, (width or own) // side)

    def num_evaluations(self, num_inference_steps: int) -> int:
        """Calls of ``scheduler.step`` in a run; the last step of a higher order makes one."""
        return self.scheduler_order * (num_inference_steps - 1) + 1


class _Fields(dict[str, Any]):
    """A configuration whose fields can be read as attributes too, as those of diffusers."""

    __getattr__ = dict.__getitem__


def read_outline(
    source: str | Path | None = None, *, max_sequence_length: int | None = None
) -> ModelOutline:
    """Read the configuration files of a pipeline, not its weights.

    Args:
        source: As for :func:`ras_dit.loading.load_pipeline`: a folder, a hub id, or ``None`` for
            the embedded model.
        max_sequence_length: Text rows of the long text encoder; ``None`` is the model's own.

    Raises:
        RASError: If the files cannot be read.
        UnsupportedError: If the model's transformer is not supported.
    """
    import diffusers

    place = locate(source)
    rows = max_sequence_length or call_defaults(source).max_sequence_length
    with reading(place):
        index = load_index(place)
        transformer = index["transformer"][1]
        pipeline = getattr(diffusers, index["_class_name"])
        vae = _read(place, "vae/config.json")
        return ModelOutline(
            place=place,
            transformer=transformer,
            config=_with_defaults(
                getattr(diffusers, transformer), _read(place, "transformer/config.json")
            ),
            pixels_per_latent=2 ** (len(vae["block_out_channels"]) - 1),
            num_text_tokens=_text_tokens(place, index, rows or _own_rows(pipeline)),
            scheduler_order=getattr(diffusers, index["scheduler"][1]).order,
        )


def _text_tokens(place: str, index: Mapping[str, Any], rows: int) -> int:
    if index["transformer"][1] != "SD3Transformer2DModel":
        return rows
    # Stable Diffusion 3 puts the rows of its CLIP encoders in front of those of T5.
    clip = _CLIP_ROWS
    if index["tokenizer"][1] is not None:
        clip = _read(place, "tokenizer/tokenizer_config.json")["model_max_length"]
    return clip + rows


def _own_rows(pipeline: Any) -> int:
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    return _MOST_TEXT_ROWS if parameter is None else int(parameter.default)


def _with_defaults(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of what its file, older than the class, leaves out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)


def _read(place: str, name: str) -> dict[str, Any]:
    path = Path(place) / name
    if not Path(place).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(place, name))
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict):
        raise RASError(f"{str(path)!r} holds no configuration")
    return data
