"""Fifty people answer while the server is killed twice: nothing acknowledged is lost."""

from __future__ import annotations

import random
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest

from ras_dit.study.assignment import assignment
from ras_dit.study.folder import ANSWERS, read_manifest
from ras_dit.study.store import read_answers
from studies import (
    QUESTIONS,
    Reply,
    ServerProcess,
    call,
    small_study,
)

PEOPLE = 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of 14 pairs."""
    small_study(tmp_path / "study", side=16)
    return tmp_path / "study"


class Person(threading.Thread):
    """Answers everything, changes some answers, and goes on until each is acknowledged."""

    def __init__(self, port: int, number: int, done: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.address = f"http://127.0.0.1:{port}/"
        self.random = random.Random(number)
        self.done = done
        self.participant = ""
        self.acknowledged: dict[int, int] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        started = self.patiently("api/participants", "POST", {}, 201)
        self.participant = started.json["participant"]
        positions = [*range(1, QUESTIONS + 1), *self.random.sample(range(1, QUESTIONS + 1), 3)]
        for position in positions:
            choice = self.random.randint(1, 5)
            self.patiently(f"api/answers/{position}", "PUT", {"choice": choice}, 200)
            self.acknowledged[position] = choice
            self.done.release()

    def patiently(self, path: str, method: str, body: object, status: int) -> Reply:
        while not self.stopped.is_set():
            try:
                reply = call(f"{self.address}{path}", method, body, participant=self.participant)
            except (OSError, HTTPException):
                self.stopped.wait(0.1)
                continue
            if reply.status == status:
                return reply
            assert reply.status in {429, 503}, reply
            self.stopped.wait(0.2)
        raise AssertionError("stopped")


def stored_choices(folder: Path) -> dict[tuple[str, int], int]:
    """The stored answers by participant and position, each of them once."""
    manifest = read_manifest(folder)
    with closing(sqlite3.connect(folder / ANSWERS)) as database:
        seeds = dict(database.execute("SELECT id, seed FROM participants"))
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    positions = {
        (person, shown.question): position
        for person, seed in seeds.items()
        for position, shown in enumerate(assignment(seed, manifest.questions), 1)
    }
    answers = read_answers(folder / ANSWERS, manifest.study)
    found = {(a.participant, positions[a.participant, a.question]): a.choice for a in answers}
    assert len(found) == len(answers)
    return found


def test_fifty_people_and_two_killed_servers_lose_nothing(folder: Path) -> None:
    words = ("--rate", "1000")
    server = ServerProcess(folder, 0, *words)
    done = threading.Semaphore(0)
    people = [Person(server.port, number, done) for number in range(PEOPLE)]
    try:
        for person in people:
            person.start()
        for _ in range(2):
            for _ in range(PEOPLE * (QUESTIONS + 3) // 3):
                assert done.acquire(timeout=240)
            # What was acknowledged before the power went is there before anything is mended.
            before = [(person, dict(person.acknowledged)) for person in people]
            server.kill()
            stored = stored_choices(folder)
            for person, acknowledged in before:
                assert {(person.participant, position) for position in acknowledged} <= set(stored)
            server = ServerProcess(folder, server.port, *words)
        for person in people:
            person.join(240)
            assert not person.is_alive()
        with ThreadPoolExecutor(4) as pool:
            sessions = list(
                pool.map(
                    lambda p: call(f"{server.address}api/session", participant=p.participant),
                    people,
                )
            )
        for person, session in zip(people, sessions, strict=True):
            shown = {int(position): choice for position, choice in session.json["answers"].items()}
            assert shown == person.acknowledged
            assert len(shown) == QUESTIONS
    finally:
        for person in people:
            person.stopped.set()
        server.kill()
    assert stored_choices(folder) == {
        (person.participant, position): choice
        for person in people
        for position, choice in person.acknowledged.items()
    }
