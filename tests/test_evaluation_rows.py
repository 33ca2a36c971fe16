"""The plan of an evaluation: rows, controls at equal cost, work units, what a folder may hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline

import ras_dit
from evaluations import PROMPTS, STEPS, evaluation, planned, written
from families_unified import z_image_filled, z_image_pipeline
from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.errors import RASError
from ras_dit.evaluation.equal_cost import WITHIN
from ras_dit.evaluation.files import dump, locked, read_json, write_json
from ras_dit.evaluation.manifest import (
    Manifest,
    Settings,
    load_manifest,
    load_settings,
    manifest_digest,
    read_evaluation,
    store,
)
from ras_dit.evaluation.rows import Row, add_controls, changed_fields, read_controls, read_rows


def cost(config: RASConfig | None, steps: int) -> float:
    """A plain cost for the tests: the ratio in all steps."""
    return steps * (1.0 if config is None else config.sample_ratio)


def rows_of(*asked: dict[str, Any], controls: object = None, grid: object = None) -> list[Row]:
    rows = read_rows(list(asked), grid, cost)
    return list(add_controls(rows, read_controls(controls), cost))


def test_every_sparse_row_gets_its_controls_at_equal_cost() -> None:
    rows = rows_of({"steps": 28, "sample_ratio": 0.25})
    assert [(row.name, row.role, row.steps, row.cost) for row in rows] == [
        ("ras-28-0.25-std", "row", 28, 7.0),
        ("dense-7", "fewer steps", 7, 7.0),
        ("unipc-7", "second order", 7, 7.0),
        ("random-28-0.25", "random", 28, 7.0),
    ]
    own, chance = RASConfig.load(rows[0].config), RASConfig.load(rows[3].config)
    assert chance == own.replace(metric="random")


def test_controls_that_are_there_already_are_not_doubled() -> None:
    rows = rows_of(
        {"steps": 7},
        {"steps": 28, "sample_ratio": 0.25},
        {"steps": 28, "sample_ratio": 0.25, "metric": "l2"},
        {"steps": 28, "sample_ratio": 0.25, "metric": "random"},
    )
    assert [row.name for row in rows[4:]] == ["unipc-7"]


def test_a_control_has_as_many_pictures_as_any_row_that_needs_it() -> None:
    rows = rows_of(
        {"steps": 28, "sample_ratio": 0.25, "images": 4},
        {"steps": 14, "sample_ratio": 0.5, "images": 9},
    )
    assert next(row for row in rows if row.name == "dense-7").images == 9


def test_controls_can_have_fewer_pictures_and_scores_than_their_rows() -> None:
    asked = ({"steps": 7}, {"steps": 28, "sample_ratio": 0.25, "without": ["ssim"]})
    rows = rows_of(*asked, controls={"images": 5, "without": ["fid"]})
    found = {row.name: (row.images, row.without) for row in rows}
    assert found == {
        # There without being added.
        "dense-7": (None, ()),
        "ras-28-0.25-std": (None, ("ssim",)),
        "unipc-7": (5, ("ssim", "fid")),
        "random-28-0.25": (5, ("ssim", "fid")),
    }
    few = rows_of({"steps": 28, "sample_ratio": 0.25, "images": 3}, controls={"images": 5})
    assert {row.images for row in few} == {3}


def test_controls_are_left_out_only_when_named() -> None:
    asked = {"steps": 28, "sample_ratio": 0.25}
    assert len(rows_of(asked, controls={})) == 4
    assert len(rows_of(asked, controls=False)) == 1
    names = [row.role for row in rows_of(asked, controls={"random": False})]
    assert names == ["row", "fewer steps", "second order"]
    assert rows_of(asked, controls={"second_order": "dpmpp"})[2].scheduler == "dpmpp"
    for wrong in (
        {"fewer": False},
        {"random": "yes"},
        {"second_order": "rk4"},
        ["random"],
        {"images": 0},
        {"without": "fid"},
    ):
        with pytest.raises(RASError, match="controls"):
            read_controls(wrong)


def test_a_grid_is_every_combination() -> None:
    rows = rows_of(
        controls=False,
        grid={"steps": [28, 14], "sample_ratio": [0.5, 0.25], "metric": "l2"},
    )
    assert [row.name for row in rows] == [
        "ras-28-0.5-l2",
        "ras-28-0.25-l2",
        "ras-14-0.5-l2",
        "ras-14-0.25-l2",
    ]


def test_paper_and_preset_rows() -> None:
    paper, preset = rows_of(
        {"steps": 28, "paper": "sd3", "sample_ratio": 0.25, "metric": "l2", "name": "P"},
        {"steps": 28, "preset": "fast", "name": "F"},
        controls=False,
    )
    expected = RASConfig.paper("sd3", 0.25).replace(metric="l2")
    assert RASConfig.load(paper.config) == expected
    assert RASConfig.load(preset.config) == RASConfig.load("fast")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sample_ratio": 0.5}, "row 1 has steps=None"),
        ({"steps": 0}, "row 1 has steps=0"),
        ({"steps": 8, "sample_ratio": 2}, "row 1: sample_ratio=2"),
        ({"steps": 8, "ratio": 0.5}, "row 1: RASConfig has no field ratio"),
        ({"steps": 8, "paper": "flux"}, "row 1: model='flux'"),
        ({"steps": 8, "paper": "sd3", "preset": "fast"}, "both paper and preset"),
        ({"steps": 8, "scheduler": "ddim"}, "scheduler='ddim'; expected one of unipc, dpmpp"),
        ({"steps": 8, "cache": "tea"}, "the cache 'tea'; expected one of first-block"),
        ({"steps": 8, "cache": "mag", "sample_ratio": 0.5}, "both a cache and RASConfig"),
        ({"steps": 8, "name": "../up"}, "is no file name"),
        ({"steps": 8, "images": 0}, "images=0"),
        ({"steps": 8, "published": {"FID": "low"}}, "published.FID='low'"),
        ({"steps": 8, "without": "fid"}, "without is a str"),
        (7, "row 1 is 7"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: Any, message: str) -> None:
    with pytest.raises(RASError, match=message):
        rows_of(row)


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(RASError, match="two rows are called dense-8"):
        rows_of({"steps": 8}, {"steps": 8})
    with pytest.raises(RASError, match="has no rows"):
        rows_of()


def test_the_plan_fixes_units_seeds_and_the_reference(model_folder: Path, tmp_path: Path) -> None:
    data = evaluation(model_folder, seed=10)
    data["prompts"]["per_prompt"] = 2
    data["rows"].append({"steps": 4, "images": 3})
    manifest, _ = planned(tmp_path, data)
    assert [shot.seed for shot in manifest.shots] == list(range(10, 20))
    assert [shot.group for shot in manifest.shots] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert manifest.reference.name == f"dense-{STEPS}"
    assert list(map(list, manifest.units(manifest.reference)))[-1] == [8, 9]
    assert list(map(list, manifest.units(manifest.row("dense-4")))) == [[0, 1], [2]]
    assert [prompt.text for prompt in manifest.prompts] == list(PROMPTS)


def test_the_reference_is_made_where_no_row_is_it(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"steps": 8, "sample_ratio": 0.5, "images": 2}, {"steps": 3, "images": 4}]
    manifest, _ = planned(tmp_path, evaluation(model_folder, rows=rows, controls=False))
    assert (manifest.reference.name, manifest.reference.images) == ("dense-8", 4)
    manifest, _ = planned(
        tmp_path, evaluation(model_folder, rows=rows, controls=False, reference_steps=20)
    )
    assert manifest.rows[0].name == "dense-20"


def test_the_planned_cost_is_the_plans(model_folder: Path, tmp_path: Path) -> None:
    manifest, _ = planned(tmp_path, evaluation(model_folder))
    sparse = manifest.row(f"ras-{STEPS}-0.25-std")
    assert sparse.cost is not None
    # Two dense steps and six sparse ones, which still pay for the text.
    assert 2 + 6 * 0.25 < sparse.cost < STEPS
    control = next(row for row in manifest.rows if row.role == "fewer steps")
    assert control.steps == round(sparse.cost)


def test_planned_costs_are_what_runs_cost(model_folder: Path, tmp_path: Path) -> None:
    """Text that is filled up by the size of the picture, and text that is kept."""
    sparse = {"steps": STEPS, "sample_ratio": 0.25, "warmup_steps": 2}
    filled, call = z_image_pipeline(), z_image_filled(1)
    filled.save_pretrained(tmp_path / "z-image")
    del call["cfg_truncation"]
    whole = StableDiffusion3Pipeline.from_pretrained(model_folder)
    whole.set_progress_bar_config(disable=True)
    given = {"prompt": "a fox", "max_sequence_length": 8, "width": 40, "height": 24}
    for pipe, folder, asked, words in (
        (filled, tmp_path / "z-image", call | {"num_inference_steps": STEPS}, {}),
        (whole, model_folder, given | {"num_inference_steps": STEPS}, {"text": "keep"}),
    ):
        rows = [{**sparse, **words}]
        data = evaluation(folder, rows=rows, controls=False, size="40x24")
        manifest, _ = planned(tmp_path / "plans", data)
        row = manifest.rows[1]
        assert row.config is not None
        with ras_dit.enable(pipe, RASConfig.load(row.config)) as handle:
            pipe(**asked)
        assert handle.trace is not None
        work = describe(pipe.transformer).work(pipe.transformer.config)
        assert row.cost == pytest.approx(STEPS / trace_cost(work, handle.trace).limit)


def test_a_manifest_is_read_back_equal(model_folder: Path, tmp_path: Path) -> None:
    manifest, settings = planned(tmp_path, evaluation(model_folder))
    folder = tmp_path / "out"
    with locked(folder):
        store(folder, manifest, settings)
    assert load_manifest(folder).to_dict() == manifest.to_dict()
    assert manifest_digest(folder) == hashlib.sha256(dump(manifest.to_dict())).hexdigest()
    assert load_settings(folder) == settings
    with locked(folder):
        store(folder, manifest, settings)


def test_another_evaluation_is_kept_out_of_a_folder(model_folder: Path, tmp_path: Path) -> None:
    manifest, settings = planned(tmp_path, evaluation(model_folder))
    folder = tmp_path / "out"
    with locked(folder):
        store(folder, manifest, settings)
        other, _ = planned(tmp_path, evaluation(model_folder, seed=1))
        with pytest.raises(RASError, match="holds an evaluation with other shots"):
            store(folder, other, settings)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(RASError, match=r"holds 'thesis.txt' and no evaluation"):
        store(foreign, manifest, settings)


def test_rows_can_be_added_to_and_left_out_of_an_evaluation_that_was_begun(
    model_folder: Path, tmp_path: Path
) -> None:
    def of(*steps: int, **changes: Any) -> tuple[Manifest, Settings]:
        rows = [{"steps": number} for number in steps]
        return planned(tmp_path, evaluation(model_folder, rows=rows, controls=False, **changes))

    folder = tmp_path / "out"
    with locked(folder):
        for steps in ((STEPS, 4), (6, STEPS, 4), (STEPS, 6)):
            store(folder, *of(*steps))
            assert load_manifest(folder).to_dict() == of(*steps)[0].to_dict()
        before = manifest_digest(folder)
        # Another reference, one that stays as a common row, and a row that stays but is another.
        for other in (of(9, STEPS, 6), of(6, 4), of(STEPS, 6, seed=1)):
            with pytest.raises(RASError, match=r"holds an evaluation with other (rows|shots)"):
                store(folder, *other)
        rows = [{"steps": STEPS}, {"steps": 6, "name": "dense-6", "scheduler": "unipc"}]
        data = evaluation(model_folder, rows=rows, controls=False)
        with pytest.raises(RASError, match="holds an evaluation with other rows"):
            store(folder, *planned(tmp_path, data))
    assert manifest_digest(folder) == before


def test_one_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RASError, match="another process is at work"),
        locked(tmp_path),
    ):
        pass


def test_another_model_of_one_name_is_another_evaluation(
    model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    before, _ = planned(tmp_path, evaluation(copy))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("3.0", "2.0"))
    after, _ = planned(tmp_path, evaluation(copy))
    assert before.model_digest != after.model_digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the evaluation"),
        ("rows: [", "is not valid YAML"),
        ("- 1", "holds a list"),
        ("row: []", "unknown field row"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "e.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RASError, match=message):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "a fox"}, "prompts is 'a fox'"),
        ({"prompts": {"source": "text", "files": "x"}}, "prompts has files"),
        (
            {"prompts": {"source": "coco", "file": "c.json", "from": "cocodataset.org"}},
            r"c\.json.*where to get it: cocodataset\.org",
        ),
        ({"size": "big"}, "size='big'"),
        ({"size": "33x32"}, "width=33"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"scores": {"psnr": 3}}, "scores.psnr is 3"),
        ({"scores": "psnr"}, "scores is a list"),
        ({"scores": {"pnsr": {}}}, "no scorer 'pnsr'; expected one of .*psnr"),
        ({"scores": ["beauty"]}, "no scorer 'beauty'"),
        ({"scores": {"psnr": {"foo": 1}}}, "psnr has no setting foo; it has none"),
        # Also of a scorer that cannot run here.
        ({"scores": {"lpips": {"net": "bert"}}}, "scores.lpips.net='bert'"),
        ({"time": {"run": 3}}, "time has run; expected runs"),
        ({"time": {"runs": 0}}, "time.runs=0"),
        ({"time": {"batch": None}}, "time.batch=None"),
        ({"time": {"size": "big"}}, "time.size='big'"),
        ({"time": {"size": "33x32"}}, "width=33"),
        ({"model": "/nowhere/at/all"}, "no model folder"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_said(
    model_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RASError, match=message):
        planned(tmp_path, evaluation(model_folder, **changes))


def test_fields_can_be_replaced_from_outside(model_folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, evaluation(model_folder))
    assert read_evaluation(path, {"device": "cpu", "model": None})["device"] == "cpu"
    assert read_evaluation(path, {"model": None})["model"] == str(model_folder)


def test_rows_store_what_is_not_the_default() -> None:
    dense, sparse, listed = rows_of(
        {"steps": 8},
        {"steps": 8, "sample_ratio": 0.25, "metric": "l2", "keep": "auto"},
        {"steps": 4, "schedule": [1, 0.5, 0, 1], "name": "listed"},
        controls=False,
    )
    assert (dense.config, dense.sampling) == (None, None)
    assert sparse.config == {"sample_ratio": 0.25, "metric": "l2"}
    assert sparse.sampling == RASConfig(sample_ratio=0.25, metric="l2")
    assert listed.config == {"schedule": [1.0, 0.5, 0.0, 1.0]}
    assert listed.sampling == RASConfig(schedule=(1, 0.5, 0, 1))
    # All defaults are a sparse row all the same.
    (usual,) = rows_of({"steps": 8, "sample_ratio": 0.5}, controls=False)
    assert usual.config == {}
    assert usual.sampling == RASConfig()


def test_a_folder_that_stored_every_field_goes_on(model_folder: Path, tmp_path: Path) -> None:
    """What an earlier release began, before fields were added that stand at their defaults."""
    manifest, settings = planned(tmp_path, evaluation(model_folder))
    data = manifest.to_dict()
    for row in data["rows"]:
        if row["config"] is not None:
            row["config"] = RASConfig.load(row["config"]).to_dict()
            del row["config"]["reset_tolerance"]  # as if it were new
    folder = tmp_path / "out"
    write_json(folder / "manifest.json", data)
    before = manifest_digest(folder)
    with locked(folder):
        store(folder, manifest, settings)
    assert manifest_digest(folder) == before
    loaded = load_manifest(folder)
    assert loaded.to_dict() == manifest.to_dict()
    assert [row.recipe for row in loaded.rows] == [row.recipe for row in manifest.rows]
    # A field that is not at its default is another evaluation.
    data["rows"][1]["config"]["starvation_scale"] = 0.3
    write_json(folder / "manifest.json", data)
    with locked(folder), pytest.raises(RASError, match="holds an evaluation with other rows"):
        store(folder, manifest, settings)
    assert read_json(folder / "manifest.json")["rows"][1]["config"]["starvation_scale"] == 0.3


@pytest.mark.parametrize("wanted", [5.0, 6.3])
def test_a_wanted_cost_finds_its_ratio(model_folder: Path, tmp_path: Path, wanted: float) -> None:
    rows = [{"steps": STEPS, "cost": wanted, "metric": metric} for metric in ("l2", "innovation")]
    rows.append({"steps": STEPS, "cost": wanted, "schedule": "linear"})
    manifest, _ = planned(tmp_path, evaluation(model_folder, rows=rows, controls=False))
    for row in manifest.rows[1:]:
        assert row.cost == pytest.approx(wanted, rel=WITHIN)
        assert row.sampling is not None
        # A step of the grid away it is further off, up or down.
        for change in (-0.02, 0.02):
            config = row.sampling.replace(sample_ratio=row.sampling.sample_ratio + change)
            other = {"steps": STEPS, **changed_fields(config)}
            data = evaluation(model_folder, rows=[other], controls=False)
            moved = planned(tmp_path, data)[0].rows[1].cost
            assert moved is not None
            assert abs(moved - wanted) >= abs(row.cost - wanted)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"cost": 4}, "cost=4, which sets sample_ratio; give it to a region-adaptive row"),
        ({"cost": 4, "metric": "l2", "sample_ratio": 0.5}, "which sets sample_ratio"),
        ({"cost": 4, "schedule": [1.0] * 8}, "whose schedule is constant or linear"),
        ({"cost": 0, "metric": "l2"}, "cost=0; expected a number of dense steps"),
        ({"cost": "low", "metric": "l2"}, "cost='low'"),
        ({"cost": 9, "metric": "l2"}, r"cannot cost 9 with steps=8: .* cost 0\.008 to 8; change"),
        ({"cost": 9, "metric": "l2", "tolerance": 0.1}, r"cannot cost 9 with steps=8: .* to 8"),
    ],
)
def test_what_is_wrong_with_a_wanted_cost_is_said(row: Any, message: str) -> None:
    with pytest.raises(RASError, match=message):
        rows_of({"steps": 8, **row}, controls=False)
