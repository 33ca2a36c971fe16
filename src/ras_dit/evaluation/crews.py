"""Who does the tasks: this process, processes of this machine, or a Ray cluster.

Whoever does them, the same manifest gives the same bytes: a task says all that its product depends
on, and only the process that runs the stage writes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from ras_dit.errors import RASError
from ras_dit.evaluation.manifest import Manifest, Settings
from ras_dit.evaluation.workshop import Product, Task, Workshop

MOST_TRIES = 3


class WorkFailedError(RuntimeError):
    """A task that failed; what was finished before is stored."""


class Crew(Protocol):
    """Whoever does tasks."""

    def run(
        self, manifest: Manifest, settings: Settings, tasks: Iterator[Task]
    ) -> Iterator[Product]:
        """Do the tasks; products come in any order. Closing the iterator stops the work.

        Raises:
            RASError: If the model or a picture cannot be read.
            WorkFailedError: If a task failed otherwise, or its workers died again and again.
        """


@dataclass(frozen=True)
class Alone:
    """This process does the tasks, one after the other."""

    def run(
        self, manifest: Manifest, settings: Settings, tasks: Iterator[Task]
    ) -> Iterator[Product]:
        """As :meth:`Crew.run`."""
        workshop = Workshop(manifest, settings)
        for task in tasks:
            yield workshop.perform(task)


@dataclass(frozen=True)
class Processes:
    """Processes of this machine, which end when this one does, however that ends.

    Attributes:
        count: How many.
    """

    count: int

    def run(
        self, manifest: Manifest, settings: Settings, tasks: Iterator[Task]
    ) -> Iterator[Product]:
        """As :meth:`Crew.run`."""
        again: deque[Task] = deque()
        tries: Counter[tuple[str, int, str | None]] = Counter()
        crew: list[_Worker] = []
        try:
            while True:
                while len(crew) < self.count or any(worker.task is None for worker in crew):
                    task = again.popleft() if again else next(tasks, None)
                    if task is None:
                        break
                    tries[task.key] += 1
                    _idle(crew, manifest, settings).give(task)
                busy = [worker for worker in crew if worker.task is not None]
                if not busy:
                    return
                for worker in _ready(busy):
                    assert worker.task is not None
                    task, product = worker.task, worker.take()
                    if product is not None:
                        yield product
                        continue
                    crew.remove(worker)
                    check_tries(task, tries[task.key], f"its worker ended with {worker.ending}")
                    again.append(task)
        finally:
            for worker in crew:
                worker.stop()


def check_tries(task: Task, tries: int, reason: str) -> None:
    """Give up on a task whose workers keep dying.

    Raises:
        WorkFailedError: If it was tried often enough.
    """
    if tries >= MOST_TRIES:
        raise WorkFailedError(
            f"unit {task.unit} of {task.row} failed {tries} times ({reason}); what is finished is "
            "stored: look for want of memory, then run the same command again"
        )


def raise_failure(kind: str, text: str) -> None:
    """Raise here what a worker raised there."""
    if kind == "input":
        raise RASError(text)
    raise WorkFailedError(text)


def describe_failure(error: Exception) -> tuple[str, str]:
    """What :func:`raise_failure` needs to know of an error."""
    if isinstance(error, RASError):
        return "input", str(error)
    return "failure", "".join(traceback.format_exception(error))


class _Worker:
    """A process that does tasks."""

    def __init__(self, manifest: Manifest, settings: Settings) -> None:
        # Forked processes would inherit torch's threads in whatever state they are.
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        # The other end closes when this process ends, even when it is killed.
        self._life, life = spawn.Pipe()
        self._process: SpawnProcess = spawn.Process(
            target=_work, args=(theirs, life, manifest, settings), daemon=True
        )
        self._process.start()
        theirs.close()
        life.close()
        self.task: Task | None = None

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def ending(self) -> str:
        self._process.join(10)
        return f"exit status {self._process.exitcode}"

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):
            self._connection.send(task)

    def take(self) -> Product | None:
        """The product of the task, or nothing if the process died over it."""
        self.task = None
        try:
            reply: Product | tuple[str, str] = self._connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(reply, tuple):
            raise_failure(*reply)
        assert isinstance(reply, Product)
        return reply

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._life.close()


def _idle(crew: list[_Worker], manifest: Manifest, settings: Settings) -> _Worker:
    for worker in crew:
        if worker.task is None:
            return worker
    crew.append(_Worker(manifest, settings))
    return crew[-1]


def _ready(busy: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.connection for worker in busy])
    return [worker for worker in busy if worker.connection in ready]


def _work(connection: Connection, life: Connection, manifest: Manifest, settings: Settings) -> None:
    from ras_dit.console import quiet_libraries

    # Ctrl+C is for the process that gives the tasks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    workshop = Workshop(manifest, settings)
    with quiet_libraries(verbose=False), contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = connection.recv()
            try:
                reply: Product | tuple[str, str] = workshop.perform(task)
            except Exception as error:  # noqa: BLE001  (told to the other process)
                reply = describe_failure(error)
            connection.send(reply)


def _end_with(life: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        life.recv()
    os._exit(0)
