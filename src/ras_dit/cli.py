"""The ``ras-dit`` program: one function a command.

Exit status 0: done; 1: something failed while running; 2: bad input. Both kinds of failure are
one line on stderr.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.table import Column, Table

from ras_dit import options
from ras_dit.animation import save_animation
from ras_dit.config import RASConfig
from ras_dit.config_files import presets
from ras_dit.console import fail, one_line_warnings, output, progress, quiet_libraries
from ras_dit.diagnosis.commands import diagnose
from ras_dit.errors import RASError
from ras_dit.evaluation.commands import app as evaluate_app
from ras_dit.evaluation.judge_command import judge_command
from ras_dit.generate import Comparison, Generated, Job, check_size, compare, generate, seeds_for
from ras_dit.loading import call_defaults, choose_dtype, load_pipeline
from ras_dit.options import DEFAULT_PRESET
from ras_dit.outline import read_outline
from ras_dit.planning import HEADINGS, plan_outline
from ras_dit.portrait import figures_of
from ras_dit.report import comparison_rows, run_line
from ras_dit.study.commands import app as study_app
from ras_dit.support import read_support
from ras_dit.tuning.commands import tune_command
from ras_dit.validation import parse_sigmas, parse_size
from ras_dit.visualization import comparison as side_by_side
from ras_dit.visualization import region_map

TIMED_RUNS = 3
_LONGEST_SLUG = 60
# typer's errors of usage, wherever the installed release keeps them.
_UsageError = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Faster diffusion transformers by region-adaptive sampling.",
)
app.add_typer(study_app, name="study")
app.add_typer(evaluate_app, name="evaluate")
app.command("diagnose")(diagnose)
app.command("judge")(judge_command)
app.command("tune")(tune_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Words after the program's name; ``None`` reads the command line.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in words
    with one_line_warnings(verbose=verbose):
        try:
            status = app(words, prog_name="ras-dit", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            return fail("interrupted", 130)
        except Exception as error:  # noqa: BLE001  (the program's last resort)
            if verbose:
                traceback.print_exc()
            if isinstance(error, _UsageError):
                return fail(error.format_message(), 2)  # type: ignore[attr-defined]
            if isinstance(error, RASError):
                return fail(str(error), 2)
            return fail(f"{type(error).__name__}: {error}", 1)
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"ras-dit {version('ras-dit')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("generate")
def _generate(
    prompts: options.Prompts,
    model: options.Model = None,
    sample_ratio: options.SampleRatio = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    paper: options.Paper = None,
    steps: options.Steps = 28,
    sigmas: options.Sigmas = None,
    seed: options.Seed = 0,
    size: options.Size = None,
    guidance: options.Guidance = None,
    max_sequence_length: options.MaxSequenceLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    with_dense: Annotated[
        bool, typer.Option("--compare", help="Make the dense picture too, and time both.")
    ] = False,
    out: options.Out = Path("out"),
    verbose: options.Verbose = False,
) -> None:
    """Make pictures and the maps of where the work went.

    Writes PROMPT-SEED.png and ...-map.png, with --compare ...-dense.png and ...-compare.png too.

    The same prompt and seed replace their own files.
    """
    chosen = _configuration(sample_ratio, preset, config, paper)
    job = _job(prompts, seed, steps, sigmas, size, guidance, max_sequence_length, model)
    options.check_folder(out)
    with quiet_libraries(verbose=verbose):
        messages = Console(stderr=True)
        pipeline = _loaded(messages, model, dtype, device, job)
        if with_dense:
            with progress(messages, 2 * (1 + TIMED_RUNS)) as on_step:
                measured = compare(pipeline, chosen, job, runs=TIMED_RUNS, on_step=on_step)
            options.make_folder(out)
            _write_pictures(out, job, measured.ras, measured)
            output().print(_comparison_table(measured, pipeline))
        else:
            with progress(messages, 1) as on_step:
                generated = generate(pipeline, chosen, job, on_step=on_step)
            options.make_folder(out)
            _write_pictures(out, job, generated, None)
            typer.echo(run_line(generated))


@app.command("visualize")
def _visualize(
    prompts: options.Prompts,
    model: options.Model = None,
    sample_ratio: options.SampleRatio = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    paper: options.Paper = None,
    steps: options.Steps = 28,
    sigmas: options.Sigmas = None,
    seed: options.Seed = 0,
    size: options.Size = None,
    guidance: options.Guidance = None,
    max_sequence_length: options.MaxSequenceLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    animated: Annotated[
        bool, typer.Option("--animation", help="Write a GIF of all steps too.")
    ] = False,
    out: options.Out = Path("out"),
    verbose: options.Verbose = False,
) -> None:
    """Draw how a run went: where the work went, the scores, the chosen tokens, step by step.

    Writes PROMPT-SEED-sheet.png, with --animation PROMPT-SEED-steps.gif too.

    The run is recorded in CPU memory: 2 x steps x the size of the latents; 28 steps of one
    1024x1024 picture of Stable Diffusion 3 take 28 MiB in half precision, 56 MiB in float32.
    """
    chosen = _configuration(sample_ratio, preset, config, paper)
    job = _job(prompts, seed, steps, sigmas, size, guidance, max_sequence_length, model)
    options.check_folder(out)
    with quiet_libraries(verbose=verbose):
        messages = Console(stderr=True)
        pipeline = _loaded(messages, model, dtype, device, job)
        with progress(messages, 2) as on_step:
            dense = generate(pipeline, None, job, on_step=on_step)
            recorded = generate(pipeline, chosen, job, on_step=on_step, record=True)
        options.make_folder(out)
        for drawing in figures_of(pipeline, job, dense, recorded, animated=animated):
            name = f"{slug(drawing.prompt)}-{drawing.seed}"
            _write(drawing.sheet, out / f"{name}-sheet.png", drawing.prompt, drawing.seed)
            if drawing.frames:
                path = out / f"{name}-steps.gif"
                typer.echo(f"{'replaced' if path.exists() else 'wrote'} {path}")
                save_animation(drawing.frames, path)
    assert recorded.recording is not None
    typer.echo(f"{run_line(recorded)}; recording {recorded.recording.nbytes / 2**20:.1f} MiB")


@app.command("plan")
def _plan(
    model: options.PlannedModel = None,
    sample_ratio: options.SampleRatio = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    paper: options.Paper = None,
    steps: options.PlannedSteps = None,
    size: options.Size = None,
    frames: options.Frames = None,
    guidance: options.Guidance = None,
    max_sequence_length: options.MaxSequenceLength = None,
    dtype: options.Dtype = "auto",
    verbose: options.Verbose = False,
) -> None:
    """Show what a run would do in each step and what that saves, without loading weights.

    A model is a folder, a hub id, or the name of a published one, such as FLUX.1-dev.
    """
    chosen = _configuration(sample_ratio, preset, config, paper)
    width, height = parse_size(size, "--size")
    with quiet_libraries(verbose=verbose):
        outline = read_outline(model, max_sequence_length=max_sequence_length)
        layout = outline.layout(width, height, frames)
        planned = plan_outline(
            outline,
            chosen,
            outline.num_evaluations(steps or outline.num_inference_steps),
            layout,
            dtype=choose_dtype(dtype),
            branches=1 if guidance is not None and guidance <= 1 else None,
        )
    table = Table("steps", "kind", *(Column(name, justify="right") for name in HEADINGS[2:]))
    for row in planned.rows:
        table.add_row(*row.cells())
    facts = Table("the whole run", "")
    for fact in planned.facts():
        facts.add_row(*fact)
    output().print(table, facts)


@app.command("models")
def _models() -> None:
    """List the pipelines that are supported and tested, and those that are refused."""
    support, console = read_support(), output()
    tested = Table(
        "family", _names("pipeline in diffusers", [r.pipeline for r in support.supported]), "tested"
    )
    for row in support.by_family():
        tested.add_row(*row)
    refused = Table(_names("refused", support.refused), "because")
    for name, reason in sorted(support.refused.items()):
        refused.add_row(name, reason)
    for table in (tested, refused):
        console.print(table, crop=False)


def _names(heading: str, names: Iterable[str]) -> Column:
    """A column of names that are looked for as they are, so that none is broken."""
    return Column(heading, no_wrap=True, min_width=max(map(len, names)))


def _configuration(
    sample_ratio: float | None, preset: str | None, config: Path | None, paper: str | None
) -> RASConfig:
    if sum(choice is not None for choice in (sample_ratio, preset, config)) > 1:
        raise RASError("--sample-ratio, --preset and --config exclude each other; give one")
    if paper is not None:
        if preset is not None or config is not None:
            raise RASError("--paper goes with --sample-ratio, not with --preset or --config")
        ratio = RASConfig.sample_ratio if sample_ratio is None else sample_ratio
        return RASConfig.paper(paper, ratio)  # type: ignore[arg-type]  # checks it itself
    if sample_ratio is not None:
        return RASConfig(sample_ratio=sample_ratio)
    if config is not None:
        return RASConfig.load(config)
    name = DEFAULT_PRESET if preset is None else preset
    if name not in presets():
        raise RASError(f"the preset {name!r} is unknown; expected one of {', '.join(presets())}")
    return RASConfig.load(name)


def _job(
    prompts: Sequence[str],
    seed: int,
    steps: int,
    sigmas: str | None,
    size: str | None,
    guidance: float | None,
    max_sequence_length: int | None,
    model: str | None,
) -> Job:
    width, height = parse_size(size, "--size")
    defaults = call_defaults(model)
    return Job(
        prompts=tuple(prompts),
        seeds=seeds_for(prompts, seed),
        num_inference_steps=steps,
        width=width,
        height=height,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        max_sequence_length=max_sequence_length or defaults.max_sequence_length,
        sigmas=parse_sigmas(sigmas, "--sigmas"),
    )


def _loaded(messages: Console, model: str | None, dtype: str, device: str, job: Job) -> Any:
    with messages.status(f"loading {model or 'the embedded model'}"):
        pipeline = load_pipeline(model, dtype=dtype, device=device)
    check_size(pipeline, job)
    return pipeline


def slug(prompt: str) -> str:
    """A file name for a prompt: its words, and a short digest where words do not tell it apart."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_LONGEST_SLUG].strip("-")
    if words.replace("-", " ") == prompt:
        return words
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return f"{words}-{digest}" if words else digest


