"""The multirate tables: rows of equal cost, their fights, and the whole of it as a process."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.multirate import parts
from benchmarks.multirate.__main__ import BENCHMARK, draw
from benchmarks.multirate.tables import (
    CONTROLS,
    COSTS,
    STATISTICS,
    Table,
    answer,
    decides,
    place_of,
    settings_of,
)
from benchmarks.pages.command import NO_PICTURES, ROOT, run
from evaluations import save_judged_model
from ras_dit.config import RASConfig
from ras_dit.evaluation.comparisons import RowResult
from ras_dit.evaluation.equal_cost import WITHIN
from ras_dit.evaluation.manifest import Manifest, load_manifest, plan_evaluation, read_evaluation
from ras_dit.evaluation.rows import Row, changed_fields
from ras_dit.evaluation.scorers import Picture
from ras_dit.evaluation.statistics import average_statistic

MAIN = {"euler", "ab2", "damped-ab2", "unipc", "paper-std", "multirate", "skips"}
PRESETS = {"skips-17": "quality", "skips-11.5": "balanced", "skips-8.75": "fast"}
DECIDING = (17.0, 11.5, 8.75)
MEDIAN = STATISTICS[0]
# Rows of the short run at 128x128 beside those at both sizes.
SHORT = ("ab2", "damped-ab2", "paper-std", "by-chance")


@functools.cache
def planned(name: str) -> Manifest:
    return plan_evaluation(read_evaluation(BENCHMARK.files / f"{name}.yaml"), BENCHMARK.files)[0]


@pytest.mark.parametrize("name", BENCHMARK.evaluations)
def test_every_row_costs_what_it_is_named_after(name: str) -> None:
    manifest = planned(name)
    assert (manifest.reference.name, manifest.reference.images) == ("dense-112", None)
    assert manifest.latents
    assert {row.role for row in manifest.rows[1:]} == {"row"}
    for row in manifest.rows[1:]:
        place = place_of(row)
        assert place is not None, row.name
        assert row.cost is not None
        kind, cost = place
        if row.sampling is None or row.sampling.sample_ratio == 1:
            # Controls have no less work than what they are compared with.
            assert cost <= row.cost < cost + 1, row.name
        else:
            assert row.cost == pytest.approx(cost, rel=WITHIN), row.name
        assert (kind == "ab2") == (row.sampling == RASConfig(sample_ratio=1.0, solver="ab2"))
        if row.name in PRESETS:
            assert row.sampling == RASConfig.load(PRESETS[row.name])


def test_the_rows_that_decide_have_all_pictures_and_the_others_a_quarter() -> None:
    manifest = planned("128")
    whole = {place_of(row) for row in manifest.rows[1:] if row.images is None}
    assert whole == {(kind, cost) for kind in MAIN for cost in DECIDING}
    assert len(manifest.shots) == 256
    for row in manifest.rows:
        assert (row.images, row.without) in {(None, ()), (64, ("fd-emoji",))}
    found = {place_of(row) for row in manifest.rows[1:]}
    assert found >= {(kind, cost) for kind in MAIN for cost in COSTS}
    kinds = {kind for kind, _ in filter(None, found)}
    # Every change has its row at every cost that decides.
    for whole, changes in parts.CHANGED.items():
        assert found >= {(kind, cost) for kind in (whole, *changes) for cost in DECIDING}
    assert kinds >= {"dpmpp", "paper-l2", "paper-random", "innovation", "held-skips"}
    assert kinds >= {"by-chance", "by-std", "held", "linear", "held-damped-ab2", "undamped"}
    large = planned("256")
    assert len(large.shots) == 32
    assert {place_of(r) for r in large.rows[1:]} >= {(k, cost) for k in MAIN for cost in DECIDING}
    # No caption and no noise of the one is in the other.
    assert not {shot.seed for shot in large.shots} & {shot.seed for shot in manifest.shots}


def result(name: str, values: list[float], cost: float, **row: Any) -> RowResult:
    pictures = [Picture(n, "x", n, n, Path("x")) for n in range(len(values))]
    made = (
        average_statistic(MEDIAN, values, pictures, better="lower", column="c", average="median"),
        average_statistic("emoji kept", values, pictures, better="higher", column="k"),
        average_statistic("unasked", values, pictures, better="higher", column="k"),
    )
    return RowResult(
        row=Row(name=name, steps=int(row.pop("steps", 28)), **row),
        pictures=len(values),
        wanted=len(values),
        cost=cost,
        statistics=made,
        columns={"c": dict(enumerate(values)), "k": dict(enumerate(values))},
        groups={n: n for n in range(len(values))},
    )


INNOVATION = changed_fields(RASConfig(metric="innovation", sample_ratio=0.25))
BASE = [0.1, 0.2, 0.3, 0.15, 0.25]


def test_rows_fight_the_controls_of_their_cost_alone() -> None:
    better, worse = [x - 0.05 for x in BASE], [x + 0.05 for x in BASE]
    shown = Table.of(
        [
            result("dense-112", BASE, 112),
            result("euler-17", worse, 17, steps=17),
            result("euler-7", better, 7, steps=7),
            result("ab2-17", better, 17, steps=17),
            result("multirate-17", BASE, 16.9, config=INNOVATION),
            result("tried-17", BASE, 17, config=INNOVATION, images=5),
        ]
    )
    assert set(shown.results) == {
        *(("euler", 17.0), ("euler", 7.0), ("ab2", 17.0), ("multirate", 17.0), ("tried", 17.0))
    }
    fought = {(f.row, f.kind, f.statistic): f for f in shown.fights}
    assert len(fought) == len(shown.fights) == 2 * (2 + 2 + 1 + 1)
    beaten = fought["multirate-17", "euler", MEDIAN]
    assert (beaten.control, beaten.verdict) == ("euler-17", "beats")
    assert beaten.gap == pytest.approx((-0.05, -0.05))
    assert beaten.ratio == pytest.approx(17 / 16.9)
    assert fought["multirate-17", "ab2", MEDIAN].verdict == "loses"
    assert fought["multirate-17", "ab2", "emoji kept"].verdict == "beats"
    assert fought["ab2-17", "euler", MEDIAN].verdict == "beats"
    text = shown.markdown()
    assert text.index("### 17 dense steps") < text.index("### 7 dense steps")
    line = next(line for line in text.splitlines() if line.startswith("| multirate |"))
    assert f"loses: {MEDIAN}; beats: emoji kept" in line
    assert line.endswith("| 28 steps, sample ratio 0.25, metric innovation |")
    assert answer(shown).splitlines()[2:] == [
        "| multirate-17 | (b) dense Euler | beats (-0.05 to -0.05) | loses (-0.05 to -0.05) |",
        "| multirate-17 | (c) dense AB2 | loses (+0.05 to +0.05) | beats (+0.05 to +0.05) |",
    ]
    assert shown.main == {"euler", "ab2", "multirate"}


def test_what_a_part_is_worth() -> None:
    def of(name: str, gain: float) -> RowResult:
        values = [30 + gain + x for x in BASE]
        made = result(name, values, 17, config=INNOVATION)
        psnr = replace(made.statistics[1], name=parts.SHOWN)
        return replace(made, statistics=(*made.statistics, psnr))

    whole, chance = of("multirate-17", 2), of("by-chance-17", 0.5)
    skips = of("skips-8.75", 0)
    shown = Table.of([whole, chance, of("oracle-17", 3), skips, of("by-std-8.75", 0)])
    assert parts.markdown(shown).splitlines() == [
        "| row | against | at 17 |",
        "| --- | --- | --- |",
        "| multirate | `by-chance`: tokens by chance | beats (+1.5 to +1.5) |",
        "| multirate | `oracle`: tokens by their true errors | loses (-1 to -1) |",
    ]
    lines = list(csv.DictReader(io.StringIO(parts.csv(shown))))
    assert {(line["row"], line["control"]) for line in lines} == {
        ("multirate-17", "by-chance-17"),
        ("multirate-17", "oracle-17"),
    }
    # Not the one number that is shown alone.
    assert {line["statistic"] for line in lines} == {MEDIAN, "emoji kept", parts.SHOWN}
    assert parts.markdown(Table.of([whole, skips])) == ""


def test_names_without_a_cost_are_no_rows_of_the_tables() -> None:
    assert place_of(Row(name="dense-112", steps=112)) is None
    assert place_of(Row(name="multirate", steps=28)) is None
    assert place_of(Row(name="paper-l2-8.75", steps=28)) == ("paper-l2", 8.75)
    assert not decides(Row(name="euler-17", steps=17))
    assert settings_of(Row(name="x-17", steps=4, scheduler="unipc")) == "4 steps, unipc"
    listed = changed_fields(RASConfig(schedule=(1, 0.44, 0)))
    assert settings_of(Row(name="x-17", steps=3, config=listed)) == (
        "3 steps, sample ratio 0.44, schedule 1 0.44 0"
    )
    assert answer(Table.of([])) == ""
    assert set(draw({}).parts.values()) == {NO_PICTURES}


@dataclass(frozen=True)
class Ran:
    """A folder, what the command said, and what it printed as a process."""

    folder: Path
    said: list[str]
    printed: str


@pytest.fixture(scope="module")
def ran(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The command with a tiny model and few pictures: no time, all of it as a process, seconds."""
    folder = tmp_path_factory.mktemp("multirate")
    save_judged_model(model_folder, folder / "model")
    for name in BENCHMARK.evaluations:
        data = yaml.safe_load((BENCHMARK.files / f"{name}.yaml").read_text())
        # 256x256 pixels are 256 tokens of the tiny model.
        wanted = {"euler", "multirate", *(SHORT if name == "128" else ())}
        data["rows"] = [
            {**row, "images": 2} if "images" in row else row
            for row in data["rows"]
            if row["name"].rpartition("-")[0] in wanted and row["name"].endswith("-17")
        ]
        data["prompts"]["count"] = 4 if name == "128" else 2
        data |= {"model": "../model", "batch": 2, "reference_steps": 28, "max_sequence_length": 8}
        if "time" in data:
            data["time"] = {"runs": 1}
        (folder / "evaluations").mkdir(exist_ok=True)
        (folder / "evaluations" / f"{name}.yaml").write_text(yaml.safe_dump(data))
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / BENCHMARK.page, folder / "docs")
    words = ["--workers", "1"]
    for word in ("out", "docs", "evaluations"):
        words += [f"--{word}", str(folder / word)]
    said: list[str] = []
    assert run(BENCHMARK, None, [*words, "--budget", "0"], said.append) == 2
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.multirate", *words, "--budget", "9"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert run(BENCHMARK, None, [*words, "--times"], said.append) == 0
    return Ran(folder, said, done.stdout)


