"""What the rows of features feed into their pipelines matters: without it, other latents."""

from __future__ import annotations

from typing import Any

import pytest

import families_crossed
import families_joint
import families_omnigen
import families_unified
from families import distance, pictures
from families_flux import rows
from family_laws import Family, run, run_sparse
from ras_dit import UnsupportedError

# Row, and what its call has instead when the feature is taken away.
FEATURES: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    (families_unified, "Lumina-Image-2 truncated guidance", {"cfg_trunc_ratio": 1.0}),
    (families_unified, "Z-Image truncated guidance", {"cfg_truncation": 1.0}),
    (families_unified, "Z-Image img2img", {"image": pictures(1, seed=9)}),
    (families_unified, "Z-Image inpaint", {"mask_image": pictures(1, 1, seed=9).round()}),
    (families_unified, "Z-Image controlnet", {"controlnet_conditioning_scale": 0.0}),
    (families_unified, "Z-Image controlnet inpaint", {"controlnet_conditioning_scale": 0.0}),
    (families_crossed, "PixArt-Sigma perturbed attention", {"pag_scale": 0.0}),
    (families_crossed, "HunyuanDiT perturbed attention", {"pag_scale": 0.0}),
    (families_crossed, "HunyuanDiT controlnet", {"controlnet_conditioning_scale": 0.0}),
    (families_crossed, "PRX guidance", {"guidance_scale": 1.0}),
    (families_joint, "CogView4 control", {"control_image": rows(1, 3, 32, 48, salt=9).sigmoid()}),
    (families_joint, "HunyuanImage refiner", {"image": rows(1, 4, 1, 6, 8, salt=9)}),
    (families_joint, "HunyuanImage distilled", {"distilled_guidance_scale": 1.0}),
    (families_omnigen, "OmniGen edit", {"prompt": ["a tree"], "input_images": None}),
)


@pytest.mark.parametrize(
    ("module", "name", "without"), FEATURES, ids=[name for _, name, _ in FEATURES]
)
def test_a_feature_matters(module: Any, name: str, without: dict[str, Any]) -> None:
    family: Family = next(row for row in module.FAMILIES if str(row) == name)
    pipe = family.build()
    whole = run(pipe, family.call(1))
    assert distance(whole, run(pipe, family.call(1) | without)) > 1e-2


def test_positions_of_several_images_under_perturbed_attention_are_refused() -> None:
    """HunyuanDiT shares one table of positions, and PAG attends on two of three branches."""
    name = "HunyuanDiT perturbed attention"
    family = next(row for row in families_crossed.FAMILIES if str(row) == name)
    pipe = family.build()
    stock = run(pipe, family.call(2))
    with pytest.raises(UnsupportedError, match="make one image at a time"):
        run_sparse(pipe, family.call(2))
    assert distance(run(pipe, family.call(2)), stock) == 0
