"""The denoising loop of the embedded model: dense and by regions in turn, beside the FLOP limit.

python -m benchmarks.loop --ratios 0.5 0.25 --rounds 5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.timing import interleaved, machine, median_ratio, table
from ras_dit.adapters import describe
from ras_dit.config import RASConfig
from ras_dit.cost import trace_cost
from ras_dit.generate import Generated, Job, generate
from ras_dit.loading import call_defaults, load_pipeline

PROMPT = "an apple on a blue background"


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pipeline = load_pipeline(None)
    pipeline.set_progress_bar_config(disable=True)
    defaults = call_defaults(None)
    job = Job(
        prompts=(PROMPT,),
        seeds=(0,),
        num_inference_steps=options.steps,
        height=options.size,
        width=options.size,
        guidance_scale=defaults.guidance_scale,
        max_sequence_length=defaults.max_sequence_length,
    )
    configs: dict[str, RASConfig | None] = {"dense": None}
    for ratio in options.ratios:
        configs[f"{ratio:g}"] = RASConfig(sample_ratio=ratio)
        configs[f"{ratio:g}, text kept"] = RASConfig(sample_ratio=ratio, text="keep")
    last: dict[str, Generated] = {}

    def run(name: str) -> tuple[float]:
        last[name] = generate(pipeline, configs[name], job)
        return (last[name].loop_seconds,)

    variants = {name: lambda name=name: run(name) for name in configs}
    seconds = interleaved(variants, options.rounds)
    work = describe(pipeline.transformer).work(pipeline.transformer.config)
    dense = [values[0] for values in seconds["dense"]]
    rows = []
    for name in list(configs)[1:]:
        trace = last[name].trace
        assert trace is not None
        limit = trace_cost(work, trace).limit
        speedup = median_ratio(dense, [values[0] for values in seconds[name]])
        rows.append([name, f"{speedup:.2f}x", f"{limit:.2f}x", f"{speedup / limit:.2f}"])
    say(
        f"embedded model, {options.size} x {options.size} pixels, {options.steps} steps; medians "
        f"of {options.rounds} rounds; {machine()}\n\n"
    )
    say(table(["ratio", "dense / RAS", "FLOP limit", "share"], rows))


if __name__ == "__main__":
    main()
