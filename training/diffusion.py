"""Diffusion training: the transformer and the three text encoders together, from a curriculum.

    python -m training.diffusion --art ASSETS --work WORK [--config FILE] [--init-from FOLDER]

Continues from WORK/diffusion.pt where it is; else from an exported pipeline (`--init-from`);
else from nothing. SIGTERM saves and ends it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import logging
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ras_dit.world import Mixture, caption, sample_scene
from training.attention import use_plain_attention
from training.latents import CHANNELS, to_latents
from training.models import (
    LATENTS_PER_TOKEN,
    PIXELS_PER_LATENT,
    Texts,
    load_parts,
    make_transformer,
)
from training.render import Art, render
from training.tokens import choose, forward, gather, patches, stands_out

logger = logging.getLogger(__name__)
TOKEN = PIXELS_PER_LATENT * LATENTS_PER_TOKEN
DEFAULT_CONFIG = Path(__file__).parent / "diffusion.yaml"
AVERAGE_EVERY = 4  # updates
BINS = 5  # noise levels that the log tells apart
FULL_STOP = 0.05  # share of captions that end with one


@dataclass(frozen=True)
class View:
    """A kind of batch: canvas in pixels, tokens kept of it, and how often it is drawn."""

    width: int = 256
    height: int = 256
    tokens: int = 128
    window: int = 0
    batch: int = 32
    weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `images` seen, on which views, of which scenes, at which noise."""

    images: int
    views: tuple[View, ...] = (View(),)
    mixture: Mixture = field(default_factory=Mixture)
    rate: float = 1e-3
    final_rate: float | None = None
    noise_mean: float = 0.5
    noise_width: float = 1.2
    jitter: int = 0
    favour: float = 1.0  # how much likelier a token of a thing is kept than a bare one
    detailed: float = 0.0
    rows: dict[int, float] = field(default_factory=lambda: {16: 1.0})


@dataclass(frozen=True)
class Plan:
    """The whole of diffusion training."""

    phases: tuple[Phase, ...]
    seed: int = 0
    warmup: int = 100
    average: float = 0.998
    drop_text: float = 0.1
    save_seconds: float = 300.0


def load_plan(path: Path) -> Plan:
    """The plan in a YAML file."""
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    phases = []
    for item in data.pop("phases"):
        if "views" in item:
            item["views"] = tuple(View(**view) for view in item["views"])
        if "mixture" in item:
            item["mixture"] = Mixture(**item["mixture"])
        phases.append(Phase(**item))
    return Plan(phases=tuple(phases), **data)


def where(plan: Plan, images: int) -> tuple[int, Phase, float]:
    """Index, phase and learning rate after so many images."""
    start = 0
    for index, phase in enumerate(plan.phases):
        if images < start + phase.images:
            done = (images - start) / phase.images
            final = phase.rate if phase.final_rate is None else phase.final_rate
            return index, phase, phase.rate + (final - phase.rate) * done
        start += phase.images
    return len(plan.phases), plan.phases[-1], 0.0


class Averaged:
    """An exponential moving average of parameters, with a warm-up."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the parameters of now."""
        self.updates += 1
        decay = min(self.decay**AVERAGE_EVERY, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


@dataclass
class Training:
    """Everything that a checkpoint holds."""

    texts: Texts
    model: nn.ModuleDict
    average: Averaged
    optimizer: torch.optim.AdamW
    images: int = 0
    updates: int = 0

    @classmethod
    def start(cls, plan: Plan, init_from: Path | None) -> Training:
        """Fresh or exported weights, a fresh optimizer."""
        torch.manual_seed(plan.seed)
        if init_from is None:
            transformer, texts = make_transformer(), Texts.make()
        else:
            transformer, texts, _ = load_parts(init_from)
        model = texts.encoders
        model["transformer"] = transformer
        model.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        return cls(texts, model, Averaged(model, plan.average), optimizer)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "images": self.images,
            "updates": self.updates,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.images, self.updates = state["images"], state["updates"]


def draw_batch(
    art: Art, phase: Phase, view: View, rng: random.Random, drop_text: float
) -> tuple[Tensor, list[str]]:
    """Latents of rendered scenes and their captions, some of them dropped."""
    images, prompts = [], []
    for _ in range(view.batch):
        scene = sample_scene(rng, phase.mixture)
        pixels = render(art, scene, view.width, view.height, rng, phase.jitter)
        images.append(torch.from_numpy(pixels))
        text = caption(scene, detailed=rng.random() < phase.detailed)
        if rng.random() < FULL_STOP:
            text += "."
        prompts.append("" if rng.random() < drop_text else text)
    stacked = torch.stack(images).permute(0, 3, 1, 2) * 2 - 1
    return to_latents(stacked), prompts


@functools.cache
def fast_bfloat16() -> bool:
    """Whether this processor multiplies bf16 itself; elsewhere it is a hundred times slower."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def channel_weights(sigma: Tensor) -> Tensor:
    """Weights [B, 1, patch * patch * C]: at high noise, mean colours before their slopes.

    Slopes cannot be known there before the coarse shape is, and would only be noise.
    """
    flat = torch.tensor([channel.down == channel.across == 0 for channel in CHANNELS])
    slopes = 0.1 + 0.9 * (1 - sigma[:, None])
    weights = torch.where(flat, 1.0, slopes)
    return weights.repeat(1, LATENTS_PER_TOKEN**2)[:, None, :]


def loss_of(
    training: Training,
    latents: Tensor,
    prompts: list[str],
    view: View,
    phase: Phase,
    t5_rows: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, with the loss and the noise level of each image."""
    batch = len(prompts)
    grid = (view.height // TOKEN, view.width // TOKEN)
    tokens = patches(latents, LATENTS_PER_TOKEN)
    weight = 1 + (phase.favour - 1) * stands_out(tokens, grid)
    index = choose(batch, *grid, view.tokens, view.window, generator, weight)
    clean = gather(tokens, index)
    noise = torch.randn(clean.shape, generator=generator)
    # Spread evenly over the levels: less chance in each batch.
    even = torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)
    normal = torch.special.ndtri((even / batch).clamp(1e-4, 1 - 1e-4))
    sigma = torch.sigmoid(phase.noise_mean + phase.noise_width * normal)
    noisy = torch.lerp(clean, noise, sigma[:, None, None])
    # No cache of casts: it would be shared between threads.
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16(), cache_enabled=False):
        rows, pooled = training.texts.encode(prompts, t5_rows)
        velocity = forward(
            training.model["transformer"], noisy, index, grid, sigma * 1000, rows, pooled
        )
    error = (velocity.float() - (noise - clean)).square()
    return (error * channel_weights(sigma)).mean(), error.detach().mean(dim=(1, 2)), sigma


