"""The figures of docs/figures.md, from the embedded model: make figures."""  # noqa: INP001

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from ras_dit import RASConfig, Trace
from ras_dit.animation import animation, save_animation
from ras_dit.figures import decoded_steps
from ras_dit.generate import Generated, Job, generate
from ras_dit.loading import call_defaults, load_pipeline
from ras_dit.portrait import figures_of
from ras_dit.sheet import Sheet, draw_picture
from ras_dit.trace import never_refreshed
from ras_dit.visualization import COLOURMAP, TEXT, ticks
from ras_dit.world import evaluation_prompts

FOLDER: Final = Path(__file__).parent / "figures"
# Every fourth of the 24 held-out prompts, none of them picked by looking at its picture.
PROMPTS: Final = evaluation_prompts()[::4]
STEPS: Final = 28
BATCH: Final = 3
DOTS_PER_INCH: Final = 120
LARGE: Final = 1_500_000  # pixels
OURS: Final = RASConfig(sample_ratio=0.5)
PUBLIC: Final = RASConfig.microsoft(high_ratio=1, error_reset_steps=(12, 20), scheduler_end_step=28)
# Blue and orange, apart for every kind of colour vision.
OURS_COLOUR, PUBLIC_COLOUR = "#0072b2", "#e69f00"


def job_of(*prompts: str) -> Job:
    """A job on the embedded model, every picture from seed 0."""
    defaults = call_defaults(None)
    return Job(
        prompts=prompts,
        seeds=(0,) * len(prompts),
        num_inference_steps=STEPS,
        guidance_scale=defaults.guidance_scale,
        max_sequence_length=defaults.max_sequence_length,
    )


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG, with a palette that keeps the maps' colours where it would grow large."""
    FOLDER.mkdir(exist_ok=True)
    if picture.width * picture.height > LARGE:
        picture = picture.quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
    picture.save(FOLDER / name, optimize=True)
    print(f"wrote docs/figures/{name}")  # noqa: T201


def draw_sheets(pipeline: Any) -> list[Generated]:
    """A contact sheet per prompt; gives the recorded runs."""
    runs = []
    for start in range(0, len(PROMPTS), BATCH):
        job = job_of(*PROMPTS[start : start + BATCH])
        dense = generate(pipeline, None, job)
        recorded = generate(pipeline, OURS, job, record=True)
        drawings = figures_of(pipeline, job, dense, recorded, dots_per_inch=DOTS_PER_INCH)
        for number, drawing in enumerate(drawings, start + 1):
            save(drawing.sheet, f"sheet-{number}.png")
        runs.append(recorded)
    return runs


def draw_steps(pipeline: Any, run: Generated) -> None:
    """The animation of the first picture of a recorded run, small."""
    assert run.recording is not None
    trace = run.recording.trace
    decoded = decoded_steps(pipeline, run.recording, range(STEPS))
    frames = animation(trace, list(decoded.values()), dots_per_inch=72)
    save_animation(frames, FOLDER / "steps-1.gif")
    print("wrote docs/figures/steps-1.gif")  # noqa: T201


def sparse_counts(trace: Trace) -> np.ndarray[Any, np.dtype[np.int64]]:
    """In how many sparse steps each token was active, ``[B, h, w]``."""
    counts: np.ndarray[Any, np.dtype[np.int64]] = trace.active_counts().numpy()
    return counts - trace.num_dense_steps


def draw_never_refreshed(pipeline: Any, runs: Sequence[Generated]) -> None:
    """The public code beside ours: sparse steps per token as maps and as a histogram."""
    images = [image for run in runs for image in run.images]
    # The public code's rule is for one picture at a time.
    public = [generate(pipeline, PUBLIC, job_of(prompt)) for prompt in PROMPTS]
    traces = {
        "public code": [run.trace for run in public if run.trace is not None],
        "ras-dit": [run.trace for run in runs if run.trace is not None],
    }
    number = STEPS - traces["ras-dit"][0].num_dense_steps
    counts = {name: np.concatenate(list(map(sparse_counts, t))) for name, t in traces.items()}
    shares = {name: float(np.mean(list(map(never_refreshed, t)))) for name, t in traces.items()}
    side, gap, left, top = 1.35, 0.08, 1.55, 0.85
    across = left + len(images) * (side + gap)
    sheet = Sheet(across + 5.2, top + 3 * (side + 0.28) + 0.1, DOTS_PER_INCH)
    heading = "How often tokens are refreshed in the sparse steps"
    sheet.text(0.2, 0.16, heading, fontsize=13, weight="bold")
    small = f"sample ratio 0.5, {STEPS} steps, {number} of them sparse; seed 0"
    sheet.text(0.2, 0.44, small, color="#555555")
    captions = [
        "picture (ras-dit)",
        "the public code's\nrule, high_ratio=1",
        "ras-dit,\nstarvation as\nin the paper",
    ]
    for row, caption in enumerate(captions):
        place = top + row * (side + 0.28)
        sheet.text(0.2, place + side / 2, caption, va="center", linespacing=1.4)
        for column, image in enumerate(images):
            axes = sheet.axes(left + column * (side + gap), place, side, side)
            if row == 0:
                draw_picture(axes, image)
                continue
            values = counts["public code" if row == 1 else "ras-dit"][column]
            drawn = axes.imshow(values, COLOURMAP, vmin=0, vmax=number, aspect="auto")
            share = float((values == 0).mean())
            axes.set_title(f"never: {share:.2%}", fontsize=8, pad=3, **TEXT)
    bar_top = top + side + 0.28
    label = f"active in so many of {number} sparse steps"
    bar = sheet.scale(across + 0.02, bar_top, 2 * side + 0.28, drawn, label)
    bar.set_ticks(ticks(0, number))
    draw_histogram(sheet.axes(across + 1.5, top + 0.25, 3.4, 3 * side), counts, shares)
    save(sheet.render(), "never-refreshed.png")
    for name, share in shares.items():
        low, high = int(counts[name].min()), int(counts[name].max())
        never = int((counts[name] == 0).sum())
        print(  # noqa: T201
            f"{name}: {share:.4%} of the tokens ({never} of {counts[name].size}) are never "
            f"refreshed; sparse steps per token {low} to {high}, "
            f"middle nine tenths {np.percentile(counts[name], (5, 95))}"
        )


def draw_histogram(
    axes: Any, counts: dict[str, np.ndarray[Any, np.dtype[np.int64]]], shares: dict[str, float]
) -> None:
    """Share of the tokens over the number of sparse steps in which they were active."""
    last = max(int(values.max()) for values in counts.values())
    axes.set_axis_on()
    for offset, (name, values) in zip((-0.22, 0.22), counts.items(), strict=True):
        heights = 100 * np.bincount(values.ravel(), minlength=last + 1) / values.size
        axes.bar(
            np.arange(last + 1) + offset,
            heights,
            width=0.44,
            color=PUBLIC_COLOUR if name == "public code" else OURS_COLOUR,
            label=f"{name}: {shares[name]:.2%} never refreshed",
        )
    axes.set_xlabel("sparse steps in which a token is active", fontsize=9, **TEXT)
    axes.set_ylabel("share of the tokens, %", fontsize=9, **TEXT)
    axes.tick_params(labelsize=8, length=2, colors=TEXT["color"])
    axes.legend(fontsize=8, frameon=False, loc="upper center")
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def main() -> None:
    """Draw everything into docs/figures/."""
    pipeline = load_pipeline()
    runs = draw_sheets(pipeline)
    draw_steps(pipeline, runs[0])
    draw_never_refreshed(pipeline, runs)


if __name__ == "__main__":
    main()
