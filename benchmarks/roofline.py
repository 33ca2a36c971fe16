"""Predicted speed-ups of region-adaptive sampling on an A100 and an H100, from bytes and FLOPs.

    python -m benchmarks.roofline

Nothing is measured. Writes ``docs/roofline.md`` and ``docs/roofline.png``; the model is in
``benchmarks/prediction.py``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.memory import bullets
from benchmarks.prediction import A100, H100, Card, Reach, Shape, operations, speedup, step_seconds
from ras_dit.config import RASConfig
from ras_dit.cost import plan_cost
from ras_dit.outline import ModelOutline, read_outline
from ras_dit.schedule import plan_steps

DOCS = Path(__file__).parent.parent / "docs"
PAPER = Path(__file__).parent / "paper"
RATIOS = (0.75, 0.5, 0.25, 0.125)
USUAL = Reach()
REACHES: Mapping[str, Reach] = {
    "as assumed": USUAL,
    "compute at its peak": Reach(compute=1.0),
    "compute at 40 %": Reach(compute=0.4),
    "memory at half": Reach(bandwidth=0.5),
    "0.4 ms to launch a layer": Reach(host=0.4e-3),
}
# Speed-ups that the paper gives in Table 3, and for Lumina in Table 6, too.
TABLE_3: Mapping[str, Mapping[float, float]] = {
    "SD3-medium": {0.5: 1.62, 0.125: 2.44},
    "Lumina-Next-SFT": {0.5: 1.56, 0.125: 2.70},
}
TABLES: Mapping[str, str] = {"SD3-medium": "table10.yaml", "Lumina-Next-SFT": "table9.yaml"}
# Two modulated norms (6 widths each, in three passes), two gated sums (5 each), an activation on
# four widths (8); where queries and keys are normed and rotated, that comes on top (12).
_POINTWISE, _ROTATED = 30, 12


def sd3_shape(outline: ModelOutline) -> Shape:
    """Stable Diffusion 3, joint blocks: 16 widths through linear layers per block and token."""
    width = outline.config["num_attention_heads"] * outline.config["attention_head_dim"]
    layers = outline.config["num_layers"]
    return _shape(
        outline, layers, width, joint=True, linear=16 * layers, pointwise=_POINTWISE * layers
    )


def flux_shape(outline: ModelOutline) -> Shape:
    """Flux.1: double blocks as above; single blocks read and write 15 widths."""
    double, single = outline.config["num_layers"], outline.config["num_single_layers"]
    width = outline.config["num_attention_heads"] * outline.config["attention_head_dim"]
    # Single blocks have one norm and one sum, an activation, and join attention and feed-forward.
    pointwise = (_POINTWISE + _ROTATED) * double + (6 + 5 + 8 + 10 + _ROTATED) * single
    return _shape(
        outline,
        double + single,
        width,
        joint=True,
        linear=16 * double + 15 * single,
        pointwise=pointwise,
    )


def lumina_shape(outline: ModelOutline) -> Shape:
    """Lumina-Next: attention to the image and to the text, a gated feed-forward layer."""
    layers, width = outline.config["num_layers"], outline.config["hidden_size"]
    # Read: five projections and two halves of the feed-forward layer, and its inner 8 / 3 widths;
    # written: two queries, grouped keys and values, output, two inner halves, the sum.
    linear = round(5 + 2 + 8 / 3 + 2 + 0.5 + 1 + 2 * 8 / 3 + 1)
    # Four norms around attention and feed-forward instead of two; keys and values repeated.
    pointwise = _POINTWISE + 12 + _ROTATED + 3
    return _shape(
        outline, layers, width, joint=False, linear=linear * layers, pointwise=pointwise * layers
    )


def _shape(
    outline: ModelOutline, layers: int, width: int, *, joint: bool, linear: int, pointwise: int
) -> Shape:
    layout = outline.layout()
    return Shape(
        name=outline.place,
        work=outline.work,
        rows=outline.branches,
        num_image=layout.num_image,
        num_text=layout.num_text,
        layers=layers,
        width=width,
        joint=joint,
        linear=linear * width,
        pointwise=pointwise * width,
    )


def shapes() -> dict[str, tuple[Shape, ModelOutline]]:
    """The models of the page at 1024 x 1024, by name."""
    makers = {
        "SD3-medium": sd3_shape,
        "Lumina-Next-SFT": lumina_shape,
        "FLUX.1-dev": flux_shape,
    }
    outlines = {name: read_outline(name) for name in makers}
    return {name: (makers[name](outline), outline) for name, outline in outlines.items()}


def counts_of(name: str, ratio: float, num_steps: int, num_tokens: int) -> tuple[int, ...]:
    """Active tokens of every step, planned as in the paper."""
    model = "lumina" if name.startswith("Lumina") else "sd3"
    plans = plan_steps(RASConfig.paper(model, ratio), num_steps, num_tokens)
    return tuple(plan.num_active for plan in plans)


def flop_limit(shape: Shape, name: str, ratio: float, num_steps: int) -> float:
    """The speed-up if FLOPs were all that takes time."""
    model = "lumina" if name.startswith("Lumina") else "sd3"
    plans = plan_steps(RASConfig.paper(model, ratio), num_steps, shape.num_image)
    return plan_cost(
        shape.work,
        plans,
        batch=shape.rows,
        num_tokens=shape.num_image,
        num_text_tokens=shape.num_text,
    ).limit


def measured(name: str) -> dict[float, float]:
    """Images per second of the paper's tables, by ratio; 1.0 is dense."""
    data = yaml.safe_load((PAPER / TABLES[name]).read_text("utf-8"))
    steps = data["reference_steps"]
    return {
        float(row.get("sample_ratio", 1.0)): float(row["published"]["image/s"])
        for row in data["rows"]
        if row["steps"] == steps and "published" in row
    }


