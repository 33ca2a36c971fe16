"""The ``ras-dit`` program: one function a command.

Exit status 0: done; 1: something failed while running; 2: bad input. Both kinds of failure are
one line on stderr.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import statistics
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ras_dit.adapters import DESCRIPTIONS
from ras_dit.config import RASConfig, presets
from ras_dit.errors import RASError, RASWarning
from ras_dit.generate import (
    Comparison,
    Generated,
    Job,
    OnStep,
    check_size,
    compare,
    generate,
    seeds_for,
)
from ras_dit.loading import DTYPES, call_defaults, load_pipeline
from ras_dit.report import comparison_rows, run_line
from ras_dit.study.commands import app as study_app
from ras_dit.visualization import comparison as side_by_side
from ras_dit.visualization import region_map

DEFAULT_PRESET = "balanced"
TIMED_RUNS = 3
_LONGEST_SLUG = 60
_THE_MODELS = "the model's"
# typer's errors of usage, wherever the installed release keeps them.
_UsageError = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Faster diffusion transformers by region-adaptive sampling.",
)
app.add_typer(study_app, name="study")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Words after the program's name; ``None`` reads the command line.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in words
    with _one_line_warnings(verbose=verbose):
        try:
            status = app(words, prog_name="ras-dit", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", 130)
        except Exception as error:  # noqa: BLE001  (the program's last resort)
            if verbose:
                traceback.print_exc()
            if isinstance(error, _UsageError):
                return _fail(error.format_message(), 2)  # type: ignore[attr-defined]
            if isinstance(error, RASError):
                return _fail(str(error), 2)
            return _fail(f"{type(error).__name__}: {error}", 1)
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
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="One picture is made per prompt.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_HUB_ID",
            help="A folder, or owner/name on a hub.",
            show_default="the embedded model",
        ),
    ] = None,
    sample_ratio: Annotated[
        float | None, typer.Option(help="Share of active tokens in sparse steps, in (0, 1].")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(presets())}.", show_default=DEFAULT_PRESET),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of RASConfig fields.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    seed: Annotated[
        int, typer.Option(min=0, help="Of every picture; a repeated prompt gets the next one.")
    ] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="In pixels.", show_default=_THE_MODELS)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale.", show_default=_THE_MODELS)
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Text rows of the long text encoder.", show_default=_THE_MODELS),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"auto, {', '.join(DTYPES)}.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    with_dense: Annotated[
        bool, typer.Option("--compare", help="Make the dense picture too, and time both.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks and all warnings.")
    ] = False,
) -> None:
    """Make pictures and the maps of where the work went.

    Writes PROMPT-SEED.png and ...-map.png, with --compare ...-dense.png and ...-compare.png too.

    The same prompt and seed replace their own files.
    """
    chosen = _configuration(sample_ratio, preset, config)
    width, height = _parse_size(size)
    defaults = call_defaults(model)
    job = Job(
        prompts=tuple(prompts),
        seeds=seeds_for(prompts, seed),
        num_inference_steps=steps,
        width=width,
        height=height,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        max_sequence_length=max_sequence_length or defaults.max_sequence_length,
    )
    _prepare_folder(out)
    with _quiet_libraries(verbose=verbose):
        messages = Console(stderr=True)
        with messages.status(f"loading {model or 'the embedded model'}"):
            pipeline = load_pipeline(model, dtype=dtype, device=device)
        check_size(pipeline, job)
        if with_dense:
            with _progress(messages, 2 * (1 + TIMED_RUNS)) as on_step:
                measured = compare(pipeline, chosen, job, runs=TIMED_RUNS, on_step=on_step)
            _write_pictures(out, job, measured.ras, measured)
            Console().print(_comparison_table(measured, pipeline))
        else:
            with _progress(messages, 1) as on_step:
                generated = generate(pipeline, chosen, job, on_step=on_step)
            _write_pictures(out, job, generated, None)
            typer.echo(run_line(generated))


@app.command("models")
def _models() -> None:
    """List the transformers that are supported."""
    table = Table("family", "transformer in diffusers")
    for description in sorted(DESCRIPTIONS.values(), key=lambda d: d.family):
        table.add_row(description.family, description.transformer)
    Console().print(table)


def _configuration(
    sample_ratio: float | None, preset: str | None, config: Path | None
) -> RASConfig:
    if sum(choice is not None for choice in (sample_ratio, preset, config)) > 1:
        raise RASError("--sample-ratio, --preset and --config exclude each other; give one")
    if sample_ratio is not None:
        return RASConfig(sample_ratio=sample_ratio)
    if config is not None:
        return RASConfig.load(config)
    name = DEFAULT_PRESET if preset is None else preset
    if name not in presets():
        raise RASError(f"the preset {name!r} is unknown; expected one of {', '.join(presets())}")
    return RASConfig.load(name)


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", size)
    if match is None:
        raise RASError(f"--size {size!r} is no size; expected width and height as in 256x256")
    return int(match[1]), int(match[2])


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RASError(f"--out {str(folder)!r} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RASError(f"--out {str(folder)!r} cannot be written to")


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
    place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    table.add_row("measured on", f"{device.type}, {place}, {measured.trace.dtype}")
    return table


@contextlib.contextmanager
def _progress(console: Console, runs: int) -> Iterator[OnStep]:
    """A bar over the steps of all runs, where stderr is a terminal."""
    bar = Progress(
        TextColumn("denoising"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("denoising", total=None)

        def on_step(_done: int, total: int) -> None:
            bar.update(task, total=runs * total, advance=1)

        yield on_step


@contextlib.contextmanager
def _one_line_warnings(*, verbose: bool) -> Iterator[None]:
    """Python's warnings as one line each; those that are not ours only if verbose."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if verbose or issubclass(category, RASWarning):
            _say("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _OneLine(logging.Handler):
    """Warnings as one line on stderr; what is logged as an error is also raised, and told then."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            _say("warning", record.getMessage())


@contextlib.contextmanager
def _quiet_libraries(*, verbose: bool) -> Iterator[None]:
    """What diffusers has to say as one line each, and no progress bars but ours."""
    # Both give their loggers a handler when they are first imported; it is replaced after that.
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    # transformers and the hub's client only speak of themselves: of optional packages, of retries.
    levels = {"diffusers": logging.WARNING}
    levels |= dict.fromkeys(("transformers", "huggingface_hub"), logging.ERROR)
    before = [
        (logger, logger.level, logger.handlers, logger.propagate)
        for logger in map(logging.getLogger, levels)
    ]
    handler = _OneLine()
    try:
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
        for logger, *_ in before:
            logger.setLevel(logging.WARNING if verbose else levels[logger.name])
            logger.handlers, logger.propagate = [handler], False
        yield
    finally:
        for library in (diffusers_logging, transformers_logging):
            library.enable_progress_bar()
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate


def _say(kind: str, text: str) -> None:
    sys.stderr.write(f"{kind}: {' '.join(text.split())}\n")


def _fail(text: str, status: int) -> int:
    _say("error", text)
    return status
