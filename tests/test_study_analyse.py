"""The analysis against scipy and statsmodels, the paper's votes, and what is counted at all."""

from __future__ import annotations

import csv
import math
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from statsmodels.stats.inter_rater import fleiss_kappa as reference_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.study.analyse import Analysis, analyse_study
from ras_dit.study.assignment import assignment
from ras_dit.study.folder import ANSWERS, KEY, Arm, ArmRecord, Manifest, read_key
from ras_dit.study.inference import fleiss_kappa, holm, sign_test, wilson
from ras_dit.study.report import markdown
from ras_dit.study.store import AnswerStore
from studies import DENSE, SPARSE, small_study


def hand_in(folder: Path, manifest: Manifest, levels: Iterable[dict[int, int]]) -> None:
    """Stores answers as the server does: one mapping of question number to level per person.

    Levels are in terms of the configurations: 1 is "A is obviously better".
    """
    key = read_key(folder / KEY, manifest.study)
    numbers = {question.id: number for number, question in enumerate(manifest.questions)}
    with closing(AnswerStore(folder / ANSWERS, manifest.study)) as store:
        # The disk need not have it before the test goes on.
        store._database.execute("PRAGMA synchronous = OFF")
        for mine in levels:
            participant = store.add_participant(10_000)
            assert participant is not None
            seed = store.seed(participant)
            assert seed is not None
            for shown in assignment(seed, manifest.questions):
                level = mine.get(numbers[shown.question])
                if level is not None:
                    left: Arm = key.images[shown.left]
                    store.record(participant, shown, level if left == "a" else 6 - level)


def study_of(
    tmp_path: Path, levels: Iterable[dict[int, int]], count: int = 14, **arms: ArmRecord
) -> Path:
    """A study folder with answers."""
    folder = tmp_path / "study"
    hand_in(folder, small_study(folder, count, side=8, **arms), levels)
    return folder


def papers_votes(seed: int = 0) -> list[dict[int, int]]:
    """1,400 votes of 100 people: 633 similar, 396 for A, 371 for B."""
    generator = random.Random(seed)
    levels = [3] * 633
    levels += [generator.choice((1, 2)) for _ in range(396)]
    levels += [generator.choice((4, 5)) for _ in range(371)]
    generator.shuffle(levels)
    return [dict(enumerate(levels[14 * person : 14 * person + 14])) for person in range(100)]


def test_these_are_the_only_counts_that_give_the_papers_shares() -> None:
    fits = [[n for n in range(1401) if round(n / 14, 2) == s] for s in (45.21, 28.29, 26.5)]
    assert fits == [[633], [396], [371]]


def test_the_papers_votes(tmp_path: Path) -> None:
    votes = papers_votes()
    analysis = analyse_study(study_of(tmp_path, votes))
    overall = analysis.overall
    assert (overall.similar.count, overall.a.count, overall.b.count) == (633, 396, 371)
    flat = Counter(level for person in votes for level in person.values())
    assert overall.levels == tuple(flat[level] for level in range(1, 6))
    assert overall.p_value == pytest.approx(binomtest(371, 767, 0.5).pvalue, rel=1e-12)
    for share in (overall.similar, overall.a, overall.b):
        expected = proportion_confint(share.count, 1400, method="wilson")
        assert share.interval == pytest.approx(expected, rel=1e-12)
    table = np.array(
        [[sum(kind(person[n]) == k for person in votes) for k in range(3)] for n in range(14)]
    )
    assert analysis.kappa == pytest.approx(reference_kappa(table), rel=1e-12)
    for result, row in zip(analysis.prompts, table, strict=True):
        tally = result.tally
        assert [tally.a.count, tally.similar.count, tally.b.count] == list(row)
        p_value = binomtest(int(row[0]), int(row[0] + row[2]), 0.5).pvalue
        assert tally.p_value == pytest.approx(p_value, rel=1e-12)
    p_values = [result.tally.p_value for result in analysis.prompts]
    adjusted = multipletests(p_values, method="holm")[1]
    assert [result.p_holm for result in analysis.prompts] == pytest.approx(list(adjusted))
    report = markdown(analysis)
    ours, theirs = paper_lines(report)
    for line in (ours, theirs):
        assert " 45.21 % (42.6 to 47.8) " in line
        shares = [cell.split(" (")[0] for cell in line.split(" | ")[-3:]]
        assert shares == ["45.21 %", "28.29 %", "26.50 %"]
    assert "paper (A: dense, B: RAS)" in theirs


