"""``ras-dit tune``. Mounted by ``ras_dit.cli``.

Everything heavy is imported inside the command, so that mounting it costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit import options
from ras_dit.errors import RASError
from ras_dit.validation import parse_size

if TYPE_CHECKING:
    from ras_dit.evaluation.prompts import Prompt

# Away from the small seeds that evaluations start from, so that those stay held out.
_SEED = 100_000

_Cost = Annotated[
    float | None, typer.Option(help="The most that a picture may cost, in dense steps.")
]
_Fidelity = Annotated[
    float | None,
    typer.Option(help="In place of --cost: the least median PSNR to the reference, dB."),
]
_Images = Annotated[int, typer.Option(min=1, help="Pictures of the search.")]
_Check = Annotated[
    int, typer.Option(min=1, help="Pictures of the check, of other prompts and seeds.")
]
_Trials = Annotated[int, typer.Option(min=1, help="Candidates; as many dense controls.")]
_Reference = Annotated[int, typer.Option(min=2, help="Dense steps of the reference.")]
_MostSteps = Annotated[int, typer.Option(min=2, help="The most steps of a candidate.")]
_Seed = Annotated[
    int, typer.Option(min=0, help="Of the first picture, the others count on; of the search.")
]
_Batch = Annotated[int, typer.Option(min=1, help="Pictures made at a time.")]
_Storage = Annotated[
    Path | None,
    typer.Option(metavar="FILE.db", help="Keeps the trials; the same command goes on."),
]
_Out = Annotated[Path, typer.Option(metavar="FILE.yaml", help="The preset.")]


def tune_command(
    *,
    model: options.ModelArgument = None,
    cost: _Cost = None,
    fidelity: _Fidelity = None,
    prompts: options.PromptFile = None,
    images: _Images = 8,
    check: _Check = 8,
    trials: _Trials = 60,
    reference_steps: _Reference = 112,
    most_steps: _MostSteps = 50,
    seed: _Seed = _SEED,
    size: options.Size = None,
    guidance: options.Guidance = None,
    max_sequence_length: options.MaxSequenceLength = None,
    batch: _Batch = 4,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    storage: _Storage = None,
    out: _Out = Path("preset.yaml"),
    verbose: options.Verbose = False,
) -> None:
    """Search the preset of a model for a budget, and the dense run that it has to beat.

    Writes FILE.yaml, which ras_dit.enable and --config load, and FILE.md, the report.
    """
    from ras_dit.console import counting, quiet_libraries
    from ras_dit.generate import Job
    from ras_dit.loading import call_defaults, load_pipeline
    from ras_dit.tuning import Gauge, Target, tune
    from ras_dit.tuning.report import check_out, verdict, write_tuning
    from ras_dit.tuning.search import import_optuna

    import_optuna()
    check_out(out)
    target = Target(cost=cost, fidelity=fidelity)
    width, height = parse_size(size, "--size")
    defaults = call_defaults(model)
    # Some scenes of the grammar are told in the same words.
    texts = options.read_prompt_file(prompts, model, seed=seed, scenes=2 * (images + check))
    chosen, others = split(texts, images, check)

    def job(texts: Sequence[str], first: int) -> Job:
        return Job(
            prompts=tuple(texts),
            seeds=tuple(range(first, first + len(texts))),
            width=width,
            height=height,
            guidance_scale=defaults.guidance_scale if guidance is None else guidance,
            max_sequence_length=max_sequence_length or defaults.max_sequence_length,
        )

    with quiet_libraries(verbose=verbose), counting("tuning") as on_trial:
        pipeline = load_pipeline(model, dtype=dtype, device=device)
        searched, checked = (
            Gauge(pipeline, part, reference_steps=reference_steps, batch=batch)
            for part in (job(chosen, seed), job(others, seed + images))
        )
        found = tune(
            searched,
            checked,
            target,
            trials=trials,
            most_steps=most_steps,
            seed=seed,
            storage=storage,
            on_trial=on_trial,
        )
    for path in write_tuning(found, out):
        typer.echo(f"wrote {path}")
    typer.echo(verdict(found))


def split(prompts: Sequence[Prompt], images: int, check: int) -> tuple[list[str], list[str]]:
    """Prompts for the search and others for the check; few prompts serve several pictures.

    Raises:
        RASError: If there is one only.
    """
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    if len(texts) < 2:
        raise RASError(
            "there is one prompt only, and the check needs others than the search; give two or more"
        )
    wanted = images + check
    share = images
    if len(texts) < wanted:
        share = min(max(1, round(len(texts) * images / wanted)), len(texts) - 1)
    parts = (texts[:share], images), (texts[share:], check)
    first, second = (list(itertools.islice(itertools.cycle(own), count)) for own, count in parts)
    return first, second
