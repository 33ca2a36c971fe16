"""One function makes pictures: as the stock pipeline does, timed, and leaving nothing behind."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from ras_dit import RASConfig, RASError, UnsupportedError
from ras_dit.embedded import MODEL_DIR
from ras_dit.generate import Comparison, Generated, Job, compare, generate, psnr, seeds_for
from ras_dit.loading import EMBEDDED_DEFAULTS, CallDefaults, call_defaults, load_pipeline

HALF = RASConfig(sample_ratio=0.5)


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Any:
    """The small pipeline, loaded once."""
    return load_pipeline(model_folder, device="cpu")


def job(*prompts: str, seed: int = 3, **kwargs: Any) -> Job:
    """A short job."""
    prompts = prompts or ("a fox",)
    seeds = tuple(range(seed, seed + len(prompts)))
    options = {"num_inference_steps": 8, "max_sequence_length": 16} | kwargs
    return Job(prompts=prompts, seeds=seeds, **options)


def state(pipe: Any) -> list[Any]:
    """Everything that hooks and patches would change."""
    modules = list(pipe.transformer.modules())
    return [
        type(pipe),
        type(pipe.scheduler),
        [type(getattr(module, "processor", None)) for module in modules],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules],
    ]


def test_dense_is_the_stock_pipeline(pipe: Any) -> None:
    made = generate(pipe, None, job(guidance_scale=3.0))
    stock = pipe(
        ["a fox"],
        num_inference_steps=8,
        max_sequence_length=16,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(3)],
    ).images
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(stock[0]))
    assert made.trace is None


def test_regions_are_traced(pipe: Any) -> None:
    made = generate(pipe, HALF, job("a fox", "a hen", width=40, height=24))
    assert [image.size for image in made.images] == [(40, 24)] * 2
    assert made.trace is not None
    assert made.trace.batch_size == 2
    assert len(made.trace.steps) == 8
    assert made.trace.num_text_tokens == 48 + 16
    assert made.trace.num_dense_steps < 8


@pytest.mark.parametrize("config", [None, HALF])
def test_the_batch_does_not_change_a_picture(pipe: Any, config: RASConfig | None) -> None:
    together = generate(pipe, config, job("a fox", "a hen")).images
    alone = [
        generate(pipe, config, job(p, seed=s)).images[0] for p, s in [("a fox", 3), ("a hen", 4)]
    ]
    assert min(map(psnr, together, alone)) > 50


def test_nothing_is_left_behind(pipe: Any) -> None:
    before = state(pipe)
    generate(pipe, HALF, job())
    assert state(pipe) == before

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for config in (None, HALF):
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, config, job(), on_step=stop)
        assert state(pipe) == before


def test_only_the_loop_is_timed(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((pipe.vae, "decode"), (pipe, "encode_prompt")):
        stock = getattr(owner, name)

        def slow(*args: Any, stock: Any = stock, **kwargs: Any) -> Any:
            time.sleep(0.3)
            return stock(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    def linger(_done: int, _total: int) -> None:
        time.sleep(0.02)

    made = generate(pipe, None, job(), on_step=linger)
    assert made.total_seconds - made.loop_seconds > 0.6
    # The sleep after the last step lies behind the end of the loop.
    assert made.loop_seconds > 7 * 0.02


def test_steps_are_reported(pipe: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(pipe, None, job(num_inference_steps=3), on_step=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_comparison_takes_turns(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[bool] = []

    def spy(pipe: Any, config: RASConfig | None, job: Job, **kwargs: Any) -> Generated:
        order.append(config is None)
        return generate(pipe, config, job, **kwargs)

    monkeypatch.setattr("ras_dit.generate.generate", spy)
    measured = compare(pipe, HALF, job(), runs=2)
    assert order == [True, False] * 3
    assert len(measured.dense_seconds) == len(measured.ras_seconds) == 2
    assert measured.limit > 1
    assert measured.trace is measured.ras.trace
    assert measured.psnr == (psnr(measured.dense.images[0], measured.ras.images[0]),)
    assert 5 < measured.psnr[0] < 100


def test_ratio_one_compares_as_equal(pipe: Any) -> None:
    measured = compare(pipe, RASConfig(sample_ratio=1.0), job(), runs=1)
    assert measured.psnr == (math.inf,)
    assert measured.limit == 1


def test_speedup_is_a_ratio_of_medians() -> None:
    nothing = Generated((), 0.0, 0.0, None)
    measured = Comparison(nothing, nothing, (4.0, 6.0, 90.0), (3.0, 2.0, 0.1), 4.0, ())
    assert measured.speedup == 3
    assert measured.limit_share == 0.75


def test_psnr_is_the_textbook_one() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(10 * math.log10(255**2 / 51**2))
    assert psnr(black, black) == math.inf


def test_repeated_prompts_get_further_seeds() -> None:
    assert seeds_for(["a", "b", "a", "a"], 5) == (5, 5, 6, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": (), "seeds": ()}, "prompt is empty"),
        ({"prompts": ("a", " \n"), "seeds": (0, 0)}, "prompt is empty"),
        ({"seeds": (0, 1)}, "1 prompts and 2 seeds"),
        ({"seeds": (-1,)}, "seeds="),
        ({"seeds": (2**63,)}, "seeds="),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"height": 0}, "height=0"),
        ({"width": -8}, "width=-8"),
        ({"max_sequence_length": 0}, "max_sequence_length=0"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
    ],
)
def test_bad_jobs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RASError, match=message):
        Job(**{"prompts": ("a fox",), "seeds": (0,)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "width=30 .* 4 pixels.* 28 or 32"),
        ({"height": 3}, "height=3 .* use 4"),
        ({"height": 1000}, "limit of 96"),
        ({"max_sequence_length": 600}, "refuses this job: .*512"),
    ],
)
@pytest.mark.parametrize("config", [None, HALF])
def test_jobs_that_do_not_fit_are_refused(
    pipe: Any, config: RASConfig | None, options: dict[str, Any], message: str
) -> None:
    before = state(pipe)
    with pytest.raises(RASError, match=message):
        generate(pipe, config, job(**options))
    assert state(pipe) == before


def test_no_run_is_no_comparison(pipe: Any) -> None:
    with pytest.raises(RASError, match="runs=0"):
        compare(pipe, HALF, job(), runs=0)


def test_errors_in_mid_run_stay_what_they_are(pipe: Any) -> None:
    def fail(_done: int, _total: int) -> None:
        raise ValueError("broken callback")

    with pytest.raises(ValueError, match=r"^broken callback$") as caught:
        generate(pipe, HALF, job(), on_step=fail)
    assert not isinstance(caught.value, RASError)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_pipelines_load_in_any_dtype(model_folder: Path, name: str) -> None:
    pipe = load_pipeline(str(model_folder), dtype=name, device="cpu")
    assert pipe.transformer.dtype == getattr(torch, name)
    assert pipe.vae.dtype == getattr(torch, name)
    assert pipe.text_encoder_3.dtype == getattr(torch, name)


def test_a_cpu_computes_in_float32(pipe: Any) -> None:
    assert pipe.transformer.dtype == torch.float32


@pytest.mark.gpu
def test_a_gpu_computes_in_bfloat16(model_folder: Path) -> None:
    pipe = load_pipeline(model_folder)
    assert pipe.transformer.device.type == "cuda"
    assert pipe.transformer.dtype == torch.bfloat16
    made = generate(pipe, HALF, job())
    assert 0 < made.loop_seconds < made.total_seconds


def test_unsupported_models_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    with pytest.raises(UnsupportedError, match=r"no transformer; supported.*SD3Transformer2DModel"):
        load_pipeline(tmp_path)


def test_only_the_embedded_model_has_defaults_of_its_own(model_folder: Path) -> None:
    assert call_defaults(None) == call_defaults(str(MODEL_DIR)) == EMBEDDED_DEFAULTS
    assert call_defaults(model_folder) == CallDefaults()


def test_a_published_name_and_a_hub_out_of_reach_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RASError, match=r"known to `ras-dit plan` only.*give its folder, or"):
        load_pipeline("FLUX.1-dev")

    def unreachable(*_: Any, **__: Any) -> Any:
        try:
            raise LocalEntryNotFoundError("cannot find the requested files")
        except LocalEntryNotFoundError as error:
            raise OSError("does not appear to have a file named model_index.json") from error

    monkeypatch.setattr(DiffusionPipeline, "load_config", unreachable)
    with pytest.raises(RASError, match="the hub cannot be reached; check the connection"):
        load_pipeline("owner/name")