def _write_pictures(out: Path, job: Job, generated: Generated, measured: Comparison | None) -> None:
    assert generated.trace is not None
    for index, (prompt, seed) in enumerate(zip(job.prompts, job.seeds, strict=True)):
        image = generated.images[index]
        pictures = {"": image, "-map": region_map(generated.trace, image, index)}
        if measured is not None:
            dense = measured.dense.images[index]
            captions = (
                f"dense, {statistics.median(measured.dense_seconds):.2f} s",
                f"region-adaptive, {statistics.median(measured.ras_seconds):.2f} s",
                "where the work went",
            )
            pictures["-dense"] = dense
            pictures["-compare"] = side_by_side(dense, image, generated.trace, index, captions)
        for suffix, picture in pictures.items():
            _write(picture, out / f"{slug(prompt)}-{seed}{suffix}.png", prompt, seed)


def _write(picture: Image.Image, path: Path, prompt: str, seed: int) -> None:
    verb = "replaced" if path.exists() else "wrote"
    notes = PngInfo()
    notes.add_itxt("prompt", prompt)
    notes.add_itxt("seed", str(seed))
    picture.save(path, pnginfo=notes)
    typer.echo(f"{verb} {path}")


def _comparison_table(measured: Comparison, pipeline: Any) -> Table:
    table = Table("region-adaptive sampling", "", title_justify="left")
    for name, value in comparison_rows(measured):
        table.add_row(name, value)
    device = pipeline.transformer.device
    place = f"threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    table.add_row("measured on", f"{device.type}, {place}, {measured.trace.dtype}")
    return table
