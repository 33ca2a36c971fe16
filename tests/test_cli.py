"""The program: the files it writes, the table it prints, one line for whatever is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from ras_dit import cli
from ras_dit.cli import main, slug
from ras_dit.support import read_support

SHORT = ["--steps", "8", "--max-sequence-length", "16", "--device", "cpu"]


@pytest.fixture
def run(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``ras-dit generate``, or another command, on the small model, into a fresh folder."""

    def call(*words: str, command: str = "generate") -> tuple[int, str, str]:
        base = [command, "--model", str(model_folder), *SHORT, "--out", str(tmp_path / "out")]
        status = main([*base, *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def files(folder: Path) -> set[str]:
    """Names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_picture_and_its_map(run: Any, tmp_path: Path) -> None:
    status, out, err = run("a fox", "--seed", "7", "--size", "40x24")
    assert (status, err) == (0, "")
    assert files(tmp_path / "out") == {"a-fox-7.png", "a-fox-7-map.png"}
    with Image.open(tmp_path / "out" / "a-fox-7.png") as image:
        assert image.size == (40, 24)
        assert image.info["prompt"] == "a fox"
        assert image.info["seed"] == "7"
    assert f"wrote {tmp_path / 'out' / 'a-fox-7.png'}" in out
    assert "8 steps: 5 dense, 3 skipped" in out


def test_own_files_are_replaced_and_it_says_so(run: Any, tmp_path: Path) -> None:
    run("a fox")
    first = (tmp_path / "out" / "a-fox-0.png").read_bytes()
    _, out, _ = run("a fox")
    assert out.count("replaced ") == 2
    assert (tmp_path / "out" / "a-fox-0.png").read_bytes() == first
    _, out, _ = run("a fox", "--seed", "1")
    assert out.count("wrote ") == 2
    assert (tmp_path / "out" / "a-fox-1.png").read_bytes() != first


def test_the_comparison(run: Any, tmp_path: Path) -> None:
    status, out, err = run("a fox", "--compare", "--sample-ratio", "0.25")
    assert (status, err) == (0, "")
    assert files(tmp_path / "out") == {
        f"a-fox-0{suffix}.png" for suffix in ("", "-map", "-dense", "-compare")
    }
    rows = dict(
        (cell.strip() for cell in line.strip("│").split("│"))
        for line in out.splitlines()
        if line.startswith("│")
    )
    assert rows["denoising loop, dense"].endswith(" s")
    assert rows["denoising loop, RAS"].endswith(" s")
    assert rows["speed-up"].endswith("x")
    assert float(rows["FLOP limit of this plan"].removesuffix("x")) > 1
    assert rows["share of the limit reached"].endswith("%")
    assert rows["image tokens"] == "64 (8 x 8)"
    assert rows["what was run"] == "8 steps: 2 dense, 6 with 16 of 64 tokens"
    assert rows["text rows T"] == "64"
    assert rows["PSNR to the dense image"].endswith(" dB")


def test_several_prompts(run: Any, tmp_path: Path) -> None:
    status, out, _ = run("a fox", "a hen", "a fox", "--compare")
    assert status == 0
    stems = ("a-fox-0", "a-hen-0", "a-fox-1")
    wanted = {f"{stem}{end}.png" for stem in stems for end in ("", "-map", "-dense", "-compare")}
    assert files(tmp_path / "out") == wanted
    assert out.count(" dB") == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "fast"],
        ["--sample-ratio", "1"],
        ["--dtype", "bfloat16"],
        ["--guidance", "1"],
        ["--guidance", "0"],
    ],
)
def test_options(run: Any, words: list[str]) -> None:
    status, out, err = run("a fox", *words)
    assert (status, err) == (0, "")
    assert "denoising loop" in out


def test_noise_levels_of_ones_own(run: Any, tmp_path: Path) -> None:
    shifted = "1,0.95,0.9,0.8,0.7,0.5,0.3,0.1"
    found = []
    for words in ((), ("--sigmas", shifted)):
        status, _, err = run("a fox", "--sample-ratio", "0.5", *words)
        assert (status, err) == (0, "")
        found.append((tmp_path / "out" / "a-fox-0.png").read_bytes())
    assert found[0] != found[1]
    for wrong, message in (
        ("1,0.5", "2 sigmas for num_inference_steps=8; expected one per step"),
        ("0.5,1", "--sigmas='0.5,1'; expected falling noise levels in (0, 1], one per step"),
        ("high", "--sigmas='high'; expected falling"),
    ):
        assert_refused(run("a fox", "--sigmas", wrong), message)


def test_a_configuration_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("sample_ratio: 0.125\nwarmup_steps: 3\n")
    _, out, _ = run("a fox", "--config", str(path))
    assert "8 steps: 3 dense, 5 with 8 of 64 tokens" in out


def test_a_contact_sheet_and_an_animation(run: Any, tmp_path: Path) -> None:
    words = ("--sample-ratio", "0.25", "--size", "40x24", "--seed", "3")
    status, out, err = run("a fox", "a hen", *words, command="visualize")
    assert (status, err) == (0, "")
    assert files(tmp_path / "out") == {"a-fox-3-sheet.png", "a-hen-3-sheet.png"}
    with Image.open(tmp_path / "out" / "a-hen-3-sheet.png") as image:
        assert image.info["prompt"] == "a hen"
    # Two pictures of 12 x 20 latents with 4 channels, float32, noise and latents of 8 steps.
    assert f"recording {2 * 8 * 2 * 4 * 12 * 20 * 4 / 2**20:.1f} MiB" in out
    status, out, err = run("a fox", *words, "--animation", command="visualize")
    assert (status, err) == (0, "")
    assert f"replaced {tmp_path / 'out' / 'a-fox-3-sheet.png'}" in out
    assert f"wrote {tmp_path / 'out' / 'a-fox-3-steps.gif'}" in out
    with Image.open(tmp_path / "out" / "a-fox-3-steps.gif") as image:
        assert image.n_frames == 8


def test_a_plan_is_what_the_run_does(
    model_folder: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model_folder), "--steps", "12", "--max-sequence-length", "16"]
    words += ["--paper", "sd3", "--sample-ratio", "0.25", "--size", "40x24"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in said.out.splitlines()
        if line.startswith("│")
    ]
    assert rows[0] == ["0 to 3", "dense", "60", "100.0%"]
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts["text rows T"] == "64"
    assert facts["image tokens N"] == "60 (6 x 10)"
    assert facts["mean ratio of sparse steps"].startswith("25.")
    _, out, _ = run("a fox", *words, "--compare")
    limit = facts["FLOP limit of the loop"]
    assert any("FLOP limit" in line and limit in line for line in out.splitlines())


def test_plans_load_no_weights(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["plan", "--model", str(folder)]) == 0
    assert "64 (8 x 8)" in capsys.readouterr().out


BAD_PLANS = {
    "--steps 0": "'--steps'",
    "--sample-ratio 2": "(0, 1]",
    "--size big": "--size='big' is no size; expected width and height as in 256x256",
    "--size 250x251": "width=250 is no multiple of 4",
    "--size 4000x4000": "limit of 96 pixels",
    "--paper sdxl": "sd3 and lumina",
    "--paper sd3 --preset fast": "--paper goes with --sample-ratio",
    "--dtype float8": "auto, float32",
    "--model nosuch": "there is no model folder",
    "--config nosuch.yaml": "nosuch.yaml",
}


@pytest.mark.parametrize("words", BAD_PLANS)
def test_bad_plans_are_one_line(
    model_folder: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    status = main(["plan", "--model", str(model_folder), *words.split()])
    said = capsys.readouterr()
    assert_refused((status, said.out, said.err), BAD_PLANS[words])


@pytest.mark.parametrize("words", ["--size 250x251", "--seed -1", "--paper x", "--device nosuch"])
def test_bad_words_of_visualize_are_one_line(run: Any, tmp_path: Path, words: str) -> None:
    status, out, err = run("a fox", *words.split(), command="visualize")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "out").exists()


def test_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    for word in ("Stable Diffusion 3", "FluxPipeline", "WanPipeline", "refused", "SanaPipeline"):
        assert word in printed


@pytest.mark.parametrize("width", [None, 40, 60, 80])
def test_names_of_models_are_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    if width is not None:
        terminal = Console(
            width=width, force_terminal=True, color_system=None, legacy_windows=False
        )
        monkeypatch.setattr("ras_dit.cli.output", lambda: terminal)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    support = read_support()
    names = {row.pipeline for row in support.supported} | set(support.refused)
    assert {name for name in names if name not in printed} == set()
    # Reasons whole, brackets included, where nothing limits them.
    if width is None:
        assert all(reason in printed for reason in support.refused.values())


def test_the_version_and_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ras-dit 0.")
    for words in ([], ["--help"], ["generate", "--help"]):
        assert main(words) == 0
        said = capsys.readouterr()
        assert "generate" in said.out
        assert said.err == ""


BAD_WORDS = {
    "--steps 0": "'--steps'",
    "--steps abc": "'--steps'",
    "--steps 2.5": "'--steps'",
    "--seed -1": "'--seed'",
    "--seed 99999999999999999999": "2**63",
    "--sample-ratio 0": "sample_ratio=0.0; expected in (0, 1]",
    "--sample-ratio 1.5": "(0, 1]",
    "--sample-ratio nan": "(0, 1]",
    "--sample-ratio x": "'--sample-ratio'",
    "--preset nosuch": "balanced, fast, multirate, quality",
    "--preset fast --sample-ratio .5": "exclude each other",
    "--preset fast --config x.yaml": "exclude each other",
    "--config nosuch.yaml": "nosuch.yaml",
    "--config pyproject.toml": "yaml",
    "--size 250x251": "width=250 is no multiple of 4",
    "--size 32x251": "height=251 is no multiple of 4",
    "--size 30x32": "28 or 32",
    "--size 0x32": "width=0",
    "--size 32": "256x256",
    "--size abc": "256x256",
    "--size 4000x4000": "limit of 96 pixels",
    "--guidance -1": "'--guidance'",
    "--guidance inf": "guidance_scale=inf",
    "--dtype float8": "auto, float32, bfloat16, float16",
    "--device nosuch": "device 'nosuch' is unknown",
    "--device meta": "device 'meta' cannot be used",
    "--device cuda:99": "devices here",
    "--max-sequence-length 0": "'--max-sequence-length'",
    "--max-sequence-length 600": "512",
    "--nosuch": "--nosuch",
}


@pytest.mark.parametrize("words", BAD_WORDS)
def test_bad_words_are_one_line(run: Any, tmp_path: Path, words: str) -> None:
    assert_refused(run("a fox", *words.split()), BAD_WORDS[words])
    assert not (tmp_path / "out").exists()


def test_cuda_without_cuda(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert_refused(run("a fox", "--device", "cuda"), "0 cuda devices")


@pytest.mark.parametrize("prompts", [[""], ["a fox", "  "]])
def test_empty_prompts_are_refused(run: Any, prompts: list[str]) -> None:
    assert_refused(run(*prompts), "a prompt is empty")


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["generate"], "PROMPT"), (["nosuch"], "nosuch")):
        status = main(words)
        said = capsys.readouterr()
        assert_refused((status, said.out, said.err), message)


def test_an_output_that_is_no_folder(run: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for command in ("generate", "visualize"):
        for place in (blocked, blocked / "below"):
            answer = run("a fox", "--out", str(place), command=command)
            assert_refused(answer, f"--out {str(place)!r}")
            assert "is a file; give a folder" in answer[2]


def test_a_refusal_leaves_no_folder(run: Any, tmp_path: Path) -> None:
    for words in ("--size 33x33", "--max-sequence-length 600", "--device nosuch"):
        for command in ("generate", "visualize"):
            out = tmp_path / "new" / command
            status, *_ = run("a fox", *words.split(), "--out", str(out), command=command)
            assert status == 2
            assert not out.parent.exists()


def test_an_output_that_is_write_protected(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked of the system rather than tried, since root may write everywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert_refused(run("a fox"), "cannot be written")


def test_resets_outside_the_run(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("reset_steps: [40]\n")
    assert_refused(run("a fox", "--config", str(path)), "reset_steps")
    path.write_text("sampel_ratio: 0.5\n")
    assert_refused(run("a fox", "--config", str(path)), "sampel_ratio")


def no_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def damaged_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_text("junk")


def pickled_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def other_layers(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 4}))


def damaged_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def list_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def other_transformer(folder: Path) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {"transformer": ["diffusers", "SanaTransformer2DModel"]}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage",
    [
        no_weights,
        damaged_weights,
        pickled_weights,
        no_scheduler,
        other_layers,
        damaged_index,
        list_index,
        no_index,
        other_transformer,
    ],
)
def test_damaged_models_are_one_line(
    run: Any, model_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    damage(folder)
    assert_refused(run("a fox", "--model", str(folder)), "damaged")


@pytest.mark.parametrize("model", ["nosuch", "./no/such", "/no/such", "~/no-such", "a/b/c", "no/"])
def test_missing_models_are_not_looked_up_on_a_hub(run: Any, model: str) -> None:
    assert_refused(run("a fox", "--model", model), "there is no model folder")


def test_a_file_is_no_model(run: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert_refused(run("a fox", "--model", str(tmp_path / "model.safetensors")), "is a file")


def test_an_unreachable_hub_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", unreachable)
    assert_refused(run("a fox", "--model", "owner/name"), "'owner/name' cannot be loaded: OSError")


@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), OSError(28, "No space left")])
def test_failures_while_running_are_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "generate", fail)
    status, out, err = run("a fox")
    assert status == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"error: {type(error).__name__}: ")
    status, _, err = run("a fox", "--verbose")
    assert status == 1
    assert "Traceback" in err


@pytest.mark.filterwarnings("default::ras_dit.RASWarning")
def test_warnings_are_one_line(run: Any) -> None:
    status, _, err = run("a fox", "--steps", "1")
    assert status == 0
    assert err.startswith("warning: RAS saves no work in this run")
    assert err.count("\n") == 1


def test_cut_prompts_are_told(run: Any) -> None:
    status, _, err = run("a fox " * 20)
    assert status == 0
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("warning: ") and "truncated" in line for line in lines)


def test_the_embedded_model_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "a red apple", "--size", "64x48", "--steps", "8", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    with Image.open(tmp_path / "a-red-apple-0.png") as image:
        assert image.size == (64, 48)
        assert len(image.convert("RGB").getcolors(64 * 48)) > 16
    assert main([*words[:2], "--steps", "6", "--size", "250x251"]) == 2
    assert "width=250 is no multiple of 8" in capsys.readouterr().err


def test_as_a_program(model_folder: Path, tmp_path: Path) -> None:
    base = [sys.executable, "-m", "ras_dit", "generate", "a fox", "--model", str(model_folder)]
    ran = subprocess.run([*base, *SHORT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert files(tmp_path / "out") == {"a-fox-0.png", "a-fox-0-map.png"}
    ran = subprocess.run(
        [*base, "--steps", "0"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused((ran.returncode, ran.stdout, ran.stderr), "'--steps'")


def test_names_of_files() -> None:
    assert slug("a fox on a blue background") == "a-fox-on-a-blue-background"
    prompts = ["a fox", "A fox", "a fox!", "a  fox", "狐", "../a fox", "a fox " * 30, "a fox " * 31]
    names = [slug(prompt) for prompt in prompts]
    assert len(set(names)) == len(names)
    assert all(len(name) < 80 and name.replace("-", "").isalnum() for name in names)
    assert all(name.isascii() for name in names)


def assert_refused(answer: tuple[int, str, str], message: str) -> None:
    """Exit status 2 and one line on stderr that holds the message; nothing else."""
    status, out, err = answer
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err
