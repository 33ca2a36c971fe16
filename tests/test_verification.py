"""`ras_dit.verify`: a right pipeline passes, and each wrong description is found and named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import ras_dit
from families_flux import flux_call, flux_pipeline
from pipelines import hooks_of, sd3_inputs, sd3_pipeline
from ras_dit.adapters import DESCRIPTIONS
from ras_dit.cache import BranchCache, KVCache
from ras_dit.fresh import FreshRows

SD3 = DESCRIPTIONS["SD3Transformer2DModel"]
FLUX = DESCRIPTIONS["FluxTransformer2DModel"]


def sd3_call(images: int = 2, **change: Any) -> dict[str, Any]:
    call = sd3_inputs(images) | {"num_inference_steps": 6} | change
    del call["output_type"]
    return call


def test_a_right_pipeline_passes_and_is_left_as_it_was() -> None:
    pipe = sd3_pipeline(dual=True)
    stock = pipe(**sd3_inputs(2)).images
    result = ras_dit.verify(pipe, **sd3_call())
    assert result
    assert result.ok
    assert result.dense_error == 0
    assert result.sparse_error <= 1e-4 < result.sparse_effect
    assert str(result).startswith("RAS is right here (SD3Transformer2DModel)")
    assert torch.equal(pipe(**sd3_inputs(2)).images, stock)
    assert hooks_of(pipe.transformer) == 0


def test_generators_are_not_used_up() -> None:
    call = sd3_call()
    ras_dit.verify(sd3_pipeline(), **call)
    assert torch.equal(
        torch.rand(3, generator=call["generator"][0]),
        torch.rand(3, generator=sd3_call()["generator"][0]),
    )


def test_the_token_order_is_measured() -> None:
    wrong = replace(SD3, token_order="text_first")
    result = ras_dit.verify(sd3_pipeline(), description=wrong, **sd3_call())
    assert not result
    assert result.sparse_error > 1e-2
    assert 'token_order="image_first" would say so' in result.findings[0]
    assert "- token_order" in str(result)


def test_the_first_block_that_goes_wrong_is_named() -> None:
    """The second attention of SD3.5's dual blocks is left out."""
    wrong = replace(SD3, attention=("attn",))
    result = ras_dit.verify(sd3_pipeline(dual=True), description=wrong, **sd3_call())
    assert not result
    assert "behind transformer_blocks.0" in result.findings[-1]


def test_blocks_that_agree_are_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: BranchCache, output: torch.Tensor, fresh: FreshRows) -> torch.Tensor:
        assert self.output is not None
        return self.output.clone()

    monkeypatch.setattr(BranchCache, "merge_output", forgetful)
    result = ras_dit.verify(sd3_pipeline(), **sd3_call())
    assert "all blocks agree" in result.findings[-1]


def test_a_run_that_fails_is_reported() -> None:
    result = ras_dit.verify(
        flux_pipeline(), description=replace(FLUX, token_arguments=()), **flux_call(2)
    )
    assert not result
    assert "a sparse run fails" in result.findings[-1]
    assert hooks_of(flux_pipeline().transformer) == 0


def test_a_broken_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = KVCache.merge

    def lazy(self: KVCache, key: Any, value: Any, fresh: Any) -> Any:
        return (*merge(self, key, value, fresh)[:1], self._value.whole.roll(1, 1))

    monkeypatch.setattr(KVCache, "merge", lazy)
    result = ras_dit.verify(sd3_pipeline(), **sd3_call())
    assert not result
    assert "behind transformer_blocks.0" in result.findings[-1]


def test_nothing_to_check_is_no_success() -> None:
    for config in ({"sample_ratio": 1.0}, {"schedule": "intervals", "intervals": (2,)}):
        call = sd3_call(1) | {"num_inference_steps": 12}
        with pytest.raises(ras_dit.RASError, match="12 computes a part of the tokens"):
            ras_dit.verify(sd3_pipeline(), config, **call)
    pipe = sd3_pipeline()
    with (
        ras_dit.enable(pipe, sample_ratio=0.4),
        pytest.raises(ras_dit.RASError, match="is enabled already"),
    ):
        ras_dit.verify(pipe, **sd3_call(1))
