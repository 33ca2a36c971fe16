"""What many tests share: a small complete pipeline in a folder, as people have them on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pipelines import JOINT, POOLED, sd3_pipeline

LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Models this small are fastest on one thread, above all where other programs run too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Processes that tests start find what an earlier one compiled.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Stable Diffusion 3 pipeline with random weights: 4-pixel tokens, 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("model") / "tiny-sd3"
    tiny_pipeline(tmp_path_factory.mktemp("tokenizers")).save_pretrained(folder)
    return folder


def tiny_pipeline(work_folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of ``pipelines.sd3_pipeline`` with text encoders that read letters."""
    stock = sd3_pipeline()
    clip = clip_tokenizer(work_folder)
    t5 = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        + [(letter, -1.0) for letter in ["▁", *LETTERS]],
        extra_ids=0,
        model_max_length=64,
    )
    encoder_3 = T5EncoderModel(
        T5Config(vocab_size=len(t5), d_model=JOINT, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    components: dict[str, Any] = {
        "tokenizer": clip,
        "text_encoder": clip_encoder(clip),
        "tokenizer_2": clip,
        "text_encoder_2": clip_encoder(clip),
        "tokenizer_3": t5,
        "text_encoder_3": encoder_3.eval(),
    }
    pipe = StableDiffusion3Pipeline(
        transformer=stock.transformer, scheduler=stock.scheduler, vae=stock.vae, **components
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are letters."""
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=48)


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of one layer."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=JOINT // 2,
        intermediate_size=32,
        projection_dim=POOLED // 2,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=48,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()
