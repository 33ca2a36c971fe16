"""What RAS is refused on, with the reason: classes of transformers, and classes of pipelines.

A pipeline can be refused although its transformer is supported: because it calls the transformer
in a way that RAS cannot follow. Reasons are whole sentences without a capital and say what to do
where there is something to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ras_dit.errors import UnsupportedError

_LINEAR = (
    "its feed-forward layers are convolutions over neighbouring tokens and its attention is "
    "linear, so its tokens cannot be computed one without the other"
)
_SOUND = "it makes sound: its tokens are moments in time, and there is no picture with regions"

TRANSFORMERS: Mapping[str, str] = MappingProxyType(
    {
        "SanaTransformer2DModel": (
            "its feed-forward layers are convolutions over the whole image and its attention is "
            "linear, so its tokens cannot be computed one without the other"
        ),
        "NucleusMoEImageTransformer2DModel": (
            "its experts choose their tokens among all of the picture, so what becomes of one "
            "token depends on which others are computed"
        ),
        "QwenImage21Transformer2DModel": (
            "it attends piece by piece to text and given pictures and keeps their keys and values "
            "itself, which RAS cannot follow"
        ),
        "BriaFibo2Transformer2DModel": "it is not described yet",
        "ErnieImageTransformer2DModel": "it is not described yet",
        "JoyImageEditTransformer3DModel": "it is not described yet",
        "JoyImageEditPlusTransformer3DModel": "it is not described yet",
        "HunyuanVideoFramepackTransformer3DModel": (
            "it packs the history of a video in front of the frames that are made and cuts it off "
            "by its place behind the blocks; not described yet"
        ),
        "LatteTransformer3DModel": (
            "its blocks attend within one frame and along one place in turn, with the video in "
            "another form each time, so active tokens alone make no sequence"
        ),
        "LTX2VideoTransformer3DModel": (
            "video and sound are made side by side and attend to each other; not described yet"
        ),
        "CosmosTransformer3DModel": "it is not described yet",
        "Cosmos3OmniTransformer": "it is not described yet",
        "EasyAnimateTransformer3DModel": "it is not described yet",
        "HeliosTransformer3DModel": "it is not described yet",
        "AnyFlowTransformer3DModel": "it is not described yet",
        "AnyFlowFARTransformer3DModel": "it is not described yet",
        "MotifVideoTransformer3DModel": "it is not described yet",
        "Kandinsky6Transformer3DModel": "it is not described yet",
        "Kandinsky6SRTransformer3DModel": "it is not described yet",
        "ConsisIDTransformer3DModel": "it is not described yet",
        "SanaVideoTransformer3DModel": _LINEAR,
        "SanaWMTransformer3DModel": _LINEAR,
        "SanaWMLTX2RefinerTransformer3DModel": (
            "it refines the videos of Sana-WM, which is not supported itself; not described yet"
        ),
        "UVit2DModel": (
            "it fills in masked picture tokens and predicts no noise; its convolutions mix "
            "neighbouring tokens"
        ),
        "Transformer2DModel": (
            "VQ-Diffusion denoises the numbers of picture tokens; there is no noise prediction "
            "that inactive tokens could keep"
        ),
        "StableAudioDiTModel": _SOUND,
        "StableAudio3DiTModel": _SOUND,
        "AceStepTransformer1DModel": _SOUND,
        "LongCatAudioDiTTransformer": _SOUND,
        "RFD4ProteinaTransformer": (
            "it makes proteins, whose residues meet in features of pairs, and no picture"
        ),
        "Ideogram4Transformer2DModel": (
            "its latents enter among the rows of the text, and guidance calls a second transformer "
            "on the picture alone; not described yet"
        ),
        "GlmImageTransformer2DModel": (
            "its attention has a cache of its own for the pictures that are given (kv_caches), "
            "filled before the first step; not described yet"
        ),
        "Kandinsky5Transformer3DModel": (
            "its output layer takes the tokens as a grid, not as rows, so the rows of active "
            "tokens alone cannot pass it; not described yet"
        ),
        "DiTTransformer2DModel": (
            "its pipeline hands both halves of the guidance batch to the scheduler as if they were "
            "images of their own and gives no latents, so a run cannot be verified"
        ),
    }
)

PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "Flux2KleinKVPipeline": (
            "it keeps keys and values of its references itself; use Flux2KleinPipeline with the "
            "same components, where RAS does that"
        ),
        **dict.fromkeys(
            (
                "SkyReelsV2DiffusionForcingPipeline",
                "SkyReelsV2DiffusionForcingImageToVideoPipeline",
                "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
            ),
            "every frame has a copy of the scheduler to itself and steps at its own time, so there "
            "is no common step to choose tokens for; use SkyReelsV2Pipeline or "
            "SkyReelsV2ImageToVideoPipeline",
        ),
        "ZImageOmniPipeline": (
            "it hands the transformer nested lists, the given pictures among the latents, and the "
            "place of each differs from prompt to prompt; ZImagePipeline makes pictures from text"
        ),
    }
)

# A pipeline's guider that changes attention itself.
GUIDERS: Mapping[str, str] = MappingProxyType(
    {
        "PerturbedAttentionGuidance": (
            "it lets attention answer with the values alone, all of them, where a sparse step asks "
            "for some"
        ),
        "SmoothedEnergyGuidance": "it blurs the queries of neighbouring tokens",
    }
)


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that RAS cannot follow.

    Raises:
        UnsupportedError: With the reason.
    """
    for kind in type(pipe).__mro__:
        reason = PIPELINES.get(kind.__name__)
        if reason is not None:
            raise UnsupportedError(f"RAS does not work on {kind.__name__}: {reason}")
    for name in ("guider", "ocr_guider"):
        guider = type(getattr(pipe, name, None)).__name__
        if guider in GUIDERS:
            raise UnsupportedError(
                f"RAS does not work with pipe.{name}={guider}: {GUIDERS[guider]}; use another "
                "guider, such as ClassifierFreeGuidance or SkipLayerGuidance of whole blocks"
            )
