"""The paper's figures of any run: contact sheet, score maps and chosen tokens.

They are drawn from a :class:`ras_dit.Recording` (``enable(..., record=True)``) and from pictures
that :func:`decoded_steps` makes with the pipeline's autoencoder.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ras_dit.errors import RASError
from ras_dit.recording import Recording
from ras_dit.sheet import Sheet, Values, draw_active, draw_picture, draw_values, fitted
from ras_dit.trace import StepTrace, Trace
from ras_dit.visualization import DOTS_PER_INCH, TEXT, counts_of, draw_counts, ticks

# Inches.
_MARGIN, _GAP, _ROW_GAP = 0.2, 0.08, 0.3
_SMALL, _LARGE, _TOP, _LABEL, _LEGEND = 1.5, 3.0, 3.6, 1.2, 0.95
_FEWEST_COLUMNS = 5
# A few outliers would leave all other tokens one colour.
_CLIPPED = (1.0, 99.0)
_SCORES = {
    "std": ("std of the noise\nover channels\n(Eq. 1, Fig. 10)", "std"),
    "l2": ("l2 norm of the\nnoise (Fig. 8)", "l2 norm"),
}


def spread_steps(trace: Trace, number: int = 6) -> tuple[int, ...]:
    """Steps spread over a run, from among those whose scores chose the tokens of the next step.

    Args:
        trace: The record of the run.
        number: How many; fewer where the run has fewer steps.

    Raises:
        RASError: If ``number`` is below 1.
    """
    if number < 1:
        raise RASError(f"number={number}; expected at least 1 step to show")
    following = trace.steps[1:]
    steps = [step.index - 1 for step in following if step.kind == "sparse"]
    if len(steps) < number:
        steps = [step.index for step in trace.steps]
    places = np.linspace(0, len(steps) - 1, min(number, len(steps)))
    return tuple(steps[int(place + 0.5)] for place in places)


def decode(pipeline: Any, latents: torch.Tensor, *, batch_size: int = 4) -> tuple[Image.Image, ...]:
    """Pictures of latents, through the pipeline's autoencoder with its scale and shift.

    Args:
        pipeline: A diffusers pipeline with an autoencoder of pictures.
        latents: ``[n, C, H, W]`` on any device.
        batch_size: Latents decoded at a time: more need more memory.
    """
    vae = pipeline.vae
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    pictures: list[Image.Image] = []
    with torch.inference_mode():
        for start in range(0, len(latents), batch_size):
            part = latents[start : start + batch_size]
            scaled = part.to(vae.device, torch.float32) / scale + shift
            decoded = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
            pictures += pipeline.image_processor.postprocess(decoded, output_type="pil")
    return tuple(pictures)


def decoded_steps(
    pipeline: Any, recording: Recording, steps: Sequence[int], index: int = 0
) -> dict[int, Image.Image]:
    """The picture that a run was heading for at each of some steps: its predicted clean latents.

    Args:
        pipeline: The pipeline that was recorded.
        recording: The recording.
        steps: Indices of steps.
        index: Which image of the run's batch.

    Raises:
        RASError: If the run had no such step or image, or its scheduler has no sigmas.
    """
    counts_of(recording.trace, index)
    latents = [recording.predicted_latents(step)[index] for step in steps]
    return dict(zip(steps, decode(pipeline, torch.stack(latents)), strict=True)) if steps else {}


def score_map(
    recording: Recording, step: int, metric: str = "std", *, index: int = 0
) -> Image.Image:
    """The score of every token after one step, with a legend (Figs. 8 and 10).

    Args:
        recording: The recording of the run.
        step: Index of the step.
        metric: ``"std"`` or ``"l2"``.
        index: Which image of the run's batch.

    Raises:
        RASError: For another metric, or a step or image that the run did not have.
    """
    counts_of(recording.trace, index)
    values = recording.scores(step, metric)[index].numpy()
    width, height = fitted(values.shape[1] / values.shape[0], _LARGE)
    sheet = Sheet(2 * _GAP + width + _LEGEND, height + 0.45)
    axes = sheet.axes(_GAP, 0.35, width, height)
    axes.set_title(f"step {step}{_sigma(recording.trace.steps[step])}", fontsize=10, pad=6, **TEXT)
    drawn = draw_values(axes, values, (float(values.min()), float(values.max())))
    sheet.scale(2 * _GAP + width, 0.35, height, drawn, _SCORES[metric][1])
    return sheet.render()


def active_map(trace: Trace, step: int, image: Image.Image, *, index: int = 0) -> Image.Image:
    """Which tokens were active in one step, over a picture, with a legend.

    Args:
        trace: The record of the run.
        step: Index of the step.
        image: The picture, for example the one decoded at that step.
        index: Which image of the run's batch.

    Raises:
        RASError: For a step or image that the run did not have.
    """
    mask = active_mask(trace, step, index)
    width, height = fitted(image.width / image.height, _LARGE)
    sheet = Sheet(2 * _GAP + width + 1.1, height + 0.45)
    axes = sheet.axes(_GAP, 0.35, width, height)
    axes.set_title(activity(trace.steps[step], len(trace.steps)), fontsize=10, pad=6, **TEXT)
    sheet.swatches(2 * _GAP + width, 0.36, draw_active(axes, mask, image))
    return sheet.render()


def active_mask(trace: Trace, step: int, index: int = 0) -> Values:
    """Which tokens of one image were active in one step, bool ``[h, w]``.

    Raises:
        RASError: For a step or image that the run did not have.
    """
    check_step(trace, step)
    if not 0 <= index < trace.batch_size:
        raise RASError(f"index={index}; the run made {trace.batch_size} images, counted from 0")
    active = trace.steps[step].active
    mask = np.full(trace.num_tokens, active is None)
    if active is not None:
        mask[active[index].numpy()] = True
    return mask.reshape(trace.grid.height, trace.grid.width)


def contact_sheet(
    recording: Recording,
    image: Image.Image,
    decoded: Mapping[int, Image.Image],
    *,
    dense: Image.Image | None = None,
    index: int = 0,
    title: str = "",
    subtitle: str = "",
    dots_per_inch: int = DOTS_PER_INCH,
) -> Image.Image:
    """Everything about one picture of a run on one sheet.

    Above, the dense picture, the region-adaptive one and the number of steps in which each token
    was active (Fig. 9). Below, for some steps, the picture decoded there, the maps of both scores
    (Figs. 8 and 10; a scale for each step) and the tokens of the next sparse step.

    Args:
        recording: The recording of the run.
        image: The final picture.
        decoded: The picture at each step to show, from :func:`decoded_steps`.
        dense: The stock pipeline's picture from the same seed.
        index: Which image of the run's batch.
        title: Heading, for example the prompt; long ones are wrapped.
        subtitle: A line of small print.
        dots_per_inch: Resolution; 160 makes a sheet of six square columns 1924 dots wide.

    Raises:
        RASError: If no step is given, or the run had no such step or image, or the pictures
            differ in size.
    """
    counts_of(recording.trace, index)
    if not decoded:
        raise RASError("decoded is empty; give the picture of at least one step")
    for step in decoded:
        check_step(recording.trace, step)
    if dense is not None and dense.size != image.size:
        raise RASError(f"the pictures differ in size: {dense.size} and {image.size} pixels")
    drawing = _ContactSheet(recording, index, image, decoded)
    drawing.open_sheet(title, subtitle, dots_per_inch)
    drawing.draw_top(dense)
    drawing.draw_decoded()
    for row, metric in enumerate(_SCORES, 1):
        drawing.draw_scores(row, metric)
    drawing.draw_choices()
    return drawing.sheet.render()


class _ContactSheet:
    """The layout of :func:`contact_sheet`: a heading, large panels, rows of small ones."""

    def __init__(
        self,
        recording: Recording,
        index: int,
        image: Image.Image,
        decoded: Mapping[int, Image.Image],
    ) -> None:
        self._recording, self._index, self._image = recording, index, image
        self._decoded, self._steps = decoded, sorted(decoded)
        self._trace = recording.trace

    def open_sheet(self, title: str, subtitle: str, dots_per_inch: int) -> None:
        image, decoded = self._image, self._decoded
        aspect = image.width / image.height
        self._small = fitted(aspect, _SMALL)
        columns = max(len(decoded), _FEWEST_COLUMNS)
        inner = _LABEL + columns * (self._small[0] + _GAP) + _LEGEND
        room = (inner - _LEGEND) / 3 - 2 * _GAP
        self._large = fitted(aspect, min(_TOP, room / min(1.0, aspect)))
        lines = textwrap.wrap(title, int(inner * 9))
        self._top = _MARGIN + 0.24 * len(lines) + (0.24 if subtitle else 0) + 0.3
        self._rows = self._top + self._large[1] + 0.55
        self._legend = _MARGIN + inner - _LEGEND + _GAP
        height = self._row(4) - _ROW_GAP + _MARGIN
        self.sheet = Sheet(2 * _MARGIN + inner, height, dots_per_inch)
        self.sheet.text(_MARGIN, _MARGIN - 0.04, "\n".join(lines), fontsize=13, weight="bold")
        if subtitle:
            self.sheet.text(_MARGIN, self._top - 0.5, subtitle, color="#555555")

    def _row(self, row: int) -> float:
        return self._rows + row * (self._small[1] + _ROW_GAP)

    def _panels(self, row: int, label: str) -> dict[int, Any]:
        """Axes of each step in a row of small panels."""
        top, (width, height) = self._row(row), self._small
        self.sheet.text(_MARGIN, top + height / 2, label, va="center", linespacing=1.4)
        lefts = [_MARGIN + _LABEL + place * (width + _GAP) for place in range(len(self._steps))]
        return {
            step: self.sheet.axes(left, top, width, height)
            for step, left in zip(self._steps, lefts, strict=True)
        }

    def draw_top(self, dense: Image.Image | None) -> None:
        left, (width, height) = _MARGIN, self._large
        for caption, picture in (("dense", dense), ("region-adaptive", self._image)):
            if picture is not None:
                axes = self.sheet.axes(left, self._top, width, height)
                axes.set_title(caption, fontsize=10, pad=5, **TEXT)
                draw_picture(axes, picture)
                left += width + 2 * _GAP
        axes = self.sheet.axes(left, self._top, width, height)
        axes.set_title("active steps per token (Fig. 9)", fontsize=10, pad=5, **TEXT)
        counts, number = counts_of(self._trace, self._index), len(self._trace.steps)
        drawn = draw_counts(axes, counts, number, self._image)
        bar = self.sheet.scale(
            left + width + _GAP, self._top, height, drawn, f"active steps of {number}"
        )
        bar.set_ticks(ticks(*(int(limit) for limit in drawn.get_clim())))

    def draw_decoded(self) -> None:
        for step, axes in self._panels(0, "picture decoded\nat this step").items():
            caption = f"step {step}{_sigma(self._trace.steps[step])}"
            axes.set_title(caption, fontsize=9, pad=4, weight="bold", **TEXT)
            draw_picture(axes, self._decoded[step])

    def draw_scores(self, row: int, metric: str) -> None:
        label, name = _SCORES[metric]
        for step, axes in self._panels(row, label).items():
            values = self._recording.scores(step, metric)[self._index].numpy()
            # Tokens are compared within a step only, so each step has a scale of its own.
            low, high = (float(end) for end in np.percentile(values, _CLIPPED))
            drawn = draw_values(axes, values, (low, high))
            axes.set_title(f"{low:.3g} to {high:.3g}", fontsize=8, pad=3, **TEXT)
        bar = self.sheet.scale(self._legend, self._row(row), self._small[1], drawn, name)
        bar.set_ticks(drawn.get_clim(), labels=["low", "high"])

    def draw_choices(self) -> None:
        veil = ""
        for step, axes in self._panels(3, "active in the\nnext sparse step").items():
            chosen = next((s for s in self._trace.steps[step + 1 :] if s.kind == "sparse"), None)
            caption = "no sparse step follows"
            if chosen is not None:
                mask = active_mask(self._trace, chosen.index, self._index)
                veil = draw_active(axes, mask, self._decoded[step])
                caption = f"step {chosen.index}: {chosen.num_active} of {chosen.num_tokens}"
            axes.set_title(caption, fontsize=8, pad=3, **TEXT)
        if veil:
            self.sheet.swatches(self._legend, self._row(3) + 0.01, veil)


def check_step(trace: Trace, step: int) -> None:
    """Refuse a step that a run did not have.

    Raises:
        RASError: If ``step`` is outside the run.
    """
    if not 0 <= step < len(trace.steps):
        raise RASError(f"step={step}; the run has steps 0 to {len(trace.steps) - 1}")


def activity(step: StepTrace, num_steps: int) -> str:
    """What one step did, in a line."""
    if step.kind == "dense":
        return f"step {step.index} (of 0 to {num_steps - 1}): dense, all {step.num_tokens} tokens"
    share = f"{step.num_active} of {step.num_tokens} tokens"
    return f"step {step.index} (of 0 to {num_steps - 1}): {share} active"


def _sigma(step: StepTrace) -> str:
    return "" if step.sigma is None else f", σ {step.sigma:.2f}"  # noqa: RUF001
