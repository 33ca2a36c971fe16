"""How pixels and frames become tokens: the sizes that each pipeline takes, known without a run.

Pipelines round, refuse or replace a size, each in its own way; what is here follows the
``__call__`` of the pipeline classes of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ras_dit.errors import RASError
from ras_dit.tokens import Patch, TokenGrid

_MOST_AREA = 1024**2  # of pipelines that choose the area of the picture themselves


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, and frames (1 for a picture)."""

    width: int
    height: int
    frames: int = 1

    def __str__(self) -> str:
        picture = f"{self.width}x{self.height}"
        return picture if self.frames == 1 else f"{picture}, {self.frames} frames"


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """The sizes that a pipeline takes, and the tokens that it makes of them.

    Attributes:
        pipeline: Class name of the pipeline.
        pixels: Side of a latent pixel in pixels.
        frames_per_latent: Frames that each latent frame but the first stands for; ``None`` for
            pipelines that make pictures.
        patch: Latent frames, height and width of a token.
        multiple: What width and height have to be multiples of, in pixels.
        largest: The longest side in pixels for which the transformer has positions; ``None``
            where there is no such limit.
        own: The size of a call that names none. Its frames are 0 where every call has to say
            how many there are.
        replaced: The width and height that the pipeline makes instead of those that it is given.
        resized: Whether its pictures get the size that was asked for all the same.
        added_frames: Latent frames that the pipeline puts in front of the video.
        by_multiples: Whether frames may be a multiple of ``frames_per_latent``, too.
    """

    pipeline: str
    pixels: int
    frames_per_latent: int | None
    patch: Patch
    multiple: int
    largest: int | None
    own: Size
    replaced: Callable[[int, int], tuple[int, int]] | None = None
    resized: bool = False
    added_frames: int = 0
    by_multiples: bool = False

    @property
    def is_video(self) -> bool:
        """Whether the pipeline makes videos."""
        return self.frames_per_latent is not None

    def size(
        self, width: int | None = None, height: int | None = None, frames: int | None = None
    ) -> Size:
        """The size of a call; ``None`` stands for the pipeline's own.

        Raises:
            RASError: If the pipeline would refuse the size or make another one.
        """
        if not self.resized:
            for name, value in (("width", width), ("height", height)):
                if value is not None:
                    self._check_side(name, value)
        wide, high = width or self.own.width, height or self.own.height
        if self.replaced is not None and not self.resized:
            made = self.replaced(wide, high)
            if made != (wide, high):
                raise RASError(
                    f"{self.pipeline} makes pictures of the area of {self.own} whatever it is "
                    f"asked for: {made[0]}x{made[1]} instead of {wide}x{high}; give such a size"
                )
        return Size(wide, high, self._frames(frames))

    def grid(self, size: Size, *, as_asked: bool = False) -> TokenGrid:
        """The image tokens of one picture or video.

        Args:
            size: From :meth:`size`.
            as_asked: Whether the call forbids the pipeline to make another size
                (``use_resolution_binning=False``).
        """
        width, height = size.width, size.height
        if self.replaced is not None and not as_asked:
            width, height = self.replaced(width, height)
        frames, rows, columns = self.patch
        step = self.frames_per_latent or 1
        latent_frames = 1 + (size.frames - 1) // step + self.added_frames
        return TokenGrid(
            max(1, height // (self.pixels * rows)),
            max(1, width // (self.pixels * columns)),
            # CogVideoX 1.5 fills the last token of time up.
            -(-latent_frames // frames),
        )

    def _check_side(self, name: str, value: int) -> None:
        side = self.multiple
        if value % side:
            below, above = value // side * side, (value // side + 1) * side
            near = f"{below} or {above}" if below else str(above)
            raise RASError(
                f"{name}={value} is no multiple of {side} pixels, this model's token size; "
                f"use {near}"
            )
        if self.largest is not None and value > self.largest:
            raise RASError(f"{name}={value} is above this model's limit of {self.largest} pixels")

    def _frames(self, frames: int | None) -> int:
        if self.frames_per_latent is None:
            if frames not in {None, 1}:
                raise RASError(
                    f"frames={frames}, but {self.pipeline} makes pictures; leave frames out"
                )
            return 1
        count = self.own.frames if frames is None else frames
        if count < 1:
            raise RASError(
                f"{self.pipeline} makes as many frames as it is given; say how many there are"
                if frames is None
                else f"frames={frames}; expected at least 1"
            )
        step = self.frames_per_latent
        if (count - 1) % step and not (self.by_multiples and count % step == 0):
            below = (count - 1) // step * step + 1
            raise RASError(
                f"frames={count} is not one more than a multiple of {step}, the frames of this "
                f"model's latents; use {below} or {below + step}"
            )
        return count


def size_rule(
    pipeline: str,
    transformer: str,
    config: Mapping[str, Any],
    *,
    patch: Patch,
    pixels: int,
    frames_per_latent: int = 1,
    parameters: Mapping[str, Any] | None = None,
    own: Size | None = None,
) -> SizeRule:
    """The rule of a pipeline class with a transformer.

    Args:
        pipeline: Class name of the pipeline.
        transformer: Class name of the transformer.
        config: The transformer's configuration.
        patch: A token's patch, ``description.patch(config)``.
        pixels: Side of a latent pixel in pixels.
        frames_per_latent: Frames that each latent frame but the first stands for.
        parameters: The pipeline's own settings: defaults of its call, and its configuration.
        own: The size of a call that names none, if it is known better.
    """
    is_video = "Transformer3D" in transformer
    parameters = parameters or {}
    if own is None:
        own = _own_size(pipeline, config, pixels, parameters, is_video=is_video)
    replaced = _replaced(pipeline, config, pixels, own)
    return SizeRule(
        pipeline=pipeline,
        pixels=pixels,
        frames_per_latent=frames_per_latent if is_video else None,
        patch=patch,
        multiple=math.lcm(
            pixels * patch[1],
            pixels * patch[2],
            _FIXED.get(transformer, 1),
            pixels * _FACTORS.get(pipeline, 1),
        ),
        largest=_largest(transformer, config, pixels * patch[1]),
        own=own,
        replaced=replaced,
        resized=replaced is not None and not pipeline.startswith(_OWN_AREA),
        # The picture that is animated.
        added_frames=int(pipeline == "WanAnimatePipeline"),
        by_multiples=pipeline == "AllegroPipeline",
    )


# Checks that do not look at the model: pixels that sizes have to be multiples of.
_FIXED: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "CogView4Transformer2DModel",
            "WanTransformer3DModel",
            "WanAnimateTransformer3DModel",
            "SkyReelsV2Transformer3DModel",
            "ChronoEditTransformer3DModel",
            "HunyuanVideoTransformer3DModel",
        ),
        16,
    ),
    **dict.fromkeys(
        (
            "CogView3PlusTransformer2DModel",
            "AllegroTransformer3DModel",
            "CogVideoXTransformer3DModel",
            "MochiTransformer3DModel",
        ),
        8,
    ),
    "LTXVideoTransformer3DModel": 32,
}
# Checks in latent pixels that are stricter than whole tokens.
_FACTORS: Mapping[str, int] = {
    "HunyuanImagePipeline": 2,
    "HunyuanImageRefinerPipeline": 2,
    "BriaPipeline": 4,
}
_OWN_AREA = ("HiDreamImage", "FluxKontext")
_PIXART_BINS = ("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline")
_ALLEGRO_FRAMES = 4
_PRX_SIZES: Mapping[str, int] = {"PRXPipeline": 512, "PRXPixelPipeline": 1024}


