"""The generate stage: the same bytes whatever happens, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evaluations import STEPS, Remembered, check_kills, evaluation, planned, tree, written
from ras_dit.errors import RASError
from ras_dit.evaluation import crews
from ras_dit.evaluation.crews import Processes, WorkFailedError
from ras_dit.evaluation.files import DiskFullError, locked
from ras_dit.evaluation.images import read_picture
from ras_dit.evaluation.manifest import load_manifest
from ras_dit.evaluation.stages import generate_pictures, refusals

SPARSE = f"ras-{STEPS}-0.25-std"
PARTS = ("images", "units", "scores", "manifest.json")


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation whose pictures were made without disturbance, and what its crew remembers."""
    folder = tmp_path_factory.mktemp("made")
    manifest, settings = planned(folder, evaluation(model_folder))
    crew = Remembered()
    progress = generate_pictures(folder / "out", manifest, settings, crew=crew)
    assert progress.whole
    assert not progress.refused
    return folder / "out", manifest, settings, crew


def test_every_row_gets_its_pictures(made: Any) -> None:
    folder, manifest, _, _ = made
    for row in manifest.rows:
        pictures = sorted((folder / "images" / row.name).iterdir())
        assert len(pictures) == 5
        assert all(read_picture(path).shape == (32, 32, 3) for path in pictures)
    by_row = {row.name: tree(folder / "images" / row.name) for row in manifest.rows}
    assert len({tuple(sorted(files.items())) for files in by_row.values()}) == len(manifest.rows)


def test_rows_take_turns(made: Any) -> None:
    _, manifest, _, crew = made
    units = [unit for _, unit, _ in crew.asked]
    assert units == sorted(units)
    assert [row for row, unit, _ in crew.asked if unit == 0] == [r.name for r in manifest.rows]


