"""Archives of scores: an evaluation goes on without the pictures of what was measured."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from evaluations import Remembered, evaluation, planned, tree
from ras_dit.errors import RASError
from ras_dit.evaluation.archive import archived_units, pack_scores, pack_times, unpack
from ras_dit.evaluation.manifest import load_manifest
from ras_dit.evaluation.stages import generate_pictures, score_pictures

SPARSE = "ras-8-0.25-std"


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation that was made whole, and one that was stopped after seven units."""
    folder = tmp_path_factory.mktemp("made")
    manifest, settings = planned(folder, evaluation(model_folder))
    crew = Remembered()
    generate_pictures(folder / "whole", manifest, settings, crew=crew)
    score_pictures(folder / "whole", crew=crew)
    first = Remembered()
    first.products = dict(crew.products)
    generate_pictures(folder / "begun", manifest, settings, crew=Stopped(first, 7))
    score_pictures(folder / "begun", crew=first)
    return folder, manifest, settings, crew


class Stopped:
    """A crew that goes home after some tasks."""

    def __init__(self, crew: Remembered, number: int) -> None:
        self.crew = crew
        self.number = number

    def run(self, manifest: Any, settings: Any, tasks: Any) -> Any:
        for product, _ in zip(
            self.crew.run(manifest, settings, tasks), range(self.number), strict=False
        ):
            yield product


