"""Order, sides and storage: the same for one participant, shuffled over all, one answer each."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from ras_dit.errors import RASError
from ras_dit.study.assignment import assignment
from ras_dit.study.folder import Question
from ras_dit.study.store import AnswerStore, read_answers

STUDY = "5" * 32
QUESTIONS = tuple(
    Question(f"{n:032x}", f"prompt {n}", (f"{2 * n:032x}.png", f"{2 * n + 1:032x}.png"))
    for n in range(14)
)


def test_a_seed_always_gives_the_same_and_everything_once() -> None:
    shown = assignment("some seed", QUESTIONS)
    assert shown == assignment("some seed", tuple(reversed(QUESTIONS)))
    assert {item.question for item in shown} == {question.id for question in QUESTIONS}
    for item in shown:
        question = next(q for q in QUESTIONS if q.id == item.question)
        assert {item.left, item.right} == set(question.images)
        assert item.prompt == question.prompt


def test_order_and_sides_are_even_over_participants() -> None:
    people = 2000
    first: Counter[str] = Counter()
    low_on_left: Counter[str] = Counter()
    for seed in range(people):
        shown = assignment(str(seed), QUESTIONS)
        first[shown[0].question] += 1
        low_on_left.update(item.question for item in shown if item.left < item.right)
    # Five standard deviations of a fair shuffle.
    expected, spread = people / 14, 5 * (people / 14 * 13 / 14) ** 0.5
    assert all(abs(first[q.id] - expected) < spread for q in QUESTIONS)
    assert all(abs(low_on_left[q.id] - people / 2) < 5 * people**0.5 / 2 for q in QUESTIONS)


def test_one_answer_each_and_a_change_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite3"
    shown = assignment("x", QUESTIONS)
    with closing(AnswerStore(path, STUDY)) as store:
        one, other = store.add_participant(10), store.add_participant(10)
        assert one is not None
        assert other is not None
        for choice in (1, 5, 2):
            store.record(one, shown[0], choice)
        store.record(other, shown[0], 4)
        assert store.choices(one) == {shown[0].question: 2}
        assert len(read_answers(path, STUDY)) == 2
    answers = {answer.participant: answer for answer in read_answers(path, STUDY)}
    assert answers[one].choice == 2
    assert (answers[one].left, answers[one].right) == (shown[0].left, shown[0].right)
    assert answers[other].choice == 4


def test_nothing_but_random_ids_and_choices_is_stored(tmp_path: Path) -> None:
    AnswerStore(tmp_path / "a", STUDY).close()
    with closing(sqlite3.connect(tmp_path / "a")) as database:
        columns = [
            row[1]
            for table in ("study", "participants", "answers")
            for row in database.execute(f"PRAGMA table_info({table})")
        ]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert columns == [
        *("one", "id", "id", "seed"),
        *("participant", "question", "left_image", "right_image", "choice", "revision"),
    ]


def test_a_study_that_is_full_takes_nobody(tmp_path: Path) -> None:
    with closing(AnswerStore(tmp_path / "a", STUDY)) as store:
        assert [store.add_participant(2) is not None for _ in range(4)] == [
            True,
            True,
            False,
            False,
        ]


@pytest.mark.parametrize("choice", [0, 6, -1, "3; DROP TABLE answers", 2.5, None])
def test_the_database_itself_refuses_what_is_no_choice(choice: object, tmp_path: Path) -> None:
    with closing(AnswerStore(tmp_path / "a", STUDY)) as store:
        participant = store.add_participant(1)
        assert participant is not None
        with pytest.raises(sqlite3.IntegrityError):
            store.record(participant, assignment("x", QUESTIONS)[0], choice)  # type: ignore[arg-type]
        with pytest.raises(sqlite3.IntegrityError):
            store.record("0" * 32, assignment("x", QUESTIONS)[0], 3)


def test_two_servers_on_one_folder_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with (
        closing(AnswerStore(path, STUDY)) as one,
        closing(AnswerStore(path, STUDY)) as other,
    ):

        def answer_all(store: AnswerStore) -> None:
            for _ in range(5):
                participant = store.add_participant(100)
                assert participant is not None
                for item in assignment(participant, QUESTIONS):
                    store.record(participant, item, 3)

        threads = [threading.Thread(target=answer_all, args=(s,)) for s in (one, other, one)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_answers(path, STUDY)) == 15 * 14


def test_answers_of_another_study_or_of_no_database_are_refused(tmp_path: Path) -> None:
    AnswerStore(tmp_path / "a", STUDY).close()
    for open_it in (AnswerStore, read_answers):
        with pytest.raises(RASError, match="another study"):
            open_it(tmp_path / "a", "6" * 32)
    (tmp_path / "b").write_bytes(b"not a database at all, just bytes " * 40)
    for open_it in (AnswerStore, read_answers):
        with pytest.raises(RASError, match="cannot be"):
            open_it(tmp_path / "b", STUDY)
    assert read_answers(tmp_path / "absent", STUDY) == ()
