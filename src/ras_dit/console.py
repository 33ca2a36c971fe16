"""What the program does with a terminal: progress, one line per warning, quiet libraries."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ras_dit.errors import RASWarning
from ras_dit.generate import OnStep

# Wider than any table: rich breaks words at 80 columns where there is no terminal.
_UNLIMITED = 10_000


def output() -> Console:
    """Where tables go: as wide as the terminal, and without limit into a pipe or a file."""
    # Without markup: brackets in a text are brackets.
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=_UNLIMITED, markup=False)


@contextlib.contextmanager
def progress(console: Console, runs: int) -> Iterator[OnStep]:
    """A bar over the steps of all runs, where stderr is a terminal."""
    bar = Progress(
        TextColumn("denoising"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("denoising", total=None)

        def on_step(_done: int, total: int) -> None:
            bar.update(task, total=runs * total, advance=1)

        yield on_step


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over (done, all) of something, where stderr is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def one_line_warnings(*, verbose: bool) -> Iterator[None]:
    """Python's warnings as one line each; those that are not ours only if verbose."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if verbose or issubclass(category, RASWarning):
            say("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _OneLine(logging.Handler):
    """Warnings as one line on stderr; what is logged as an error is also raised, and told then."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            say("warning", record.getMessage())


@contextlib.contextmanager
def quiet_libraries(*, verbose: bool) -> Iterator[None]:
    """What diffusers has to say as one line each, and no progress bars but ours."""
    # Both give their loggers a handler when they are first imported; it is replaced after that.
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    # transformers and the hub's client only speak of themselves: of optional packages, of retries.
    levels = {"diffusers": logging.WARNING}
    levels |= dict.fromkeys(("transformers", "huggingface_hub"), logging.ERROR)
    before = [
        (logger, logger.level, logger.handlers, logger.propagate)
        for logger in map(logging.getLogger, levels)
    ]
    handler = _OneLine()
    try:
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
        for logger, *_ in before:
            logger.setLevel(logging.WARNING if verbose else levels[logger.name])
            logger.handlers, logger.propagate = [handler], False
        yield
    finally:
        for library in (diffusers_logging, transformers_logging):
            library.enable_progress_bar()
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate


def say(kind: str, text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{kind}: {' '.join(text.split())}\n")


def fail(text: str, status: int) -> int:
    """Say what is wrong; gives the exit status."""
    say("error", text)
    return status
