"""``ras-dit judge``: a folder of pictures of the embedded world against their captions.

Mounted by ``ras_dit.cli``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ras_dit.options import check_folder


def judge_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Lines with file and prompt. [default: DIR/captions.jsonl, or a.txt beside a.png,"
            " or what generate wrote into the picture]",
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
    from ras_dit.console import output
    from ras_dit.evaluation.judge import JUDGE_DIR
    from ras_dit.evaluation.judge_folder import judge_folder, read_captions, summary_table

    if out is not None:
        check_folder(out)
    pictures = read_captions(folder, captions)
    found = judge_folder(pictures, out or folder, judge=judge or JUDGE_DIR)
    console = output()
    console.print(summary_table(found.summaries))
    for summary in found.summaries:
        if summary.note:
            console.print(summary.note)