def _own_size(
    pipeline: str,
    config: Mapping[str, Any],
    pixels: int,
    parameters: Mapping[str, Any],
    *,
    is_video: bool,
) -> Size:
    width, height = parameters.get("width"), parameters.get("height")
    frames = parameters.get("num_frames") or parameters.get("segment_frame_length") or 0
    if pipeline == "ChronoEditPipeline":
        frames = 5  # unless it is told to reason in time
    if pipeline == "MochiPipeline":
        width, height = 848, 480
    elif pipeline.startswith("CogVideoX"):
        width, height = config["sample_width"] * pixels, config["sample_height"] * pixels
        frames = frames or config["sample_frames"]
    elif pipeline.startswith("ZImage"):
        width = height = 1024
    elif pipeline == "AllegroPipeline":
        width, height = config["sample_width"] * pixels, config["sample_height"] * pixels
        frames = config["sample_frames"] * _ALLEGRO_FRAMES
    elif pipeline == "HunyuanVideo15Pipeline":
        width, height = _wide_screen(config["target_size"], pixels)
    elif pipeline in _PRX_SIZES:
        width = height = parameters.get("default_sample_size") or _PRX_SIZES[pipeline]
    elif width is None or height is None:
        sample = parameters.get("default_sample_size") or config.get("sample_size")
        default = 64 if pipeline.startswith("HunyuanImage") else 128
        side = pixels * (2 if pipeline.startswith("Bria") and sample == 64 else 1)
        width = height = (sample if isinstance(sample, int | float) else default) * side
    return Size(int(width), int(height), int(frames) if is_video else 1)


