"""The files of a diagnosis: numbers as JSON and CSV, a page with plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ras_dit.diagnosis import plot
from ras_dit.diagnosis.fields import QUANTITIES
from ras_dit.diagnosis.measure import PARTS, Diagnosis, Estimate, Part
from ras_dit.diagnosis.verdict import judge
from ras_dit.evaluation.files import dump, write_bytes

_VERSIONS = ("ras-dit", "torch", "diffusers")
_PLOTS = {
    "spread": "spread over tokens, cost saved, and size of the derivatives",
    "order": "persistence, and what the order of tokens goes with",
    "maps": "the first picture, its edges, and where its velocity changes",
    "parts": "errors of the parts of a sparse step",
}

_HOW = """\
A dense run of each image was recorded; v is the guided velocity, σ the noise level, and
derivatives are divided differences in σ between neighbouring steps. Numbers are of each image, then
averaged; intervals are 95 %, by bootstrap over prompts; the table has means over the steps of the
run (savings: harmonic means).

- **Cost saved** is how many times fewer evaluations reach the same squared error if each token is
  evaluated as often as suits it, by the derivatives as they were found: an upper bound for order 1
  (held outputs, Euler) by the first derivative, for order 2 (forecasts, two-step solvers) by the
  second. "By 3 steps before" deals evaluations out by the derivative seen then; below 1 that loses.
- Neighbouring steps share a velocity, so persistence over one step is too high by chance. Three
  steps apart nothing is shared.
- **Attention** is left out: fused kernels never form the probabilities, and with another kernel the
  run would be another one.
