"""What Flux.1, Qwen-Image and their kin do beyond the laws of every family."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinKVPipeline

import families_flux
import families_flux2
import families_visualcloze
import ras_dit
from families_flux import HEIGHT, WIDTH, flux_call, schnell_pipeline
from family_laws import run
from ras_dit.reference import masked_reference


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
