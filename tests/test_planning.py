"""A plan's table says what the run then does and costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ras_dit
from pipelines import TEXT_TOKENS, sd3_inputs, sd3_pipeline
from ras_dit import RASConfig, RASError
from ras_dit.adapters.work import sd3_work
from ras_dit.cost import trace_cost
from ras_dit.outline import read_outline
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
