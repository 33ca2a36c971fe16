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
_HISTORY = (
    "it packs the history of a video in front of the frames that are made and cuts it off by its "
    "place behind the blocks, so its output layer has fewer rows than the blocks; "
    "RAS takes them as one"
)
_TWO_STREAMS = (
    "video and sound are made side by side, each with a noise and a scheduler of its own, and "
    "attend to each other; RAS scores and holds the tokens of one stream"
)
_GRID = (
    "its latents and its output layer are a grid of frames, rows and columns with channels last, "
    "and RAS holds rows of tokens: those of active tokens alone make no grid"
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
        "BriaFibo2Transformer2DModel": (
            "between text and picture it puts tokens that sum the text up, more of them for longer "
            "texts, so the places of the picture's tokens differ within a batch"
        ),
        "ErnieImageTransformer2DModel": (
            "its blocks hold the tokens first and the batch second, with modulations laid out "
            "alike, and RAS gathers rows of [batch, tokens]"
        ),
        "JoyImageEditTransformer3DModel": (
            "it takes given pictures and the one that is made as items of one tensor and sorts "
            "them anew itself, so tokens of the latents and of the blocks stand in other orders"
        ),
        "JoyImageEditPlusTransformer3DModel": (
            "its pipeline cuts all pictures into patches itself and fills each prompt's up to the "
            "longest, so the latents that the scheduler sees are no picture"
        ),
        "HunyuanVideoFramepackTransformer3DModel": _HISTORY,
        "LatteTransformer3DModel": (
            "its blocks attend within one frame and along one place in turn, with the video in "
            "another form each time, so active tokens alone make no sequence"
        ),
        "LTX2VideoTransformer3DModel": _TWO_STREAMS,
        "CosmosTransformer3DModel": (
            "its pipelines run only with the packages cosmos_guardrail and torchvision, which the "
            "tests do without; a description of your own can be checked with ras_dit.verify"
        ),
        "Cosmos3OmniTransformer": (
            "it packs text, video, sound and actions into one sequence without a batch dimension, "
            "and RAS gathers rows of [batch, tokens]"
        ),
        "EasyAnimateTransformer3DModel": (
            "none of its pipelines is tested; its blocks are laid out like those of CogVideoX, so "
            "a description of your own may do: check it with ras_dit.verify"
        ),
        "HeliosTransformer3DModel": _HISTORY,
        "AnyFlowTransformer3DModel": (
            "its steps lead from any time to any other in one go, so that runs have about as many "
            "steps as RAS makes dense ones to begin with"
        ),
        "AnyFlowFARTransformer3DModel": (
            "it makes a video chunk by chunk and keeps keys and values of the earlier ones itself "
            "(kv_cache), with calls in between that predict no noise"
        ),
        "MotifVideoTransformer3DModel": (
            "its last blocks begin again with a copy of the tokens as they came in, beside those "
            "of the blocks before; RAS follows one stream of tokens from the first block to "
            "the last"
        ),
        "Kandinsky6Transformer3DModel": _TWO_STREAMS,
        "Kandinsky6SRTransformer3DModel": _GRID,
        "ConsisIDTransformer3DModel": (
            "its pipeline wants features of a face from models that diffusers does not have, "
            "without which nothing can be tested"
        ),
        "SanaVideoTransformer3DModel": _LINEAR,
        "SanaWMTransformer3DModel": _LINEAR,
        "SanaWMLTX2RefinerTransformer3DModel": (
            "it refines the videos of Sana-WM, which is not supported itself"
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
            "on the picture alone"
        ),
        "GlmImageTransformer2DModel": (
            "its attention has a cache of its own for the pictures that are given (kv_caches), "
            "filled before the first step"
        ),
        "Kandinsky5Transformer3DModel": _GRID,
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
