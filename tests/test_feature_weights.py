"""What a call gives beside the prompt matters: with something else in its place, other latents.

Otherwise a row of a feature would pass with the feature left out. Whatever a row's call gives is
found by the names of its arguments; every row either gives something or is listed as plain.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers.guiders import (
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image, ImageOps

import families_crossed
import families_joint
import ras_dit
from families import distance
from families_flux import rows
from family_laws import Family, run, run_sparse
from pipelines import hooks_of
from ras_dit import UnsupportedError
from support_table import family_rows

# Arguments that hold something given: pictures, videos, masks.
GIVEN = {
    "cond_image",
    "conditions",
    "control_image",
    "control_mask",
    "control_video",
    "face_video",
    "image",
    "image_reference",
    "input_images",
    "ip_adapter_image_embeds",
    "last_image",
    "mask",
    "mask_image",
    "pose_video",
    "reference_images",
    "video",
}
# Arguments that switch something on, and their values when it is off.
OFF: dict[str, Any] = {
    "cfg_trunc_ratio": 1.0,
    "cfg_truncation": 1.0,
    "controlnet_conditioning_scale": 0.0,
    "pag_scale": 0.0,
    "skip_guidance_layers": None,
    "true_cfg_scale": 1.0,
}
# Rows whose feature is in an argument that most rows have.
OTHERWISE: dict[str, dict[str, Any]] = {
    "HunyuanImage distilled": {"distilled_guidance_scale": 1.0},
    "HunyuanImage guidance, two texts": {"negative_prompt_embeds_2": rows(1, 5, 12, salt=9)},
    "PRX guidance": {"guidance_scale": 1.0},
}
# Rows whose guidance is a part of the pipeline, and another one in its place.
GUIDERS = {
    "HunyuanImage skip-layer guidance": ClassifierFreeGuidance(guidance_scale=3.0),
    "HunyuanImage truncated guidance": ClassifierFreeGuidance(guidance_scale=3.0),
}
GUIDED_LAYERS: dict[Any, str] = {
    PerturbedAttentionGuidance: "perturbed_guidance_layers",
    SmoothedEnergyGuidance: "seg_guidance_layers",
}
# Features of a model or of a prompt, which no argument of the call takes away.
PLAIN = {
    "filled up",
    "four steps",
    "no guidance",
    "size conditions",
    "text-to-image",
    "text-to-video",
    "text-to-video, DDIM, positions added",
    "text-to-video, causal in blocks of frames",
    "text-to-video, texts of different lengths",
    "text-to-video, two transformers",
    "texts of all lengths",
}
ROWS = [row for row in family_rows() if row.feature not in PLAIN]


def another(value: Any) -> Any:
    """The same kind of thing with other contents: what was dark is bright."""
    if isinstance(value, torch.Tensor):
        return 1 - value
    if isinstance(value, Image.Image):
        return ImageOps.invert(value)
    if isinstance(value, LTXVideoCondition):
        return LTXVideoCondition(image=another(value.image), frame_index=value.frame_index)
    if isinstance(value, list):
        return [another(item) for item in value]
    return value


def changes(family: Family, pipe: Any, call: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By what is taken away, the arguments that do it."""
    found = {name: {name: another(call[name])} for name in sorted(GIVEN & call.keys())}
    parameters = inspect.signature(type(pipe).__call__).parameters
    switched = {name for name, value in OFF.items() if call.get(name, value) != value}
    # By default these are on wherever there are any.
    switched |= {"pag_scale", "controlnet_conditioning_scale"} & parameters.keys()
    for name in sorted(switched):
        # Of several ControlNets the last one is taken away.
        value = call.get(name)
        several = name.startswith("controlnet") and isinstance(value, list)
        found[name] = {name: [*value[:-1], OFF[name]] if several else OFF[name]}
    return found | {name: {name: value} for name, value in OTHERWISE.get(str(family), {}).items()}


def short_call(family: Family) -> dict[str, Any]:
    """A few steps; the first of them left out where a picture is what a run starts from."""
    call = family.call(1)
    few = {} if "timesteps" in call else {"num_inference_steps": 6 if "strength" in call else 3}
    return call | few


@pytest.mark.parametrize("family", ROWS, ids=str)
def test_what_a_call_gives_matters(family: Family) -> None:
    pipe = family.build()
    latents = run(pipe, short_call(family))
    found = changes(family, pipe, short_call(family))
    assert found or str(family) in GUIDERS
    for name, change in found.items():
        assert distance(latents, run(pipe, short_call(family) | change)) > 1e-2, name
    if str(family) in GUIDERS:
        pipe.guider = GUIDERS[str(family)]
        assert distance(latents, run(pipe, short_call(family))) > 1e-2


def test_positions_of_several_images_under_perturbed_attention_are_refused() -> None:
    """HunyuanDiT shares one table of positions, and PAG attends on two of three branches."""
    name = "HunyuanDiT perturbed attention"
    family = next(row for row in families_crossed.FAMILIES if str(row) == name)
    pipe = family.build()
    stock = run(pipe, family.call(2))
    with pytest.raises(UnsupportedError, match="make one image at a time"):
        run_sparse(pipe, family.call(2))
    assert distance(run(pipe, family.call(2)), stock) == 0


@pytest.mark.parametrize("kind", [PerturbedAttentionGuidance, SmoothedEnergyGuidance])
def test_guiders_that_change_attention_are_refused(kind: Any) -> None:
    pipe = families_joint.hunyuan_image_pipeline(guider=kind(**{GUIDED_LAYERS[kind]: [0]}))
    with pytest.raises(UnsupportedError, match=f"pipe.guider={kind.__name__}"):
        ras_dit.enable(pipe)
    assert hooks_of(pipe.transformer) == 0
