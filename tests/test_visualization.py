"""Region maps show the counts of the trace, with the colours of their legend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ras_dit import RASError
from ras_dit.tokens import TokenGrid
from ras_dit.trace import StepTrace, Trace, pack_active
from ras_dit.visualization import comparison, draw_counts, region_map


def trace_of(*active: list[list[int]], height: int = 2, width: int = 3, dense: int = 1) -> Trace:
    """A run with some dense steps and then one sparse step per entry: token lists per image."""
    count = height * width
    steps = [StepTrace(i, "dense", 1.0, count, ()) for i in range(dense)]
    for images in active:
        packed = pack_active(torch.tensor(images), count)
        steps.append(StepTrace(len(steps), "sparse", 0.5, count, (), packed))
    images = len(active[0]) if active else 1
    return Trace("T", TokenGrid(height, width), 5, images, "float32", 0, tuple(steps))


def brightness(picture: Image.Image, x: float, y: float) -> float:
    """Lightness around a place inside the map panel, in shares of the panel."""
    grey = np.asarray(picture.convert("L"), dtype=float)
    column = int(19 + x * 512)
    row = int(grey.shape[0] - 19 - 512 * 2 / 3 + y * 512 * 2 / 3)
    return float(grey[row - 5 : row + 5, column - 5 : column + 5].mean())


def test_more_active_tokens_are_brighter() -> None:
    trace = trace_of([[0, 4]], [[0, 4]], [[0, 5]])
    picture = region_map(trace, Image.new("RGB", (96, 64), "gray"))
    centres = [((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)]
    values = [brightness(picture, x, y) for x, y in centres]
    counts = trace.active_counts()[0].flatten().tolist()
    assert counts == [4, 1, 1, 1, 3, 2]
    order = sorted(range(6), key=counts.__getitem__)
    assert [values[i] for i in order] == sorted(values)
    assert values[0] > values[4] > values[5] > values[1] + 5
    assert values[1] == pytest.approx(values[2], abs=2)


@pytest.mark.parametrize("dense", [2, 5])
def test_a_run_without_regions_has_one_colour_out_of_all_steps(dense: int) -> None:
    """Between those of no step and of all; the bar shows both."""
    nothing: list[list[int]] = [[]]
    trace = trace_of(*[nothing] * (6 - dense), dense=dense)
    counts = trace.active_counts()[0].numpy()
    axes = Figure().add_subplot()
    drawn = draw_counts(axes, counts, 6, Image.new("RGB", (96, 64), "gray"))
    assert drawn.get_clim() == (0, 6)
    assert set(counts.flatten().tolist()) == {dense}
    region_map(trace, Image.new("RGB", (96, 64), "gray"))


def test_each_image_has_its_own_map() -> None:
    trace = trace_of([[0, 1], [4, 5]])
    image = Image.new("RGB", (96, 64), "gray")
    first, second = (region_map(trace, image, index) for index in range(2))
    assert first.tobytes() != second.tobytes()


def test_a_map_is_the_same_each_time_and_keeps_the_picture() -> None:
    trace = trace_of([[0, 1]])
    image = Image.effect_noise((96, 64), 50).convert("RGB")
    before = image.tobytes()
    assert region_map(trace, image).tobytes() == region_map(trace, image).tobytes()
    assert image.tobytes() == before


@pytest.mark.parametrize("trace", [trace_of(), trace_of(dense=28), trace_of([[0]], dense=0)])
def test_runs_at_the_edges_have_maps(trace: Trace) -> None:
    picture = region_map(trace, Image.new("L", (30, 20)))
    assert picture.mode == "RGB"


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (1024, 1024), (2048, 512)])
def test_panels_keep_the_shape_of_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("RGB", size, "teal")
    single = region_map(trace_of([[0]]), image)
    triple = comparison(image, image, trace_of([[0]]))
    longest = min(1024, max(512, *size))
    assert single.width > width * longest / max(size)
    assert single.height > height * longest / max(size)
    assert triple.width > 3 * width * longest / max(size)


def test_the_panels_show_both_pictures() -> None:
    dense, ras = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    picture = np.asarray(comparison(dense, ras, trace_of([[0]])))
    row = picture[picture.shape[0] // 2]
    assert (row == (200, 0, 0)).all(-1).sum() == pytest.approx(512, abs=4)
    assert (row == (0, 0, 200)).all(-1).sum() == pytest.approx(512, abs=4)


def test_bad_input_is_refused() -> None:
    image, trace = Image.new("RGB", (96, 64)), trace_of([[0]])
    for index in (-1, 1):
        with pytest.raises(RASError, match="made 1 images"):
            region_map(trace, image, index)
    with pytest.raises(RASError, match="differ in size"):
        comparison(image, Image.new("RGB", (64, 64)), trace)
    with pytest.raises(RASError, match="2 captions"):
        comparison(image, image, trace, captions=("a", "b"))