def paper_lines(report: str) -> list[str]:
    """The two rows of the table like the paper's."""
    return [line for line in report.splitlines() if line.startswith(("| this", "| the paper"))]


def kind(level: int) -> int:
    """0 for A, 1 for similar, 2 for B."""
    return 0 if level < 3 else 1 if level == 3 else 2


def test_the_papers_columns_follow_the_dense_configuration(tmp_path: Path) -> None:
    turned = [{n: 6 - level for n, level in person.items()} for person in papers_votes()]
    folder = study_of(tmp_path, turned, a=SPARSE, b=DENSE)
    report = markdown(analyse_study(folder))
    lines = paper_lines(report)
    assert len(lines) == 2
    for line in lines:
        assert " 45.21 % (42.6 to 47.8) " in line
        assert [c.split(" (")[0] for c in line.split(" | ")[-2:]] == ["26.50 %", "28.29 %"]
    assert "paper (A: RAS, B: dense)" in report


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_wilson_is_that_of_statsmodels_and_scipy(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    ours = wilson(count, total)
    assert ours == pytest.approx(proportion_confint(count, total, method="wilson"), abs=1e-12)
    theirs = binomtest(count, total).proportion_ci(method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1500), st.integers(0, 1500))
def test_the_sign_test_is_that_of_scipy(first: int, second: int) -> None:
    if first + second:
        expected = binomtest(first, first + second, 0.5).pvalue
        assert sign_test(first, second) == pytest.approx(expected, rel=1e-9)
    assert sign_test(first, second) == sign_test(second, first)


@pytest.mark.parametrize("count", [1, 2, 3, 14, 40])
def test_holm_is_that_of_statsmodels(count: int) -> None:
    generator = random.Random(count)
    # Rounded, so that some are equal.
    p_values = [round(generator.random() ** 3, 2) for _ in range(count)]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 14), st.randoms(use_true_random=False))
def test_kappa_is_that_of_statsmodels(raters: int, rows: int, generator: Any) -> None:
    votes = [[generator.randrange(3) for _ in range(raters)] for _ in range(rows)]
    table = [[row.count(k) for k in range(3)] for row in votes]
    ours = fleiss_kappa(table)
    if ours is None:
        assert len({vote for row in votes for vote in row}) == 1
    else:
        assert ours == pytest.approx(reference_kappa(np.array(table)))


def test_statistics_at_their_ends() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(7, 7) == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert fleiss_kappa([]) is None
    assert fleiss_kappa([[1, 0, 0]]) is None
    assert fleiss_kappa([[0, 9, 0], [0, 9, 0]]) is None
    assert fleiss_kappa([[9, 0, 0], [0, 0, 9]]) == 1.0


def test_a_few_votes_counted_by_hand(tmp_path: Path) -> None:
    folder = study_of(tmp_path, [{0: 1, 1: 2}, {0: 1, 1: 5}, {0: 3, 1: 3}, {0: 4}], 2)
    analysis = analyse_study(folder)
    assert analysis.overall.levels == (2, 1, 2, 0, 1)
    assert [result.tally.levels for result in analysis.prompts] == [
        (2, 0, 1, 0, 0),
        (0, 1, 1, 0, 1),
    ]
    # One for A twice; one undecided between A and B, one between similar and similar.
    people = analysis.people
    assert (people.first, people.second, people.ties) == (1, 0, 2)
    assert (len(analysis.collection.complete), len(analysis.collection.partial)) == (3, 1)
    with_partial = analyse_study(folder, with_partial=True)
    assert with_partial.overall.levels == (2, 1, 2, 1, 1)
    assert with_partial.kappa == analysis.kappa
    assert "1 answered only some questions and are counted too" in markdown(with_partial)


