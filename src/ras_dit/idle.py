"""What a configuration asks for that does nothing in a run, in words."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ras_dit.calls import RunShape
from ras_dit.config import RASConfig

_ON_LINES = ("forecast", "forecast_keys", "solver", "correction_age")


def idle_wishes(
    config: RASConfig,
    shape: RunShape,
    device: torch.device,
    *,
    saves: bool,
    halves: bool,
    replays: bool,
) -> Mapping[str, str]:
    """A warning for each thing that was asked for and does nothing.

    Args:
        config: The configuration.
        shape: What is known of the run.
        device: Where the transformer runs.
        saves: Whether some step saves work.
        halves: Whether some step runs one guidance branch only.
        replays: Whether another run says what each step does.

    Returns:
        Messages by kind; those of one kind need not be said twice.
    """
    found = {}
    if not saves and not replays and (config.sample_ratio < 1 or config.lists_steps):
        other_steps = config.line_rules.changes_steps and shape.has_lines
        found["dense"] = (
            f"RAS {'saves no work' if other_steps else 'does nothing'} in this run: its "
            f"{shape.num_evaluations} scheduler steps are all dense ({_reasons(config, shape)}); "
            f"{_cure(config, shape)}"
        )
    if config.offload_cache and device.type == "cpu":
        found["offload"] = (
            "offload_cache does nothing here: the transformer itself runs on the CPU, and the "
            "caches are in its memory anyway"
        )
    usual = RASConfig()
    given = [name for name in _ON_LINES if getattr(config, name) != getattr(usual, name)]
    if given and not shape.has_lines:
        named = " and ".join(f"{name}={getattr(config, name)!r}" for name in given)
        found["forecast"] = (
            f"{named} {'do' if len(given) > 1 else 'does'} nothing here: outputs are held, keys "
            "and values too, and the scheduler's own steps are taken; it needs pipe.scheduler to "
            "be a deterministic FlowMatchEulerDiscreteScheduler whose steps have one length for "
            "all tokens"
        )
    if config.guidance_every > 1 and not halves and not replays:
        found["guidance"] = (
            f"guidance_every={config.guidance_every} does nothing here: each of this run's "
            f"{shape.num_evaluations} steps is skipped, or needs both branches (warm-up, so many "
            "steps after the last such step, dense steps next to sparse ones, the last step); "
            "raise it, or give more steps"
        )
    return found


def _reasons(config: RASConfig, shape: RunShape) -> str:
    if config.intervals is not None:
        return (
            f"no interval is longer than a quarter of the run, intervals={list(config.intervals)}"
        )
    return (
        f"warmup_steps={config.warmup_steps}, stop_step={config.stop_step}, "
        f"{shape.grid.num_tokens} tokens at sample_ratio={config.sample_ratio:g} and "
        f"granularity={config.granularity}"
    )


def _cure(config: RASConfig, shape: RunShape) -> str:
    if config.intervals is not None:
        return "use more steps"
    if config.granularity >= shape.grid.num_tokens:
        return "lower granularity"
    return "use more steps or a smaller warmup_steps"
