"""The embedded tables: a budget stops between units, and the tables are what the files hold."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from benchmarks.embedded.__main__ import BENCHMARK
from benchmarks.embedded.tables import Table, answer, fights
from benchmarks.embedded.views import QUALITY, VIEWS, View
from benchmarks.pages.command import ROOT, run
from benchmarks.pages.fights import Fight
from benchmarks.pages.page import fill
from evaluations import save_judged_model
from ras_dit.errors import RASError
from ras_dit.evaluation.comparisons import RowResult
from ras_dit.evaluation.manifest import Manifest, plan_evaluation, read_evaluation
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Picture
from ras_dit.evaluation.statistics import average_statistic

PICTURES = 4
FILES = BENCHMARK.files
DECIDING = {"dense-28", "dense-14", "dense-10", "dense-7", "random-28-0.25"}
DECIDING |= {f"ras-28-{ratio:g}-std" for ratio in (0.5, 0.25, 0.125)}


@functools.cache
def planned(name: str) -> Manifest:
    return plan_evaluation(read_evaluation(FILES / f"{name}.yaml"), FILES)[0]


def test_the_rows_that_decide_have_a_thousand_pictures_and_the_others_two_hundred() -> None:
    short, detailed = planned("short"), planned("detailed")
    assert {row.name for row in short.rows if row.images is None} == DECIDING
    for manifest in (short, detailed):
        assert len(manifest.shots) == 1000
        for row in manifest.rows:
            assert (row.images, row.without) in {(None, ()), (200, ("fd-emoji",))}
        assert {row.role for row in manifest.rows} >= {"fewer steps", "second order", "random"}
    # Seconds of the long captions' rows are those of the short ones'.
    assert {row.recipe for row in detailed.rows} <= {row.recipe for row in short.rows}


def test_every_table_has_the_rows_of_the_papers() -> None:
    rows = {name: planned(name).rows for name in BENCHMARK.evaluations}
    found = {view.name: [row for row in rows[view.source] if view.has(row)] for view in VIEWS}
    sparse = {
        name: {
            (row.steps, row.sampling.sample_ratio, row.sampling.metric)
            for row in chosen
            if row.sampling is not None
        }
        for name, chosen in found.items()
    }
    ratios = (0.75, 0.5, 0.25, 0.125)
    assert sparse["table6"] == {(28, ratio, "std") for ratio in ratios}
    assert sparse["table7"] == {(28, ratio, by) for ratio in ratios for by in ("std", "l2")}
    assert sparse["table8"] == {(7, 0.25, by) for by in ("std", "l2", "random")}
    assert len(sparse["table9-10"]) == 5 * 4 * 3
    dense = {row.steps for row in found["table9-10"] if row.config is None}
    assert dense == {28, 14, 10, 7, 5, 4, 3}


@pytest.fixture(scope="module")
def files(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluations with a tiny model, few pictures and few rows."""
    folder = tmp_path_factory.mktemp("evaluations")
    save_judged_model(model_folder, folder / "model")
    for name in BENCHMARK.evaluations:
        data = yaml.safe_load((FILES / f"{name}.yaml").read_text())
        data["rows"] = [
            {**row, "images": 2} if "images" in row else row
            for row in data["rows"]
            if row["steps"] in (28, 7) and row.get("sample_ratio", 0.25) == 0.25
        ]
        data["prompts"]["count"] = PICTURES
        data["controls"]["images"] = 2
        data |= {"model": "model", "batch": 2, "max_sequence_length": 40}
        if "time" in data:
            data["time"] = {"runs": 1, "size": "64x64"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
    return folder


@dataclass(frozen=True)
class Ran:
    """A folder, and what was seen on the way to it."""

    folder: Path
    said: list[str]
    first: dict[Path, int]
    half: str


@pytest.fixture(scope="module")
def ran(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A budget that is used up after two units, then the rest, then the times."""
    folder = tmp_path_factory.mktemp("ran")
    docs = folder / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / BENCHMARK.page, docs)
    words = ["--out", str(folder / "out"), "--docs", str(docs), "--evaluations", str(files)]
    words += ["--workers", "1"]
    said: list[str] = []
    assert run(BENCHMARK, None, [*words, "--budget", "0"], said.append) == 2
    clock = SimpleNamespace(monotonic=iter([0.0, 0.0, 30.0, 61.0]).__next__)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ras_dit.evaluation.stages.time", clock)
        short = [*words, "--only", "short", "--budget", "1"]
        assert run(BENCHMARK, None, short, said.append) == 0
    units = (folder / "out" / "short" / "units").rglob("*.json")
    first = {path: path.stat().st_mtime_ns for path in units}
    half = (docs / BENCHMARK.page).read_text()
    assert run(BENCHMARK, None, words, said.append) == 0
    assert run(BENCHMARK, None, [*words, "--times"], said.append) == 0
    return Ran(folder, said, first, half)


def test_a_budget_stops_between_units_and_the_rest_follows(ran: Ran) -> None:
    assert len(ran.first) == 2
    assert ran.said[0].startswith("short: 0 of ")
    assert any(text.startswith("short: 2 of ") for text in ran.said)
    assert sum("more minutes at the pace of this call" in text for text in ran.said) == 1
    assert "No pictures yet." in ran.half
    assert "- short: 4 of " in ran.half
    assert {path: path.stat().st_mtime_ns for path in ran.first} == ran.first
    assert not list(ran.folder.rglob("*.part"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_of_it_by_the_command(ran: Ran) -> None:
    tables = ran.folder / "docs" / "embedded"
    for view in VIEWS:
        assert (tables / f"{view.name}.png").stat().st_size > 10_000
        out = ran.folder / "out" / view.source
        lines = {line["row"]: line for line in rows_of(tables / f"{view.name}.csv")}
        assert {line["role"] for line in lines.values()} >= {"row", "random", "second order"} - (
            {"random"} if view.name in {"table6", "table8"} else set()
        )
        for name, line in lines.items():
            assert line["pictures"] == line["wanted"]
            assert len(list((out / "images" / name).iterdir())) == int(line["pictures"])
            assert float(line["seconds"]) > 0
            summary = json.loads((out / "scores" / "emoji" / name / "summary.json").read_text())
            assert float(line["emoji kept"]) == summary["statistics"][0]["value"]
    text = (ran.folder / "docs" / BENCHMARK.page).read_text()
    assert "No pictures yet" not in text
    for part in ("at equal cost:", "at equal time:", "| beats fewer steps of equal cost |"):
        assert part in text
    assert text.count("Seconds: ") == 1
    assert "## At equal time" in (tables / "table7.md").read_text()


def test_distances_are_of_the_rows_that_decide(ran: Ran) -> None:
    lines = {row["row"]: row for row in rows_of(ran.folder / "docs" / "embedded" / "table7.csv")}
    assert float(lines["ras-28-0.25-std"]["FD-emoji"]) > 0
    assert lines["ras-28-0.25-std"]["pictures"] == str(PICTURES)
    assert lines["ras-28-0.25-l2"]["FD-emoji"] == ""
    assert lines["ras-28-0.25-l2"]["pictures"] == "2"
    compared = rows_of(ran.folder / "docs" / "embedded" / "table7-controls.csv")
    assert {(c["row"], c["control"]) for c in compared if c["statistic"] == "FD-emoji"} == {
        ("ras-28-0.25-std", "dense-28")
    }


def numbers(name: str, value: float, cost: float, number: str = "PSNR", **row: Any) -> RowResult:
    values = [value, value + 0.5, value + 0.25] * 4
    pictures = [Picture(n, "x", n, n, Path("x")) for n in range(len(values))]
    statistic = average_statistic(number, values, pictures, better="higher", column=number)
    return RowResult(
        row=Row(name=name, steps=int(row.pop("steps", 28)), **row),
        pictures=len(values),
        wanted=len(values),
        cost=cost,
        statistics=(statistic,),
        columns={number: dict(enumerate(values))},
        groups={n: n for n in range(len(values))},
    )


def config(ratio: float, metric: str = "std") -> Mapping[str, Any]:
    return {"sample_ratio": ratio, "metric": metric, "keep": "auto", "seed": 0}


def test_a_number_is_compared_with_the_nearest_control_that_has_it() -> None:
    own = numbers("own", 30, 14, config=config(0.25))
    near = numbers("dense-14", 5, 14, number="SSIM", steps=14)
    other = numbers("dense-12", 31, 12, steps=12)
    (fight,) = fights([own, near, other], ["PSNR", "SSIM"], "cost", {"own"})
    assert (fight.control, fight.statistic, fight.verdict) == ("dense-12", "PSNR", "loses")
    assert fight.gap == pytest.approx((-1.0, -1.0))
    assert fights([own, near, other], ["PSNR"], "time", {"own"}) == ()


def test_the_answer_has_a_cell_for_every_ratio_and_number_of_steps() -> None:
    view = View(name="v", title="t", source="short", steps=(28, 7), metrics=("std", "random"))
    results = [
        numbers("a", 30, 14, config=config(0.25)),
        numbers("b", 20, 14.5, config=config(0.25, "random")),
        numbers("c", 30, 5, config=config(0.5), steps=7),
        numbers("dense-14", 25, 14, steps=14),
        numbers("dense-5", 30, 5, steps=5),
    ]
    shown = Table.of(view, results)
    assert {result.row.name for result in shown.results} == {"a", "b", "c", "dense-14", "dense-5"}
    assert Fight("a", "random", "b", "PSNR", "cost", 14.5 / 14, (10, 10), "beats") in shown.fights
    assert answer(shown, "cost").splitlines()[2:] == [
        "| steps | 0.75 | 0.5 | 0.25 | 0.125 |",
        "| --- | --- | --- | --- | --- |",
        "| 28 |  |  | std beats, random loses |  |",
        "| 7 |  | std ties |  |  |",
    ]
    assert answer(shown, "time") == ""
    assert set(QUALITY) > {"PSNR"}


def test_a_page_keeps_its_prose_and_wants_its_places(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    place = "<!-- a: made by make x -->\n{}\n<!-- end of a -->"
    page.write_text(f"before\n{place.format('old')}\nafter\n")
    fill(page, {"a": r"new \1"}, "make x")
    assert page.read_text() == "before\n" + place.format(r"new \1") + "\nafter\n"
    with pytest.raises(RASError, match="has 0 places for b"):
        fill(page, {"b": "x"}, "make x")
    with pytest.raises(RASError, match="cannot be read"):
        fill(tmp_path / "none.md", {"a": "x"}, "make x")
