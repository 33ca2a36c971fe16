"""A roofline model of one denoising step: what it would take on a card, from FLOPs and bytes.

Every operation of a step takes the longer of its arithmetic at a share of the card's peak and its
memory traffic at a share of the card's bandwidth; operations follow one another. Pure functions;
``benchmarks.roofline`` makes a page of them.

Letters: N image tokens, n active ones, T text tokens, ``rows`` of the model batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ras_dit.adapters import Work

BYTES = 2  # of an element in bfloat16


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: What it is called.
        flops: Dense bfloat16 FLOPs per second at its peak.
        bandwidth: Bytes per second that its memory moves at most.
    """

    name: str
    flops: float
    bandwidth: float


A100 = Card("A100-80GB", 312e12, 2.0e12)
H100 = Card("H100 SXM", 989e12, 3.35e12)


@dataclass(frozen=True)
class Reach:
    """What share of a card's peaks real kernels reach.

    Attributes:
        compute: Of its FLOPs per second, in (0, 1].
        bandwidth: Of its memory bandwidth, in (0, 1].
        host: Seconds that the host takes to launch the kernels of a layer: a step cannot be
            faster than its layers are launched. 0 for launches that cost nothing (a CUDA graph).
    """

    compute: float = 0.6
    bandwidth: float = 0.8
    host: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model at one size, as far as its time depends on it.

    Attributes:
        name: What it is called.
        work: Its arithmetic.
        rows: Rows of the model batch.
        num_image: Image tokens N.
        num_text: Text tokens T.
        layers: Blocks.
        width: Elements of a token.
        joint: Whether text stands in the same sequence as the image.
        linear: Elements that linear layers read and write per token that passes the blocks, all
            layers together.
        pointwise: Elements that all else but attention reads and writes per such token, all
            layers together.
    """

    name: str
    work: Work
    rows: int
    num_image: int
    num_text: int
    layers: int
    width: int
    joint: bool
    linear: int
    pointwise: int


@dataclass(frozen=True)
class Operation:
    """A kind of operation, over all layers of a step.

    Attributes:
        name: What it does.
        flops: FLOPs.
        nbytes: Bytes read from and written to the card's memory.
    """

    name: str
    flops: float
    nbytes: float

    def seconds(self, card: Card, reach: Reach) -> float:
        """Its time: what takes longer, arithmetic or memory."""
        return max(
            self.flops / (card.flops * reach.compute),
            self.nbytes / (card.bandwidth * reach.bandwidth),
        )


def operations(
    shape: Shape, num_active: int | None = None, *, keeps_text: bool = False
) -> tuple[Operation, ...]:
    """The operations of a step.

    A linear layer reads each of its weights once, so that its bytes of weights are the FLOPs that
    it spends on one token: two of each for a weight. Attention reads queries, keys and values
    once and writes its output, as kernels do that keep their scores on the chip.

    Args:
        shape: The model.
        num_active: Image tokens that go through the blocks; ``None`` for a dense step, which
            neither gathers nor scatters.
        keeps_text: Whether the text of the last dense step is kept.
    """
    work, rows, whole, text = shape.work, shape.rows, shape.num_image, shape.num_text
    active = whole if num_active is None else num_active
    fresh = 0 if keeps_text else text
    passing = active + (fresh if shape.joint else 0)
    sequence = whole + (text if shape.joint else 0)
    kv = work.joint_kv + work.image_kv
    pairs = (
        work.joint_pair * (active + fresh) * (whole + text)
        + work.image_pair * active * whole
        + work.cross_pair * active * text
        + work.text_pair * text**2
    )
    made = [
        Operation("conditioning", rows * work.per_sample, work.per_sample),
        Operation(
            "embedding",
            rows * (work.per_embedded_token * whole + work.embedded_pair * whole**2),
            work.per_embedded_token + rows * whole * shape.width * BYTES,
        ),
        Operation(
            "linear layers",
            rows
            * (
                work.per_image_token * active
                + work.per_text_token * fresh
                + work.per_kept_text_token * (text - fresh)
            ),
            work.per_image_token
            + (work.per_text_token if fresh else 0)
            + rows * passing * shape.linear * BYTES,
        ),
        Operation(
            "attention",
            rows * pairs,
            rows * BYTES * (kv * passing + kv * sequence),
        ),
        Operation("norms and sums", 0, rows * passing * shape.pointwise * BYTES),
    ]
    if num_active is not None:
        made += [
            # New keys and values are read and written to their places.
            Operation("scatter of keys and values", 0, rows * BYTES * 2 * kv * passing),
            Operation(
                "gather, merge and choice",
                0,
                rows * BYTES * (2 * active * shape.width + 3 * whole * work.output),
            ),
        ]
    return tuple(made)


def step_seconds(
    shape: Shape,
    card: Card,
    reach: Reach,
    num_active: int | None = None,
    *,
    keeps_text: bool = False,
) -> float:
    """Seconds of one step."""
    made = operations(shape, num_active, keeps_text=keeps_text)
    return max(sum(each.seconds(card, reach) for each in made), reach.host * shape.layers)


def speedup(
    shape: Shape, counts: Sequence[int], card: Card, reach: Reach, *, keeps_text: bool = False
) -> float:
    """Time of a dense run over that of a planned one.

    Args:
        shape: The model.
        counts: Active image tokens of every step; N in a dense step.
        card: The card.
        reach: What share of its peaks is reached.
        keeps_text: Whether sparse steps keep the text of the last dense one.
    """
    dense = step_seconds(shape, card, reach)
    shares = (
        1.0
        if count == shape.num_image
        else step_seconds(shape, card, reach, count, keeps_text=keeps_text) / dense
        for count in counts
    )
    return len(counts) / sum(shares)