def test_a_budget_of_nothing_makes_nothing_and_the_rest_follows(ran: Ran) -> None:
    assert ran.said[0].startswith("128: 0 of ")
    assert "256: 7 of 7 units are scored" in ran.printed
    assert "more minutes" not in ran.printed
    assert not list(ran.folder.rglob("*.part"))


def test_all_of_it_by_the_command(ran: Ran) -> None:
    text = (ran.folder / "docs" / BENCHMARK.page).read_text()
    assert NO_PICTURES not in text
    assert "### 17 dense steps" in text
    assert "| multirate-17 | (c) dense AB2 |" in text
    assert "| multirate | `by-chance`: tokens by chance |" in text
    assert text.count("s/image") == 1
    assert text.count("Seconds: ") == 1
    tables = ran.folder / "docs" / "multirate"
    for name in BENCHMARK.evaluations:
        out = ran.folder / "out" / name
        assert (tables / f"{name}.png").stat().st_size > 10_000
        with (tables / f"{name}.csv").open(newline="") as file:
            lines = {line["row"]: line for line in csv.DictReader(file)}
        assert set(lines) == {row.name for row in load_manifest(out).rows if place_of(row)}
        for row, line in lines.items():
            assert line["pictures"] == line["wanted"]
            assert len(list((out / "latents" / row).iterdir())) == int(line["pictures"])
            stored = json.loads((out / "scores/latent-rmse" / row / "summary.json").read_text())
            assert float(line[MEDIAN]) == stored["statistics"][0]["value"]
            assert bool(line["seconds"]) == (name == "256")
            assert ("FD-emoji" in line and line["FD-emoji"] != "") == (
                name == "128" and line["pictures"] == "4"
            )
        with (tables / f"{name}-controls.csv").open(newline="") as file:
            kinds = {line["kind"] for line in csv.DictReader(file)}
        assert kinds == (set(CONTROLS) if name == "128" else {"euler"})
