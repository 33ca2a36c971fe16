"""``ras-dit study``: build, serve, export, analyse. Mounted by ``ras_dit.cli``.

Everything heavy is imported inside the commands, so that mounting them costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from ras_dit.errors import RASError
from ras_dit.validation import parse_size

app = typer.Typer(help="The human study: which of two configurations do people prefer?")
_FOLDER = typer.Argument(metavar="DIR", help="The study folder.")
_KEY = typer.Option(help="The answer key. [default: DIR/key.json]")


@app.callback(invoke_without_command=True)
def _study(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("build")
def _build(  # noqa: PLR0917  (one parameter an option)
    a: Annotated[
        str,
        typer.Option(
            "--a", metavar="CONFIG", help="dense, a sample ratio, a preset or a YAML file."
        ),
    ],
    b: Annotated[str, typer.Option("--b", metavar="CONFIG", help="Like --a.")],
    out: Annotated[Path, typer.Option(help="A new folder for the study.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt per line. [default: 14 that suit the model]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_HUB_ID", help="A pipeline. [default: the embedded model]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    a_steps: Annotated[int | None, typer.Option(min=1, help="Another number for A.")] = None,
    b_steps: Annotated[int | None, typer.Option(min=1, help="Another number for B.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of both pictures of every pair.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="In pixels. [default: the model's]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of the long text encoder. [default: the model's]"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    consent: Annotated[
        Path | None,
        typer.Option(help="What people agree to, a paragraph per line. [default: a short text]"),
    ] = None,
) -> None:
    """Make the pairs of a study, with equal seeds, and write its folder."""
    from ras_dit.console import quiet_libraries
    from ras_dit.loading import call_defaults, load_pipeline
    from ras_dit.study.build import (
        build_study,
        check_differ,
        read_configuration,
        read_consent,
        read_prompts,
    )
    from ras_dit.study.folder import KEY, TITLE, check_new

    check_new(out)
    first = read_configuration(a, a_steps or steps)
    second = read_configuration(b, b_steps or steps)
    check_differ(first, second)
    lines = read_prompts(prompts, embedded=model is None)
    paragraphs = read_consent(consent)
    width, height = parse_size(size, "--size")
    with quiet_libraries(verbose=False):
        defaults = call_defaults(model)
        pipeline = load_pipeline(model, dtype=dtype, device=device)
    with (
        quiet_libraries(verbose=False),
        _progress(len(lines) * (first.steps + second.steps)) as advance,
    ):
        manifest = build_study(
            out,
            pipeline,
            first,
            second,
            lines,
            model=model or "the embedded model",
            seed=seed,
            width=width,
            height=height,
            guidance_scale=defaults.guidance_scale if guidance is None else guidance,
            max_sequence_length=max_sequence_length or defaults.max_sequence_length,
            title=title or TITLE,
            consent=paragraphs,
            on_step=lambda _done, _total: advance(),
        )
    typer.echo(f"wrote {len(manifest.questions)} pairs to {out}")
    typer.echo(f"the answer key is {out / KEY}: show it to nobody who takes part")


@app.command("serve")
def _serve(
    folder: Annotated[Path, _FOLDER],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    access_code: Annotated[
        str | None,
        typer.Option(
            envvar="RAS_DIT_STUDY_CODE", help="What people must type. [default: everyone may]"
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Requests per second and address in the long run.")
    ] = 50.0,
    most_participants: Annotated[
        int, typer.Option(min=1, help="Participants that the study takes.")
    ] = 10_000,
    behind_proxy: Annotated[
        bool,
        typer.Option("--behind-proxy", help="Addresses come from a reverse proxy on this machine."),
    ] = False,
) -> None:
    """Serve a study as a web page until stopped. Answers are stored in DIR at once."""
    try:
        from ras_dit.study.serve import ServeOptions, serve_study
    except ModuleNotFoundError as error:
        raise RASError(
            f"serving a study needs {error.name}; install it with pip install 'ras-dit[study]'"
        ) from error
    options = ServeOptions(code=access_code, rate=rate, most_participants=most_participants)
    serve_study(
        folder,
        options,
        host=host,
        port=port,
        behind_proxy=behind_proxy,
        on_ready=lambda address: typer.echo(f"serving the study at {address} (Ctrl+C stops)"),
    )


@app.command("export")
def _export(
    folder: Annotated[Path, _FOLDER],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
    participants: Annotated[int, typer.Option(min=1, help="Personal codes to make.")] = 100,
    key: Annotated[Path | None, _KEY] = None,
) -> None:
    """Write the study as one HTML file that works offline, and a code for each participant."""
    from ras_dit.study.export import export_study
    from ras_dit.study.folder import KEY

    codes = export_study(folder, key or folder / KEY, out, participants)
    typer.echo(f"wrote {out}: send it to everyone")
    typer.echo(f"wrote {codes}: send each participant one of its {participants} codes")


@app.command("analyse")
def _analyse(
    folder: Annotated[Path, _FOLDER],
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="A file of a static export, or a folder of them; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. [default: DIR/results]")
    ] = None,
    include_partial: Annotated[
        bool, typer.Option("--include-partial", help="Count half-finished participants too.")
    ] = False,
    key: Annotated[Path | None, _KEY] = None,
) -> None:
    """Count the votes, and write a report, CSV files and a plot."""
    from ras_dit.study.analyse import analyse_study
    from ras_dit.study.report import write_results

    analysis = analyse_study(
        folder,
        key_file=key,
        answer_files=_answer_files(answers or []),
        with_partial=include_partial,
    )
    for file in analysis.collection.refused:
        typer.echo(f"not counted: {file.name}: {file.reason}", err=True)
    overall = analysis.overall
    names = {arm: record.name for arm, record in analysis.key.arms.items()}
    typer.echo(
        f"{overall.total} votes: {100 * overall.similar.share:.2f} % similar, "
        f"{100 * overall.a.share:.2f} % prefer A ({names['a']}), "
        f"{100 * overall.b.share:.2f} % prefer B ({names['b']}); "
        f"sign test p = {overall.p_value:.3g}"
    )
    for path in write_results(analysis, out or folder / "results"):
        typer.echo(f"wrote {path}")


def _answer_files(places: list[Path]) -> tuple[Path, ...]:
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise RASError(f"--answers {str(place)!r} does not exist")
        files += sorted(place.glob("*.json")) if place.is_dir() else [place]
    return tuple(files)


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar over the steps of all pictures, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("making the pictures", total=steps)
        yield lambda: bar.advance(task)
