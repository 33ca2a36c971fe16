"""The embedded model as it ships: files, sizes, a picture, and what its prompts promise."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from ras_dit.embedded import MODEL_DIR
from ras_dit.world import COLOURS

MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(
    not (MODEL_DIR / "model_index.json").is_file(), reason="no embedded model in this checkout"
)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The stock pipeline, loaded with no further arguments."""
    from diffusers import StableDiffusion3Pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusion3Pipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pipeline: Any, prompt: str, **arguments: Any) -> np.ndarray:
    """A picture of the prompt as numbers from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    arguments = {"width": 128, "height": 128, "max_sequence_length": 32} | arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(prompt, generator=generator, output_type="np", **arguments).images[0]


def test_files() -> None:
    """Safetensors and JSON only, and small."""
    files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    assert sum(path.stat().st_size for path in files) < 60 * MEGABYTE
    index = json.loads((MODEL_DIR / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    libraries = {value[0] for name, value in index.items() if not name.startswith("_")}
    assert libraries <= {"diffusers", "transformers", None}


def test_parts_are_stock_and_fp32(pipeline: Any) -> None:
    """Loaded without a word about precision, everything computes in fp32."""
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        part = getattr(pipeline, name)
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}, name
        assert type(part).__module__.split(".")[0] in {"diffusers", "transformers"}


def test_default_size_is_1024_tokens(pipeline: Any) -> None:
    """`pipe(prompt)` makes 256 by 256 pixels out of 1024 tokens."""
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    assert side == 256
    assert (side // pipeline.vae_scale_factor // pipeline.patch_size) ** 2 == 1024


def test_a_picture_in_four_steps(pipeline: Any) -> None:
    """Finite, in range, and not the same everywhere."""
    found = pixels(pipeline, "a fox on a blue background", num_inference_steps=4)
    assert found.shape == (128, 128, 3)
    assert np.isfinite(found).all()
    assert found.std() > 0.02


@pytest.mark.parametrize(("width", "height"), [(192, 128), (128, 256), (64, 64)])
def test_other_sizes(pipeline: Any, width: int, height: int) -> None:
    """Sizes that training rarely or never saw still make a picture."""
    found = pixels(pipeline, "a fox", num_inference_steps=2, width=width, height=height)
    assert found.shape == (height, width, 3)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow", "black", "white"])
def test_background_colours(pipeline: Any, colour: str) -> None:
    """The corners have the colour that the prompt names, nearer than any other."""
    found = pixels(pipeline, f"a star on a {colour} background", num_inference_steps=8)
    corners = np.concatenate(
        [
            found[y, x].reshape(-1, 3)
            for y in (slice(0, 12), slice(-12, None))
            for x in (slice(0, 12), slice(-12, None))
        ]
    )
    mean = np.median(corners, axis=0) * 255
    nearest = min(COLOURS, key=lambda name: float(np.square(mean - COLOURS[name]).sum()))
    assert nearest == colour


def test_words_unknown_and_capital(pipeline: Any) -> None:
    """A prompt of foreign words makes a picture; capitals mean what small letters mean."""
    found = pixels(pipeline, "Qwérty 猫, zzz!? 42", num_inference_steps=1)
    assert np.isfinite(found).all()
    rows = [
        pipeline.encode_prompt(
            text, text, text, do_classifier_free_guidance=False, max_sequence_length=32
        )
        for text in ("a fox on a blue background", "A Fox on a BLUE background")
    ]
    torch.testing.assert_close(rows[0][0], rows[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(rows[0][2], rows[1][2], rtol=0, atol=1e-6)


def test_autoencoder_round_trip(pipeline: Any) -> None:
    """A flat colour with a disc on it survives encoding and decoding."""
    side = torch.linspace(-1, 1, 128)
    disc = (side[:, None] ** 2 + side[None, :] ** 2 < 0.4).float()
    image = torch.stack([disc, 0.3 * torch.ones_like(disc), 1 - disc])[None] * 1.6 - 0.8
    with torch.no_grad():
        latents = pipeline.vae.encode(image).latent_dist.mode()
        decoded = pipeline.vae.decode(latents).sample
    error = float(((decoded - image) / 2).square().mean())
    assert error < 10**-2.2
