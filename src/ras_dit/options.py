"""Options that several commands of the program share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ras_dit.config_files import presets
from ras_dit.errors import RASError
from ras_dit.loading import DTYPES

if TYPE_CHECKING:
    from ras_dit.evaluation.prompts import Prompt

DEFAULT_PRESET = "balanced"
_THE_MODELS = "the model's"

Prompts = Annotated[
    list[str], typer.Argument(metavar="PROMPT...", help="One picture is made per prompt.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_HUB_ID",
        help="A folder, or owner/name on a hub.",
        show_default="the embedded model",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, or owner/name on a hub.",
        show_default="the embedded model",
    ),
]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A prompt per line, or JSON lines (.jsonl); grammar: scenes of the embedded model.",
        show_default="grammar, for the embedded model",
    ),
]
PlannedModel = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_HUB_ID_OR_NAME",
        help="A folder, owner/name on a hub, or the name of a published model.",
        show_default="the embedded model",
    ),
]
SampleRatio = Annotated[
    float | None, typer.Option(help="Share of active tokens in sparse steps, in (0, 1].")
]
Preset = Annotated[
    str | None, typer.Option(help=f"{', '.join(presets())}.", show_default=DEFAULT_PRESET)
]
ConfigFile = Annotated[Path | None, typer.Option(help="A YAML file of RASConfig fields.")]
Paper = Annotated[
    str | None,
    typer.Option(metavar="sd3|lumina", help="The paper's schedule, with --sample-ratio or 0.5."),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Sigmas = Annotated[
    str | None,
    typer.Option(
        help="Noise levels of the steps, as 1,0.8,0.5, one per step, before the scheduler's shift.",
        show_default="the scheduler's",
    ),
]
PlannedSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Denoising steps.", show_default=_THE_MODELS)
]
Frames = Annotated[
    int | None, typer.Option(min=1, help="Frames of a video.", show_default=_THE_MODELS)
]
Seed = Annotated[
    int, typer.Option(min=0, help="Of every picture; a repeated prompt gets the next one.")
]
Size = Annotated[
    str | None, typer.Option(metavar="WxH", help="In pixels.", show_default=_THE_MODELS)
]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Guidance scale.", show_default=_THE_MODELS)
]
MaxSequenceLength = Annotated[
    int | None,
    typer.Option(min=1, help="Text rows of the long text encoder.", show_default=_THE_MODELS),
]
Dtype = Annotated[str, typer.Option(help=f"auto, {', '.join(DTYPES)}.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks and all warnings.")]


def read_prompt_file(
    source: str | None, model: str | None, *, seed: int, scenes: int, count: int | None = None
) -> tuple[Prompt, ...]:
    """The prompts of ``--prompts``.

    Args:
        source: What was given.
        model: The model; only the embedded one has prompts of its own.
        seed: Of the scenes.
        scenes: How many different ones a grammar gives.
        count: The most prompts of a file; ``None`` is all.

    Raises:
        RASError: If there are none.
    """
    from ras_dit.evaluation.prompts import GRAMMARS, read_prompts

    if source is None and model is not None:
        raise RASError(
            "say what to make with --prompts FILE: a text file with a prompt per line, or JSON "
            "lines with the field prompt"
        )
    if source is None or source in GRAMMARS:
        return read_prompts(source or "grammar", count=scenes, seed=seed)
    file = Path(source).expanduser()
    return read_prompts("jsonl" if file.suffix == ".jsonl" else "text", file, count=count)


def check_folder(folder: Path) -> None:
    """Refuse a folder of ``--out`` before the work is done; it is made when that is.

    Raises:
        RASError: If it is a file or lies below one, or cannot be written to.
    """
    place = next(part for part in (folder, *folder.parents) if part.exists() or part == part.parent)
    if not place.is_dir():
        below = "" if place == folder else f" lies below {str(place)!r}, which"
        raise RASError(f"--out {str(folder)!r}{below} is a file; give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RASError(f"--out {str(folder)!r} cannot be written to; give another folder")


def make_folder(folder: Path) -> None:
    """Make the folder of ``--out``.

    Raises:
        RASError: If it cannot be made.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RASError(f"--out {str(folder)!r} cannot be made: {error.strerror}") from error
