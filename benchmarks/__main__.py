"""All measurements of speed and memory, in turn, into docs/benchmarks.md.

    python -m benchmarks [--quick] [--only NAME ...]

Every part is a process of its own. Parts that were measured before keep their tables where
``--only`` names others. The full run takes about an hour on two cores: leave the machine alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
TABLES = ROOT / "benchmarks" / "tables.json"

# Name: (title, the command's arguments, those of a quick look).
PARTS: dict[str, tuple[str, str, str]] = {
    **{
        f"step-{model}-{grid * grid}-{dtype}": (
            f"One step: {title}, {grid * grid} image tokens, {dtype}",
            f"step --model {model} --grid {grid} --dtype {dtype} {more}",
            f"step --model {model} --grid 8 --dtype {dtype} --layers 1 --rounds 1",
        )
        for model, title in (("sd3", "SD3-medium's width"), ("lumina", "Lumina-Next's width"))
        for grid, dtype, more in (
            (32, "float32", "--rounds 2"),
            (64, "float32", "--layers 1 --rounds 2"),
            (32, "bfloat16", "--layers 1 --rounds 1"),
            (64, "bfloat16", "--layers 1 --rounds 1"),
        )
    },
    "step-text-kept": (
        'One step with text="keep"',
        "step --keep-text --layers 2 --rounds 3",
        "step --keep-text --grid 16 --layers 1 --rounds 1",
    ),
    "step-int8": (
        'One step with cache_dtype="int8"',
        "step --cache-dtype int8 --layers 2 --rounds 3",
        "step --cache-dtype int8 --grid 16 --layers 1 --rounds 1",
    ),
    "step-static": (
        "One step with static_cache=True",
        "step --static-cache --layers 2 --rounds 3",
        "step --static-cache --grid 16 --layers 1 --rounds 1",
    ),
    "compiled": (
        "Compiled by torch.compile",
        "compiled",
        "compiled --grid 8 --heads 2 --layers 1 --rounds 1",
    ),
    "loop": (
        "The whole denoising loop of the embedded model",
        "loop --rounds 5",
        "loop --rounds 1 --size 128 --steps 8",
    ),
    "growth": (
        "Growth with tokens and batch",
        "growth --rounds 3",
        "growth --rounds 1 --most 1024",
    ),
    "bookkeeping": (
        "Choosing and bookkeeping",
        "bookkeeping",
        "bookkeeping --grid 16 --layers 2 --steps 8",
    ),
    "peak-memory": (
        "Peak memory",
        "peak_memory",
        "peak_memory --grid 16 --layers 1 --heads 4",
    ),
}


INTRODUCTION = (
    "Made by `make bench`; what the numbers mean is in [performance.md](performance.md). *Share* "
    "is the measured speed-up over the FLOP limit, the speed-up if FLOPs were all that takes time. "
    "Every table says where it was measured."
)


def page(tables: dict[str, dict[str, str]]) -> str:
    """The document."""
    lines = [
        "# Benchmarks",
        "",
        INTRODUCTION,
        "",
    ]
    for name, (title, _, _) in PARTS.items():
        if name in tables:
            lines += [f"## {title}", "", f"`python -m benchmarks.{tables[name]['command']}`", ""]
            lines += [tables[name]["output"].strip(), ""]
    return "\n".join(lines)


def main() -> None:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small, printed, not written")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    tables = json.loads(TABLES.read_text("utf-8")) if TABLES.exists() else {}
    for name in options.only:
        _, full, quick = PARTS[name]
        command = quick if options.quick else full
        module, *arguments = command.split()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        sys.stdout.write(f"{name}\n{done.stdout}\n")
        sys.stdout.flush()
        if not options.quick:
            tables[name] = {"command": command, "output": done.stdout}
            TABLES.write_text(json.dumps(tables, indent=1) + "\n", "utf-8")
            PAGE.write_text(page(tables), "utf-8")


if __name__ == "__main__":
    main()