def predictions_table() -> str:
    """Speed-ups by model and ratio, beside those of the paper."""
    lines = [
        ("model", "ratio", "FLOP limit", "A100, predicted", "H100, predicted", "paper, Table 3",
         "paper, from images/s"),
        ("---", "---:", "---:", "---:", "---:", "---:", "---:"),
    ]  # fmt: skip
    for name, (shape, outline) in shapes().items():
        rates = measured(name) if name in TABLES else {}
        steps = outline.num_inference_steps
        for ratio in RATIOS:
            counts = counts_of(name, ratio, steps, shape.num_image)
            table = TABLE_3.get(name, {}).get(ratio)
            lines.append(
                (
                    name,
                    f"{ratio:.1%}",
                    f"{flop_limit(shape, name, ratio, steps):.2f}x",
                    f"{speedup(shape, counts, A100, USUAL):.2f}x",
                    f"{speedup(shape, counts, H100, USUAL):.2f}x",
                    "" if table is None else f"{table:.2f}x",
                    f"{rates[ratio] / rates[1.0]:.2f}x" if ratio in rates else "",
                )
            )
    return _table(lines)


def sensitivity_table(ratio: float = 0.125) -> str:
    """The same at one ratio under other assumptions."""
    columns = [(name, card) for name in shapes() for card in (A100, H100)]
    lines = [
        ("assumption", *(f"{name}, {card.name.split()[0]}" for name, card in columns)),
        ("---", *("---:",) * len(columns)),
    ]
    cases = [(label, reach, False) for label, reach in REACHES.items()]
    cases.append(('`text="keep"`', USUAL, True))
    for label, reach, keeps in cases:
        cells = []
        for name, card in columns:
            shape, outline = shapes()[name]
            counts = counts_of(name, ratio, outline.num_inference_steps, shape.num_image)
            cannot = keeps and not shape.joint
            value = speedup(shape, counts, card, reach, keeps_text=keeps)
            cells.append("" if cannot else f"{value:.2f}x")
        lines.append((label, *cells))
    return _table(lines)


