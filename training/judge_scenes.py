"""Pictures to teach the judge with: crowded canvases and scenes, clean and spoilt."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ras_dit.evaluation.judge_network import STRIDE, TYPICAL_SIZE, judged_things
from ras_dit.world import COLOURS, Background, Mixture, Scene, Thing, sample_scene
from training.latents import to_images, to_latents
from training.render import Art, Pixels, Placed, backdrop, layout

CROWDED: Final = 224  # pixels of a crowded canvas: two by two cells, each with room for 96
_CELL = CROWDED // 2
_SIZES = (44, 48, 52, 60, 72, 84, 92, 96, 100)  # what scenes of other sizes than ours show
_UNUSUAL = 0.15
DRAWN: Final = ("circle", "square", "heart")
_FLAT = 0.1  # share of things that are drawn as flat shapes
IGNORED: Final = -100  # label of places that are neither clearly a thing's nor clearly nobody's
_OWN, _NEAR = 0.2, 0.4  # distance from a thing's middle, in its sizes
MIXTURE: Final = Mixture(alone=0.4, pair=0.35, group=0.25, shape=0.3, none=0.2)
# How often each way to spoil a picture is taken.
SPOILS: Final = {"clean": 5, "blur": 3, "noise": 3, "both": 2, "latents": 5, "warp": 2}


@dataclass(frozen=True)
class Canvas:
    """A picture and what stands on it."""

    pixels: Pixels
    things: tuple[Placed, ...]


def flat(thing: Thing, size: int) -> Pixels:
    """A circle, square or heart in the world's colour, as premultiplied RGBA.

    With them a shape's name does not hang on the gloss of its picture.
    """
    side = 4 * size
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    low, high = 0.04 * side, 0.96 * side
    if thing.name == "circle":
        pen.ellipse((low, low, high, high), fill=255)
    elif thing.name == "square":
        pen.rounded_rectangle((low, low, high, high), side // 12, fill=255)
    else:
        turn = np.linspace(0, 2 * np.pi, 90)
        across = 0.5 + 0.46 * np.sin(turn) ** 3
        down = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        points = np.stack([across, 0.47 - 0.0285 * down], axis=1) * side
        pen.polygon([(float(x), float(y)) for x, y in points], fill=255)
    alpha = np.asarray(mask.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255
    rgb = np.asarray(COLOURS[str(thing.colour)], dtype=np.float32) / 255
    return np.concatenate([alpha[..., None] * rgb, alpha[..., None]], axis=2)


def _paste(
    art: Art, pixels: Pixels, things: Sequence[Placed], flats: Container[int] = ()
) -> Canvas:
    """Things on a background; those with the numbers `flats` are drawn, not taken from the art."""
    for number, placed in enumerate(things):
        left, top, size = placed.left, placed.top, placed.size
        picture = (flat if number in flats else art.picture)(placed.thing, size)
        region = pixels[top : top + size, left : left + size]
        region *= 1 - picture[..., 3:]
        region += picture[..., :3]
    return Canvas(np.clip(pixels, 0, 1), tuple(things))


def scene_canvas(
    art: Art, scene: Scene, width: int, height: int, rng: random.Random | None = None
) -> Canvas:
    """The scene as the world draws it; with `rng`, things up to 8 pixels beside their places."""
    things = []
    for placed in layout(scene, width, height):
        across, down = (rng.randint(-8, 8), rng.randint(-8, 8)) if rng else (0, 0)
        left = min(max(placed.left + across, 0), width - placed.size)
        top = min(max(placed.top + down, 0), height - placed.size)
        things.append(Placed(placed.thing, left, top, placed.size))
    shift = rng.uniform(-8, 8) if rng else 0.0
    return _paste(art, backdrop(scene.background, width, height, shift), things)


def _background(rng: random.Random) -> tuple[Pixels, set[str | None]]:
    """A background, of the world's colours mostly, and the names of its colours."""
    kind = rng.choices(
        ["none", "plain", "graded", "striped", "checkered", "any"], [3, 6, 3, 2, 2, 2]
    )
    if kind == ["any"]:
        ends = np.asarray([[rng.random() for _ in range(3)] for _ in range(2)], dtype=np.float32)
        down = np.linspace(0, 1, CROWDED, dtype=np.float32)[:, None, None]
        return np.repeat(ends[0] * (1 - down) + ends[1] * down, CROWDED, axis=1), set()
    first, second = rng.sample(sorted(COLOURS), 2)
    match kind[0]:
        case "none":
            background = Background()
        case "graded":
            background = Background("graded", first, second)
        case kind_of_one:
            background = Background(kind_of_one, first)  # type: ignore[arg-type]
    names = {background.colour or "white", background.second}
    return backdrop(background, CROWDED, CROWDED, rng.uniform(-12, 12)), names


