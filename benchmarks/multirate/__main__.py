"""Multirate sampling against its controls at equal cost, into docs/multirate-tables.md.

    python -m benchmarks.multirate --budget 60    # pictures and scores; goes on where it stopped
    python -m benchmarks.multirate --times        # seconds of 256.yaml: leave the machine alone

Pictures, latents, scores and times lie in --out, one folder for each evaluation of
benchmarks/multirate; tables are made of whatever is there. Both commands write them.
"""

from __future__ import annotations

from benchmarks.multirate import parts as changed
from benchmarks.multirate.plot import draw_plot
from benchmarks.multirate.tables import Table, answer
from benchmarks.pages.command import NO_PICTURES, Benchmark, Drawn, Found, run

EVALUATIONS = ("128", "256")


def draw(found: Found) -> Drawn:
    """A table and a plot of each evaluation, the answer, and what each part is worth."""
    parts = dict.fromkeys(("answer", "parts", *EVALUATIONS), NO_PICTURES)
    files: dict[str, bytes] = {}
    answers, worth = [], []
    for name in EVALUATIONS:
        shown = Table.of(found.get(name, ()))
        if not shown.results:
            continue
        files |= {
            f"{name}.csv": shown.csv().encode(),
            f"{name}-controls.csv": shown.fights_csv().encode(),
            f"{name}-parts.csv": changed.csv(shown).encode(),
            f"{name}.png": draw_plot(shown),
        }
        parts[name] = (
            f"{shown.markdown()}\n\n![error against cost](multirate/{name}.png)\n\n"
            f"[Rows](multirate/{name}.csv) and [comparisons](multirate/{name}-controls.csv) as CSV."
        )
        size = f"At {name}x{name} pixels:\n\n"
        if found_answer := answer(shown):
            answers.append(size + found_answer)
        if found_parts := changed.markdown(shown):
            csv = f"[All numbers](multirate/{name}-parts.csv) as CSV."
            worth.append(f"{size}{found_parts}\n\n{csv}")
    if answers:
        parts["answer"] = "\n\n".join(answers)
    if worth:
        parts["parts"] = "\n\n".join(worth)
    return Drawn(parts, files)


BENCHMARK = Benchmark(
    name="multirate",
    page="multirate-tables.md",
    evaluations=EVALUATIONS,
    timed=("256",),
    draw=draw,
)

if __name__ == "__main__":
    raise SystemExit(run(BENCHMARK, __doc__))
