"""The preset as a file, and what is to be said of it as a page. No dates: same call, same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ras_dit.errors import RASError
from ras_dit.evaluation.markdown import table
from ras_dit.tuning.calibrate import Tuned, Tuning

_SUFFIXES = (".yaml", ".yml")
_HEADINGS = ("run", "cost", "call", "fields", "search", "other pictures", "mean", "PSNR, dB")


def check_out(out: Path) -> None:
    """Refuse a file of ``--out`` before hours are spent.

    Raises:
        RASError: If its name does not end in ``.yaml``, or its folder is missing.
    """
    if out.suffix not in _SUFFIXES:
        raise RASError(f"--out {str(out)!r} is no preset; expected a file ending in .yaml")
    if not out.parent.is_dir():
        raise RASError(f"--out {str(out)!r} cannot be written: there is no folder {out.parent}")


def write_tuning(found: Tuning, out: Path) -> tuple[Path, Path]:
    """Write the preset, and the report beside it as a markdown page of the same name.

    Args:
        found: What came of the search.
        out: The preset, ``.yaml``.

    Raises:
        RASError: If they cannot be written.
    """
    check_out(out)
    page = out.with_suffix(".md")
    try:
        out.write_text(preset_text(found), "utf-8")
        page.write_text(report_text(found), "utf-8")
    except OSError as error:
        raise RASError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    return out, page


def preset_text(found: Tuning) -> str:
    """The preset as YAML, with a head that says what it is for and what it came to."""
    preset, facts = found.preset, found.facts
    height_and_width = " x ".join(map(str, facts["tokens"][-2:]))
    model = f"{facts['pipeline']} with {facts['scheduler']}, {facts['dtype']}"
    size = f"{height_and_width} tokens, guidance {_or_own(facts['guidance'])}"
    pictures = f"{len(found.check_facts['seeds'])} pictures that the search did not see"
    head = [
        f"Tuned for {model}, {size}.",
        f"Call the pipeline with {_call(preset)},",
        f"or ras-dit generate with --config THIS_FILE {_options(preset)}.",
        f"Wanted: {found.target}. Cost: {preset.cost:.2f} dense steps.",
        f"Error of the latents to {facts['reference steps']} dense steps, on {pictures}:",
        f"  this preset: {_errors(preset)}",
        f"  best dense run, cost {found.control.cost:g}: {_errors(found.control)}",
        f"  ({_call(found.control)}; {_fields(found.control)})",
        verdict(found),
    ]
    config = preset.candidate.config
    assert config is not None
    plain = config.to_dict()
    fields = {name: plain[name] for name in preset.candidate.fields}
    comments = "".join(f"# {line}\n" for line in head)
    return comments + yaml.safe_dump(fields, sort_keys=True, default_flow_style=None, width=96)


def _options(run: Tuned) -> str:
    """The call as options of the program."""
    words = [f"--steps {run.candidate.steps}"]
    if run.candidate.sigmas is not None:
        levels = ",".join(f"{level!r}" for level in run.candidate.sigmas)
        words.append(f"--sigmas {levels}")
    return " ".join(words)


def report_text(found: Tuning) -> str:
    """The page: the verdict, both searches' best, and what they were measured on."""
    facts = found.facts
    rows: list[tuple[str, ...]] = [
        _HEADINGS,
        ("---", "---:", "---", "---", "---:", "---:", "---:", "---:"),
    ]
    named = (("preset", found.presets), ("dense", found.controls))
    for name, runs in named:
        rows += [_row(f"{name} {number}", run) for number, run in enumerate(runs, 1)]
    told = {k: v for k, v in facts.items() if k not in {"prompts", "seeds", "parts"}}
    explained = (
        f"{found.trials} candidates were tried. Errors are median root mean square distances of "
        f"the final latents to {facts['reference steps']} dense steps from the same noise: on the "
        "pictures of the search, and on others, with their mean and the median PSNR of the "
        "pictures. The best of either search come first by what they are on the others."
    )
    return "\n\n".join(
        [
            f"# A preset of {found.target}",
            verdict(found),
            explained,
            table(rows),
            _measured_on("The search", facts),
            _measured_on("The other pictures", found.check_facts),
            ", ".join(f"{name}: {value}" for name, value in told.items()) + ".\n",
        ]
    )


def verdict(found: Tuning) -> str:
    """In one sentence, whether the preset beats the dense control."""
    preset, control = found.preset, found.control
    wanted = found.target.fidelity
    if wanted is not None:
        return _cheaper(preset, control, wanted)
    by = f"its error is {found.ratio:.2f} times the control's"
    costs = f"at {preset.cost:.2f} against {control.cost:.2f} dense steps"
    if found.low is None or found.high is None:
        return f"The preset is not told from the dense control: {by} {costs}, on one prompt."
    by += f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    if found.high < 1:
        return f"The preset beats the best dense control: {by}, {costs}."
    if found.low > 1:
        return f"The best dense control beats the preset: {by}, {costs}."
    return f"The preset and the best dense control are not told apart: {by}, {costs}."


def _cheaper(preset: Tuned, control: Tuned, wanted: float) -> str:
    reached = [run.checked.median_psnr >= wanted for run in (preset, control)]
    numbers = (
        f"{preset.checked.median_psnr:.1f} dB at {preset.cost:.2f} dense steps against "
        f"{control.checked.median_psnr:.1f} dB at {control.cost:.2f}"
    )
    if not reached[0]:
        return f"The preset misses {wanted:g} dB on other pictures: {numbers}."
    if preset.cost < control.cost or not reached[1]:
        return f"The preset beats the best dense control: {numbers}."
    return f"The best dense control is as cheap: {numbers}."


def _row(name: str, run: Tuned) -> tuple[str, ...]:
    return (
        name,
        f"{run.cost:.2f}",
        _call(run),
        _fields(run),
        f"{run.searched.median:.4f}",
        f"{run.checked.median:.4f}",
        f"{run.checked.mean:.4f}",
        f"{run.checked.median_psnr:.1f}",
    )


def _errors(run: Tuned) -> str:
    return f"median {run.checked.median:.4f}, mean {run.checked.mean:.4f}"


def _call(run: Tuned) -> str:
    return ", ".join(f"{name}={value}" for name, value in run.candidate.call.items())


def _fields(run: Tuned) -> str:
    fields = run.candidate.to_dict()["fields"]
    return ", ".join(f"{name}={value}" for name, value in fields.items()) or "stock"


def _measured_on(what: str, facts: dict[str, Any]) -> str:
    lines = [
        f"- {prompt} (seed {seed})"
        for prompt, seed in zip(facts["prompts"], facts["seeds"], strict=True)
    ]
    return "\n".join([f"{what}:", "", *lines])


def _or_own(value: object) -> object:
    return "of its own" if value is None else value
