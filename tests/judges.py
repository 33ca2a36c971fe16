"""Small networks of the real classes with random weights, as folders that scorers read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizerFast,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from conftest import clip_tokenizer

NAMES = ("cup", "dog", "bus")


def clip_folder(folder: Path) -> Path:
    """A CLIP model of one layer that reads letters and pictures of 16 x 16 pixels."""
    folder.mkdir()
    tokenizer = clip_tokenizer(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            **size,
            **ends,
            "vocab_size": len(tokenizer),
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "projection_dim": 8,
        },
        vision_config={
            **size,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 8,
        },
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return folder


def detector_folder(folder: Path) -> Path:
    """A Mask2Former of the least depth for three classes."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=32,
            patch_size=4,
            window_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        num_labels=len(NAMES),
        id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        # Sure of itself, so that something is found.
        model.class_predictor.weight.mul_(60)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 128}, ignore_index=255
    ).save_pretrained(folder)
    return folder
