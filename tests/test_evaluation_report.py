"""Report, times and gate: what is said of a row is what the files hold."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluations import STEPS, evaluation, planned
from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.evaluation import manifest as manifest_module
from ras_dit.evaluation import stages
from ras_dit.evaluation.comparisons import RowResult, duels, frontier
from ras_dit.evaluation.gate import check_gate
from ras_dit.evaluation.manifest import plan_evaluation, read_evaluation
from ras_dit.evaluation.rows import Row
from ras_dit.evaluation.scorers import Picture, Statistic
from ras_dit.evaluation.statistics import average_statistic
from ras_dit.evaluation.timing import read_times, time_rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPARSE = f"ras-{STEPS}-0.25-std"
CONFIG = {"sample_ratio": 0.25, "metric": "std", "keep": "auto", "seed": 0}


def result(
    name: str, values: Sequence[float] | None, cost: float, *, better: Any = "higher", **row: Any
) -> RowResult:
    """A row with one number per picture."""
    made = Row(name=name, steps=8, **row)
    if values is None:
        return RowResult(row=made, pictures=8, cost=cost)
    pictures = [Picture(n, "x", n, n, Path("x")) for n in range(len(values))]
    return RowResult(
        row=made,
        pictures=len(values),
        cost=cost,
        statistics=(average_statistic("Q", values, pictures, better=better, column="q"),),
        columns={"q": dict(enumerate(values))},
        groups={n: n for n in range(len(values))},
    )


def verdicts(own: RowResult, *others: RowResult) -> dict[str, str]:
    return {duel.kind: duel.verdict for duel in duels(own, [own, *others])}


def test_verdicts_are_picture_by_picture() -> None:
    rng = np.random.default_rng(0)
    base = list(30 + 10 * rng.standard_normal(40))
    own = result("own", base, 4, config=CONFIG)
    noise = 0.5 * rng.standard_normal(40)
    # The means' intervals overlap by far; the differences are all of one sign.
    worse = result("dense-4", list(np.array(base) - 1 + noise), 4, role="fewer steps")
    better = result("dense-4", list(np.array(base) + 1 + noise), 4, role="fewer steps")
    equal = result("dense-4", list(np.array(base) + noise - noise.mean()), 4, role="fewer steps")
    assert verdicts(own, worse) == {"fewer steps": "beats"}
    assert verdicts(own, better) == {"fewer steps": "loses"}
    assert verdicts(own, equal) == {"fewer steps": "ties"}


def test_lower_can_be_better() -> None:
    own = result("own", [1.0, 1.1, 1.2] * 4, 4, better="lower", config=CONFIG)
    other = result("dense-4", [2.0, 2.1, 2.2] * 4, 4, better="lower")
    assert verdicts(own, other) == {"fewer steps": "beats"}


def test_the_control_nearest_in_time_counts() -> None:
    own = result("own", [5.0, 6.0] * 4, 4, config=CONFIG)
    near, far = result("dense-4", [1.0, 2.0] * 4, 4.2), result("dense-8", [9.0, 9.5] * 4, 8)
    (duel,) = duels(own, [far, own, near])
    assert (duel.control, duel.verdict) == ("dense-4", "beats")
    assert verdicts(own, far) == {"fewer steps": "no control of equal time"}
    # Better and faster, or worse and slower, needs no equal time.
    assert verdicts(own, result("dense-1", [9.0, 9.5] * 4, 1)) == {"fewer steps": "loses"}
    assert verdicts(own, result("dense-9", [1.0, 2.0] * 4, 9)) == {"fewer steps": "beats"}


def test_the_reference_stands_in_only_where_no_other_control_is() -> None:
    # As seconds were measured: the reference is nearer in time than the control.
    own = result("own", [14.0, 15.0] * 4, 2.36, config=CONFIG)
    control = result("dense-4", [21.0, 21.2] * 4, 2.00)
    reference = result("dense-6", None, 2.77, role="reference")
    for others in ([control, reference], [reference, control]):
        (duel,) = duels(own, [own, *others])
        assert (duel.control, duel.verdict) == ("dense-4", "loses")
    # Also where the reference has numbers of its own.
    scored = result("dense-6", [14.0, 15.0] * 4, 2.77, role="reference")
    assert verdicts(own, scored, control) == {"fewer steps": "loses"}
    assert verdicts(own, reference) == {"fewer steps": "no faster than the reference"}


def test_a_row_that_is_worse_than_a_faster_control_loses() -> None:
    own = result("own", [14.0, 15.0] * 4, 4, config=CONFIG)
    equal = result("dense-4", [14.0, 15.0] * 4, 4)
    faster, slower = (result(f"dense-{n}", [21.0, 21.2] * 4, n) for n in (2, 9))
    assert verdicts(own, equal) == verdicts(own, equal, slower) == {"fewer steps": "ties"}
    (duel,) = duels(own, [own, equal, faster])
    assert (duel.control, duel.verdict, duel.equal_time) == ("dense-2", "loses", False)
    # A tie in another number excuses nothing; a number in which it is better does.
    for value, word in ((5.0, "loses"), (1.0, "ties")):
        rows = [
            replace(
                row, statistics=(*row.statistics, replace(row.statistics[0], name="R", column="r"))
            )
            for row in (own, equal, faster)
        ]
        for row, number in zip(rows, (5.0, 5.0, value), strict=True):
            row.columns["r"] = dict.fromkeys(range(8), number)  # type: ignore[index]
        assert verdicts(*rows) == {"fewer steps": word}


def test_the_difference_has_an_interval() -> None:
    rng = np.random.default_rng(1)
    base, gap = 30 + 10 * rng.standard_normal(40), 2 + 0.1 * rng.standard_normal(40)
    own = result("own", list(base + gap), 4, config=CONFIG)
    (duel,) = duels(own, [own, result("dense-4", list(base), 4)])
    low, high = duel.gaps["Q"]
    # Picture by picture: of the spread of the differences, not of the pictures.
    assert low < gap.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * gap.std() / np.sqrt(40), rel=0.2)


def test_controls_by_kind() -> None:
    own = result("own", [5.0, 6.0] * 4, 4, config=CONFIG)
    chance = result("chance", [5.5, 7.0] * 4, 4, config={**CONFIG, "metric": "random"})
    other = result(
        "other", [1.0] * 8, 4, config={**CONFIG, "metric": "random", "sample_ratio": 0.5}
    )
    unipc = result("unipc-4", [1.0, 2.0] * 4, 4, scheduler="unipc")
    assert verdicts(own, chance, other, unipc) == {"second order": "beats", "random": "loses"}
    reference = result("dense-8", None, 4, role="reference")
    assert verdicts(own, reference) == {"fewer steps": "no faster than the reference"}


def test_numbers_of_whole_sets_are_compared_by_their_errors() -> None:
    def fid(name: str, value: float, **row: Any) -> RowResult:
        statistic = Statistic(
            name="FID",
            value=value,
            low=value - 2,
            high=value + 2,
            count=9,
            better="lower",
            error=1.0,
        )
        return RowResult(
            row=Row(name=name, steps=8, **row), pictures=9, cost=4, statistics=(statistic,)
        )

    own = fid("own", 20, config=CONFIG)
    assert verdicts(own, fid("dense-4", 22)) == {"fewer steps": "ties"}
    assert verdicts(own, fid("dense-4", 23)) == {"fewer steps": "beats"}
    assert verdicts(own, fid("dense-4", 17)) == {"fewer steps": "loses"}


def test_the_frontier_is_what_nothing_dominates() -> None:
    rows = [
        result("a", [1.0] * 4, 1),
        result("b", [3.0] * 4, 2),
        result("c", [2.0] * 4, 3),
        result("d", [4.0] * 4, 3),
        result("e", None, 0.5),
    ]
    assert frontier(rows, "Q") == {"a", "b", "d"}


@pytest.fixture(scope="module")
def ran(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run by the program."""
    folder = tmp_path_factory.mktemp("ran")
    rows = [
        {"steps": STEPS, "published": {"FID": 20, "Image/s": 0.5}},
        {"steps": STEPS, "sample_ratio": 0.25, "warmup_steps": 2, "published": {"PSNR": 31}},
        {"steps": STEPS, "cache": "first-block"},
        {"steps": STEPS, "cache": {"name": "cache-dit", "Fn_compute_blocks": 1}, "images": 2},
    ]
    data = evaluation(
        model_folder, rows=rows, scores=["psnr", "ssim", "lpips"], time={"runs": 2, "batch": 2}
    )
    planned(folder, data)
    status = main(
        ["evaluate", "run", str(folder / "evaluation.yaml"), "--out", str(folder / "out")]
    )
    assert status == 0
    return folder / "out"