def crowded_canvas(art: Art, rng: random.Random, *, flats: bool = True) -> Canvas:
    """A canvas with as many different things as there is room for; with `flats`, drawn ones too."""
    pixels, colours = _background(rng)
    known = [
        thing for thing in judged_things() if thing.colour is None or thing.colour not in colours
    ]
    shapes = [thing for thing in known if thing.name in DRAWN]
    things: list[Placed] = []
    drawn: set[int] = set()

    def stand(left: int, top: int, cell: int, usual: int) -> None:
        sizes = [size for size in _SIZES if 0.75 * usual < size <= min(cell, 1.5 * usual)]
        size = rng.choice(sizes) if rng.random() < _UNUSUAL else usual
        room = cell - size
        if flats and rng.random() < _FLAT:
            drawn.add(len(things))
        thing = rng.choice(shapes if len(things) in drawn else known)
        things.append(Placed(thing, left + rng.randint(0, room), top + rng.randint(0, room), size))

    for top in (0, _CELL):
        for left in (0, _CELL):
            choice = rng.random()
            if choice < 0.45:
                stand(left, top, _CELL, 96)
            elif choice < 0.85:
                half = _CELL // 2
                for y in (top, top + half):
                    for x in (left, left + half):
                        if rng.random() < 0.75:
                            stand(x, y, half, 48)
    return _paste(art, pixels, things, drawn)


def training_canvas(
    art: Art, rng: random.Random, view: int | None, *, flats: bool = True
) -> Canvas:
    """A crowded canvas (`view` None), or a scene that training may see at that many pixels."""
    if view is None:
        return crowded_canvas(art, rng, flats=flats)
    return scene_canvas(art, sample_scene(rng, MIXTURE), view, view, rng)


def to_tensor(canvases: Sequence[Canvas]) -> Tensor:
    """Pictures [B, 3, H, W] in -1 to 1."""
    stacked = np.stack([canvas.pixels for canvas in canvases])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) * 2 - 1


_INDEX: Final[dict[Thing, int]] = {thing: number for number, thing in enumerate(judged_things())}


@dataclass(frozen=True)
class Targets:
    """What the network should say: labels [B, h, w], boxes [B, 3, h, w]."""

    labels: Tensor
    boxes: Tensor


def targets(canvases: Sequence[Canvas]) -> Targets:
    """The answers that the canvases' own records give."""
    height, width = (side // STRIDE for side in canvases[0].pixels.shape[:2])
    labels = torch.full((len(canvases), height, width), len(_INDEX))
    boxes = torch.zeros(len(canvases), 3, height, width)
    down = ((torch.arange(height) + 0.5) * STRIDE)[:, None]
    across = ((torch.arange(width) + 0.5) * STRIDE)[None, :]
    for number, canvas in enumerate(canvases):
        for placed in canvas.things:
            x, y = placed.left + placed.size / 2, placed.top + placed.size / 2
            distance = (down - y).square().add((across - x).square()).sqrt()
            own = distance <= max(_OWN * placed.size, float(distance.min()) + 1e-3)
            near = (distance <= _NEAR * placed.size) & (labels[number] == len(_INDEX))
            labels[number][near] = IGNORED
            labels[number][own] = _INDEX[placed.thing]
            boxes[number, 0][own] = ((x - across) / STRIDE).expand_as(distance)[own]
            boxes[number, 1][own] = ((y - down) / STRIDE).expand_as(distance)[own]
            boxes[number, 2][own] = float(np.log2(placed.size / TYPICAL_SIZE))
    return Targets(labels, boxes)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of [..., H, W] with a deviation in pixels."""
    radius = max(1, round(3 * deviation))
    taps = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    taps = taps / taps.sum()
    flat = image.flatten(0, -3)[:, None]
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, taps[None, None, None, :]), taps[None, None, :, None])
    return flat[:, 0].reshape(image.shape)


def noisy(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """White noise with a deviation on the scale 0 to 1."""
    noise = torch.randn(image.shape, generator=generator)
    return (image + 2 * deviation * noise).clamp(-1, 1)


def _through_latents(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Through the latent space, with noise of two grains there."""
    latents = to_latents(image[None])
    fine = torch.randn(latents.shape, generator=generator)
    coarse_shape = (*latents.shape[:2], *(side // 2 for side in latents.shape[2:]))
    coarse = torch.randn(coarse_shape, generator=generator)
    noise = fine + F.interpolate(coarse, size=latents.shape[2:], mode="bilinear")
    return to_images(latents + deviation * noise)[0]


def _warped(image: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Bent smoothly, by a few pixels."""
    height, width = image.shape[1:]
    coarse = torch.randn(1, 2, height // 16, width // 16, generator=generator)
    bend = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    step = 2 * pixels / torch.tensor([width, height])
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, height, width], align_corners=False)
    grid = grid + bend.permute(1, 2, 0) * step
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def spoil(images: Tensor, rng: random.Random, generator: torch.Generator) -> Tensor:
    """Each picture spoilt in a way of its own, or left clean."""
    found = []
    for given in images:
        image = given
        way = rng.choices(list(SPOILS), list(SPOILS.values()))[0]
        if way in ("blur", "both"):
            image = blurred(image, rng.uniform(0.4, 2.2))
        if way in ("noise", "both"):
            image = noisy(image, rng.uniform(0.02, 0.15), generator)
        if way == "latents":
            image = _through_latents(image, rng.uniform(0, 0.5), generator)
        if way == "warp":
            image = _warped(image, rng.uniform(0.5, 2.0), generator)
        if rng.random() < 0.5:
            gain = torch.empty(3, 1, 1).uniform_(0.92, 1.08, generator=generator)
            image = ((image + 1) * gain - 1 + rng.uniform(-0.06, 0.06)).clamp(-1, 1)
        found.append(image)
    return torch.stack(found)