def test_rows_that_want_fewer_pictures_take_turns_in_proportion(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = [{"steps": 3}, {"steps": 2}, {"steps": 1, "images": 2}]
    data = evaluation(model_folder, rows=rows, batch=1, controls=False)
    manifest, settings = planned(tmp_path, data)
    crew = Remembered()
    generate_pictures(tmp_path / "out", manifest, settings, crew=crew)
    asked = [(row, unit) for row, unit, _ in crew.asked if row != manifest.reference.name]
    long, short = (row.name for row in manifest.rows[1:])
    order = [(long, 0), (short, 0), (long, 1), (long, 2), (short, 1), (long, 3), (long, 4)]
    assert asked == order


def test_a_kill_in_any_write_changes_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, manifest, settings, crew = made

    def make(folder: Path) -> None:
        generate_pictures(folder, manifest, settings, crew=crew)

    number = check_kills(monkeypatch, tmp_path, make, tree(whole))
    assert number == len(tree(whole)) + 1


def test_nothing_is_made_twice(made: Any, tmp_path: Path) -> None:
    whole, manifest, settings, crew = made
    crew.asked.clear()
    first = generate_pictures(tmp_path, manifest, settings, crew=crew, budget=0)
    assert first.done == 0
    assert not first.whole
    generate_pictures(tmp_path, crew=crew)
    assert len(crew.asked) == len(set(crew.asked)) == first.total
    crew.asked.clear()
    assert generate_pictures(tmp_path, crew=crew).whole
    assert not crew.asked
    assert tree(tmp_path) == tree(whole)


def test_a_lost_or_cut_picture_is_made_again(made: Any, tmp_path: Path) -> None:
    whole, manifest, settings, crew = made
    generate_pictures(tmp_path, manifest, settings, crew=crew)
    pictures = sorted((tmp_path / "images").rglob("*.png"))
    pictures[0].unlink()
    pictures[-1].write_bytes(pictures[-1].read_bytes()[:99])
    crew.asked.clear()
    generate_pictures(tmp_path, crew=crew)
    assert len(crew.asked) == 2
    assert tree(tmp_path) == tree(whole)


def test_a_killed_process_and_its_workers_lose_nothing(
    made: Any, model_folder: Path, tmp_path: Path
) -> None:
    whole, *_ = made
    path = written(tmp_path, evaluation(model_folder))
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "ras_dit", "evaluate", "generate", str(path)]
    command += ["--out", str(folder), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not list(folder.glob("units/*/*.json")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        workers = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(folder.glob("units/*/*.json"))) < len(list(whole.glob("units/*/*.json")))
    assert len(workers) >= 2
    wait_until_gone(workers)
    assert generate_pictures(folder, *planned(tmp_path, evaluation(model_folder))).whole
    assert tree(folder, *PARTS) == tree(whole, *PARTS)


def test_two_workers_make_the_same_bytes_and_one_that_dies_is_replaced(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, manifest, settings, _ = made
    killed: list[int] = []
    give = crews._Worker.give

    def give_and_kill(self: Any, task: Any) -> None:
        give(self, task)
        if not killed and task.unit == 1:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(crews._Worker, "give", give_and_kill)
    progress = generate_pictures(tmp_path, manifest, settings, crew=Processes(2))
    assert killed
    assert progress.whole
    assert tree(tmp_path, *PARTS) == tree(whole, *PARTS)


def test_a_task_that_kills_every_worker_is_given_up(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, settings, _ = made

    class Deadly:
        task: Any = None
        ending = "exit status -9"

        def __init__(self, *_: Any) -> None:
            self.connection, other = __import__("multiprocessing").Pipe()
            other.close()

        def give(self, task: Any) -> None:
            self.task = task

        def take(self) -> None:
            self.task = None
            self.connection.close()

        def stop(self) -> None:
            self.connection.close()

    monkeypatch.setattr(crews, "_Worker", Deadly)
    with pytest.raises(WorkFailedError, match=r"unit 0 of dense-8 failed 3 times \(.* -9\)"):
        generate_pictures(tmp_path, manifest, settings, crew=Processes(1))


def test_a_full_disk_loses_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, manifest, settings, crew = made
    room = 9
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError, match=r"no room for .* nothing that was finished is lost"):
        generate_pictures(tmp_path, manifest, settings, crew=crew)
    assert not list(tmp_path.rglob("*.part"))
    before = tree(tmp_path, "images")
    room = 10_000
    generate_pictures(tmp_path, crew=crew)
    assert before.items() <= tree(tmp_path, "images").items()
    assert tree(tmp_path) == tree(whole)


def test_a_row_that_cannot_be_had_is_refused_and_the_others_run(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = [{"steps": 4}, {"steps": 4, "cache": "first-block"}, {"steps": 3}]
    manifest, settings = planned(tmp_path, evaluation(model_folder, rows=rows))
    progress = generate_pictures(tmp_path / "out", manifest, settings)
    assert progress.whole
    reason = "diffusers has no enable_cache for SD3Transformer2DModel"
    assert progress.refused["first-block-4"].startswith(reason)
    assert refusals(tmp_path / "out") == progress.refused
    assert len(list((tmp_path / "out" / "units").iterdir())) == 2


def test_what_a_worker_raises_is_raised_here(model_folder: Path, tmp_path: Path) -> None:
    manifest, settings = planned(tmp_path, evaluation(model_folder, dtype="float8"))
    with pytest.raises(RASError, match="dtype 'float8' is unknown"):
        generate_pictures(tmp_path / "out", manifest, settings)
    for error, kind in ((RASError("no such dtype"), RASError), (KeyError("x"), WorkFailedError)):
        with pytest.raises(kind, match=str(error)):
            crews.raise_failure(*crews.describe_failure(error))


def test_a_run_that_fails_at_its_start_keeps_no_corrected_one_out(
    made: Any, model_folder: Path, tmp_path: Path
) -> None:
    _, manifest, settings, crew = made
    wrong, _ = planned(tmp_path, evaluation(model_folder, device="gpu"))
    for was_there in (False, True):
        folder = tmp_path / f"out-{was_there}"
        if was_there:
            folder.mkdir()
        with pytest.raises(RASError, match="device 'gpu' is unknown"):
            generate_pictures(folder, wrong, settings)
        assert folder.exists() is was_there
        assert not was_there or not list(folder.iterdir())
        generate_pictures(folder, manifest, settings, crew=crew, budget=0)
    # What was begun before stays, whatever fails.
    with pytest.raises(RASError, match="holds an evaluation with other device"):
        generate_pictures(folder, wrong, settings)
    assert load_manifest(folder).to_dict() == manifest.to_dict()


def test_a_failure_after_the_first_picture_loses_nothing(made: Any, tmp_path: Path) -> None:
    _, manifest, settings, crew = made

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_pictures(tmp_path, manifest, settings, crew=crew, on_unit=stop)
    assert len(list((tmp_path / "units").rglob("*.json"))) == 1
    assert load_manifest(tmp_path).to_dict() == manifest.to_dict()


def test_a_lost_manifest_is_written_anew(made: Any, model_folder: Path, tmp_path: Path) -> None:
    whole, manifest, settings, crew = made
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RASError, match="remove it and run `ras-dit evaluate generate"):
        generate_pictures(folder, manifest, settings, crew=crew)
    (folder / "manifest.json").unlink()
    (folder / "settings.json.part").touch()
    other, _ = planned(tmp_path, evaluation(model_folder, seed=1))
    rows = [{"steps": STEPS}, {"steps": STEPS, "sample_ratio": 0.5, "name": SPARSE}]
    changed, _ = planned(tmp_path, evaluation(model_folder, rows=rows))
    for wrong in (other, changed):
        with pytest.raises(RASError, match=r"lost its manifest\.json and was begun with another"):
            generate_pictures(folder, wrong, settings, crew=crew)
    asked = len(crew.asked)
    assert generate_pictures(folder, manifest, settings, crew=crew).whole
    assert tree(folder) == tree(whole)
    assert len(crew.asked) == asked
    # Settings that say nothing of a manifest may be of anything.
    for content in ("{}", None):
        (folder / "manifest.json").unlink()
        if content is None:
            (folder / "settings.json").unlink()
        else:
            (folder / "settings.json").write_text(content)
        with pytest.raises(RASError, match="and no evaluation; give a new folder"):
            generate_pictures(folder, manifest, settings, crew=crew)
        (folder / "manifest.json").write_bytes((whole / "manifest.json").read_bytes())


def test_two_runs_in_one_folder_are_refused(made: Any) -> None:
    folder, *_ = made
    with locked(folder), pytest.raises(RASError, match="another process is at work"):
        generate_pictures(folder)


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RASError, match="holds no evaluation"):
        generate_pictures(tmp_path)
    assert STEPS == 8


def children(process: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(status.parent.name))
    return found


def wait_until_gone(processes: list[int]) -> None:
    """Wait for the end of processes that are not ours."""
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "workers outlive the process that they work for"
        time.sleep(0.02)
