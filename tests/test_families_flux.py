"""What Flux.1, Qwen-Image and their kin do beyond the laws of every family."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinKVPipeline
from PIL import Image

import families_flux
import families_flux2
import families_flux_control
import families_flux_kin
import families_qwen
import families_qwen_edit
import families_visualcloze
import ras_dit
from families_flux import HEIGHT, WIDTH, flux_call, schnell_pipeline
from family_laws import Family, run
from ras_dit.verify import masked_reference

ROOMS = (
    families_flux,
    families_flux_control,
    families_flux2,
    families_flux_kin,
    families_qwen,
    families_qwen_edit,
)
BLACK = torch.zeros(2, 3, HEIGHT, WIDTH)
DARK = Image.new("RGB", (81, 64))
WHITE = torch.ones(2, 1, HEIGHT, WIDTH)

# By pipeline class and feature: arguments that take the feature away.
WITHOUT: dict[tuple[str, str], dict[str, Any]] = {
    ("FluxPipeline", "true guidance"): {"true_cfg_scale": 1.0},
    ("FluxPipeline", "IP-adapter"): {
        "ip_adapter_image_embeds": None,
        "negative_ip_adapter_image_embeds": None,
    },
    ("FluxImg2ImgPipeline", "img2img"): {"image": BLACK},
    ("FluxInpaintPipeline", "inpaint"): {"mask_image": WHITE},
    ("FluxFillPipeline", "inpaint"): {"image": BLACK},
    ("FluxKontextPipeline", "edit"): {"image": None},
    ("FluxControlPipeline", "control"): {"control_image": BLACK},
    ("FluxControlNetPipeline", "controlnet"): {"controlnet_conditioning_scale": 0.0},
    ("Flux2Pipeline", "edit"): {"image": None},
    ("Flux2KleinPipeline", "text-to-image"): {"guidance_scale": 1.0},
    ("LongCatImageEditPipeline", "edit"): {"image": DARK},
    ("QwenImagePipeline", "text-to-image"): {"true_cfg_scale": 1.0},
    ("QwenImageControlNetPipeline", "controlnet"): {"controlnet_conditioning_scale": 0.0},
    ("QwenImageEditPipeline", "edit"): {"image": [DARK, DARK]},
    ("QwenImageLayeredPipeline", "layers"): {"image": [DARK, DARK]},
}


def rows_with_features() -> list[tuple[Family, dict[str, Any]]]:
    features = {feature for _, feature in WITHOUT}
    rows = [family for room in ROOMS for family in room.FAMILIES if family.feature in features]
    named = {(type(family.build()).__name__, family.feature): family for family in rows}
    return [(named[key], change) for key, change in WITHOUT.items()]


def test_every_feature_matters() -> None:
    """Else a row would pass with the feature left out."""
    for family, change in rows_with_features():
        pipe = family.build()
        # A picture to start from matters only where the first steps are left out.
        short = {} if "strength" in family.call(2) else {"num_inference_steps": 3}
        latents = run(pipe, family.call(2) | short)
        if family.feature == "IP-adapter":
            pipe.unload_ip_adapter()
        without = run(pipe, family.call(2) | short | change)
        assert float((latents - without).abs().max()) > 1e-2, str(family)


def test_four_steps_with_default_settings_are_not_all_dense() -> None:
    pipe = schnell_pipeline()
    call = flux_call(2) | {"guidance_scale": 0.0, "num_inference_steps": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ras_dit.enable(pipe) as handle:
            latents = run(pipe, call)
    assert handle.trace is not None
    assert [step.kind for step in handle.trace.steps] == ["dense", "sparse", "sparse", "sparse"]
    call = flux_call(2) | {"guidance_scale": 0.0, "num_inference_steps": 4}
    reference = masked_reference(pipe, handle.trace, **call)
    assert float((latents - reference).abs().max()) <= 1e-4


def test_references_are_never_active_and_save_more() -> None:
    pipe = families_flux.kontext_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.5, warmup_steps=2) as handle:
        run(pipe, families_flux.kontext_call(2))
    trace = handle.trace
    assert trace is not None
    assert (trace.num_tokens, trace.num_references) == (60, 28)
    assert all(int(step.active.max()) < 60 for step in trace.steps if step.active is not None)


def test_pictures_of_a_grid_are_all_made() -> None:
    """Rows of pictures with other widths than the first are no references."""
    pipe = families_visualcloze.generation_pipeline()
    with ras_dit.enable(pipe, sample_ratio=0.5, warmup_steps=2) as handle:
        run(pipe, families_visualcloze.generation_call(1))
    trace = handle.trace
    assert trace is not None
    assert (trace.num_tokens, trace.num_references) == (54, 0)


def test_a_pipeline_of_two_accelerates_both() -> None:
    pipe = families_visualcloze.visualcloze_pipeline()

    def call() -> dict[str, Any]:
        size = {"upsampling_height": HEIGHT, "upsampling_width": WIDTH}
        return families_visualcloze.generation_call(1) | size | {"output_type": "np"}

    def draw() -> torch.Tensor:
        torch.manual_seed(0)
        return torch.from_numpy(pipe(**call()).images)

    stock = draw()
    sizes: list[tuple[int, int]] = []
    with ras_dit.enable(pipe, sample_ratio=0.4, warmup_steps=2) as handle:
        hook = pipe.transformer.proj_out.register_forward_hook(
            lambda _module, rows, _output: sizes.append((rows[0].shape[1], len(sizes)))
        )
        sparse = draw()
        hook.remove()
    assert handle.trace is not None
    assert handle.trace.num_tokens == 60
    assert [rows for rows, _ in sizes] == [54] * 2 + [22] * 5 + [60] * 2 + [24] * 5
    assert not torch.equal(sparse, stock)
    assert torch.equal(draw(), stock)


def test_a_pipeline_with_caches_of_its_own_is_refused() -> None:
    pipe = families_flux2.flux2_pipeline(Flux2KleinKVPipeline)
    with pytest.raises(ras_dit.UnsupportedError, match="use Flux2KleinPipeline"):
        ras_dit.enable(pipe)
    assert type(pipe) is Flux2KleinKVPipeline


def test_pictures_that_are_no_rectangle_are_refused() -> None:
    pipe = families_flux.flux_pipeline()
    stock = pipe._prepare_latent_image_ids

    def ragged(*arguments: Any) -> torch.Tensor:
        ids: torch.Tensor = stock(*arguments)
        ids[-1, 1] += 1
        return ids

    pipe._prepare_latent_image_ids = ragged
    with (
        ras_dit.enable(pipe, sample_ratio=0.4),
        pytest.raises(ras_dit.UnsupportedError, match="expected a full rectangle"),
    ):
        run(pipe, flux_call(1))