def _wide_screen(target_size: int, pixels: int) -> tuple[int, int]:
    """The size of 16 to 9 nearest to an area, as HunyuanVideo 1.5 chooses it."""
    from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor

    chooser = HunyuanVideo15ImageProcessor(vae_scale_factor=pixels)
    height, width = chooser.calculate_default_height_width(9, 16, target_size)
    return int(width), int(height)


def _largest(transformer: str, config: Mapping[str, Any], side: int) -> int | None:
    most = config.get("pos_embed_max_size")
    # CogView4 has the setting and rotates positions instead.
    if most is None or transformer == "CogView4Transformer2DModel":
        return None
    # AuraFlow counts all positions of the largest picture.
    tokens = math.isqrt(most) if transformer == "AuraFlowTransformer2DModel" else int(most)
    return tokens * side


def _replaced(
    pipeline: str, config: Mapping[str, Any], pixels: int, own: Size
) -> Callable[[int, int], tuple[int, int]] | None:
    """The width and height that a pipeline makes of others."""
    if pipeline.startswith(_OWN_AREA):
        side = 2 * pixels
        if pipeline.startswith("FluxKontext"):
            return lambda width, height: _of_area(width, height, _MOST_AREA, side)
        return lambda width, height: _scaled(width, height, own.width * own.height, side)
    if pipeline.startswith("HunyuanDiT"):
        return _standard_shape
    bins = _pixart_bins(config) if pipeline in _PIXART_BINS else None
    if pipeline in _PRX_SIZES:
        bins = _prx_bins(own)
    return None if bins is None else lambda width, height: _binned(width, height, bins)


def _of_area(width: int, height: int, area: int, side: int) -> tuple[int, int]:
    ratio = width / height
    wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    return wide // side * side, high // side * side


def _scaled(width: int, height: int, area: int, side: int) -> tuple[int, int]:
    scale = math.sqrt(area / (width * height))
    return int(width * scale // side * side), int(height * scale // side * side)


def _standard_shape(width: int, height: int) -> tuple[int, int]:
    from diffusers.pipelines.hunyuandit import pipeline_hunyuandit as hunyuan

    if (height, width) in hunyuan.SUPPORTED_SHAPE:
        return width, height
    wide, high = hunyuan.map_to_standard_shapes(width, height)
    return int(wide), int(high)


def _pixart_bins(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    tables: dict[int, Mapping[str, Any]] = {
        32: alpha.ASPECT_RATIO_256_BIN,
        64: alpha.ASPECT_RATIO_512_BIN,
        128: alpha.ASPECT_RATIO_1024_BIN,
        256: sigma.ASPECT_RATIO_2048_BIN,
    }
    return tables.get(config["sample_size"])


def _prx_bins(own: Size) -> Mapping[str, Any] | None:
    from diffusers.pipelines.prx import pipeline_prx as prx

    tables: Mapping[int, Mapping[str, Any]] = prx.ASPECT_RATIO_BINS
    return tables.get(own.width)


def _binned(width: int, height: int, bins: Mapping[str, Any]) -> tuple[int, int]:
    from diffusers.image_processor import PixArtImageProcessor

    high, wide = PixArtImageProcessor.classify_height_width_bin(height, width, ratios=bins)
    return int(wide), int(high)
