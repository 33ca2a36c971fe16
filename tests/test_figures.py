"""Figures of a run show what the recording holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ras_dit
from pipelines import sd3_inputs, sd3_pipeline
from ras_dit import RASConfig, RASError, Recording
from ras_dit.animation import animation, save_animation
from ras_dit.figures import (
    active_map,
    active_mask,
    contact_sheet,
    decode,
    decoded_steps,
    score_map,
    spread_steps,
)
from ras_dit.generate import Generated, Job
from ras_dit.portrait import figures_of
from ras_dit.schedule import plan_steps
from ras_dit.selection import choose, choose_as_public_code, count_drops, priority, std_score
from ras_dit.sheet import Sheet, draw_active
from ras_dit.tokens import TokenGrid, TokenSort
from ras_dit.trace import StepTrace, Trace, never_refreshed, pack_active

GRID = TokenGrid(4, 6)


def recording(steps: int = 8, images: int = 1, dense: tuple[int, ...] = (0, 1, 5)) -> Recording:
    """A run in which sparse step ``s`` has the tokens from ``s`` on, 12 of 24, active."""
    count = GRID.num_tokens
    records = []
    for index in range(steps):
        active = torch.arange(index, index + 12).remainder(count).sort().values
        packed = pack_active(active.expand(images, -1).contiguous(), count)
        kind = "dense" if index in dense else "sparse"
        mask = None if kind == "dense" else packed
        records.append(StepTrace(index, kind, 1 - index / steps, count, (), mask))
    trace = Trace("T", GRID, 5, images, "float32", 0, tuple(records))
    generator = torch.Generator().manual_seed(0)
    shape = images, 4, 2 * GRID.height, 2 * GRID.width
    noise = tuple(torch.randn(shape, generator=generator) for _ in range(steps))
    samples = tuple(torch.randn(shape, generator=generator) for _ in noise)
    return Recording(trace, noise, samples, TokenSort(2))


def pictures(number: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    return [Image.new("RGB", size, (200, 20 * index, 60)) for index in range(number)]


def test_steps_are_spread_and_chose_tokens() -> None:
    trace = recording(28, dense=(0, 1, 2, 3, 12, 20)).trace
    steps = spread_steps(trace)
    assert steps == tuple(sorted(steps))
    assert len(steps) == 6
    assert (steps[0], steps[-1]) == (3, 26)
    assert all(trace.steps[step + 1].kind == "sparse" for step in steps)
    assert spread_steps(trace, 1) == (3,)
    assert spread_steps(recording(3, dense=(0, 1, 2)).trace) == (0, 1, 2)
    with pytest.raises(RASError, match="number=0"):
        spread_steps(trace, 0)


def test_masks_are_the_active_tokens() -> None:
    trace = recording().trace
    assert active_mask(trace, 1).all()
    mask = active_mask(trace, 3)
    assert mask.shape == (4, 6)
    assert np.flatnonzero(mask).tolist() == list(range(3, 15))
    with pytest.raises(RASError, match="step=8; the run has steps 0 to 7"):
        active_mask(trace, 8)
    with pytest.raises(RASError, match="made 1 images"):
        active_mask(trace, 3, 1)


@pytest.mark.parametrize("colour", [(250, 250, 250), (10, 10, 20), (30, 160, 40)])
def test_only_what_is_left_out_is_veiled(colour: tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (96, 64), colour)
    mask = active_mask(recording().trace, 3)
    sheet = Sheet(0.6, 0.4)
    axes = sheet.axes(0, 0, 0.6, 0.4)
    veil = draw_active(axes, mask, picture)
    shown = np.asarray(sheet.render(), dtype=float)
    assert shown.shape == (64, 96, 3)
    assert veil == ("#fde725" if max(colour) < 50 else "#440154")
    for row in range(4):
        for column in range(6):
            centre = shown[16 * row + 8, 16 * column + 8]
            distance = float(np.abs(centre - colour).max())
            assert (distance < 2) == bool(mask[row, column])


def test_decoding_is_the_pipelines_own() -> None:
    pipe = sd3_pipeline()
    pipe.vae.register_to_config(scaling_factor=1.5, shift_factor=0.1)
    with ras_dit.enable(pipe, sample_ratio=0.4, record=True) as handle:
        images = pipe(**sd3_inputs(2) | {"output_type": "pil"}).images
    recorded = handle.recording
    assert recorded is not None
    last = len(recorded.samples) - 1
    for index, image in enumerate(images):
        (drawn,) = decoded_steps(pipe, recorded, [last], index).values()
        assert np.abs(np.asarray(drawn, float) - np.asarray(image, float)).max() <= 1
    parts = decode(pipe, recorded.predicted_latents(4), batch_size=1)
    together = decode(pipe, recorded.predicted_latents(4), batch_size=4)
    for part, whole in zip(parts, together, strict=True):
        assert np.abs(np.asarray(part, float) - np.asarray(whole, float)).max() <= 1
    assert decoded_steps(pipe, recorded, []) == {}
    with pytest.raises(RASError, match="made 2 images"):
        decoded_steps(pipe, recorded, [0], 2)


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (512, 512)])
def test_a_contact_sheet_holds_all_panels(size: tuple[int, int]) -> None:
    recorded = recording()
    steps = spread_steps(recorded.trace, 3)
    decoded = dict(zip(steps, pictures(3, size), strict=True))
    image, dense = Image.new("RGB", size, "teal"), Image.new("RGB", size, "navy")
    sheet = contact_sheet(recorded, image, decoded, dense=dense, title="a fox", subtitle="small")
    alone = contact_sheet(recorded, image, decoded)
    colours = {colour for _, colour in sheet.getcolors(2**24) or ()}
    shown = {picture.getpixel((0, 0)) for picture in (image, dense, *decoded.values())}
    assert shown <= colours
    assert dense.getpixel((0, 0)) not in {c for _, c in alone.getcolors(2**24) or ()}
    assert alone.height < sheet.height


def test_each_image_has_its_own_sheet() -> None:
    recorded = recording(images=2)
    decoded = {3: pictures(1)[0]}
    first, second = (
        contact_sheet(recorded, decoded[3], decoded, index=index) for index in range(2)
    )
    assert first.tobytes() != second.tobytes()
    again = contact_sheet(recorded, decoded[3], decoded, index=1)
    assert again.tobytes() == second.tobytes()


def test_runs_at_the_edges_have_sheets() -> None:
    dense = recording(2, dense=(0, 1))
    for recorded in (dense, recording(1, dense=(0,)), recording(12)):
        steps = spread_steps(recorded.trace, 12)
        decoded = dict(zip(steps, pictures(len(steps)), strict=True))
        assert contact_sheet(recorded, pictures(1)[0], decoded, title="long " * 80).mode == "RGB"


def test_single_maps() -> None:
    recorded = recording()
    assert score_map(recorded, 2).tobytes() != score_map(recorded, 2, "l2").tobytes()
    assert active_map(recorded.trace, 3, pictures(1)[0]).mode == "RGB"
    assert active_map(recorded.trace, 0, pictures(1)[0]).mode == "RGB"
    with pytest.raises(RASError, match="metric='random' has no map"):
        score_map(recorded, 2, "random")
    with pytest.raises(RASError, match="step=99"):
        score_map(recorded, 99)


def test_sheets_refuse_what_does_not_fit() -> None:
    recorded, image = recording(), pictures(1)[0]
    with pytest.raises(RASError, match="at least one step"):
        contact_sheet(recorded, image, {})
    with pytest.raises(RASError, match="differ in size"):
        contact_sheet(recorded, image, {1: image}, dense=Image.new("RGB", (8, 8)))
    with pytest.raises(RASError, match="step=9"):
        contact_sheet(recorded, image, {9: image})
    with pytest.raises(RASError, match="not recorded"):
        next(
            figures_of(
                None,
                Job(prompts=("a fox",), seeds=(0,)),
                Generated((image,), 1.0, 1.0, None),
                Generated((image,), 1.0, 1.0, recorded.trace),
            )
        )


@pytest.mark.parametrize("ending", [".gif", ".png"])
def test_the_animation_has_a_frame_per_step(tmp_path: Path, ending: str) -> None:
    trace = recording(5).trace
    frames = animation(trace, pictures(5))
    assert len({frame.size for frame in frames}) == 1
    path = tmp_path / f"run{ending}"
    save_animation(frames, path, seconds_per_step=0.2)
    with Image.open(path) as written:
        assert written.n_frames == 5
        assert written.info["loop"] == 0
        durations = []
        for number in range(5):
            written.seek(number)
            durations.append(written.info["duration"])
    assert durations == [200, 200, 200, 200, 1600]


def test_animations_refuse_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RASError, match="3 pictures for 8 steps"):
        animation(recording().trace, pictures(3))
    with pytest.raises(RASError, match="no frame"):
        save_animation([], tmp_path / "a.gif")
    with pytest.raises(RASError, match=r"neither .gif nor .png"):
        save_animation(pictures(2), tmp_path / "a.mp4")
    with pytest.raises(RASError, match="seconds_per_step=0"):
        save_animation(pictures(2), tmp_path / "a.gif", seconds_per_step=0)


def static_run(config: RASConfig, steps: int = 28, count: int = 64) -> Trace:
    """The tokens that a configuration chooses where the noise is the same in every step."""
    noise = torch.rand(1, count, 4, 16, generator=torch.Generator().manual_seed(0))
    noise = noise * torch.linspace(0.5, 2, count)[:, None, None]
    public = config.public_code
    # The public code counts drops from minus the number of noise levels on.
    drops = torch.full((1, count), 0.0 if public is None else -float(steps + 1))
    records, active = [], torch.arange(count)[None]
    for plan in plan_steps(config, steps, count):
        if plan.kind == "dense":
            records.append(StepTrace(plan.index, "dense", 0.5, count, ()))
            continue
        if public is None:
            ranks = priority(std_score(noise), drops, config.kept_scores, config.drop_weight)
            active = choose(ranks, plan.num_active)
        elif not plan.repeats_active:
            low, _ = public.split(count - plan.num_active)
            step = torch.tensor(-1 / steps)
            active = choose_as_public_code(noise, step, drops, low, plan.num_active, std_score)
        drops = count_drops(drops, active)
        packed = pack_active(active, count)
        records.append(StepTrace(plan.index, "sparse", 0.5, count, (), packed))
    return Trace("T", TokenGrid(8, 8), 5, 1, "float32", 0, tuple(records))


def test_what_is_never_refreshed_on_static_scores() -> None:
    public = RASConfig.microsoft(high_ratio=1, error_reset_steps=(12, 20), scheduler_end_step=28)
    assert never_refreshed(static_run(public)) == 0.5
    assert never_refreshed(static_run(RASConfig(sample_ratio=0.5))) == 0.0
    assert never_refreshed(static_run(RASConfig(sample_ratio=0.5, starvation_scale=0))) == 0.5
    assert never_refreshed(static_run(RASConfig(sample_ratio=1.0))) == 0.0


def test_a_token_refreshed_in_one_image_counts_for_that_image() -> None:
    packed = pack_active(torch.tensor([[0, 1], [2, 3]]), 24)
    steps = (StepTrace(0, "dense", 1.0, 24, ()), StepTrace(1, "sparse", 0.5, 24, (), packed))
    assert never_refreshed(Trace("T", GRID, 5, 2, "float32", 0, steps)) == pytest.approx(22 / 24)
