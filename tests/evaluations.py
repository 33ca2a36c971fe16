"""Small evaluations for the tests: a tiny pipeline, few pictures, few steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from diffusers import StableDiffusion3Pipeline

from family_parts import deep_vae
from ras_dit.evaluation import files, scoring, stages
from ras_dit.evaluation.manifest import (
    Manifest,
    Settings,
    plan_evaluation,
    read_evaluation,
)
from ras_dit.evaluation.workshop import Product, Task, Workshop

PROMPTS = ("a fox", "two red hearts", "a cat above a dog", "an owl", "a bus")
STEPS = 8


def evaluation(model: Path, /, **changes: Any) -> dict[str, Any]:
    """Content of a YAML file: a dense and a sparse row of five pictures, and their controls."""
    return {
        "model": str(model),
        "size": "32x32",
        "max_sequence_length": 8,
        "batch": 2,
        "prompts": {"source": "text", "file": "prompts.txt"},
        "rows": [{"steps": STEPS}, {"steps": STEPS, "sample_ratio": 0.25, "warmup_steps": 2}],
        "scores": ["psnr", "ssim"],
        **changes,
    }


def written(folder: Path, data: Mapping[str, Any]) -> Path:
    """A YAML file with its prompts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(dict(data)))
    return path


def save_judged_model(model: Path, target: Path) -> None:
    """The tiny pipeline with 64 tokens for the size that the judge of the emoji world knows."""
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    pipe.vae = deep_vae(pipe.transformer.config.in_channels)
    pipe.save_pretrained(target)


def planned(folder: Path, data: Mapping[str, Any]) -> tuple[Manifest, Settings]:
    """The plan of an evaluation."""
    return plan_evaluation(read_evaluation(written(folder, data)), folder)


def tree(folder: Path, *parts: str) -> dict[str, str]:
    """SHA-256 of every file of a folder (or of some of its folders) but the lock."""
    roots = [folder / part for part in parts] or [folder]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Remembered:
    """A crew that does every task only once in its life, and then gives what it gave."""

    def __init__(self) -> None:
        self.products: dict[Any, Product] = {}
        self.asked: list[Any] = []

    def run(
        self, manifest: Manifest, settings: Settings, tasks: Iterator[Task]
    ) -> Iterator[Product]:
        workshop = Workshop(manifest, settings)
        for task in tasks:
            self.asked.append(task.key)
            if task.key not in self.products:
                self.products[task.key] = workshop.perform(task)
            yield self.products[task.key]


class Killed(BaseException):
    """Raised where a process would be killed."""


def check_kills(
    monkeypatch: Any, place: Path, make: Callable[[Path], object], expected: Mapping[str, str]
) -> int:
    """Kill a stage in each of its writes; run again, it comes to the same files.

    Args:
        monkeypatch: Undoes it.
        place: For a folder per kill.
        make: Runs the stage in a folder.
        expected: The files of an undisturbed run.

    Returns:
        The number of the first write that there is not.
    """
    killer = Killer(monkeypatch)
    for number in range(1, 1000):
        folder = place / f"{number}"
        killer.arm(number)
        try:
            make(folder)
        except Killed:
            killer.arm(None)
            make(folder)
            assert tree(folder) == expected, number
            continue
        break
    return number


class Killer:
    """Kills a stage in the middle of its n-th write.

    Args:
        monkeypatch: Undoes it.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self._deadline: int | None = None
        self._writes = 0
        self._real = files.write_bytes
        # The disk's own speed is not what is tested.
        monkeypatch.setattr(os, "fsync", lambda _: None)
        for module in (files, stages, scoring):
            monkeypatch.setattr(module, "write_bytes", self._write)

    def arm(self, deadline: int | None) -> None:
        """Kill in this write from now on, counted from 1; ``None`` never."""
        self._deadline, self._writes = deadline, 0

    def _write(self, path: Path, content: bytes) -> None:
        self._writes += 1
        if self._writes == self._deadline:
            # As far as a kill in the middle of a write gets.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}{files.PART}").write_bytes(content[: len(content) // 2])
            raise Killed
        self._real(path, content)
