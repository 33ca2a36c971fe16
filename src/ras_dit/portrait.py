"""All figures of a job: its contact sheets and animations, drawn one picture at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ras_dit.animation import animation
from ras_dit.errors import RASError
from ras_dit.figures import contact_sheet, decoded_steps, spread_steps
from ras_dit.generate import Generated, Job
from ras_dit.visualization import DOTS_PER_INCH


@dataclass(frozen=True)
class Portrait:
    """The figures of one picture of a job.

    Attributes:
        prompt: Its prompt.
        seed: Its seed.
        sheet: The contact sheet.
        frames: The animation's frames, empty where it was not asked for.
    """

    prompt: str
    seed: int
    sheet: Image.Image
    frames: tuple[Image.Image, ...] = ()


def figures_of(
    pipeline: Any,
    job: Job,
    dense: Generated,
    recorded: Generated,
    *,
    number: int = 6,
    animated: bool = False,
    dots_per_inch: int = DOTS_PER_INCH,
) -> Iterator[Portrait]:
    """Draw every picture of a job.

    Args:
        pipeline: The pipeline that made them; its autoencoder decodes the steps.
        job: The job.
        dense: The stock run of the job.
        recorded: A region-adaptive run of it, from ``generate(..., record=True)``.
        number: Steps to show on a contact sheet.
        animated: Whether to decode every step and draw the frames of an animation.
        dots_per_inch: Resolution of the contact sheets.

    Raises:
        RASError: If the run was not recorded, or its scheduler has no sigmas.
    """
    recording = recorded.recording
    if recording is None:
        raise RASError("the run was not recorded; make it with generate(..., record=True)")
    trace = recording.trace
    shown = spread_steps(trace, number)
    for index, (prompt, seed) in enumerate(zip(job.prompts, job.seeds, strict=True)):
        steps = range(len(trace.steps)) if animated else shown
        decoded = decoded_steps(pipeline, recording, steps, index)
        sheet = contact_sheet(
            recording,
            recorded.images[index],
            {step: decoded[step] for step in shown},
            dense=dense.images[index],
            index=index,
            title=prompt,
            subtitle=f"{trace.work}; seed {seed}; steps count from 0",
            dots_per_inch=dots_per_inch,
        )
        frames = animation(trace, list(decoded.values()), index) if animated else ()
        yield Portrait(prompt, seed, sheet, frames)