def test_the_report_has_every_row_and_says_what_could_not_be_had(ran: Path) -> None:
    text = (ran / "report" / "report.md").read_text()
    for part in (
        f"{SPARSE} |",
        f"dense-{STEPS} (reference)",
        "(fewer steps)",
        "(second order)",
        "(random)",
        "PSNR, dB ↑",
        "| against fewer steps | against second order | against random |",
        "no lpips: lpips needs torchvision",
        f"first-block-{STEPS} could not be had: diffusers has no enable_cache",
        "## Beside the published numbers",
        "| Image/s | 0.5 |",
        "## On the frontier of quality and seconds",
    ):
        assert part in text, part
    with Image.open(ran / "report" / "tradeoff.png") as plot:
        assert min(plot.size) > 300


def test_the_table_is_the_files(ran: Path) -> None:
    lines = {
        line["row"]: line
        for line in csv.DictReader(io.StringIO((ran / "report" / "report.csv").read_text()))
    }
    stored = json.loads((ran / "scores" / "psnr" / SPARSE / "summary.json").read_text())
    assert float(lines[SPARSE]["PSNR"]) == stored["statistics"][0]["value"]
    times = [t["seconds"] / t["batch"] for t in read_times(ran, SPARSE)]
    assert float(lines[SPARSE]["seconds"]) == pytest.approx(np.median(times))
    assert lines[SPARSE]["published PSNR"] == "31.0"
    assert lines[f"cache-dit-{STEPS}-1"]["pictures"] == "2"
    dense, sparse = lines[f"dense-{STEPS}"], lines[SPARSE]
    assert float(dense["cost_dense_steps"]) == STEPS
    ratio = float(dense["tera_flops"]) / float(sparse["tera_flops"])
    assert ratio == pytest.approx(STEPS / float(sparse["cost_dense_steps"]))
    assert 0 < float(lines[f"cache-dit-{STEPS}-1"]["cost_dense_steps"]) <= STEPS + 1e-6


