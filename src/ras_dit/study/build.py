"""Making the pairs of a study: one prompt and one seed, two configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ras_dit.config import RASConfig
from ras_dit.errors import RASError
from ras_dit.generate import Job, OnStep, generate, seeds_for
from ras_dit.study.folder import TITLE, ArmRecord, Manifest, Pair, check_new, write_study

_LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class Configuration:
    """One of the two configurations that a study compares.

    Attributes:
        name: What it is called in the report.
        config: How to sample; ``None`` is the dense pipeline.
        steps: Denoising steps.
    """

    name: str
    config: RASConfig | None
    steps: int


def read_configuration(text: str, steps: int) -> Configuration:
    """The configuration that a command line names.

    Args:
        text: ``dense``, a sample ratio in (0, 1], a preset, or the path of a YAML file of
            ``RASConfig`` fields.
        steps: Denoising steps.

    Raises:
        RASError: If it names nothing, or something that is not valid.
    """
    if text == "dense":
        return Configuration(text, None, steps)
    try:
        ratio = float(text)
    except ValueError:
        path = Path(text)
        name = path.stem if path.suffix else text
        return Configuration(name, RASConfig.load(text), steps)
    return Configuration(text, RASConfig(sample_ratio=ratio), steps)


def check_differ(a: Configuration, b: Configuration) -> None:
    """Refuse to compare a configuration with itself.

    Raises:
        RASError: If both would make the same pictures.
    """
    if (a.config, a.steps) == (b.config, b.steps):
        raise RASError(
            f"A ({a.name}) and B ({b.name}) are one configuration with {a.steps} steps; give two "
            "that differ"
        )


def read_prompts(source: Path | None, *, embedded: bool) -> tuple[str, ...]:
    """The prompts of a study, one per line; empty lines and those that start with # are left out.

    Args:
        source: A text file; ``None`` is the list of 14 that comes with the package.
        embedded: Whether that is the list for the embedded model or the paper's.

    Raises:
        RASError: If the file cannot be read, or holds no prompt or one that is too long.
    """
    if source is None:
        name = "embedded.txt" if embedded else "paper.txt"
        text = (resources.files("ras_dit.study") / "prompts" / name).read_text("utf-8")
    else:
        text = _read_text(source, "--prompts")
    lines = [line.strip() for line in text.splitlines()]
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise RASError(f"--prompts {str(source)!r} holds no prompt; expected one per line")
    longest = max(prompts, key=len)
    if len(longest) > _LONGEST_PROMPT:
        raise RASError(
            f"a prompt has {len(longest)} characters ({longest[:40]!r} ...); expected at most "
            f"{_LONGEST_PROMPT}"
        )
    return prompts


def read_consent(source: Path | None) -> tuple[str, ...]:
    """The paragraphs shown before the first question, one per line; ``None``: the usual ones.

    Raises:
        RASError: If the file cannot be read or is empty.
    """
    if source is None:
        file = resources.files("ras_dit.study") / "page" / "consent.txt"
        text = file.read_text("utf-8")
    else:
        text = _read_text(source, "--consent")
    paragraphs = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not paragraphs:
        raise RASError(f"--consent {str(source)!r} is empty; say what people agree to")
    return paragraphs


def build_study(
    out: Path,
    pipeline: Any,
    a: Configuration,
    b: Configuration,
    prompts: Sequence[str],
    *,
    model: str,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    guidance_scale: float | None = None,
    max_sequence_length: int | None = None,
    title: str = TITLE,
    consent: Sequence[str] = (),
    on_step: OnStep | None = None,
) -> Manifest:
    """Make the pictures of a study, and write its folder.

    Args:
        out: A new or empty folder.
        pipeline: A loaded diffusers pipeline on which RAS is not enabled.
        a: The first configuration.
        b: The second configuration.
        prompts: One pair is made of each.
        model: What the pipeline was loaded from, for the report.
        seed: Seed of every prompt; a repeated prompt gets the next one. Both pictures of a pair
            are made from the same seed.
        width: In pixels; ``None`` is the pipeline's own, as below.
        height: In pixels.
        guidance_scale: Strength of guidance.
        max_sequence_length: Text rows of the long text encoder.
        title: Heading of the page.
        consent: Paragraphs shown first; none is the usual text.
        on_step: Called after each step of each picture with (steps done, steps of this picture).

    Raises:
        RASError: If the folder is in use, A and B are the same, or from ``generate``.
    """
    check_new(out)
    check_differ(a, b)
    pairs = []
    seconds: dict[str, list[float]] = {"a": [], "b": []}
    for prompt, prompt_seed in zip(prompts, seeds_for(prompts, seed), strict=True):
        images = {}
        for arm, configuration in (("a", a), ("b", b)):
            job = Job(
                prompts=(prompt,),
                seeds=(prompt_seed,),
                num_inference_steps=configuration.steps,
                width=width,
                height=height,
                guidance_scale=guidance_scale,
                max_sequence_length=max_sequence_length,
            )
            made = generate(pipeline, configuration.config, job, on_step=on_step)
            images[arm] = made.images[0]
            seconds[arm].append(made.loop_seconds)
        pairs.append(Pair(prompt, prompt_seed, images["a"], images["b"]))
    size = pairs[0].a.size
    return write_study(
        out,
        pairs,
        {
            "a": _record(a, seconds["a"]),
            "b": _record(b, seconds["b"]),
        },
        title=title,
        consent=consent or read_consent(None),
        made_with={
            "model": model,
            "size": f"{size[0]}x{size[1]}",
            "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
            "device": pipeline.transformer.device.type,
        },
    )


def _record(configuration: Configuration, seconds: Sequence[float]) -> ArmRecord:
    config = configuration.config
    return ArmRecord(
        name=configuration.name,
        config=None if config is None else config.to_dict(),
        steps=configuration.steps,
        seconds=tuple(seconds),
    )


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"{option} {str(path)!r} cannot be read: {error}") from error
