"""Options that several commands of the program share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ras_dit.config_files import presets
from ras_dit.errors import RASError
from ras_dit.loading import DTYPES

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


def prepare_folder(folder: Path) -> None:
    """Make the folder of ``--out``.

    Raises:
        RASError: If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RASError(f"--out {str(folder)!r} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RASError(f"--out {str(folder)!r} cannot be written to")
