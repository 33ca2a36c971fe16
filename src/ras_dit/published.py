"""Published models that people run, so that a plan needs no file of theirs.

``published.yaml`` has one row for each, with what a plan needs and its class in diffusers does
not say by itself. Where a row's configuration comes from:

- ``class``: the defaults of the transformer's class in diffusers 0.42.1;
- ``conversion``: the scripts of diffusers that convert the published weights;
- ``repository``: ``transformer/config.json`` of the model's repository on the hub, as copies of it
  in public code show it.

Sizes, steps and text rows are those of the pipeline's class, or of the example in its
documentation or model card.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import yaml

from ras_dit.sizes import Size

Source = Literal["class", "conversion", "repository"]


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One published model.

    Attributes:
        name: What people call it; ``ras-dit plan --model`` takes it in any case of letters.
        repository: Its place on the hub, in the form that diffusers loads.
        pipeline: Class name of the pipeline.
        transformer: Class name of the transformer.
        source: Where the configuration comes from.
        size: Its own size.
        num_inference_steps: Denoising steps.
        branches: Guidance branches: 2 with classifier-free guidance.
        text_rows: Text rows as the pipeline counts them; the most that there can be where it
            pads a prompt no further than needed.
        pixels: Side of a latent pixel in pixels.
        frames_per_latent: Frames that each latent frame but the first stands for.
        transformers: How many transformers of this form it has.
        config: Where the transformer's configuration differs from the defaults of its class.
    """

    name: str
    repository: str
    pipeline: str
    transformer: str
    source: Source
    size: Size
    num_inference_steps: int
    branches: int
    text_rows: int
    pixels: int = 8
    frames_per_latent: int = 1
    transformers: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_video(self) -> bool:
        """Whether it makes videos."""
        return self.size.frames > 1


@functools.cache
def published_models() -> Mapping[str, PublishedModel]:
    """The table that ships with the package, by names in small letters."""
    text = (resources.files("ras_dit") / "published.yaml").read_text("utf-8")
    rows = [{**row, "size": Size(*row["size"])} for row in yaml.safe_load(text)]
    return MappingProxyType({row["name"].casefold(): PublishedModel(**row) for row in rows})
