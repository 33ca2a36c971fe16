"""The largest memory of a process that makes one picture's steps, with and without RAS.

    python -m benchmarks.peak_memory --grid 64

Every row is a process of its own, because a peak cannot be reset on the CPU. On a GPU the
allocator's own peak is reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.settings import Setting, Size
from benchmarks.timing import machine, table

ROWS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "ratio 0.25": {},
    "static_cache": {"static_cache": True},
    'cache_dtype="int8"': {"cache_dtype": "int8"},
}


def peak(size: Size, settings: dict[str, Any] | None) -> tuple[int, int, int]:
    """Bytes at the start, at the peak, and of the caches, of this process."""
    setting = Setting(size)
    with torch.inference_mode():
        setting.stock()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if settings is None:
            for _ in range(3):
                setting.stock()
            return before, before, 0
        import ras_dit

        with ras_dit.enable(setting, schedule=(1.0, 0.25, 0.25, 1.0, 0.25), **settings) as handle:
            setting.scheduler.set_timesteps(5)
            for timestep in setting.scheduler.timesteps:
                setting.step(timestep)
        assert handle.trace is not None
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return before, after, handle.trace.cache_bytes


def main(say: Callable[[str], object] = sys.stdout.write) -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=64, help="side of the token grid")
    parser.add_argument("--heads", type=int, default=8, help="of width 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--row", help="measure this row in this process and print JSON")
    options = parser.parse_args()
    size = Size(heads=options.heads, layers=options.layers, height=options.grid, width=options.grid)
    if options.row is not None:
        say(json.dumps(peak(size, ROWS[options.row])))
        return
    rows = []
    for name in ROWS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peak_memory", "--row", name]
        for option in ("grid", "heads", "layers"):
            command += [f"--{option}", str(getattr(options, option))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        before, after, caches = json.loads(done.stdout)
        rows.append([name, *(f"{n / 2**20:.0f} MiB" for n in (after, after - before, caches))])
    say(
        f"sd3 blocks, {size.heads} heads, {size.layers} layers, {size.num_tokens} image and "
        f"{size.text} text tokens, batch 2, float32; {machine()}\n\n"
    )
    say(table(["run", "peak of the process", "above a stock step", "caches"], rows))


if __name__ == "__main__":
    main()
