"""How many tokens of which sort a transformer's call has, read off its arguments.

Shape letters: B rows of the model batch, N image tokens, T text tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ras_dit.errors import UnsupportedError
from ras_dit.tokens import Patch, TokenGrid, TokenLayout

Arguments = Mapping[str, Any]
Config = Mapping[str, Any]


def square_patch(config: Config) -> Patch:
    """A token is ``patch_size`` latent pixels high and wide."""
    side = int(config["patch_size"])
    return 1, side, side


def video_patch(config: Config) -> Patch:
    """A token's patch where ``patch_size`` names frames, height and width."""
    frames, height, width = config["patch_size"]
    return int(frames), int(height), int(width)


def cubic_patch(config: Config) -> Patch:
    """A token is ``patch_size`` latent pixels high and wide, ``patch_size_t`` frames (1) long."""
    side = int(config["patch_size"])
    return int(config.get("patch_size_t") or 1), side, side


def packed_patch(side: int) -> Callable[[Config], Patch]:
    """The pipeline itself packs patches of ``side`` latent pixels into channels."""
    return lambda _: (1, side, side)


def latent_layout(arguments: Arguments, config: Config) -> TokenLayout:
    """Latents ``[B, C, H, W]`` as ``hidden_states``, text as ``encoder_hidden_states``."""
    _, height, width = square_patch(config)
    latents = arguments["hidden_states"]
    grid = TokenGrid(latents.shape[-2] // height, latents.shape[-1] // width)
    return TokenLayout(grid, num_text_tokens(arguments))


def video_layout(arguments: Arguments, config: Config) -> TokenLayout:
    """Latents ``[B, C, F, H, W]`` as ``hidden_states``, text as ``encoder_hidden_states``."""
    return _by_patches(arguments, arguments["hidden_states"].shape[-3:], config)


def frames_first_layout(arguments: Arguments, config: Config) -> TokenLayout:
    """Latents ``[B, F, C, H, W]`` as ``hidden_states``, text as ``encoder_hidden_states``."""
    _, frames, _, height, width = arguments["hidden_states"].shape
    return _by_patches(arguments, (frames, height, width), config)


def _by_patches(arguments: Arguments, sizes: Sequence[int], config: Config) -> TokenLayout:
    named = isinstance(config["patch_size"], list | tuple)
    patch = video_patch(config) if named else cubic_patch(config)
    frames, height, width = (size // side for size, side in zip(sizes, patch, strict=True))
    return TokenLayout(TokenGrid(height, width, frames), num_text_tokens(arguments))


def num_text_tokens(arguments: Arguments, name: str = "encoder_hidden_states") -> int:
    """Text tokens in an argument ``[B, T, ...]``, or in the first member of a list."""
    text = arguments.get(name)
    if isinstance(text, list | tuple):
        text = text[0] if text else None
    return 0 if text is None else int(text.shape[-2])


def first_of(latents: Any) -> torch.Tensor:
    """The latents, or the first of a list of them."""
    first: torch.Tensor = latents[0] if isinstance(latents, list | tuple) else latents
    return first


def layout_from_ids(ids_name: str = "img_ids") -> Callable[[Arguments, Config], TokenLayout]:
    """Packed latents whose positions ``[(B,) N, axes]`` say where each token stands.

    The first axis tells pictures apart, the next two are row and column. The first picture is
    made and the others are references, unless the model takes more channels than it gives: then
    what is given comes in channels beside the noise, and all pictures are made.
    """

    def layout(arguments: Arguments, config: Config) -> TokenLayout:
        ids = arguments[ids_name]
        ids = ids[0] if ids.ndim == 3 else ids
        places = ids[:, :3].round().to("cpu", torch.int64)
        _, counts = places[:, 0].unique_consecutive(return_counts=True)
        sizes = []
        for picture in places.split(counts.tolist()):
            height, width = (int(axis.max() - axis.min()) + 1 for axis in picture[:, 1:].unbind(1))
            sizes.append((height, width))
            if height * width != len(picture):
                raise UnsupportedError(
                    f"{ids_name} places {len(picture)} image tokens in {height} rows and {width} "
                    "columns; expected a full rectangle, which RAS needs to tell regions apart"
                )
        in_channels = config["in_channels"]
        all_made = in_channels > int(config.get("out_channels") or in_channels)
        grid = stacked(sizes if all_made else sizes[:1])
        references = ids.shape[0] - grid.num_tokens
        return TokenLayout(grid, num_text_tokens(arguments), references)

    return layout


def stacked(sizes: Sequence[tuple[int, int]]) -> TokenGrid:
    """The grid of pictures that are made together, one below the other.

    Args:
        sizes: Height and width of each in tokens, at least one. Where widths differ, the grid
            is one row of all tokens.
    """
    heights, widths = zip(*sizes, strict=True)
    if len(set(widths)) == 1:
        return TokenGrid(sum(heights), widths[0])
    return TokenGrid(1, sum(height * width for height, width in sizes))