@dataclass
class Worker:
    """A thread that adds the gradients of its own batches to the shared parameters."""

    training: Training
    art: Art
    rng: random.Random
    generator: torch.Generator

    @classmethod
    def make(cls, training: Training, art: Art, seed: str) -> Worker:
        """A worker whose draws depend on the seed alone."""
        rng = random.Random(seed)
        return cls(training, art, rng, torch.Generator().manual_seed(rng.getrandbits(62)))

    def run(
        self, plan: Plan, phase: Phase, view: View, t5_rows: int, share: int
    ) -> tuple[Tensor, Tensor]:
        """One of `share` parts of a batch: losses and noise levels of its images."""
        part = dataclasses.replace(view, batch=view.batch // share)
        latents, prompts = draw_batch(self.art, phase, part, self.rng, plan.drop_text)
        mean, each, sigma = loss_of(
            self.training, latents, prompts, part, phase, t5_rows, self.generator
        )
        (mean / share).backward()
        return each, sigma


class Report:
    """Losses since the last line of the log, by noise level."""

    def __init__(self, images: int) -> None:
        self.total, self.seen = torch.zeros(BINS), torch.zeros(BINS)
        self.images, self.since = images, time.monotonic()

    def add(self, each: Tensor, sigma: Tensor) -> None:
        """Count the losses of a batch."""
        bins = (sigma * BINS).long().clamp(max=BINS - 1)
        self.total.index_add_(0, bins, each)
        self.seen.index_add_(0, bins, torch.ones_like(each))

    def write(self, images: int, phase: int, rate: float) -> None:
        """Log a line and begin anew."""
        now = time.monotonic()
        line = {
            "images": images,
            "phase": phase,
            "rate": round(rate, 6),
            "loss": round(float(self.total.sum() / self.seen.sum()), 4),
            "by_noise": [round(float(x), 3) for x in self.total / self.seen.clamp(min=1)],
            "per_second": round((images - self.images) / (now - self.since), 1),
        }
        logger.info("%s", json.dumps(line))
        self.total.zero_()
        self.seen.zero_()
        self.images, self.since = images, now


def _settle(threads: int) -> None:
    """Fix a new thread's operations to one thread, before the main thread takes more."""
    torch.ones(1 << 20).add_(1)
    time.sleep(0.2 * threads)  # so that each thread of the pool takes one


def train(plan: Plan, art: Art, work: Path, init_from: Path | None, threads: int) -> None:
    """Run the plan to its end, saving as it goes."""
    checkpoint = work / "diffusion.pt"
    training = Training.start(plan, init_from)
    if checkpoint.exists():
        training.load(checkpoint)
    use_plain_attention(training.model["transformer"])
    parameters = list(training.model.parameters())
    # What is drawn depends on the seed and on how far training has come.
    seed = f"{plan.seed} {training.images}"
    rng = random.Random(seed)
    # Threads that share nothing but gradients waste less than one operation on many threads.
    torch.set_num_threads(1)
    workers = [Worker.make(training, art, f"{seed} {number}") for number in range(threads)]
    pool = ThreadPoolExecutor(threads)
    wait([pool.submit(_settle, threads) for _ in range(threads)])
    torch.set_num_threads(threads)  # of the thread that updates the parameters
    saved = time.monotonic()
    report = Report(training.images)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    while not stopped:
        number, phase, rate = where(plan, training.images)
        if number == len(plan.phases):
            break
        rate *= min(1.0, (training.updates + 1) / plan.warmup)
        view = rng.choices(phase.views, [view.weight for view in phase.views])[0]
        t5_rows = rng.choices(list(phase.rows), list(phase.rows.values()))[0]
        parts = [pool.submit(worker.run, plan, phase, view, t5_rows, threads) for worker in workers]
        done = [part.result() for part in parts]
        each, sigma = (torch.cat(values) for values in zip(*done, strict=True))
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        training.optimizer.step()
        training.optimizer.zero_grad()
        if training.updates % AVERAGE_EVERY == 0:
            training.average.update(training.model)
        training.images += len(each)
        training.updates += 1
        report.add(each, sigma)
        if training.updates % 50 == 0:
            report.write(training.images, number, rate)
        if time.monotonic() - saved > plan.save_seconds:
            training.save(checkpoint)
            saved = time.monotonic()
    training.save(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, required=True, help="folder of the webp pictures")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--init-from", type=Path, help="an exported pipeline to continue from")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    plan = load_plan(options.config)
    logger.info("%s", json.dumps(dataclasses.asdict(plan)))
    train(plan, Art(options.art), options.work, options.init_from, options.threads)


if __name__ == "__main__":
    main()
