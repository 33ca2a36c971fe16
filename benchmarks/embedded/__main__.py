"""The paper's Tables 6 to 10 with the embedded model, into docs/embedded-tables.md.

    python -m benchmarks.embedded --budget 60     # pictures and scores; goes on where it stopped
    python -m benchmarks.embedded --times         # seconds at 256 x 256: leave the machine alone

Pictures, scores and times lie in --out, one folder for each evaluation of benchmarks/embedded;
tables are made of whatever is there. Both commands write them.
"""

from __future__ import annotations

from typing import get_args

from benchmarks.embedded.tables import Table, answer, with_times
from benchmarks.embedded.views import VIEWS
from benchmarks.pages.command import NO_PICTURES, Benchmark, Drawn, Found, run
from benchmarks.pages.fights import By
from ras_dit.evaluation.plot import draw_plot

# The first one is timed; the rows of the other are among its rows.
EVALUATIONS = ("short", "detailed")
_TIMED = EVALUATIONS[0]


def draw(found: Found) -> Drawn:
    """Every view, and the answer."""
    parts: dict[str, str] = {"answer": NO_PICTURES}
    files: dict[str, bytes] = {}
    for view in VIEWS:
        results = with_times(found.get(view.source, ()), found.get(_TIMED, ()))
        shown = Table.of(view, [result for result in results if result.pictures])
        if not shown.results:
            parts[view.name] = NO_PICTURES
            continue
        files |= {
            f"{view.name}.csv": shown.csv().encode(),
            f"{view.name}-controls.csv": shown.fights_csv().encode(),
            f"{view.name}.md": _whole(shown).encode(),
            f"{view.name}.png": draw_plot(view.title, shown.results),
        }
        parts[view.name] = (
            f"{shown.markdown()}\n\n![quality against cost](embedded/{view.name}.png)\n\n"
            f"[Every comparison with its interval](embedded/{view.name}.md), "
            f"[rows](embedded/{view.name}.csv) and "
            f"[comparisons](embedded/{view.name}-controls.csv) as CSV."
        )
        if view is VIEWS[-1]:
            parts["answer"] = (
                f"{answer(shown, 'cost')}\n\n{answer(shown, 'time')}".strip()
                or "No sparse row and control of one number yet."
            )
    return Drawn(parts, files)


def _whole(shown: Table) -> str:
    parts = [f"# {shown.view.title}", shown.markdown()]
    by: By
    for by in get_args(By):
        if details := shown.details(by):
            parts += [f"## At equal {by}", details]
    return "\n\n".join(parts) + "\n"


BENCHMARK = Benchmark(
    name="embedded",
    page="embedded-tables.md",
    evaluations=EVALUATIONS,
    timed=(_TIMED,),
    draw=draw,
)

if __name__ == "__main__":
    raise SystemExit(run(BENCHMARK, __doc__))