def test_an_evaluation_goes_on_without_its_pictures(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, crew = made
    assert pack_scores(folder / "begun", tmp_path / "a.tar.xz") == 7
    unpack(tmp_path / "a.tar.xz", tmp_path / "on", manifest, settings)
    assert not (tmp_path / "on" / "images").exists()
    before = archived_units(tmp_path / "a.tar.xz")
    crew.asked.clear()
    assert generate_pictures(tmp_path / "on", crew=crew).whole
    asked = [(row, unit) for row, unit, _ in crew.asked]
    assert len(asked) == len(set(asked))
    every = {(row.name, unit) for row in manifest.rows for unit in range(len(manifest.units(row)))}
    # Of what was there, only the reference is made again, for the sake of the others.
    again = set(asked) & before
    assert set(asked) == (every - before) | again
    assert again
    assert {row for row, _ in again} == {manifest.reference.name}
    crew.asked.clear()
    assert score_pictures(tmp_path / "on", crew=crew).whole
    assert not {(row, unit) for row, unit, _ in crew.asked} & before
    scores = tree(folder / "whole", "scores")
    assert scores == tree(tmp_path / "on", "scores")
    assert len(scores) > 10


def test_only_what_is_new_goes_into_a_further_archive(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, _ = made
    pack_scores(folder / "begun", tmp_path / "a.tar.xz")
    known = archived_units(tmp_path / "a.tar.xz")
    total = sum(len(manifest.units(row)) for row in manifest.rows)
    assert pack_scores(folder / "whole", tmp_path / "b.tar.xz", known=known) == total - len(known)
    assert not archived_units(tmp_path / "b.tar.xz") & known
    for name in ("a", "b"):
        unpack(tmp_path / f"{name}.tar.xz", tmp_path / "on", manifest, settings)
    assert generate_pictures(tmp_path / "on", crew=Stopped(Remembered(), 0)).whole
    assert score_pictures(tmp_path / "on", crew=Stopped(Remembered(), 0)).whole
    assert tree(tmp_path / "on", "scores") == tree(folder / "whole", "scores")
    everything = archived_units(tmp_path / "a.tar.xz") | archived_units(tmp_path / "b.tar.xz")
    assert pack_scores(tmp_path / "on", tmp_path / "c.tar.xz", known=everything) == 0
    assert not (tmp_path / "c.tar.xz").exists()
    pack_scores(folder / "begun", tmp_path / "d.tar.xz")
    assert (tmp_path / "d.tar.xz").read_bytes() == (tmp_path / "a.tar.xz").read_bytes()


def test_what_another_scorer_measured_is_made_again(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, _ = made
    pack_scores(folder / "whole", tmp_path / "a.tar.xz")

    def other(files: dict[str, bytes]) -> None:
        for name, content in files.items():
            if name.startswith(f"scores/psnr/{SPARSE}/00001"):
                files[name] = json.dumps({**json.loads(content), "identity": "other"}).encode()

    changed = rewritten(tmp_path / "a.tar.xz", tmp_path / "b.tar.xz", other)
    unpack(changed, tmp_path / "on", manifest, settings)
    units = tmp_path / "on" / "units" / SPARSE
    assert [path.stem for path in sorted(units.iterdir())] == ["00000", "00002"]


def of_another_machine(path: Path, target: Path, reference: str, longer: float) -> Path:
    """An archive whose reference has other pictures, with files that are longer by a factor."""

    def other(files: dict[str, bytes]) -> None:
        for name, content in files.items():
            if name.startswith(f"units/{reference}/"):
                record = json.loads(content)
                for facts in record["pictures"].values():
                    facts["sha256"] = "0" * 64
                    facts["bytes"] = round(longer * facts["bytes"])
                files[name] = json.dumps(record).encode()

    return rewritten(path, target, other)


def test_pictures_of_another_machine_are_not_mixed_in(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, crew = made
    pack_scores(folder / "begun", tmp_path / "a.tar.xz")
    changed = of_another_machine(
        tmp_path / "a.tar.xz", tmp_path / "b.tar.xz", manifest.reference.name, 1.01
    )
    unpack(changed, tmp_path / "on", manifest, settings)
    with pytest.raises(RASError, match=r"this machine makes other pictures.*without the archive"):
        generate_pictures(tmp_path / "on", crew=crew)


def test_pictures_that_another_processor_rounds_otherwise_go_on(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, crew = made
    pack_scores(folder / "begun", tmp_path / "a.tar.xz")
    changed = of_another_machine(
        tmp_path / "a.tar.xz", tmp_path / "b.tar.xz", manifest.reference.name, 1.0005
    )
    before = archived_units(changed)
    unpack(changed, tmp_path / "on", manifest, settings)
    assert generate_pictures(tmp_path / "on", crew=crew).whole
    crew.asked.clear()
    assert score_pictures(tmp_path / "on", crew=crew).whole
    # What the archive says stays, also of the reference that was made again here.
    assert not {(row, unit) for row, unit, _ in crew.asked} & before
    assert tree(tmp_path / "on", "scores") == tree(folder / "whole", "scores")
    # A third machine takes what both have measured.
    assert pack_scores(tmp_path / "on", tmp_path / "c.tar.xz", known=before) > 0
    for path in (changed, tmp_path / "c.tar.xz"):
        unpack(path, tmp_path / "third", manifest, settings)
    assert generate_pictures(tmp_path / "third", crew=Stopped(Remembered(), 0)).whole
    assert score_pictures(tmp_path / "third", crew=Stopped(Remembered(), 0)).whole
    assert tree(tmp_path / "third", "scores") == tree(folder / "whole", "scores")


def test_times_are_kept_where_there_are_none(made: Any, tmp_path: Path) -> None:
    folder, manifest, settings, _ = made
    begun = tmp_path / "begun"
    shutil.copytree(folder / "begun", begun)
    for path in (f"{SPARSE}/00.json", "conditions.json", "../secret.json", "row/00.json"):
        (begun / "times" / path).parent.mkdir(parents=True, exist_ok=True)
        (begun / "times" / path).write_text("{}")
    pack_times(begun, tmp_path / "t.tar.xz")
    unpack(tmp_path / "t.tar.xz", tmp_path / "on", manifest, settings)
    assert set(tree(tmp_path / "on", "times")) == {
        f"times/{SPARSE}/00.json",
        "times/conditions.json",
    }
    assert not (tmp_path / "on" / "units").exists()


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "missing"])
def test_a_damaged_archive_says_so(made: Any, tmp_path: Path, kind: str) -> None:
    folder, manifest, settings, _ = made
    path = tmp_path / "a.tar.xz"
    pack_scores(folder / "begun", path)
    if kind == "missing":
        path.unlink()
    else:
        content = {"cut": path.read_bytes()[:-40], "text": b"no archive", "empty": b""}[kind]
        path.write_bytes(content)
    with pytest.raises(RASError, match=r"a\.tar\.xz' is damaged.*remove it"):
        unpack(path, tmp_path / "on", manifest, settings)
    assert not (tmp_path / "on").exists()


def test_an_archive_of_another_evaluation_is_refused(
    made: Any, model_folder: Path, tmp_path: Path
) -> None:
    folder = made[0]
    pack_scores(folder / "begun", tmp_path / "a.tar.xz")
    other, settings = planned(tmp_path, evaluation(model_folder, batch=3))
    with pytest.raises(RASError, match=r"a\.tar\.xz' holds an evaluation with other batch"):
        unpack(tmp_path / "a.tar.xz", tmp_path / "on", other, settings)
    assert not (tmp_path / "on").exists()


def test_an_archive_serves_an_evaluation_that_has_further_rows(
    made: Any, model_folder: Path, tmp_path: Path
) -> None:
    folder, manifest = made[:2]
    pack_scores(folder / "begun", tmp_path / "a.tar.xz")
    rows = [*evaluation(model_folder)["rows"], {"steps": 7, "name": "further"}]
    grown, settings = planned(tmp_path, evaluation(model_folder, rows=rows))
    assert {row.name for row in manifest.rows} < {row.name for row in grown.rows}
    unpack(tmp_path / "a.tar.xz", tmp_path / "on", grown, settings)
    assert load_manifest(tmp_path / "on").to_dict() == grown.to_dict()
    unpack(tmp_path / "a.tar.xz", tmp_path / "plain", manifest, settings)
    for part in ("units", "scores"):
        assert tree(tmp_path / "on", part) == tree(tmp_path / "plain", part)


def rewritten(path: Path, target: Path, change: Any) -> Path:
    """An archive with other content."""
    with tarfile.open(path) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    change(files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    target.write_bytes(lzma.compress(buffer.getvalue()))
    return target
