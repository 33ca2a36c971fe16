"""What a plan needs to know of a model, without its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ras_dit.adapters import DESCRIPTIONS, Work, describe
from ras_dit.engine import denoisers
from ras_dit.entrance import uncompiled
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.published import PublishedModel
from ras_dit.sizes import SizeRule, size_rule
from ras_dit.text_lengths import guidance_branches, own_rows, reference_tokens, text_tokens
from ras_dit.tokens import TokenGrid, TokenLayout

CLIP_ROWS = 77
_BY_PICTURES = "its size comes from the pictures of the call"
_UNPLANNED: Mapping[str, str] = {
    "VisualClozePipeline": _BY_PICTURES,
    "VisualClozeGenerationPipeline": _BY_PICTURES,
    "QwenImageLayeredPipeline": _BY_PICTURES,
    "Flux2KleinInpaintPipeline": _BY_PICTURES,
    "HunyuanVideo15ImageToVideoPipeline": _BY_PICTURES,
    "LTXI2VLongMultiPromptPipeline": "it makes a video in windows, one after the other",
}

_SPACE = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
_TIME = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


@dataclass(frozen=True, kw_only=True)
class ModelOutline:
    """A pipeline without its weights.

    Attributes:
        place: Folder, hub id, or name of a published model.
        pipeline: Class name of the pipeline.
        transformer: Class name of the transformer.
        config: The transformer's configuration, defaults included.
        sizes: The sizes that the pipeline takes.
        text_rows: Rows of the text as the pipeline counts them; where it pads a prompt no further
            than needed, the most that there can be.
        num_inference_steps: The pipeline's own number of denoising steps.
        branches: Guidance branches of a call as the pipeline is used: 2 with classifier-free
            guidance.
        scheduler_order: Calls of ``scheduler.step`` per inference step.
    """

    place: str
    pipeline: str
    transformer: str
    config: Mapping[str, Any]
    sizes: SizeRule
    text_rows: int
    num_inference_steps: int
    branches: int
    scheduler_order: int

    @property
    def work(self) -> Work:
        """The arithmetic of a forward pass."""
        return DESCRIPTIONS[self.transformer].work(self.config)

    @property
    def pixels_per_latent(self) -> int:
        """Side of a latent pixel in pixels."""
        return self.sizes.pixels

    @property
    def num_text_tokens(self) -> int:
        """Text tokens T attended to in a call of the pipeline's own size."""
        return self.layout().num_text

    @property
    def head_width(self) -> int:
        """Elements of a head's keys."""
        config = self.config
        if config.get("attention_head_dim"):
            return int(config["attention_head_dim"])
        heads = ("num_attention_heads", "num_heads", "n_heads")
        count = next(config[name] for name in heads if config.get(name))
        return int(config.get("hidden_size") or config["dim"]) // int(count)

    def grid(
        self, width: int | None = None, height: int | None = None, frames: int | None = None
    ) -> TokenGrid:
        """The image tokens of a picture or video that is made.

        Args:
            width: In pixels; ``None`` is the model's own.
            height: In pixels; ``None`` is the model's own.
            frames: Of a video; ``None`` is the model's own number.

        Raises:
            RASError: If the size does not fit the model.
        """
        return self.layout(width, height, frames).grid

    def layout(
        self,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        *,
        as_asked: bool = False,
    ) -> TokenLayout:
        """All tokens of a call, text and the tokens of given pictures with them.

        Args:
            width: In pixels; ``None`` is the model's own.
            height: In pixels; ``None`` is the model's own.
            frames: Of a video; ``None`` is the model's own number.
            as_asked: Whether the call forbids the pipeline to make another size.

        Raises:
            RASError: If the size does not fit the model.
        """
        grid = self.sizes.grid(self.sizes.size(width, height, frames), as_asked=as_asked)
        grid, references = reference_tokens(self.pipeline, self.config, self.sizes, grid)
        text = text_tokens(self.transformer, self.config, self.text_rows, grid)
        return TokenLayout(grid, text, references)

    def num_evaluations(self, num_inference_steps: int) -> int:
        """Calls of ``scheduler.step`` in a run; the last step of a higher order makes one."""
        return self.scheduler_order * (num_inference_steps - 1) + 1


def outline_of(pipeline: Any, *, max_sequence_length: int | None = None) -> ModelOutline:
    """The outline of a loaded pipeline.

    Args:
        pipeline: A diffusers pipeline.
        max_sequence_length: Text rows of the long text encoder; ``None`` is the pipeline's own.

    Raises:
        UnsupportedError: If its transformer is not supported, or its runs cannot be planned.
        RASError: If it has no transformer.
    """
    parts = [uncompiled(part) for part in denoisers(pipeline).values()]
    if not parts or not hasattr(pipeline, "config"):
        raise RASError(f"{type(pipeline).__name__} is no diffusers pipeline with a transformer")
    description = describe(parts[0])
    tokenizer = getattr(pipeline, "tokenizer", None)
    clip_rows = CLIP_ROWS if tokenizer is None else int(tokenizer.model_max_length)
    known = _known_class(pipeline)
    check_planned(known)
    settings = {"default_sample_size": vars(pipeline).get("default_sample_size")}
    return assemble_outline(
        type(pipeline).__name__,
        {**settings, **pipeline.config, "_class_name": known},
        transformer=description.transformer,
        config=parts[0].config,
        compression=_own_compression(known, pipeline),
        rows=max_sequence_length,
        clip_rows=clip_rows,
        scheduler_order=getattr(pipeline.scheduler, "order", 1),
    )


