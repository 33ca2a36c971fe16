"""``ras-dit diagnose``. Mounted by ``ras_dit.cli``.

Everything heavy is imported inside the command, so that mounting it costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit import options
from ras_dit.errors import RASError

if TYPE_CHECKING:
    from ras_dit.evaluation.prompts import Prompt

_GRAMMARS = ("grammar", "grammar-detailed")
_FROM_GRAMMAR = 8

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, or owner/name on a hub.",
        show_default="the embedded model",
    ),
]
_Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A prompt per line, or JSON lines (.jsonl); grammar: scenes of the embedded model.",
        show_default="grammar, for the embedded model",
    ),
]
_Count = Annotated[
    int | None,
    typer.Option(min=1, help="Prompts.", show_default=f"all of the file; {_FROM_GRAMMAR}"),
]
_PerPrompt = Annotated[int, typer.Option(min=1, help="Images of each prompt.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of the first image; the others count on.")]
_Batch = Annotated[int, typer.Option(min=1, help="Images made at a time.")]
_Ratio = Annotated[
    list[float] | None,
    typer.Option(
        help="Share of active tokens for the parts; may be repeated.", show_default="0.5 and 0.25"
    ),
]
_Parts = Annotated[
    bool, typer.Option(help="Measure the parts of a sparse step: nine times the work.")
]
_Out = Annotated[Path, typer.Option(help="Folder for the page, its plots and the numbers.")]


def diagnose(
    *,
    model: _Model = None,
    prompts: _Prompts = None,
    count: _Count = None,
    per_prompt: _PerPrompt = 1,
    seed: _Seed = 0,
    steps: options.Steps = 56,
    size: options.Size = None,
    guidance: options.Guidance = None,
    max_sequence_length: options.MaxSequenceLength = None,
    batch: _Batch = 4,
    ratio: _Ratio = None,
    parts: _Parts = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    out: _Out = Path("diagnosis"),
    verbose: options.Verbose = False,
) -> None:
    """Measure how much region-adaptive and multirate sampling can gain on a model.

    Writes diagnosis.md (a verdict, plots and tables), diagnosis.json and diagnosis.csv.
    """
    from ras_dit.diagnosis.measure import RATIOS
    from ras_dit.diagnosis.measure import diagnose as measure
    from ras_dit.diagnosis.report import write_diagnosis
    from ras_dit.diagnosis.verdict import judge
    from ras_dit.evaluation.manifest import parse_size
    from ras_dit.generate import Job
    from ras_dit.loading import call_defaults, load_pipeline

    width, height = parse_size(size)
    chosen = _read_prompts(prompts, count, model, seed)
    shots = [(number, prompt) for number, prompt in enumerate(chosen) for _ in range(per_prompt)]
    defaults = call_defaults(model)
    job = Job(
        prompts=tuple(prompt.text for _, prompt in shots),
        seeds=_seeds([prompt for _, prompt in shots], seed),
        num_inference_steps=steps,
        width=width,
        height=height,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        max_sequence_length=max_sequence_length or defaults.max_sequence_length,
    )
    options.prepare_folder(out)
    with _progress(verbose=verbose) as on_run:
        pipeline = load_pipeline(model, dtype=dtype, device=device)
        found = measure(
            pipeline,
            job,
            groups=[number for number, _ in shots],
            batch=batch,
            ratios=(tuple(ratio) if ratio else RATIOS) if parts else (),
            on_run=on_run,
        )
    found = replace(found, facts={"model": model or "the embedded model", **found.facts})
    for path in write_diagnosis(found, out):
        typer.echo(f"wrote {path}")
    typer.echo(judge(found).headline)


def _read_prompts(
    source: str | None, count: int | None, model: str | None, seed: int
) -> tuple[Prompt, ...]:
    from ras_dit.evaluation.prompts import read_prompts

    if source is None and model is not None:
        raise RASError(
            "say what to make with --prompts FILE: a text file with a prompt per line, or JSON "
            "lines with the field prompt"
        )
    if source is None or source in _GRAMMARS:
        return read_prompts(source or _GRAMMARS[0], count=count or _FROM_GRAMMAR, seed=seed)
    file = Path(source).expanduser()
    return read_prompts("jsonl" if file.suffix == ".jsonl" else "text", file, count=count)


def _seeds(prompts: Sequence[Prompt], seed: int) -> tuple[int, ...]:
    """A prompt's own seed, and the next ones for its further images; else by number."""
    seeds = []
    for number, prompt in enumerate(prompts):
        own = prompt.seed
        before = sum(other is prompt for other in prompts[:number])
        seeds.append(seed + number if own is None else own + before)
    return tuple(seeds)


@contextlib.contextmanager
def _progress(*, verbose: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over the runs, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from ras_dit.console import quiet_libraries

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with quiet_libraries(verbose=verbose), bar:
        task = bar.add_task("diagnosing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
