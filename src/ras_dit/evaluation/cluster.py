"""The same tasks on a Ray cluster. Machines that die are replaced by whatever is left."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ras_dit.errors import RASError
from ras_dit.evaluation.crews import check_tries, describe_failure, raise_failure
from ras_dit.evaluation.manifest import Manifest, Settings
from ras_dit.evaluation.workshop import Product, Task, Workshop


@dataclass(frozen=True)
class RayCluster:
    """Workers of a Ray cluster; every machine needs ras-dit and the model, none needs the folder.

    Attributes:
        address: Of the cluster; ``None`` joins the one that this machine is in, or starts one.
        count: Workers; ``None`` takes as many as fit.
    """

    address: str | None = None
    count: int | None = None

    def run(
        self, manifest: Manifest, settings: Settings, tasks: Iterator[Task]
    ) -> Iterator[Product]:
        """As :meth:`ras_dit.evaluation.crews.Crew.run`."""
        ray = _ray()
        with _joined(ray, self.address):
            needs = _needs(ray, manifest)
            hired = ray.remote(**needs, max_concurrency=1)(_RemoteWorkshop)
            terms = ray.put((manifest, settings))
            count = self.count or _fitting(ray, needs)
            yield from _Shift(ray, lambda: hired.remote(terms)).work(count, tasks)


class _Shift:
    """Tasks in the hands of workers, some of which may die."""

    def __init__(self, ray: Any, hire: Any) -> None:
        self._ray = ray
        self._hire = hire
        # What each awaited reply is of: a worker that comes up, or one with a task.
        self._awaited: dict[Any, tuple[Any, Task | None]] = {}
        self._again: deque[Task] = deque()
        self._tries: Counter[tuple[str, int, str | None]] = Counter()

    def work(self, count: int, tasks: Iterator[Task]) -> Iterator[Product]:
        lost = 0
        try:
            for _ in range(count):
                self._hire_one()
            idle: list[Any] = []
            while True:
                while idle:
                    task = self._again.popleft() if self._again else next(tasks, None)
                    if task is None:
                        break
                    self._give(idle.pop(), task)
                working = any(task is not None for _, task in self._awaited.values())
                if not working and not self._again and idle:
                    return
                (ready,), _ = self._ray.wait(list(self._awaited), num_returns=1)
                worker, task = self._awaited.pop(ready)
                try:
                    reply = self._ray.get(ready)
                except self._ray.exceptions.RayActorError as error:
                    lost += 1
                    self._lose(task, error, lost, count)
                    continue
                idle.append(worker)
                if isinstance(reply, tuple):
                    raise_failure(*reply)
                if task is not None:
                    yield reply
        finally:
            for worker, _ in self._awaited.values():
                with contextlib.suppress(Exception):
                    self._ray.kill(worker)

    def _hire_one(self) -> None:
        worker = self._hire()
        # It may wait for room for long, and must not hold a task meanwhile.
        self._awaited[worker.ready.remote()] = worker, None

    def _give(self, worker: Any, task: Task) -> None:
        self._tries[task.key] += 1
        reply = worker.perform.remote(task, _contents(task))
        self._awaited[reply] = worker, task

    def _lose(self, task: Task | None, error: Exception, lost: int, count: int) -> None:
        reason = str(error).strip().splitlines()[0]
        if task is not None:
            check_tries(task, self._tries[task.key], reason)
            self._again.append(task)
        elif lost > 3 * count + 10:
            raise RASError(f"workers of the Ray cluster do not come up: {reason}")
        self._hire_one()


class _RemoteWorkshop:
    """A workshop on some machine of the cluster."""

    def __init__(self, terms: tuple[Manifest, Settings]) -> None:
        self._workshop = Workshop(*terms)

    def ready(self) -> None:
        """The worker is up."""

    def perform(self, task: Task, contents: Mapping[Path, bytes]) -> Product | tuple[str, str]:
        """Do a task; its pictures come along, because this machine need not have the folder."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                product = self._workshop.perform(_moved(task, contents, Path(folder)))
        except Exception as error:  # noqa: BLE001  (told to the process that asked)
            return describe_failure(error)
        return replace(product, task=task)


def _contents(task: Task) -> dict[Path, bytes]:
    paths = [path for picture in task.pictures for path in picture.files]
    try:
        return {path: path.read_bytes() for path in paths}
    except OSError as error:
        raise RASError(
            f"the file {error.filename!r} cannot be read ({error.strerror}); run generate again"
        ) from error


def _moved(task: Task, contents: Mapping[Path, bytes], folder: Path) -> Task:
    """The task with its pictures in a folder of this machine."""
    places: dict[Path, Path] = {}
    for number, (name, content) in enumerate(contents.items()):
        places[name] = folder / f"{number}{name.suffix}"
        places[name].write_bytes(content)
    pictures = tuple(picture.moved(places) for picture in task.pictures)
    return replace(task, pictures=pictures)


def _ray() -> Any:
    # Ray hides the GPUs of a worker that asks for none; a later release would do otherwise.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise RASError(
            f"--engine ray needs {error.name}; install it with pip install 'ras-dit[cluster]'"
        ) from error
    return ray


@contextlib.contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        raise RASError(f"the Ray cluster {address!r} cannot be joined: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _needs(ray: Any, manifest: Manifest) -> dict[str, float]:
    on_gpu = manifest.device.startswith("cuda") or (
        manifest.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )
    return {"num_cpus": manifest.threads, "num_gpus": int(on_gpu)}


def _fitting(ray: Any, needs: Mapping[str, float]) -> int:
    """How many workers fit into the cluster, machine by machine."""
    kinds = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            count += int(min(has.get(kind, 0) // need for kind, need in kinds.items() if need))
    if not count:
        raise RASError(
            f"no machine of the Ray cluster has room for a worker of {needs}; lower threads in the "
            "YAML file, or add machines"
        )
    return count
