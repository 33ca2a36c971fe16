"""``ras-dit diagnose``. Mounted by ``ras_dit.cli``.

Everything heavy is imported inside the command, so that mounting it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit import options
from ras_dit.validation import parse_size

if TYPE_CHECKING:
    from ras_dit.evaluation.prompts import Prompt

_FROM_GRAMMAR = 8

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
    model: options.ModelArgument = None,
    prompts: options.PromptFile = None,
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
    from ras_dit.console import counting, quiet_libraries
    from ras_dit.diagnosis.measure import RATIOS
    from ras_dit.diagnosis.measure import diagnose as measure
    from ras_dit.diagnosis.report import write_diagnosis
    from ras_dit.diagnosis.verdict import judge
    from ras_dit.generate import Job
    from ras_dit.loading import call_defaults, load_pipeline

    width, height = parse_size(size, "--size")
    chosen = options.read_prompt_file(
        prompts, model, seed=seed, scenes=count or _FROM_GRAMMAR, count=count
    )
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
    options.check_folder(out)
    with quiet_libraries(verbose=verbose), counting("diagnosing") as on_run:
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
    options.make_folder(out)
    for path in write_diagnosis(found, out):
        typer.echo(f"wrote {path}")
    typer.echo(judge(found).headline)


def _seeds(prompts: Sequence[Prompt], seed: int) -> tuple[int, ...]:
    """A prompt's own seed, and the next ones for its further images; else by number."""
    seeds = []
    for number, prompt in enumerate(prompts):
        own = prompt.seed
        before = sum(other is prompt for other in prompts[:number])
        seeds.append(seed + number if own is None else own + before)
    return tuple(seeds)
