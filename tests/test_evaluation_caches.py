"""Step caches of diffusers as rows, on a model that allows them; the smoke run as a process."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from diffusers import FluxPipeline
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from conftest import LETTERS, clip_tokenizer
from evaluations import STEPS, evaluation, planned
from families_flux import FLUX_JOINT, FLUX_POOLED, flux_pipeline
from ras_dit.cli import main

SMOKE = Path(__file__).parents[1] / "benchmarks" / "smoke.yaml"
CACHES = (
    {"name": "first-block", "threshold": 10.0},
    {"name": "taylorseer", "cache_interval": 3, "disable_cache_before_step": 2},
    {"name": "pyramid", "spatial_attention_block_skip_range": 2},
    {"name": "mag", "num_inference_steps": STEPS},
)


@pytest.fixture
def flux_folder(tmp_path: Path) -> Path:
    """A saved Flux pipeline with random weights, whose text encoders read letters."""
    clip = clip_tokenizer(tmp_path)
    t5 = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        + [(letter, -1.0) for letter in ["▁", *LETTERS]],
        extra_ids=0,
        model_max_length=64,
    )
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=FLUX_POOLED,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=clip.model_max_length,
        eos_token_id=clip.eos_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5), d_model=FLUX_JOINT, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    stock = flux_pipeline()
    pipe = FluxPipeline(
        transformer=stock.transformer,
        scheduler=stock.scheduler,
        vae=stock.vae,
        tokenizer=clip,
        text_encoder=CLIPTextModel(clip_config).eval(),
        tokenizer_2=t5,
        text_encoder_2=T5EncoderModel(t5_config).eval(),
    )
    pipe.save_pretrained(tmp_path / "flux")
    return tmp_path / "flux"


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def test_caches_of_diffusers_are_rows_or_are_refused_with_the_reason(
    flux_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"steps": STEPS},
        *({"name": f"cached-{cache['name']}", "steps": STEPS, "cache": cache} for cache in CACHES),
        {"steps": STEPS, "sample_ratio": 0.25, "warmup_steps": 2},
    ]
    data = evaluation(flux_folder, rows=rows, controls=False, size="40x24", scores=["psnr"])
    data["prompts"] = {"source": "grammar", "count": 1}
    planned(tmp_path, data)
    out = tmp_path / "out"
    assert main(["evaluate", "run", str(tmp_path / "evaluation.yaml"), "--out", str(out)]) == 0
    lines = rows_of(out / "report" / "report.csv")
    for name in ("cached-first-block", "cached-taylorseer", "cached-pyramid"):
        assert lines[name]["refused"] == "", name
        assert 0 < float(lines[name]["cost_dense_steps"]) < STEPS
        assert float(lines[name]["PSNR"]) < 100
    # Its options lack the ratios of the model.
    assert "mag" in lines["cached-mag"]["refused"]
    assert lines["cached-mag"]["pictures"] == "0"
    # A cache that stayed on would refuse the row after it.
    assert float(lines[f"ras-{STEPS}-0.25-std"]["cost_dense_steps"]) < STEPS


def test_the_smoke_run_as_people_start_it(tmp_path: Path) -> None:
    """``make evaluate-smoke`` with one small picture a row."""
    data = yaml.safe_load(SMOKE.read_text()) | {"size": "64x64"}
    data["prompts"]["count"] = 1
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(data))
    done = subprocess.run(
        [sys.executable, "-m", "ras_dit", "evaluate", "run", "smoke.yaml", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = rows_of(tmp_path / "out" / "report" / "report.csv")
    assert {line["role"] for line in lines.values()} == {
        *("row", "reference", "fewer steps", "second order", "random")
    }
    for line in lines.values():
        assert line["pictures"] == "1"
        assert float(line["seconds"]) > 0
        assert line["role"] == "reference" or float(line["PSNR"]) > 0