def outline_of_published(
    model: PublishedModel, *, max_sequence_length: int | None = None
) -> ModelOutline:
    """The outline of a published model, offline.

    Args:
        model: One of :func:`ras_dit.published.published_models`.
        max_sequence_length: Text rows of the long text encoder; ``None`` is the model's own.
    """
    config = with_defaults(exported(model.transformer), model.config)
    rows = max_sequence_length or model.text_rows
    return ModelOutline(
        place=model.name,
        pipeline=model.pipeline,
        transformer=model.transformer,
        config=config,
        sizes=size_rule(
            model.pipeline,
            model.transformer,
            config,
            patch=DESCRIPTIONS[model.transformer].patch(config),
            pixels=model.pixels,
            frames_per_latent=model.frames_per_latent,
            own=model.size,
        ),
        text_rows=_with_clip(model.transformer, rows, CLIP_ROWS),
        num_inference_steps=model.num_inference_steps,
        branches=model.branches,
        scheduler_order=1,
    )


def assemble_outline(
    place: str,
    index: Mapping[str, Any],
    *,
    transformer: str,
    config: Mapping[str, Any],
    compression: tuple[int, int],
    rows: int | None,
    clip_rows: int,
    scheduler_order: int,
) -> ModelOutline:
    """An outline from what is known of a pipeline and its parts.

    Args:
        place: Folder, hub id or class name, for errors.
        index: The pipeline's configuration, with its class as ``_class_name``.
        transformer: Class name of the transformer.
        config: The transformer's configuration.
        compression: Pixels along the side of a latent pixel, frames per latent frame.
        rows: Text rows; ``None`` is the pipeline's own number.
        clip_rows: Rows of CLIP encoders, where the model puts them in front.
        scheduler_order: Calls of ``scheduler.step`` per inference step.
    """
    pipeline = index["_class_name"]
    config = with_defaults(exported(transformer), config)
    parameters = _call_defaults(exported(pipeline)) | dict(index)
    pixels, frames = compression
    return ModelOutline(
        place=place,
        pipeline=pipeline,
        transformer=transformer,
        config=config,
        sizes=size_rule(
            pipeline,
            transformer,
            config,
            patch=DESCRIPTIONS[transformer].patch(config),
            pixels=pixels,
            frames_per_latent=frames,
            parameters=parameters,
        ),
        text_rows=_with_clip(transformer, rows or own_rows(pipeline, parameters), clip_rows),
        num_inference_steps=int(parameters["num_inference_steps"]),
        branches=guidance_branches(pipeline, config, parameters),
        scheduler_order=scheduler_order,
    )


def check_planned(pipeline: str) -> None:
    """Refuse a class of pipelines whose runs no size describes.

    Raises:
        UnsupportedError: With the reason.
    """
    if pipeline in _UNPLANNED:
        raise UnsupportedError(
            f"a run of {pipeline} cannot be planned: {_UNPLANNED[pipeline]}; "
            "ras_dit.summary(pipe) says after a run what it was"
        )


def _own_compression(name: str, pipeline: Any) -> tuple[int, int]:
    """The same as a loaded pipeline says it."""
    spaces = [getattr(pipeline, attribute, None) for attribute in _SPACE]
    times = [getattr(pipeline, attribute, None) for attribute in _TIME]
    space, time = int(next(filter(None, spaces), 8)), int(next(filter(None, times), 1))
    # Bria counts the patch of a token in.
    return space // (2 if name.startswith("Bria") else 1), time


def _with_clip(transformer: str, rows: int, clip_rows: int) -> int:
    # Stable Diffusion 3 puts the rows of its CLIP encoders in front of those of T5.
    return rows + clip_rows if transformer == "SD3Transformer2DModel" else rows


def _known_class(pipeline: Any) -> str:
    """The pipeline's class in diffusers, which a subclass of one's own is treated like."""
    import diffusers

    for kind in type(pipeline).__mro__:
        if hasattr(diffusers, kind.__name__):
            return kind.__name__
    return type(pipeline).__name__


def exported(name: str) -> Any:
    """A class of diffusers.

    Raises:
        UnsupportedError: If the installed release has none of that name.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise UnsupportedError(
            f"diffusers {diffusers.__version__} has no {name}; install a release that has it"
        )
    return found


def _call_defaults(pipeline: Any) -> dict[str, Any]:
    parameters = inspect.signature(pipeline.__call__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def with_defaults(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of what its file, older than the class, leaves out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)
