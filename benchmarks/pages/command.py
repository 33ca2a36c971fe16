"""The command of a benchmark with a page: make pictures and scores, or seconds, then the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages.evaluations import Evaluation, Say, make, measure, read_found
from benchmarks.pages.page import fill
from ras_dit.console import fail, quiet_libraries
from ras_dit.errors import RASError
from ras_dit.evaluation.comparisons import RowResult
from ras_dit.evaluation.files import write_bytes

ROOT = Path(__file__).parents[2]
Found = Mapping[str, tuple[RowResult, ...]]
NO_PICTURES = "No pictures yet."


@dataclass(frozen=True)
class Drawn:
    """What is made of the results.

    Attributes:
        parts: Markdown by name of the place in the page.
        files: Content of tables and plots by name.
    """

    parts: Mapping[str, str]
    files: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Evaluations, and the page that is made of them.

    Attributes:
        name: Of its package in ``benchmarks``, and of its folders in ``out`` and ``docs``.
        page: File name of the page in ``docs``.
        evaluations: Names of the YAML files in its package, in the order of their making.
        timed: Those whose rows are timed.
        draw: Makes tables and plots of the rows of each evaluation that was begun.
    """

    name: str
    page: str
    evaluations: tuple[str, ...]
    timed: tuple[str, ...]
    draw: Callable[[Found], Drawn]

    @property
    def files(self) -> Path:
        """Folder of the YAML files."""
        return ROOT / "benchmarks" / self.name

    @property
    def maker(self) -> str:
        """The command."""
        return f"python -m benchmarks.{self.name}"


def write_page(benchmark: Benchmark, out: Path, docs: Path) -> tuple[Path, ...]:
    """Tables, plots and the page, of all that is there.

    Args:
        benchmark: The benchmark.
        out: The folder of its evaluations.
        docs: Folder of the page, with a folder beside it for the files.

    Returns:
        The files.

    Raises:
        RASError: If there are no pictures, or the page lacks a place.
    """
    found, facts = read_found(out, benchmark.evaluations)
    if not any(result.pictures for results in found.values() for result in results):
        raise RASError(f"{str(out)!r} has no pictures yet; give more --budget")
    drawn = benchmark.draw(found)
    written = []
    for name, content in drawn.files.items():
        written.append(docs / benchmark.name / name)
        write_bytes(written[-1], content)
    page = docs / benchmark.page
    fill(page, {"made": facts, **drawn.parts}, benchmark.maker)
    return (*written, page)


def run(
    benchmark: Benchmark,
    description: str | None,
    arguments: Sequence[str] | None = None,
    say: Say = sys.stdout.write,
) -> int:
    """Run the command of a benchmark.

    Args:
        benchmark: The benchmark.
        description: What the help says.
        arguments: Words after the command; ``None`` reads the command line.
        say: Where messages go.

    Returns:
        The exit status: 2 for bad input.
    """
    names = benchmark.evaluations
    parser = argparse.ArgumentParser(
        prog=benchmark.maker,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--times", action="store_true", help="measure seconds instead")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / benchmark.name)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where tables go")
    parser.add_argument("--evaluations", type=Path, default=benchmark.files)
    options = parser.parse_args(arguments)
    wanted = benchmark.timed if options.times else names
    try:
        with quiet_libraries(verbose=False):
            chosen = [
                Evaluation.read(name, options.evaluations, options.out)
                for name in wanted
                if name in options.only
            ]
            if options.times:
                for evaluation in chosen:
                    measure(evaluation, say)
            else:
                make(chosen, options.budget, options.workers, say)
            for path in write_page(benchmark, options.out, options.docs):
                say(f"wrote {path}\n")
    except RASError as error:
        return fail(str(error), 2)
    return 0
