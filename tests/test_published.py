"""The rows of published models are whole, and agree with the classes of diffusers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

from ras_dit import RASConfig, RASError
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cli import main
from ras_dit.cost import cache_bytes, packed_bytes
from ras_dit.outline import outline_of_published, read_outline
from ras_dit.planning import plan_table
from ras_dit.published import PublishedModel, published_models
from ras_dit.support import read_support

MODELS = list(published_models().values())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_row_fits_the_classes_that_it_names(model: PublishedModel) -> None:
    supported = {(row.pipeline, row.transformer) for row in read_support().supported}
    assert (model.pipeline, model.transformer) in supported
    kind = getattr(diffusers, model.transformer)
    defaults = inspect.signature(kind.__init__).parameters
    for name, value in model.config.items():
        own = defaults[name].default
        given = tuple(value) if isinstance(value, list) else value
        assert given != (tuple(own) if isinstance(own, list) else own), f"{name} is the default"
    outline = outline_of_published(model)
    size = outline.sizes.size(model.size.width, model.size.height, model.size.frames)
    assert size == outline.sizes.own == model.size
    layout = outline.layout()
    patch = DESCRIPTIONS[model.transformer].patch(outline.config)
    # A token for every patch of latent pixels, none left over.
    area = model.size.width * model.size.height
    assert layout.grid.num_tokens * patch[1] * patch[2] * model.pixels**2 == pytest.approx(
        area * layout.grid.frames, rel=0.02
    )
    assert layout.grid.frames == 1 + (model.size.frames - 1) // model.frames_per_latent


# Parameters in billions that the makers give or that the names say.
KNOWN = {
    "SD3-medium": 2.0,
    "SD3.5-large": 8.1,
    "FLUX.1-dev": 11.9,
    "Qwen-Image": 20.4,
    "Lumina-Image-2.0": 2.6,
    "HunyuanDiT-v1.2": 1.5,
    "Wan2.2-TI2V-5B": 5.0,
    "CogVideoX-5B": 5.6,
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_has_as_many_parameters_as_the_model(name: str) -> None:
    model = published_models()[name.casefold()]
    with torch.device("meta"):
        transformer = getattr(diffusers, model.transformer)(**model.config)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count / 1e9 == pytest.approx(KNOWN[name], abs=0.06)


def test_known_lengths_of_video() -> None:
    """By hand: latents of 21 x 90 x 160 at patches of 2 x 2, and so on."""
    grids = {
        "wan2.1-t2v-14b": (21, 45, 80),
        "wan2.1-t2v-1.3b": (21, 30, 52),
        "wan2.2-ti2v-5b": (31, 22, 40),
        "hunyuanvideo": (33, 45, 80),
        "mochi-1-preview": (28, 30, 53),
        "cogvideox-2b": (13, 30, 45),
        "ltx-video": (21, 16, 22),
    }
    assert {name: read_outline(name).grid().shape for name in grids} == grids


def test_known_text_lengths() -> None:
    lengths = {
        "sd3-medium": 77 + 256,
        "flux.1-dev": 512,
        "auraflow-v0.3": 256 + 8,
        "hidream-i1-full": 3 * 128,
        "hunyuanimage-2.1": 1000 + 128,
        "z-image": 512,
        "wan2.1-i2v-14b-480p": 512 + 257,
    }
    assert {name: read_outline(name).num_text_tokens for name in lengths} == lengths
    assert read_outline("FLUX.1-Kontext-dev").layout().num_references == 4096
    # A picture of HiDream that is not square is filled up to the largest one.
    wide = read_outline("hidream-i1-dev").layout(1344, 768)
    assert wide.num_text == 3 * 128 + 4096 - wide.grid.num_tokens
    # Z-Image fills its picture up to a multiple of 32 tokens.
    assert read_outline("z-image").layout(1040, 1024).num_text == 512
    assert read_outline("z-image").layout(1040, 1040).num_text == 512 + 4256 - 4225


def test_known_caches() -> None:
    """Wan 14B at 720p by hand: 40 layers of keys and values of width 5120, two branches."""
    outline = read_outline("Wan2.1-T2V-14B")
    tokens = 21 * 45 * 80
    table = plan_table(
        outline.work,
        RASConfig(),
        outline.num_evaluations(50),
        outline.grid(),
        num_text_tokens=outline.num_text_tokens,
        dtype=torch.bfloat16,
        branches=outline.branches,
    )
    assert table.cache_bytes == 2 * 2 * tokens * (2 * 40 * 5120 + 64)
    assert ("image tokens N", f"{tokens} (21 x 45 x 80)") in table.facts()
    assert any(name == "caches per video" for name, _ in table.facts())


def test_caches_of_eight_bits_take_a_byte_and_a_share_of_a_scale() -> None:
    outline = read_outline("SD3-medium")
    shape: dict[str, Any] = {"batch": 2, "num_tokens": 4096, "num_text_tokens": 333}
    whole = cache_bytes(outline.work, dtype=torch.bfloat16, **shape)
    packed = cache_bytes(
        outline.work,
        dtype=torch.bfloat16,
        kv_bytes_per_element=packed_bytes(outline.head_width),
        **shape,
    )
    # 24 layers, keys and values, 24 heads of 64: a scale of 2 bytes for each row of a head.
    rows = 2 * 2 * 24 * 24 * (4096 + 333)
    assert packed == rows * (64 + 2) + 2 * 2 * 64 * 4096
    assert whole == rows * 64 * 2 + 2 * 2 * 64 * 4096
    with pytest.raises(RASError, match="at most 2"):
        cache_bytes(outline.work, dtype=torch.bfloat16, kv_bytes_per_element=4, **shape)
    with pytest.raises(RASError, match="head_width=0"):
        packed_bytes(0)
    table = plan_table(
        outline.work,
        RASConfig(cache_dtype="int8"),
        28,
        outline.grid(),
        num_text_tokens=333,
        dtype=torch.bfloat16,
        head_width=outline.head_width,
    )
    assert table.cache_bytes == packed
    with pytest.raises(RASError, match="head_width"):
        plan_table(
            outline.work,
            RASConfig(cache_dtype="int8"),
            28,
            outline.grid(),
            num_text_tokens=333,
        )


def test_a_name_is_found_in_any_letters_and_a_wrong_one_answered_with_the_nearest() -> None:
    assert read_outline("flux.1-DEV").place == "FLUX.1-dev"
    with pytest.raises(RASError, match=r"near: FLUX\.1-dev"):
        read_outline("flux1-dev")
    with pytest.raises(RASError, match="known: SD3-medium, "):
        read_outline("qqqq")
    assert read_outline("SD3-medium", max_sequence_length=512).num_text_tokens == 77 + 512


REFUSED = {
    ("SD3-medium", (1000, None, None)): "no multiple of 16",
    ("SD3-medium", (4096, None, None)): "limit of 3072 pixels",
    ("AuraFlow-v0.3", (1552, 1024, None)): "limit of 1536 pixels",
    ("HunyuanImage-2.1", (2080, 2048, None)): "no multiple of 64",
    ("LTX-Video", (720, 512, None)): "no multiple of 32",
    ("SD3-medium", (None, None, 5)): "makes pictures",
    ("Wan2.1-T2V-14B", (None, None, 80)): "use 77 or 81",
    ("Wan2.2-TI2V-5B", (1280, 720, None)): "use 704 or 736",
    ("HiDream-I1-Full", (512, 512, None)): "1024x1024 instead of 512x512",
    ("FLUX.1-Kontext-dev", (2048, 1024, None)): "1440x720 instead of 2048x1024",
}


@pytest.mark.parametrize(("name", "size"), REFUSED)
def test_sizes_that_a_pipeline_would_not_make_are_refused(
    name: str, size: tuple[int | None, int | None, int | None]
) -> None:
    with pytest.raises(RASError, match=REFUSED[name, size]):
        read_outline(name).layout(*size)


def test_pipelines_with_sizes_of_their_own_are_counted_at_those() -> None:
    """PixArt and HunyuanDiT make the nearest size that they know and scale the picture."""
    assert read_outline("PixArt-alpha-XL-1024").grid(1000, 500) == read_outline(
        "PixArt-alpha-XL-1024"
    ).grid(1408, 704)
    assert read_outline("HunyuanDiT-v1.2").grid(500, 500).shape == (64, 64)


def test_the_program_plans_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model wan2.1-t2v-1.3b --frames 33 --size 480x832 --steps 20 --dtype bfloat16"
    assert main(words.split()) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"{9 * 52 * 30} (9 x 52 x 30)" in said.out
    assert "guidance on, bfloat16" in said.out
    assert "caches per video" in said.out
    assert main(["plan", "--model", "wan2.1-t2v-1.3b", "--guidance", "1"]) == 0
    said = capsys.readouterr()
    assert "guidance off" in said.out
    # The model's own number of steps.
    assert "of 50" in said.out


BAD_PLANS = {
    "--model Wan2.1-T2V-14B --frames 80": "use 77 or 81",
    "--model SD3-medium --frames 9": "makes pictures",
    "--model SD3-medium --frames 0": "'--frames'",
    "--model FLUX.1-dev --size 1000x1000": "no multiple of 16",
    "--model FLUX.1dev": "near: FLUX.1-dev",
}


@pytest.mark.parametrize("words", BAD_PLANS)
def test_bad_plans_of_published_models_are_one_line(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words.split()]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert BAD_PLANS[words] in said.err
