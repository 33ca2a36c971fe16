"""The results of a study as markdown, CSV and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from ras_dit.errors import RASError
from ras_dit.study.analyse import Analysis, Tally, shown_choice
from ras_dit.study.folder import Arm
from ras_dit.study.inference import Proportion

# The paper's user study: 14 prompts, 100 people, 50 % sampling ratio. Its shares are published
# (45.21 %, 28.29 %, 26.50 %); these are the only whole numbers of 1,400 votes that give them.
PAPER_SIMILAR, PAPER_DENSE, PAPER_RAS = 633, 396, 371
PAPER_VOTES = PAPER_SIMILAR + PAPER_DENSE + PAPER_RAS

REPORT, VOTES, SUMMARY, PLOT = "report.md", "votes.csv", "summary.csv", "preference.png"
LEVELS = ("A obviously", "A slightly", "similar", "B slightly", "B obviously")


def write_results(analysis: Analysis, out: Path) -> tuple[Path, ...]:
    """Write the report, the votes, the summary and the plot; older ones are replaced.

    Args:
        analysis: The results.
        out: Folder for the files.

    Returns:
        The files.

    Raises:
        RASError: If the folder cannot be written to.
    """
    from ras_dit.study.plot import write_plot

    files = tuple(out / name for name in (REPORT, VOTES, SUMMARY, PLOT))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files[0].write_text(markdown(analysis), "utf-8")
        _write_csv(files[1], _vote_rows(analysis))
        _write_csv(files[2], _summary_rows(analysis))
        write_plot(analysis, files[3])
    except OSError as error:
        raise RASError(f"the results cannot be written to {str(out)!r}: {error}") from error
    return files


def markdown(analysis: Analysis) -> str:
    """The whole report."""
    sections = (
        _heading(analysis),
        _paper_table(analysis),
        _answers_table(analysis),
        _tests(analysis),
        _prompts_table(analysis),
        _checks(analysis),
        _handling(analysis),
    )
    return "\n\n".join(sections) + "\n"


def _heading(analysis: Analysis) -> str:
    arms = analysis.key.arms
    made = ", ".join(f"{name} {value}" for name, value in analysis.key.made_with.items())
    lines = [
        f"# {_cell(analysis.manifest.title)}",
        "",
        (
            f"Study {analysis.manifest.study[:8]}: {len(analysis.manifest.questions)} pairs with "
            f"equal seeds ({_cell(made)})."
        ),
        "",
        *(f"- **{arm.upper()}** is {_arm_text(analysis, arm)}." for arm in ("a", "b")),
    ]
    times = [median(arms[arm].seconds) for arm in ("a", "b") if arms[arm].seconds]
    if len(times) == 2 and min(times) > 0:
        lines += [
            "",
            (
                "While the pictures were made, the loop of B took "
                f"{times[1] / times[0]:.2f} times as long as that of A (median; one run a "
                "picture, so no benchmark)."
            ),
        ]
    return "\n".join(lines)


def _arm_text(analysis: Analysis, arm: Arm) -> str:
    record = analysis.key.arms[arm]
    text = f"`{_cell(record.name)}`, {record.steps} steps"
    if record.config is None:
        return f"{text}, dense"
    return f"{text}, sample ratio {record.config.get('sample_ratio', '?')}"


def _paper_table(analysis: Analysis) -> str:
    # The paper's columns follow the dense pipeline to whichever side it is on here.
    dense = [arm for arm in ("a", "b") if analysis.key.arms[arm].config is None]
    flipped = dense == ["b"]
    paper = (PAPER_RAS, PAPER_DENSE) if flipped else (PAPER_DENSE, PAPER_RAS)
    names = ("RAS", "dense") if flipped else ("dense", "RAS")
    overall = analysis.overall
    rows = [
        ("this study", str(overall.total), *map(_share, (overall.similar, overall.a, overall.b))),
        (
            f"the paper (A: {names[0]}, B: {names[1]})",
            f"{PAPER_VOTES:,}",
            *(_share(Proportion(n, PAPER_VOTES)) for n in (PAPER_SIMILAR, *paper)),
        ),
    ]
    table = _table(("", "votes", "similar", "prefer A", "prefer B"), rows)
    note = (
        "The paper's numbers are of 14 prompts on Stable Diffusion 3 and Lumina-Next-T2I at a "
        "sampling ratio of 50 %, with 100 people; in brackets the 95 % Wilson interval."
    )
    if len(dense) != 1:
        note += " Here it is not one dense and one region-adaptive configuration: do not compare."
    return f"## Preference, beside the paper's\n\n{table}\n\n{note}"


def _answers_table(analysis: Analysis) -> str:
    levels = analysis.overall.levels
    shares = [_share(Proportion(count, analysis.overall.total)) for count in levels]
    rows = [("votes", *map(str, levels)), ("share", *shares)]
    return "## Votes per answer\n\n" + _table(("", *LEVELS), rows)


def _tests(analysis: Analysis) -> str:
    overall, people = analysis.overall, analysis.people
    return "\n".join(
        [
            "## Is one preferred?",
            "",
            (
                f"- **Votes**: {overall.a.count} for A, {overall.b.count} for B, "
                f"{overall.similar.count} similar. Exact two-sided sign test, ties apart: "
                f"p = {_p(overall.p_value)}. Of the decided votes "
                f"{_share(overall.b_of_decided)} are for B."
            ),
            (
                f"- **People**: {people.first} chose A more often, {people.second} chose B more "
                f"often, {people.ties} both equally often. Exact sign test: "
                f"p = {_p(people.p_value)}. One person's votes depend on each other, so this is "
                "the sterner test."
            ),
        ]
    )


def _prompts_table(analysis: Analysis) -> str:
    rows = [
        (
            str(number),
            _cell(result.prompt),
            *map(str, result.tally.levels),
            _share(result.tally.similar),
            _share(result.tally.a),
            _share(result.tally.b),
            _p(result.tally.p_value),
            _p(result.p_holm),
        )
        for number, result in enumerate(analysis.prompts, 1)
    ]
    header = ("", "prompt", *LEVELS, "similar", "prefer A", "prefer B", "p", "p (Holm)")
    return "## Per prompt\n\n" + _table(header, rows)


def _checks(analysis: Analysis) -> str:
    sides, left = analysis.sides, analysis.a_on_left
    right_share = Proportion(sides.second, sides.first + sides.second)
    low, high = left.interval
    kappa = "not defined" if analysis.kappa is None else f"{analysis.kappa:.3f}"
    return "\n".join(
        [
            "## Checks",
            "",
            (
                f"- **Side bias**: the left picture was preferred {sides.first} times, the right "
                f"one {sides.second} times, neither {sides.ties} times. Exact sign test, ties "
                f"apart: p = {_p(sides.p_value)}; right's share {_share(right_share)}."
            ),
            (
                f"- **Shuffling**: A was on the left in {left.count} of {left.total} votes "
                f"({_percent(left.share)}, interval {_percent(low)} to {_percent(high)})."
            ),
            (
                f"- **Agreement**: Fleiss' kappa = {kappa}, over the "
                f"{len(analysis.collection.complete)} complete participants, on A, similar and B "
                "(1: all agree, 0: as by chance)."
            ),
        ]
    )


def _handling(analysis: Analysis) -> str:
    found = analysis.collection
    counted = "counted too" if analysis.with_partial else "not counted"
    lines = [
        "## Who is counted",
        "",
        (
            f"- {len(found.complete)} participants answered everything and are counted; "
            f"{len(found.partial)} answered only some questions and are {counted}."
        ),
        f"- {found.served} handed in over the server, {found.from_files} by file.",
        (
            "- One answer per participant and question: a changed answer replaces the earlier "
            "one. Of several files of one participant the latest counts; if they contradict each "
            "other, none."
        ),
        "- Nothing personal is stored, so nobody can tell if a person took part twice.",
    ]
    if found.refused:
        rows = [(_cell(file.name), _cell(file.reason)) for file in found.refused]
        lines += ["", _table(("file not counted", "why"), rows)]
    return "\n".join(lines)


def _vote_rows(analysis: Analysis) -> Iterable[Sequence[object]]:
    yield ("participant", "question", "prompt", "seed", "left", "choice", "level", "preference")
    numbers = {q.id: (number, q.prompt) for number, q in enumerate(analysis.manifest.questions, 1)}
    for vote in analysis.votes:
        preference = "similar" if vote.level == 3 else "A" if vote.level < 3 else "B"
        yield (
            vote.participant,
            *numbers[vote.question],
            analysis.key.seeds[vote.question],
            vote.left.upper(),
            shown_choice(vote),
            vote.level,
            preference,
        )


def _summary_rows(analysis: Analysis) -> Iterable[Sequence[object]]:
    names = ("similar", "a", "b", "b_of_decided")
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    levels = [level.lower().replace(" ", "_") for level in LEVELS]
    yield ("question", "prompt", "votes", *levels, *columns, "p", "p_holm")
    for number, result in enumerate(analysis.prompts, 1):
        yield (number, result.prompt, *_summary(result.tally), result.tally.p_value, result.p_holm)
    yield ("all", "", *_summary(analysis.overall), analysis.overall.p_value, "")


def _summary(tally: Tally) -> Iterable[object]:
    yield tally.total
    yield from tally.levels
    for share in (tally.similar, tally.a, tally.b, tally.b_of_decided):
        yield from ("" if math.isnan(share.share) else share.share, *share.interval)


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("<", "&lt;")


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.2f} %"


def _share(proportion: Proportion) -> str:
    if not proportion.total:
        return "none"
    low, high = proportion.interval
    return f"{_percent(proportion.share)} ({100 * low:.1f} to {100 * high:.1f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
