"""Training of the judge on drawn art: the same however often it was stopped."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ras_dit.evaluation.judge import WEIGHTS, Judge
from ras_dit.evaluation.judge_network import STRIDE, JudgeNetwork, judged_things
from ras_dit.world import SHAPES, Mixture, Thing, sample_scene
from training import judge as training
from training.judge_measure import export, marks, to_picture
from training.judge_scenes import (
    IGNORED,
    Canvas,
    crowded_canvas,
    scene_canvas,
    spoil,
    targets,
    to_tensor,
)
from training.render import Art, Placed


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Art:
    """A picture of one colour for every thing."""
    folder = tmp_path_factory.mktemp("art")
    for number, thing in enumerate(judged_things()):
        colour = ((37 * number) % 256, (91 * number) % 256, (151 * number) % 256, 255)
        Image.new("RGBA", (16, 16), colour).save(folder / f"{thing.picture}.webp", lossless=True)
    return Art(folder)


class Mirror:
    """In place of the autoencoder: what goes in comes out."""

    def encode(self, images: torch.Tensor) -> Mirror:
        self.latent_dist = self
        self.sample = images
        return self

    def mode(self) -> torch.Tensor:
        return self.sample

    def decode(self, _: torch.Tensor) -> Mirror:
        return self

    @classmethod
    def from_pretrained(cls, _: Path) -> Mirror:
        return cls()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "FLATS_FROM", 2)
    monkeypatch.setattr(training, "POOL", 2)
    monkeypatch.setattr(training, "POOL_TURN", 1)
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    monkeypatch.setattr(training, "VIEWS", ((None, 2), (128, 3)))
    monkeypatch.setattr(training, "AutoencoderKL", Mirror)


def test_a_run_that_was_stopped_equals_one_that_was_not(art: Art, tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    updates = 4
    whole = training.train(art, tmp_path / "whole", updates)

    class StoppedError(Exception):
        pass

    real, calls = training.judge_loss, []

    def interrupted(*arguments: object) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 4:
            raise StoppedError
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "judge_loss", interrupted)
        with pytest.raises(StoppedError):
            training.train(art, tmp_path / "stopped", updates)
    again = training.train(art, tmp_path / "stopped", updates)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_was_trained_is_what_reads(art: Art, tmp_path: Path) -> None:
    network = training.train(art, tmp_path, 2)
    export(tmp_path, tmp_path / "judge")
    assert (tmp_path / "judge" / WEIGHTS).stat().st_size < 5_000_000
    judge = Judge.load(tmp_path / "judge")
    rng = random.Random(0)
    scene = sample_scene(rng, Mixture(1, 0, 0))
    image = to_tensor([scene_canvas(art, scene, 128, 128, rng)])[0]
    assert set(marks(judge, scene, image)) == {"things", "background", "recognised"}
    pixels = torch.from_numpy(np.asarray(to_picture(image), dtype=np.float32))
    with torch.inference_mode():
        answers = network(pixels.permute(2, 0, 1)[None] / 127.5 - 1)
    found = judge.read(to_picture(image)).features
    assert found == pytest.approx(answers.features.mean(dim=(2, 3))[0].numpy(), abs=2e-2)


def test_the_loss_falls_on_one_batch(art: Art) -> None:
    torch.manual_seed(0)
    pool = training.Pool(art, Mirror(), deque())  # type: ignore[arg-type]
    images, wanted = training.batch(art, pool, 0)
    network = JudgeNetwork(len(judged_things()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = training.judge_loss(network, images, wanted)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2


def test_targets_say_where_things_stand() -> None:
    things = judged_things()
    placed = Placed(Thing("fox"), 100, 20, 96), Placed(Thing("heart", "red"), 8, 150, 48)
    canvas = Canvas(np.zeros((256, 256, 3), dtype=np.float32), placed)
    wanted = targets([canvas])
    assert wanted.labels.shape == (1, 256 // STRIDE, 256 // STRIDE)
    for thing in placed:
        own = wanted.labels[0] == things.index(thing.thing)
        assert own.any()
        for row, column in own.nonzero().tolist():
            across, down, size = wanted.boxes[0, :, row, column].tolist()
            assert (column + 0.5 + across) * STRIDE == pytest.approx(thing.left + thing.size / 2)
            assert (row + 0.5 + down) * STRIDE == pytest.approx(thing.top + thing.size / 2)
            assert 64 * 2**size == pytest.approx(thing.size)
    assert (wanted.labels == IGNORED).any()
    assert (wanted.labels == len(things)).sum() > wanted.labels.numel() / 2
    assert {int(label) for label in wanted.labels.unique()} == {
        IGNORED,
        len(things),
        *(things.index(thing.thing) for thing in placed),
    }


def test_crowded_canvases_hold_things_apart(art: Art) -> None:
    kinds = set()
    for number in range(20):
        canvas = crowded_canvas(art, random.Random(number))
        assert canvas.pixels.min() >= 0
        assert canvas.pixels.max() <= 1
        for one in canvas.things:
            kinds.add(one.thing.name in SHAPES)
            for two in canvas.things:
                if one is not two:
                    gap = max(abs(one.left - two.left), abs(one.top - two.top))
                    assert gap >= min(one.size, two.size)
    assert kinds == {True, False}


def test_spoiling_is_the_same_for_the_same_seed(art: Art) -> None:
    images = to_tensor([crowded_canvas(art, random.Random(n)) for n in range(6)])
    first, second = (
        spoil(images, random.Random(1), torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert first.abs().max() <= 1
    assert not torch.equal(first, images)
