"""Autoencoder training: the decoder inverts the latent map, the encoder computes it.

    python -m training.autoencoder --art ASSETS --work WORK --minutes 15 [--part decoder]

The two parts share nothing, so they are trained one after the other. Continues from
WORK/autoencoder.pt where it is; else from an exported pipeline (`--init-from`).
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ras_dit.world import Mixture, sample_scene
from training.latents import CHANNELS, PATCH, to_images, to_latents
from training.models import load_parts, make_autoencoder
from training.render import Art, render

logger = logging.getLogger(__name__)
SEED = 0
RATE, FINAL_RATE, WARMUP = 2e-3, 1e-4, 100
AVERAGE = 0.998
LATENT_NOISE = 0.08  # the largest deviation of what the decoder learns to overlook
QUIET = -12.0  # log variance of the encoder's posterior
MIXTURE = Mixture(alone=0.4, pair=0.35, group=0.25, none=0.2)


def draw_images(
    art: Art, rng: random.Random, number: int, canvas: int, crop: int, *, held_out: bool = False
) -> Tensor:
    """Crops of rendered scenes, [number, 3, crop, crop] in -1 to 1."""
    images = []
    for _ in range(number):
        scene = sample_scene(rng, MIXTURE, from_held_out=held_out)
        pixels = render(art, scene, canvas, canvas, rng, jitter=1)
        top, left = (PATCH * rng.randint(0, (canvas - crop) // PATCH) for _ in range(2))
        images.append(torch.from_numpy(pixels[top : top + crop, left : left + crop].copy()))
    return torch.stack(images).permute(0, 3, 1, 2).contiguous() * 2 - 1


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, down and across."""
    return images.diff(dim=2), images.diff(dim=3)


def decoder_loss(model: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Distance of decoded latents, slightly noisy, to the images and to their slopes."""
    latents = to_latents(images)
    deviation = LATENT_NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    latents = latents + deviation * torch.randn(latents.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = model.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    decoded = decoded.float()
    loss = F.l1_loss(decoded, images) + 4 * F.mse_loss(decoded, images)
    for found, wanted in zip(slopes(decoded), slopes(images), strict=True):
        loss = loss + F.l1_loss(found, wanted)
    return loss


def encoder_loss(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Distance of encoded images to their latents."""
    with torch.autocast("cpu", torch.bfloat16):
        moments = model.encoder(images.contiguous(memory_format=torch.channels_last))
    mean = moments.float().chunk(2, dim=1)[0]
    return F.smooth_l1_loss(mean, to_latents(images), beta=0.1)


def quieten(model: AutoencoderKL) -> None:
    """Give the encoder's posterior a fixed, tiny variance."""
    with torch.no_grad():
        model.encoder.conv_out.weight[len(CHANNELS) :] = 0
        model.encoder.conv_out.bias[len(CHANNELS) :] = QUIET


def decibels(found: Tensor, wanted: Tensor) -> float:
    """Mean over images of the peak signal to noise ratio."""
    error = ((found - wanted) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def measure(model: AutoencoderKL, art: Art) -> dict[str, float]:
    """Decibels on held-out scenes: decoder, whole autoencoder, and the linear inverse."""
    found = {}
    for size in (128, 256):
        images = draw_images(art, random.Random(size), 16, size, size, held_out=True)
        latents = to_latents(images)
        decoded = model.decode(latents).sample.clamp(-1, 1)
        encoded = model.encode(images).latent_dist.mode()
        both = model.decode(encoded).sample.clamp(-1, 1)
        found[f"decoder {size}"] = round(decibels(decoded, images), 2)
        found[f"both {size}"] = round(decibels(both, images), 2)
        found[f"linear {size}"] = round(decibels(to_images(latents), images), 2)
    return found


def train(art: Art, work: Path, part: str, minutes: float, init_from: Path | None) -> None:
    """Train one part for so many minutes, the rate falling to the end."""
    torch.manual_seed(SEED)
    checkpoint = work / "autoencoder.pt"
    average = make_autoencoder() if init_from is None else load_parts(init_from)[2]
    if checkpoint.exists():
        average.load_state_dict(torch.load(checkpoint, weights_only=True))
    quieten(average)
    model = copy.deepcopy(average).to(memory_format=torch.channels_last)
    average.requires_grad_(False)
    trained = model.decoder if part == "decoder" else model.encoder
    kept = average.decoder if part == "decoder" else average.encoder
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    seed = time.time_ns()  # no checkpoint of the optimizer: each stretch draws anew
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed % 2**31)
    start = time.process_time()
    total, updates, done = 0.0, 0, 0.0
    # Processor time, not wall time: stopped or crowded out, training loses nothing.
    while done < 1:
        canvas, crop, number = rng.choices(
            [(256, 96, 8), (128, 96, 8), (128, 128, 4), (256, 64, 16)], [3, 3, 2, 1]
        )[0]
        images = draw_images(art, rng, number, canvas, crop)
        if part == "decoder":
            loss = decoder_loss(model, images, generator)
        else:
            loss = encoder_loss(model, images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        rate = FINAL_RATE + (RATE - FINAL_RATE) * (1 - done) * min(1.0, (updates + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        decay = min(AVERAGE, (1 + updates) / (10 + updates))
        with torch.no_grad():
            for mine, theirs in zip(kept.parameters(), trained.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
        total += float(loss.detach())
        done = (time.process_time() - start) / (60 * minutes * torch.get_num_threads())
        if updates % 100 == 0:
            logger.info(
                "%s", json.dumps({"updates": updates, "loss": total / 100, "done": round(done, 3)})
            )
            total = 0.0
        if updates % 400 == 0 or done >= 1:
            quieten(average)
            logger.info("%s", json.dumps(measure(average, art)))
            torch.save(average.state_dict(), checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--art", type=Path, required=True, help="folder of the webp pictures")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--part", choices=["decoder", "encoder", "all"], default="all")
    parser.add_argument("--minutes", type=float, default=15.0, help="for each part")
    parser.add_argument("--init-from", type=Path, help="an exported pipeline to continue from")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for part in ("decoder", "encoder") if options.part == "all" else (options.part,):
        train(Art(options.art), options.work, part, options.minutes, options.init_from)


if __name__ == "__main__":
    main()