def test_times_stand_apart_and_go_on(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ran / "times" / SPARSE / "01.json"
    before = {p: p.read_bytes() for p in (ran / "times").rglob("*.json")}
    path.unlink()
    calls: list[int] = []
    assert time_rows(ran, on_run=lambda done, total: calls.append(total - done)) == 2
    # A warm-up and the round that is missing.
    assert calls == [1, 0]
    after = {p: p.read_bytes() for p in (ran / "times").rglob("*.json")}
    assert after.keys() == before.keys()
    assert {p for p in after if after[p] != before[p]} <= {path}
    fact = json.loads(path.read_text())
    assert 0 < fact["loop_seconds"] <= fact["seconds"]
    assert fact["peak_bytes"] is None or fact["peak_bytes"] > 2**20
    monkeypatch.setattr("ras_dit.evaluation.timing._processor", lambda: "another machine")
    with pytest.raises(RASError, match="times with another device"):
        time_rows(ran)


def test_the_gate_passes_and_fails(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((ran / "scores" / "psnr" / SPARSE / "summary.json").read_text())
    mean = value["statistics"][0]["value"]
    gate = ["evaluate", "gate", str(ran), "--row", SPARSE]
    assert main([*gate, "--psnr", str(mean - 0.01)]) == 0
    assert main([*gate, "--psnr", str(mean + 0.01)]) == 1
    assert main([*gate, "--psnr", str(mean - 0.01), "--ssim", "1.0"]) == 1
    said = capsys.readouterr().out
    assert f"FAILED: {SPARSE}: PSNR" in said
    assert f"passed: {SPARSE}: PSNR" in said


def test_a_gate_without_anything_to_look_at_does_not_pass(ran: Path) -> None:
    for least, rows, message in (
        ({"psnr": None}, [], "needs a bound"),
        ({"psnr": 3.0}, ["dense-9"], "there is no row dense-9"),
        ({"psnr": 3.0}, [], f"first-block-{STEPS} has no psnr"),
        ({"psnr": 3.0}, [f"dense-{STEPS}"], "has no psnr"),
    ):
        with pytest.raises(RASError, match=message):
            check_gate(ran, least, rows)
    assert main(["evaluate", "gate", str(ran), "--psnr", "1"]) == 2


def test_a_report_without_pictures_is_refused(ran: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "settings.json"):
        (tmp_path / name).write_bytes((ran / name).read_bytes())
    assert main(["evaluate", "report", str(tmp_path)]) == 2
    assert main(["evaluate", "report", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("table", "steps", "rows"),
    [
        (6, {30, 15}, 6),
        (7, {28}, 5),
        (8, {7}, 4),
        (9, {30, 23, 15, 10, 7, 6, 5, 3}, 31),
        (10, {28, 14, 12, 10, 7, 6, 5, 4, 3}, 32),
    ],
)
def test_the_papers_tables_can_be_planned(table: int, steps: set[int], rows: int) -> None:
    path = BENCHMARKS / "paper" / f"table{table}.yaml"
    data = read_evaluation(path)
    assert all(row["published"] for row in data["rows"])
    # The embedded model and its prompts stand in for what is not here.
    stand_in = {"model": None, "size": "128x128", "prompts": {"source": "grammar", "count": 2}}
    manifest, settings = plan_evaluation(data | stand_in, path.parent)
    asked = [row for row in manifest.rows if row.published]
    assert len(asked) == len(data["rows"]) == rows
    assert {row.steps for row in asked} == steps
    sparse = [row for row in asked if row.config is not None]
    assert len(sparse) == sum("paper" in row for row in data["rows"])
    assert all(row.cost is not None and row.cost < row.steps for row in sparse)
    assert {row.role for row in manifest.rows} >= {"second order", "reference"}
    assert any((row.config or {}).get("metric") == "random" for row in manifest.rows)
    assert {"psnr", "ssim"} < set(settings.scores)
    assert settings.time["runs"] == 5


def test_table_6_is_labelled_by_what_is_dropped() -> None:
    rows = yaml.safe_load((BENCHMARKS / "paper" / "table6.yaml").read_text())["rows"]
    sparse = {row["name"]: row["sample_ratio"] for row in rows if "paper" in row}
    assert sparse == {"RAS-25": 0.75, "RAS-50": 0.5, "RAS-75": 0.25, "RAS-87.5": 0.125}


def test_bad_words_of_the_program(tmp_path: Path, model_folder: Path) -> None:
    planned(tmp_path, evaluation(model_folder))
    file = str(tmp_path / "evaluation.yaml")
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "generate", str(tmp_path / "none.yaml"), *out]) == 2
    assert main(["evaluate", "generate", file, *out, "--engine", "slurm"]) == 2
    assert main(["evaluate", "generate", file, *out, "--address", "auto"]) == 2
    assert main(["evaluate", "score", str(tmp_path / "none")]) == 2
    assert main(["evaluate", "time", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["generate_pictures", "score_pictures"])
def test_an_interrupted_run_says_that_it_goes_on(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        stages, "generate_pictures", lambda *_, **__: stages.Progress(0, 0, refused={})
    )
    monkeypatch.setattr(stages, stage, interrupted)
    planned(tmp_path, evaluation(model_folder))
    words = ["evaluate", "run", str(tmp_path / "evaluation.yaml"), "--out", str(tmp_path / "out")]
    assert main(words) == 130
    assert "kept, and the same command goes on\n" in capsys.readouterr().err


def test_plans_are_made_with_the_libraries_quiet(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def noisy(*_: Any, **__: Any) -> None:
        logging.getLogger("transformers").warning("this needs torchvision")
        raise RASError("planned")

    monkeypatch.setattr(manifest_module, "plan_evaluation", noisy)
    planned(tmp_path, evaluation(model_folder))
    words = ["evaluate", "run", str(tmp_path / "evaluation.yaml"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert capsys.readouterr().err == "error: planned\n"


def test_an_output_that_is_no_folder(
    ran: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, evaluation(model_folder))
    blocked = tmp_path / "file"
    blocked.touch()
    file = str(tmp_path / "evaluation.yaml")
    for words in (["run", file], ["generate", file], ["report", str(ran)]):
        for place in (blocked, blocked / "below"):
            assert main(["evaluate", *words, "--out", str(place)]) == 2
            said = capsys.readouterr()
            assert f"--out {str(place)!r}" in said.err
            assert "is a file; give a folder" in said.err
