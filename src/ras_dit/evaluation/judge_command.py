"""Judge a folder of pictures of the embedded world with their captions.

python -m ras_dit.evaluation.judge_command FOLDER [--captions FILE] [--out FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ras_dit.console import fail
from ras_dit.errors import RASError


def judge_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Lines with file and prompt. [default: DIR/captions.jsonl, or a.txt beside a.png]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go. [default: DIR]")] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Other weights than the shipped ones.")
    ] = None,
) -> None:
    """Judge pictures of the embedded world: do they show what their captions promise?

    Writes results.jsonl (right or wrong for each picture and task, and why) and summary.json.
    """
    from ras_dit.evaluation.judge import JUDGE_DIR
    from ras_dit.evaluation.judge_folder import judge_folder, read_captions, summary_table

    pictures = read_captions(folder, captions)
    found = judge_folder(pictures, out or folder, judge=judge or JUDGE_DIR)
    console = Console()
    console.print(summary_table(found.summaries))
    for summary in found.summaries:
        if summary.note:
            console.print(summary.note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on its own; exit status 2 for bad input."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(judge_command)
    try:
        app(arguments)
    except RASError as error:
        return fail(str(error), 2)
    except SystemExit as finished:
        return int(finished.code or 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