def operations_table(name: str = "SD3-medium", ratio: float = 0.125, card: Card = A100) -> str:
    """Where the time of a dense and of a sparse step goes."""
    shape, _ = shapes()[name]
    dense = {each.name: each for each in operations(shape)}
    sparse = {each.name: each for each in operations(shape, round(ratio * shape.num_image))}
    lines = [
        ("operation", "dense", "sparse", "sparse FLOPs", "sparse bytes", "bound by"),
        ("---", "---:", "---:", "---:", "---:", "---"),
    ]
    for key, each in sparse.items():
        before = dense.get(key)
        compute = each.flops / (card.flops * USUAL.compute)
        bound = "arithmetic" if compute == each.seconds(card, USUAL) else "memory"
        lines.append(
            (
                key,
                "" if before is None else f"{1e3 * before.seconds(card, USUAL):.2f} ms",
                f"{1e3 * each.seconds(card, USUAL):.2f} ms",
                f"{each.flops:.3g}",
                f"{each.nbytes:.3g}",
                bound,
            )
        )
    total = [step_seconds(shape, card, USUAL, count) for count in (None, _active(shape, ratio))]
    lines.append(("all", *(f"{1e3 * seconds:.2f} ms" for seconds in total), "", "", ""))
    return _table(lines)


def _active(shape: Shape, ratio: float) -> int:
    return round(ratio * shape.num_image)


def reached_share(name: str) -> float:
    """Share of an A100's peak that the paper's dense run reached, all of its time counted."""
    shape, outline = shapes()[name]
    flops = sum(each.flops for each in operations(shape)) * outline.num_inference_steps
    return flops * measured(name)[1.0] / A100.flops


def _table(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page() -> str:
    """The page of the docs."""
    return f"""# What a GPU should give: a prediction

**Nothing on this page was measured by us.** It is arithmetic on FLOPs and bytes, written by
`python -m benchmarks.roofline` and set beside what the paper reports. One picture of 1024 x 1024 in
bfloat16, both guidance branches in one batch where the model has them. Plans are the paper's: 4
dense steps first, two dense resets, a ratio that falls over the run with the stated mean; 28 steps
for Stable Diffusion 3 and Flux.1, 30 for Lumina-Next.

![predicted speed-up by sampling ratio](roofline.png)

{predictions_table()}

The last column is the quotient of the images per second in the paper's Tables 9 and 10, which have
two digits: Lumina's 0.11 may be anything from 0.105 to 0.115. Flux.1 is not in the paper.

## How it is reckoned

{bullets(_assumptions())}

A sparse step of Stable Diffusion 3 at 12.5 % on an A100:

{operations_table()}

## How much hangs on the assumptions

At 12.5 %:

{sensitivity_table()}

{_fill(_sensitivity())}

## Where this and the paper differ

{bullets(_differences())}
"""


def _assumptions() -> str:
    cards = " and ".join(
        f"{card.name} with {card.flops / 1e12:.0f} TFLOP/s and {card.bandwidth / 1e12:g} TB/s"
        for card in (A100, H100)
    )
    return f"""\
Each kind of operation takes the longer of its FLOPs at {USUAL.compute:.0%} of the card's peak and
its bytes at {USUAL.bandwidth:.0%} of its bandwidth, and they follow one another. Cards: {cards}.

**Linear layers** read each weight once a step, and read their inputs and write their outputs once.

**Attention** of the n active tokens, and of the text where it stands in the sequence, over all of
it reads queries, keys and values once and writes its output.

**Norms, modulations, sums and activations** are passes over memory, as an eager run makes them.

**Scatter**: new keys and values are read and written to their places, in sparse steps only. Fused
into the projection, as in the paper, it would spare one of the two passes.

**Gather, merge and choice** of tokens are small next to the rest.

Left out: launches (but see below), text encoders, the autoencoder, the scheduler."""


def _sensitivity() -> str:
    return """\
What share of the peaks is reached hardly matters, as long as it is the same for dense and sparse
steps: both get slower together. What matters is what does not shrink with the ratio. The text does
not, 333 rows beside 512 active tokens in Stable Diffusion 3; `text="keep"` leaves it out of sparse
steps. If the host needs 0.4 ms to launch the kernels of a layer (about 70 of them, an assumption),
a fast card waits for it in sparse steps of the smaller models, unless they are captured in a
graph."""


def _differences() -> str:
    shape, outline = shapes()["SD3-medium"]
    brief = replace(shape, num_text=2 * 77)
    steps = outline.num_inference_steps
    limits = {
        (label, ratio): flop_limit(each, each.name, ratio, steps)
        for label, each in (("usual", shape), ("brief", brief))
        for ratio in (0.5, 0.125)
    }
    seconds = step_seconds(shape, A100, USUAL) * steps
    given = measured("SD3-medium")
    lumina, lumina_outline = shapes()["Lumina-Next-SFT"]
    whole = step_seconds(lumina, A100, USUAL) * lumina_outline.num_inference_steps
    return f"""\
**At 75 % and 50 %** predictions and the paper are within 7 % of each other. There the paper's
Stable Diffusion 3 is *above* the FLOP limit of our count (1.62x against
{limits["usual", 0.5]:.2f}x at 50 %), which no kernel can be: its dense runs did more, or its sparse
steps less, than is counted here. Shorter texts would do it: with 77 + 77 rows instead of 77 + 256
the limit is {limits["brief", 0.5]:.2f}x, and its linear ideal, without any text, 1.65x.

**At 12.5 %** the paper is below the prediction: 2.44x against
{speedup(shape, counts_of("SD3-medium", 0.125, steps, 4096), A100, USUAL):.2f}x for Stable Diffusion
3, 2.70x against
{speedup(lumina, counts_of("Lumina-Next-SFT", 0.125, 30, 4096), A100, USUAL):.2f}x for Lumina-Next.
Matrices with a few hundred rows do not fill a card as those with 4096 do, so that the reached share
falls with the ratio; launches do not get fewer; and whatever of an image's time lies outside of the
transformer does not shrink.

**Time of the dense run**: the prediction is {seconds:.1f} s for Stable Diffusion 3, the paper has
{1 / given[1.0]:.1f} s an image ({reached_share("SD3-medium"):.0%} of an A100's peak if all of it
were the transformer's); for Lumina-Next {whole:.1f} s and
{1 / measured("Lumina-Next-SFT")[1.0]:.1f} s ({reached_share("Lumina-Next-SFT"):.0%}). Either less
than {USUAL.compute:.0%} of the peak is reached there, or a part of the time is not the
transformer's; the second would make our predictions too high.

The paper's linear ideal at 12.5 % (3.2x with 6 dense steps of 28) counts neither the text nor what
runs at whole length; with them, the limit is {limits["usual", 0.125]:.2f}x."""


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False)


