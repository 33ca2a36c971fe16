"""A plan's table says what the run then does and costs."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import ras_dit
from family_laws import SPARSE, Family, run_sparse
from pipelines import TEXT_TOKENS, sd3_inputs, sd3_pipeline
from ras_dit import RASConfig, RASError, UnsupportedError
from ras_dit.adapters.work import sd3_work
from ras_dit.cost import trace_cost
from ras_dit.engine import denoisers
from ras_dit.outline import outline_of, read_outline
from ras_dit.planning import PlanTable, plan_table
from ras_dit.tokens import TokenGrid

CONFIG = RASConfig(sample_ratio=0.4, warmup_steps=2, reset_steps=(6,))


def planned(config: RASConfig = CONFIG, branches: int = 2) -> PlanTable:
    """The plan of the runs of ``sd3_inputs``."""
    work = sd3_work(sd3_pipeline().transformer.config)
    grid = TokenGrid(6, 10)
    return plan_table(work, config, 10, grid, num_text_tokens=TEXT_TOKENS, branches=branches)


def test_a_plan_costs_what_the_run_costs() -> None:
    pipe, table = sd3_pipeline(), planned()
    with ras_dit.enable(pipe, CONFIG) as handle:
        pipe(**sd3_inputs())
    trace = handle.trace
    assert trace is not None
    work = sd3_work(pipe.transformer.config)
    assert table.limit == pytest.approx(trace_cost(work, trace).limit)
    assert table.cache_bytes == trace.cache_bytes
    assert table.num_dense == trace.num_dense_steps
    counts = [row.num_active for row in table.rows for _ in range(row.first, row.last + 1)]
    assert counts == [step.num_active for step in trace.steps]


def test_equal_steps_share_a_row() -> None:
    table = planned()
    cells = [row.cells()[:3] for row in table.rows]
    assert cells == [
        ("0 to 1", "dense", "60"),
        ("2 to 5", "sparse", "24"),
        ("6", "dense", "60"),
        ("7 to 9", "sparse", "24"),
    ]
    assert table.rows[0].cost == 1
    assert 0.3 < table.rows[1].cost < 0.6
    assert table.mean_ratio == pytest.approx(0.4)
    assert planned(branches=1).cache_bytes * 2 == table.cache_bytes


def test_a_dense_plan_saves_nothing() -> None:
    table = planned(RASConfig(sample_ratio=1.0))
    assert (len(table.rows), table.limit, table.cache_bytes) == (1, 1.0, 0)
    assert table.mean_ratio is None
    assert "no sparse step" in table.markdown()


def test_the_markdown_holds_steps_and_facts() -> None:
    text = planned().markdown()
    assert "| 2 to 5 | sparse | 24 |" in text
    assert "| graphs, if compiled | at most " in text
    assert "| FLOP limit of the loop |" in text
    widths = [{line.count("|") for line in part.splitlines()} for part in text.split("\n\n")]
    assert widths == [{5}, {3}]


def test_a_configuration_that_does_not_fit() -> None:
    with pytest.raises(RASError, match="outside a run of 10"):
        planned(RASConfig(reset_steps=(12,)))


def test_the_outline_is_the_pipelines(model_folder: Path) -> None:
    outline = read_outline(model_folder, max_sequence_length=16)
    assert outline.num_text_tokens == 64
    assert outline.grid() == TokenGrid(8, 8)
    assert outline.grid(40, 24) == TokenGrid(6, 10)
    assert outline.num_evaluations(28) == 28
    assert read_outline(model_folder).num_text_tokens == 48 + 256
    assert outline.work == sd3_work(sd3_pipeline().transformer.config)
    with pytest.raises(RASError, match="no multiple of 4"):
        outline.grid(41, 24)


def test_files_of_other_releases_and_schedulers(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["dual_attention_layers"], config["qk_norm"]
    path.write_text(json.dumps(config))
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    heun = {"scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]}
    path.write_text(json.dumps(index | heun | {"tokenizer": [None, None]}))
    outline = read_outline(folder, max_sequence_length=16)
    assert outline.work == read_outline(model_folder).work
    assert outline.num_evaluations(6) == 11
    assert outline.num_text_tokens == 77 + 16


@pytest.mark.parametrize("damage", ["transformer/config.json", "vae/config.json"])
def test_damaged_files_are_one_error(model_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for content in ("{", "[]", None):
        (folder / damage).unlink() if content is None else (folder / damage).write_text(content)
        with pytest.raises(RASError):
            read_outline(folder)


def test_hub_models_are_read_file_by_file(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.loads((model_folder / "model_index.json").read_text())
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", lambda _: index)
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        return str(model_folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    outline = read_outline("owner/name")
    assert outline.grid() == TokenGrid(8, 8)
    assert outline.place == "owner/name"
    assert all(name.startswith("owner/name/") and name.endswith(".json") for name in asked)


def test_dtypes_set_the_size_of_caches() -> None:
    work = sd3_work(sd3_pipeline().transformer.config)
    sizes = {
        dtype: plan_table(
            work, CONFIG, 10, TokenGrid(6, 10), num_text_tokens=7, dtype=dtype
        ).cache_bytes
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert sizes[torch.float32] == 2 * sizes[torch.bfloat16]


MODULES = sorted(path.stem for path in Path(__file__).parent.glob("families_*.py"))
# Their runs cannot be planned from a size, or the size of their tests is not one of theirs.
UNPLANNED = ("VisualCloze", "Qwen-Image-Layered", "Flux.1 Kontext", "HiDream")
BY_PICTURES = ("HunyuanVideo 1.5 image-to-video",)
# Rows beside the main ones whose sizes have a rule of their own.
FURTHER = ("image-to-video", "animate", "refiner")
FAMILIES: list[Family] = [
    family
    for name in MODULES
    for family in importlib.import_module(name).FAMILIES
    if (family.is_main or family.feature in FURTHER)
    and family.name not in UNPLANNED
    and str(family) not in BY_PICTURES
]
# Latent frames of pictures that are given in the call, which no plan can know.
GIVEN_FRAMES = {"Wan 2.1 VACE": 1}


def written(pipe: Any, folder: Path) -> Path:
    """The configuration files of a pipeline, without its weights."""
    pipe.save_config(folder)
    for name in ("transformer", "vae", "scheduler"):
        part = getattr(pipe, name, None)
        if part is not None:
            part.save_config(folder / name)
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_does_what_its_plan_says(family: Family, tmp_path: Path) -> None:
    """Tokens, active tokens, FLOPs and bytes, from the pipeline and from its files alone."""
    pipe, call = family.build(), family.call(1)
    outline = outline_of(pipe)
    frames = call.get("num_frames") or call.get("segment_frame_length")
    as_asked = call.get("use_resolution_binning") is False
    size = call.get("height") and (call["width"], call["height"], frames)
    layout = outline.layout(*(size or ()), as_asked=as_asked)
    _, trace = run_sparse(pipe, call)
    assert layout.grid.shape[-2:] == trace.grid.shape[-2:]
    assert layout.grid.frames + GIVEN_FRAMES.get(family.name, 0) == trace.grid.frames
    assert layout.num_references == trace.num_references
    batch = sum(made.batch for made in trace.steps[0].calls)
    table = plan_table(
        outline.work,
        RASConfig(**SPARSE),
        outline.num_evaluations(call["num_inference_steps"]),
        trace.grid,
        num_text_tokens=trace.num_text_tokens,
        branches=batch,
        num_references=layout.num_references,
    )
    counts = [row.num_active for row in table.rows for _ in range(row.first, row.last + 1)]
    assert counts == [step.num_active for step in trace.steps]
    # Two transformers in turn fill their caches once each, which a plan does not foresee.
    if len(denoisers(pipe)) == 1:
        assert table.cost == trace_cost(outline.work, trace)
    if family.caches_by_formula:
        assert table.cache_bytes == trace.cache_bytes
    vae = type(getattr(pipe, "vae", None)).__name__
    if hasattr(diffusers, vae):  # others of the tests cannot be read from files
        read = read_outline(written(pipe, tmp_path))
        assert read.layout(*(size or ()), as_asked=as_asked) == layout
        assert (read.work, read.branches) == (outline.work, outline.branches)
        assert read.num_inference_steps == outline.num_inference_steps


@pytest.mark.parametrize("module", ["families_joint", "families_flux_kin", "families_wan"])
def test_a_size_between_tokens_is_refused(module: str) -> None:
    """The nearest sizes are offered, and are taken."""
    for row in importlib.import_module(module).FAMILIES:
        sizes = outline_of(row.build()).sizes
        side, frames = sizes.multiple, sizes.frames_per_latent and 1 + sizes.frames_per_latent
        with pytest.raises(RASError, match=f"use {4 * side} or {5 * side}$"):
            sizes.size(5 * side - 1, 4 * side, frames)
        if sizes.replaced is None:
            assert sizes.size(5 * side, 4 * side, frames).height == 4 * side


def test_pipelines_that_choose_their_area() -> None:
    """What HiDream makes of a size is refused with the size that it makes, and that one is run."""
    from families_joint import FAMILIES as JOINT

    family = next(row for row in JOINT if row.name == "HiDream")
    pipe, call = family.build(), family.call(1)
    pipe.default_sample_size = 12
    sizes = outline_of(pipe).sizes
    assert (sizes.own.width, sizes.own.height) == (12 * sizes.pixels, 12 * sizes.pixels)
    with pytest.raises(RASError, match=f"instead of {sizes.multiple * 4}x{sizes.multiple * 2}"):
        sizes.size(sizes.multiple * 4, sizes.multiple * 2)
    assert sizes.replaced is not None
    width, height = sizes.replaced(sizes.multiple * 4, sizes.multiple * 2)
    size = sizes.size(width, height)
    _, trace = run_sparse(pipe, call | {"width": width, "height": height})
    assert sizes.grid(size) == trace.grid


def test_runs_that_no_size_describes_are_refused() -> None:
    from families_visualcloze import FAMILIES as CLOZE

    with pytest.raises(UnsupportedError, match="pictures of the call"):
        outline_of(CLOZE[0].build())


def test_a_published_model_is_planned_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any) -> str:
        raise AssertionError("a published model needs no file")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    outline = read_outline("Flux.1-schnell")
    table = plan_table(
        outline.work,
        RASConfig(sample_ratio=0.5),
        outline.num_evaluations(outline.num_inference_steps),
        outline.grid(),
        num_text_tokens=outline.num_text_tokens,
        branches=outline.branches,
    )
    assert (table.num_steps, table.grid.shape, table.branches) == (4, (64, 64), 1)
    assert f"{table.cost.ras:.4g} of {table.cost.dense:.4g}" in dict(table.facts()).values()


def test_a_summary_before_the_first_run_states_the_plan() -> None:
    pipe = sd3_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.4):
        before = ras_dit.summary(pipe)
        pipe(**sd3_inputs())
        after = ras_dit.summary(pipe)
    outline = outline_of(pipe)
    assert before.plan is not None
    assert (before.plan.num_steps, before.plan.grid) == (28, outline.grid())
    assert f"{before.plan.limit:.2f}x" in str(before)
    assert "planned steps" in str(before)
    assert after.plan is None
    assert "planned" not in str(after)
    with ras_dit.enable(pipe, schedule=(1.0, 0.5)):  # for runs of two steps
        assert ras_dit.summary(pipe).plan is None
