"""What the caches of region-adaptive sampling take beside the weights, for published models.

    python -m benchmarks.memory

Nothing is measured and no weight is loaded: the transformer's weights are counted from the shapes
of its parameters, the caches by the formula that the tests hold against filled ones. Writes
``docs/memory.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ras_dit.cost import cache_bytes, packed_bytes
from ras_dit.outline import outline_of_published
from ras_dit.published import PublishedModel, published_models

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
LARGE, SMALL = 80e9, 24e9
HEADINGS = (
    "model",
    "size",
    "image + text tokens",
    "branches",
    "weights",
    "caches",
    "caches, int8",
    "of 80 GB",
    "int8",
    "of 24 GB",
    "int8",
)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one run of one picture or video in bfloat16.

    Attributes:
        model: The model.
        num_image: Image tokens, those of given pictures with them.
        num_text: Text tokens, at most.
        weights: Of all its transformers.
        caches: Keys, values and outputs of all guidance branches.
        packed: The same with keys and values in eight bits, ``cache_dtype="int8"``.
    """

    model: PublishedModel
    num_image: int
    num_text: int
    weights: int
    caches: int
    packed: int

    def share(self, card: float, *, packed: bool = False) -> float:
        """Weights and caches as a share of a card's memory of ``card`` bytes."""
        return (self.weights + (self.packed if packed else self.caches)) / card

    def cells(self) -> tuple[str, ...]:
        """The row as text, under :data:`HEADINGS`."""
        model = self.model
        tokens = f"{self.num_image:,} + {self.num_text:,}"
        sizes = [f"{size / 1e9:.1f} GB" for size in (self.weights, self.caches, self.packed)]
        shares = [
            f"{self.share(card, packed=packed):.0%}"
            for card in (LARGE, SMALL)
            for packed in (False, True)
        ]
        return model.name, str(model.size), tokens, str(model.branches), *sizes, *shares


def footprint(model: PublishedModel) -> Footprint:
    """Count one model at its own size."""
    outline = outline_of_published(model)
    layout = outline.layout()
    count = functools.partial(
        cache_bytes,
        outline.work,
        batch=model.branches,
        num_tokens=layout.num_image,
        num_text_tokens=layout.num_text,
        dtype=torch.bfloat16,
    )
    return Footprint(
        model=model,
        num_image=layout.num_image,
        num_text=layout.num_text,
        weights=2 * model.transformers * _parameters(model.transformer, json.dumps(model.config)),
        caches=count(),
        packed=count(kv_bytes_per_element=packed_bytes(outline.head_width)),
    )


@functools.cache
def _parameters(transformer: str, config: str) -> int:
    """Parameters of a transformer, counted on a device without memory."""
    import diffusers

    settings = json.loads(config)
    if transformer == "OmniGenTransformer2DModel":
        # Numbers that stretch its positions, which the class needs and no parameter depends on.
        ones = [1.0] * 48
        settings["rope_scaling"] = {"short_factor": ones, "long_factor": ones}
    with torch.device("meta"):
        model = getattr(diffusers, transformer)(**settings)
    return sum(parameter.numel() for parameter in model.parameters())


def page(rows: Sequence[Footprint]) -> str:
    """The page of the docs."""
    pictures = [row for row in rows if not row.model.is_video]
    videos = [row for row in rows if row.model.is_video]
    points = _points(rows)
    return f"""# Memory

Region-adaptive sampling keeps the keys and values of every layer, and the last output, for each
guidance branch, from the first sparse step to the end of the run. This page says what that takes
for published models, each at its own size with one picture or video at a time, beside the weights
of its transformer. It is written by `python -m benchmarks.memory`.

**Nothing here was measured on a GPU.** Weights are counted from the shapes of the parameters,
caches by the formula that `ras-dit plan` uses, which the tests hold against really filled caches of
a small pipeline of every family. 1 GB is 10^9 bytes. Not counted: activations, text encoders, the
autoencoder, and what torch itself takes. Text tokens are the most that the pipeline takes where it
pads a prompt no further than needed. All in bfloat16; *int8* is `cache_dtype="int8"`: a byte for
each cached key and value and a 16-bit scale for every row of every head. `forecast_keys` keeps the
last change of every key and value beside it, which doubles the caches. The last columns are weights
and caches together as a share of a card with 80 or 24 GB.

## Pictures

{_table(pictures)}

## Videos

{_table(videos)}

## What follows

{points}
"""


def _points(rows: Sequence[Footprint]) -> str:
    rest = [row for row in rows if row.weights <= SMALL]
    heavy = _names(row for row in rows if row.weights > SMALL)
    paragraphs = f"""\
Weights and caches of one picture or video do not fit in 80 GB together for {_over(rows, LARGE)};
with int8 caches, for {_over(rows, LARGE, packed=True)}.

Weights alone take more than 24 GB for {heavy}.
Beside the weights, the caches do not fit in 24 GB either for {_over(rest, SMALL)};
with int8 caches, for {_over(rest, SMALL, packed=True)}.

Where they do not fit: `offload_cache=True` keeps keys and values in CPU memory, fewer frames and
smaller sizes shrink them in proportion, and a call without guidance has one branch instead of two.
Weights of two transformers that work in turn (Wan2.2 A14B) need not be on the card together.

Other sizes: `ras-dit plan --model SD3.5-large --size 768x768 --dtype bfloat16`."""
    return bullets(paragraphs)


def bullets(paragraphs: str) -> str:
    """Paragraphs as the points of a list, in lines of at most 100 letters."""
    return "\n".join(
        textwrap.fill(
            " ".join(paragraph.split()),
            100,
            initial_indent="- ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        for paragraph in paragraphs.split("\n\n")
    )


def _table(rows: Iterable[Footprint]) -> str:
    lines = [HEADINGS, ("---", "---", *("---:",) * (len(HEADINGS) - 2))]
    lines += [row.cells() for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _over(rows: Sequence[Footprint], card: float, *, packed: bool = False) -> str:
    return _names(row for row in rows if row.share(card, packed=packed) > 1)


def _names(rows: Iterable[Footprint]) -> str:
    return ", ".join(row.model.name for row in rows) or "none"


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Count every published model and write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = [footprint(model) for model in published_models().values()]
    PAGE.write_text(page(rows), "utf-8")
    say(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