def draw(path: Path) -> None:
    """Predicted speed-up by ratio, with the FLOP limit and the paper's numbers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ratios = [0.1 + 0.05 * i for i in range(19)]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, (name, (shape, outline)) in zip(axes, shapes().items(), strict=True):
        steps = outline.num_inference_steps
        limits = [flop_limit(shape, name, ratio, steps) for ratio in ratios]
        axis.plot(ratios, limits, "--", color="0.5", label="FLOP limit")
        for card, color in ((A100, "tab:blue"), (H100, "tab:orange")):
            values = [
                speedup(shape, counts_of(name, ratio, steps, shape.num_image), card, USUAL)
                for ratio in ratios
            ]
            axis.plot(ratios, values, color=color, label=f"{card.name}, predicted")
        if name in TABLES:
            rates = measured(name)
            given = {ratio: rate / rates[1.0] for ratio, rate in rates.items() if ratio < 1}
            axis.plot(list(given), list(given.values()), "o", color="k", mfc="w",
                      label="paper, images/s")  # fmt: skip
            table = TABLE_3[name]
            axis.plot(list(table), list(table.values()), "x", color="k", label="paper, Table 3")
        axis.set_title(name)
        axis.set_xlabel("sampling ratio")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("speed-up of the denoising loop")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Write the page and its figure."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    draw(DOCS / "roofline.png")
    (DOCS / "roofline.md").write_text(page(), "utf-8")
    say(f"wrote {DOCS / 'roofline.md'} and {DOCS / 'roofline.png'}\n")


if __name__ == "__main__":
    main()