def test_side_bias_is_found_and_is_no_preference(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    manifest = small_study(folder, side=8)
    with closing(AnswerStore(folder / ANSWERS, manifest.study)) as store:
        store._database.execute("PRAGMA synchronous = OFF")
        for _ in range(20):
            participant = store.add_participant(100)
            assert participant is not None
            for shown in assignment(str(store.seed(participant)), manifest.questions):
                store.record(participant, shown, 1)
    analysis = analyse_study(folder)
    assert (analysis.sides.first, analysis.sides.second, analysis.sides.ties) == (280, 0, 0)
    assert analysis.sides.p_value < 1e-80
    # Whoever always takes the left one takes A as often as it is on the left.
    assert analysis.overall.a == analysis.a_on_left
    # Outside with a chance below one in ten million.
    assert 90 < analysis.overall.a.count < 190


def test_nothing_to_count_says_why(tmp_path: Path) -> None:
    folder = study_of(tmp_path, [{0: 1}], 2)
    with pytest.raises(RASError, match="1 answered some; count half-finished ones with"):
        analyse_study(folder)
    with pytest.raises(RASError, match="wait for answers"):
        analyse_study(study_of(tmp_path / "other", [], 2))
    (folder / KEY).rename(tmp_path / "moved.json")
    with pytest.raises(RASError, match="give its place with --key"):
        analyse_study(folder, with_partial=True)
    moved = analyse_study(folder, key_file=tmp_path / "moved.json", with_partial=True)
    assert moved.overall.levels == (1, 0, 0, 0, 0)


def test_no_pair_of_dense_and_ras_is_not_compared_with_the_paper(tmp_path: Path) -> None:
    other = ArmRecord("0.25", {"sample_ratio": 0.25}, 28, ())
    folder = study_of(tmp_path, [{0: 1}], 1, a=SPARSE, b=other)
    assert "do not compare" in markdown(analyse_study(folder))


def test_the_program_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study_of(tmp_path, papers_votes())
    assert main(["study", "analyse", str(folder)]) == 0
    said = capsys.readouterr()
    assert (
        "1400 votes: 45.21 % similar, 28.29 % prefer A (dense), 26.50 % prefer B (0.5)" in said.out
    )
    assert said.err == ""
    results = folder / "results"
    assert {path.name for path in results.iterdir()} == {
        *("report.md", "votes.csv", "summary.csv", "preference.png")
    }
    with (results / "votes.csv").open(newline="") as file:
        votes = list(csv.DictReader(file))
    assert len(votes) == 1400
    assert Counter(vote["preference"] for vote in votes) == {"similar": 633, "A": 396, "B": 371}
    for vote in votes:
        turned = vote["left"] == "B"
        choice = 6 - int(vote["choice"]) if turned else int(vote["choice"])
        assert choice == int(vote["level"])
    with (results / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    assert len(summary) == 15
    assert summary[-1]["question"] == "all"
    assert float(summary[-1]["similar"]) == 633 / 1400
    assert math.isclose(float(summary[-1]["p"]), binomtest(371, 767).pvalue)
    with Image.open(results / "preference.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 5


def test_prompts_cannot_break_the_table_or_the_plot(tmp_path: Path) -> None:
    folder = study_of(tmp_path, [{0: 1}], 1)
    manifest = (folder / "manifest.json").read_text()
    prompt = 'a | b $x^ <script> \\\\ "'
    text = manifest.replace("shape number 1 of the study", 'a | b $x^ <script> \\\\ \\"')
    (folder / "manifest.json").write_text(text)
    assert main(["study", "analyse", str(folder)]) == 0
    report = (folder / "results" / "report.md").read_text()
    assert "<script>" not in report
    row = next(line for line in report.splitlines() if line.startswith("| 1 | a "))
    header = next(line for line in report.splitlines() if line.startswith("|  | prompt"))
    assert row.replace("\\|", "").count("|") == header.count("|")
    assert prompt[:2] in row


def analysis_of(folder: Path) -> Analysis:
    """The analysis with everybody."""
    return analyse_study(folder, with_partial=True)


def test_it_can_be_analysed_while_it_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    manifest = small_study(folder, 2, side=8)
    with closing(AnswerStore(folder / ANSWERS, manifest.study)) as store:
        participant = store.add_participant(10)
        assert participant is not None
        store.record(
            participant, assignment(str(store.seed(participant)), manifest.questions)[0], 3
        )
        assert analysis_of(folder).overall.total == 1
        store.record(
            participant, assignment(str(store.seed(participant)), manifest.questions)[1], 3
        )
        assert analysis_of(folder).overall.total == 2