"""  # noqa: RUF001

_PARTS_HOW = """\
Each row is a whole run that makes one kind of error in its sparse steps, on the same schedule (the
default's dense steps) and with the same random active tokens. *Held outputs*: all is computed
afresh, inactive tokens keep their old output. *Stale keys and values*: active tokens see old keys
and values of inactive ones, whose outputs come from a dense call. *Kept text*: all image tokens are
fresh, the text is that of the last dense step. The error is the root mean square difference of the
final latents to the dense run of the same seed and steps, over the root mean square of those.
"""


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write diagnosis.json, .csv and .md and the plots, each file whole or not at all.

    Args:
        diagnosis: What was measured.
        folder: Where; it is made.

    Returns:
        The files, the page first.
    """
    drawn = {
        "spread": plot.draw_spread(diagnosis),
        "order": plot.draw_order(diagnosis),
        "maps": plot.draw_maps(diagnosis),
    }
    if diagnosis.parts:
        drawn["parts"] = plot.draw_parts(diagnosis)
    files = {f"{name}.png": content for name, content in drawn.items()}
    files["diagnosis.json"] = dump(as_data(diagnosis))
    files["diagnosis.csv"] = as_csv(diagnosis).encode()
    # The page last: where it is, everything that it shows is there.
    files["diagnosis.md"] = as_markdown(diagnosis).encode()
    for name, content in files.items():
        write_bytes(folder / name, content)
    return [folder / name for name in reversed(files)]


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """All numbers, as JSON can hold them."""
    job, verdict = diagnosis.job, judge(diagnosis)
    return {
        "verdict": {"headline": verdict.headline, "reasons": list(verdict.reasons)},
        "runs": {
            **diagnosis.facts,
            "steps": job.num_inference_steps,
            "width": job.width,
            "height": job.height,
            "guidance_scale": job.guidance_scale,
            "prompts": list(job.prompts),
            "seeds": list(job.seeds),
            "groups": list(diagnosis.groups),
            "versions": {name: version(name) for name in _VERSIONS},
        },
        "rounding": diagnosis.rounding,
        "summary": {
            quantity.name: {
                "meaning": quantity.meaning,
                **_data(diagnosis.summary[quantity.name]),
            }
            for quantity in QUANTITIES
        },
        "by_step": {
            quantity.name: [
                {"sigma": sigma, **_data(estimate)}
                for sigma, estimate in diagnosis.by_step(quantity.name)
            ]
            for quantity in QUANTITIES
        },
        "by_image": {name: series.values.tolist() for name, series in diagnosis.series.items()},
        "parts": [
            {
                "name": part.name,
                "ratio": part.ratio,
                "cost": part.cost,
                "errors": list(part.errors),
                **_data(part.estimate),
            }
            for part in diagnosis.parts
        ],
        "notes": list(diagnosis.notes),
    }


def as_csv(diagnosis: Diagnosis) -> str:
    """A line per quantity and step, then a line per part."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["quantity", "ratio", "sigma", "mean", "low", "high"])
    for quantity in QUANTITIES:
        for sigma, estimate in diagnosis.by_step(quantity.name):
            writer.writerow([quantity.name, "", sigma, *_data(estimate).values()])
    for part in diagnosis.parts:
        writer.writerow([part.name, part.ratio, "", *_data(part.estimate).values()])
    return text.getvalue()


def as_markdown(diagnosis: Diagnosis) -> str:
    """The page."""
    verdict = judge(diagnosis)
    parts = [
        f"# Diagnosis of {diagnosis.facts.get('model', diagnosis.facts['pipeline'])}",
        f"**{verdict.headline}**",
        "\n".join(f"- {reason}" for reason in verdict.reasons),
        _runs(diagnosis),
        "## Tokens over the run",
        _picture("spread"),
        _picture("order"),
        _picture("maps"),
        _summary_table(diagnosis),
        _HOW.strip(),
    ]
    if diagnosis.parts:
        parts += [
            "## The parts of a sparse step",
            _picture("parts"),
            _parts_table(diagnosis.parts),
            _PARTS_HOW.strip(),
        ]
    if diagnosis.notes:
        parts.append("\n".join(f"- {note}" for note in diagnosis.notes))
    return "\n\n".join(parts) + "\n"


def _runs(diagnosis: Diagnosis) -> str:
    job, facts = diagnosis.job, diagnosis.facts
    size = "the model's size"
    if job.width is not None and job.height is not None:
        size = f"{job.width} x {job.height} pixels"
    height, width = facts["tokens"]
    prompts = len(set(diagnosis.groups))
    images = f"{len(job.prompts)} image{'s' if len(job.prompts) > 1 else ''}"
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    return (
        f"{images} of {prompts} prompt{'s' if prompts > 1 else ''}, {size}, {height} x {width} "
        f"tokens beside {facts['text_tokens']} of text, {job.num_inference_steps} steps, "
        f"{facts['scheduler']}, {facts['dtype']}; {versions}."
    )


def _summary_table(diagnosis: Diagnosis) -> str:
    lines = ["| over the run | mean | 95 % interval |", "| --- | ---: | ---: |"]
    for quantity in QUANTITIES:
        estimate = diagnosis.summary[quantity.name]
        # A bar would end the cell.
        meaning = quantity.meaning.replace("|", "\\|")
        unit = "x" if quantity.is_saving else ""
        lines.append(f"| {meaning} | {estimate.mean:.2f}{unit} | {_interval(estimate)} |")
    return "\n".join(lines)


def _parts_table(parts: Sequence[Part]) -> str:
    lines = [
        "| run | ratio | cost in dense steps | error | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part in parts:
        ratio = "" if part.ratio is None else f"{part.ratio:g}"
        cost = "" if part.cost is None else f"{part.cost:.1f}"
        estimate = part.estimate
        lines.append(
            f"| {PARTS[part.name]} | {ratio} | {cost} | {estimate.mean:.4f} | "
            f"{_interval(estimate, '.4f')} |"
        )
    return "\n".join(lines)


def _picture(name: str) -> str:
    return f"![{_PLOTS[name]}]({name}.png)"


def _interval(estimate: Estimate, form: str = ".2f") -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def _data(estimate: Estimate) -> Mapping[str, float | None]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
