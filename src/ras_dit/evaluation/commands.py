"""``ras-dit evaluate``: generate, time, score, report, gate, run. Mounted by ``ras_dit.cli``.

Everything heavy is imported inside the commands, so that mounting them costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit.errors import RASError
from ras_dit.options import check_folder

if TYPE_CHECKING:
    from ras_dit.evaluation.crews import Crew
    from ras_dit.evaluation.manifest import Manifest, Settings

app = typer.Typer(help="Quality against speed, with the controls at equal cost.")

_File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The evaluation.")]
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The evaluation's folder.")]
_MaybeFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="FILE.yaml", help="Take scores and time from it, not from DIR."
    ),
]
_Out = Annotated[Path, typer.Option(help="The evaluation's folder.")]
_Engine = Annotated[str, typer.Option(help="local or ray.")]
_Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes. [default: 1; with ray as many as fit]")
]
_Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster. [default: the one that this machine is in]")
]
_Budget = Annotated[
    float | None, typer.Option(min=0, help="Minutes after which nothing new is begun.")
]
_Model = Annotated[str | None, typer.Option(help="In place of the file's model.")]
_Device = Annotated[str | None, typer.Option(help="In place of the file's device.")]
_Only = Annotated[list[str] | None, typer.Option(help="This scorer only; may be repeated.")]


@app.callback(invoke_without_command=True)
def _evaluate(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("generate")
def _generate(
    file: _File,
    out: _Out,
    engine: _Engine = "local",
    workers: _Workers = None,
    address: _Address = None,
    budget: _Budget = None,
    model: _Model = None,
    device: _Device = None,
) -> None:
    """Make the pictures. Started again, it goes on where it was stopped."""
    check_folder(out)
    manifest, settings = _planned(file, model, device)
    _make(out, manifest, settings, _crew(engine, workers, address), budget)


@app.command("score")
def _score(
    folder: _Folder,
    settings: _MaybeFile = None,
    only: _Only = None,
    engine: _Engine = "local",
    workers: _Workers = None,
    address: _Address = None,
) -> None:
    """Score the pictures that are there."""
    given = None if settings is None else _read_settings(settings)
    _judge(folder, given, only or [], _crew(engine, workers, address))


@app.command("time")
def _time(folder: _Folder, settings: _MaybeFile = None, device: _Device = None) -> None:
    """Measure seconds and memory: one process, rows in turn, after a warm-up."""
    from ras_dit.evaluation.timing import time_rows

    given = None if settings is None else _read_settings(settings)
    with _working("timing") as advance:
        rounds = time_rows(folder, given, device=device, on_run=advance)
    typer.echo(f"timed {rounds} rounds of all rows")


@app.command("report")
def _report(
    folder: _Folder,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. [default: DIR/report]")
    ] = None,
) -> None:
    """Write the report: markdown, CSV and a plot."""
    from ras_dit.evaluation.report import write_report

    check_folder(out or folder / "report")
    for path in write_report(folder, out or folder / "report"):
        typer.echo(f"wrote {path}")


@app.command("run")
def _run(
    file: _File,
    out: _Out,
    engine: _Engine = "local",
    workers: _Workers = None,
    address: _Address = None,
    budget: _Budget = None,
    model: _Model = None,
    device: _Device = None,
) -> None:
    """All of it: generate, score, time where the file asks for it, report."""
    check_folder(out)
    manifest, settings = _planned(file, model, device)
    crew = _crew(engine, workers, address)
    _make(out, manifest, settings, crew, budget)
    _judge(out, None, [], crew)
    if settings.time:
        _time(out)
    _report(out)


@app.command("gate")
def _gate(
    folder: _Folder,
    psnr: Annotated[
        float | None, typer.Option(help="Least mean PSNR to the reference, dB.")
    ] = None,
    ssim: Annotated[float | None, typer.Option(help="Least mean SSIM to the reference.")] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="This row only; may be repeated. [default: all but controls]"),
    ] = None,
) -> None:
    """Exit with 1 if a row is not faithful enough to the reference."""
    from ras_dit.evaluation.gate import check_gate

    findings = check_gate(folder, {"psnr": psnr, "ssim": ssim}, row or [])
    for finding in findings:
        typer.echo(str(finding))
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)


def _planned(file: Path, model: str | None, device: str | None) -> tuple[Manifest, Settings]:
    from ras_dit.console import quiet_libraries
    from ras_dit.evaluation.manifest import plan_evaluation, read_evaluation

    data = read_evaluation(file, {"model": model, "device": device})
    with quiet_libraries(verbose=False):
        return plan_evaluation(data, file.parent)


def _read_settings(file: Path) -> Settings:
    from ras_dit.evaluation.manifest import read_evaluation, read_settings

    return read_settings(read_evaluation(file), file.parent)


def _crew(engine: str, workers: int | None, address: str | None) -> Crew:
    from ras_dit.evaluation.crews import Alone, Processes

    if engine == "local":
        if address is not None:
            raise RASError("--address goes with --engine ray")
        return Alone() if workers in {None, 1} else Processes(workers or 1)
    if engine != "ray":
        raise RASError(f"--engine {engine!r} is unknown; expected local or ray")
    from ras_dit.evaluation.cluster import RayCluster

    return RayCluster(address, workers)


def _make(
    out: Path, manifest: Manifest, settings: Settings, crew: Crew, budget: float | None
) -> None:
    from ras_dit.evaluation.stages import generate_pictures

    with _working("making pictures") as advance:
        progress = generate_pictures(
            out,
            manifest,
            settings,
            crew=crew,
            budget=None if budget is None else 60 * budget,
            on_unit=advance,
        )
    for name, reason in progress.refused.items():
        typer.echo(f"refused: {name}: {reason}", err=True)
    rest = "" if progress.whole else "; the same command goes on"
    typer.echo(f"{progress.done} of {progress.total} units of pictures are in {out}{rest}")


def _judge(folder: Path, settings: Settings | None, only: list[str], crew: Crew) -> None:
    from ras_dit.evaluation.stages import score_pictures

    with _working("scoring") as advance:
        progress = score_pictures(folder, settings, only=only, crew=crew, on_unit=advance)
    for name, reason in progress.refused.items():
        typer.echo(f"no {name}: {reason}", err=True)
    typer.echo(f"{progress.done} of {progress.total} units are scored")


@contextlib.contextmanager
def _working(what: str) -> Iterator[Callable[[int, int], None]]:
    """Libraries quiet, and a bar over the units."""
    from ras_dit.console import counting, quiet_libraries, say

    try:
        with quiet_libraries(verbose=False), counting(what) as advance:
            yield advance
    except KeyboardInterrupt:
        say("note", "interrupted; what is finished is kept, and the same command goes on")
        raise
