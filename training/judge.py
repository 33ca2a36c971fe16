"""Training of the judge: the small network that reads pictures of the emoji world.

    python -m training.judge [--art ASSETS] --work work-judge [--updates 1450]

Continues from WORK/judge.pt; every update draws its pictures from the seed and its own number, so
that a run that was stopped equals one that was not. `training.judge_measure` comes next.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ras_dit.embedded import MODEL_DIR
from ras_dit.evaluation.judge_network import JudgeNetwork, judged_things
from training.__main__ import get_art
from training.judge_scenes import (
    IGNORED,
    Targets,
    crowded_canvas,
    spoil,
    targets,
    to_tensor,
    training_canvas,
)
from training.render import Art

logger = logging.getLogger(__name__)
SEED: Final = 0
RATE, FINAL_RATE, WARMUP = 2e-3, 1e-5, 100
DECAY, AVERAGE = 1e-3, 0.995
FLATS_FROM: Final = 1100  # updates; before, only the art is shown
# Pixels of the scenes (None: a crowded canvas) and pictures in the batch, taken in turn.
VIEWS: Final = ((None, 12), (128, 36), (None, 12), (256, 9))
POOL, POOL_TURN = 48, 4  # canvases through the autoencoder at hand; updates until one is new
SAVE_EVERY: Final = 100


@dataclass
class Pool:
    """Crowded canvases that went through the trained autoencoder, renewed one at a time."""

    art: Art
    autoencoder: AutoencoderKL
    kept: deque[tuple[int, Tensor, Targets]]

    @torch.inference_mode()
    def _make(self, number: int) -> tuple[int, Tensor, Targets]:
        canvas = crowded_canvas(
            self.art,
            random.Random(f"{SEED}/pool/{number}"),
            flats=number * POOL_TURN >= FLATS_FROM,
        )
        latents = self.autoencoder.encode(to_tensor([canvas])).latent_dist.mode()
        image = self.autoencoder.decode(latents).sample.clamp(-1, 1)
        return number, image, targets([canvas])

    def at(self, update: int) -> tuple[Tensor, Targets]:
        """The canvas of an update: the same whether training was stopped before or not."""
        first = update // POOL_TURN
        while self.kept and self.kept[0][0] < first:
            self.kept.popleft()
        start = self.kept[-1][0] + 1 if self.kept else first
        self.kept.extend(self._make(number) for number in range(start, first + POOL))
        chosen = random.Random(f"{SEED}/chosen/{update}").randrange(POOL)
        _, image, wanted = self.kept[chosen]
        return image.clone(), wanted


def judge_loss(network: nn.Module, images: Tensor, wanted: Targets) -> Tensor:
    """Cross entropy of the names at every place, and the distance of the boxes at the things."""
    answers = network(images.contiguous(memory_format=torch.channels_last))
    things = len(judged_things())
    own = (wanted.labels != things) & (wanted.labels != IGNORED)
    number = own.sum().clamp(min=1)
    names = F.cross_entropy(answers.logits, wanted.labels, ignore_index=IGNORED, reduction="sum")
    apart = F.smooth_l1_loss(answers.boxes, wanted.boxes, beta=0.1, reduction="none")
    loss: Tensor = (names + (apart.sum(dim=1) * own).sum()) / number
    return loss


def batch(art: Art, pool: Pool, update: int) -> tuple[Tensor, Targets]:
    """Pictures and answers of an update."""
    rng = random.Random(f"{SEED}/{update}")
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + update)
    view, number = VIEWS[update % len(VIEWS)]
    coded = view is None
    canvases = [
        training_canvas(art, rng, view, flats=update >= FLATS_FROM) for _ in range(number - coded)
    ]
    images, wanted = to_tensor(canvases), targets(canvases)
    if coded:
        image, more = pool.at(update)
        images = torch.cat([images, image])
        wanted = Targets(
            torch.cat([wanted.labels, more.labels]), torch.cat([wanted.boxes, more.boxes])
        )
    return spoil(images, rng, generator), wanted


def rate_at(update: int, updates: int) -> float:
    """Learning rate: a short rise, a level until drawn shapes come in, then half a cosine."""
    done = max(0, update - FLATS_FROM) / max(1, updates - FLATS_FROM)
    falling = 0.5 * (1 + math.cos(math.pi * done))
    return (FINAL_RATE + (RATE - FINAL_RATE) * falling) * min(1.0, (update + 1) / WARMUP)


def train(art: Art, work: Path, updates: int, init_from: Path = MODEL_DIR) -> JudgeNetwork:
    """Train to so many updates in all; returns the averaged network."""
    torch.manual_seed(SEED)
    network = JudgeNetwork(len(judged_things())).to(memory_format=torch.channels_last)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    checkpoint, done = work / "judge.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["updates"]
    pool = Pool(art, AutoencoderKL.from_pretrained(init_from / "vae"), deque())
    total, start = 0.0, time.process_time()
    for update in range(done, updates):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(update, updates)
        loss = judge_loss(network, *batch(art, pool, update))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
        total += float(loss.detach())
        if (update + 1) % SAVE_EVERY == 0 or update + 1 == updates:
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "updates": update + 1,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            report = {
                "updates": update + 1,
                "loss": round(total / SAVE_EVERY, 4),
                "seconds": round(time.process_time() - start),
            }
            logger.info("%s", json.dumps(report))
            total = 0.0
    trained: JudgeNetwork = average.module
    return trained.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, help="folder of the webp pictures; else from npm")
    parser.add_argument("--work", type=Path, default=Path("work-judge"), help="the checkpoint")
    parser.add_argument("--updates", type=int, default=1450)
    parser.add_argument("--init-from", type=Path, default=MODEL_DIR, help="for its autoencoder")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    art = Art(options.art or get_art(options.work))
    train(art, options.work, options.updates, options.init_from)


if __name__ == "__main__":
    main()
