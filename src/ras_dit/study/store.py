"""Where answers go: SQLite, durable before anything is acknowledged."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ras_dit.errors import RASError
from ras_dit.study.assignment import Shown

_TABLES = """
CREATE TABLE IF NOT EXISTS study (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS participants (
    id TEXT PRIMARY KEY CHECK (length(id) = 32),
    seed TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    participant TEXT NOT NULL REFERENCES participants (id),
    question TEXT NOT NULL,
    left_image TEXT NOT NULL,
    right_image TEXT NOT NULL,
    choice INTEGER NOT NULL CHECK (typeof(choice) = 'integer' AND choice BETWEEN 1 AND 5),
    revision INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (participant, question)
) WITHOUT ROWID;
"""
_BUSY_SECONDS = 20.0


@dataclass(frozen=True)
class StoredAnswer:
    """One answer in terms of what was shown.

    Attributes:
        participant: Id of the participant.
        question: Id of the question.
        left: Name of the picture that was on the left, as "A".
        right: Name of the picture that was on the right, as "B".
        choice: 1 (left is obviously better) to 5 (right is obviously better).
    """

    participant: str
    question: str
    left: str
    right: str
    choice: int


class AnswerStore:
    """The answers of one study. Its methods may be called from many threads.

    Every method that writes returns only after the change is committed and on the disk.

    Args:
        path: The database file; made if absent.
        study: Id of the study.

    Raises:
        RASError: If the file is no database, cannot be written, or belongs to another study.
    """

    def __init__(self, path: Path, study: str) -> None:
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # FULL: a commit outlives a power cut, and not only the end of this process.
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.executescript(_TABLES)
            self._database.execute("INSERT OR IGNORE INTO study VALUES (1, ?)", (study,))
        except sqlite3.Error as error:
            raise RASError(f"the answers {str(path)!r} cannot be opened: {error}") from error
        _check_study(self._database, study, path)

    def add_participant(self, limit: int) -> str | None:
        """Take in a participant.

        Args:
            limit: Most participants that the study takes.

        Returns:
            The new random id of 128 bits, or ``None`` if the study is full.
        """
        participant, seed = secrets.token_hex(16), secrets.token_hex(16)
        with self._lock:
            added = self._database.execute(
                "INSERT INTO participants SELECT ?, ? "
                "WHERE (SELECT count(*) FROM participants) < ?",
                (participant, seed, limit),
            )
            return participant if added.rowcount == 1 else None

    def seed(self, participant: str) -> str | None:
        """The seed of a participant's assignment; ``None`` for an unknown participant."""
        with self._lock:
            row = self._database.execute(
                "SELECT seed FROM participants WHERE id = ?", (participant,)
            ).fetchone()
        return None if row is None else str(row[0])

    def record(self, participant: str, shown: Shown, choice: int) -> None:
        """Store an answer; an earlier one of this participant to this question is overwritten."""
        with self._lock:
            self._database.execute(
                "INSERT INTO answers (participant, question, left_image, right_image, choice) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (participant, question) "
                "DO UPDATE SET choice = excluded.choice, revision = revision + 1",
                (participant, shown.question, shown.left, shown.right, choice),
            )

    def choices(self, participant: str) -> Mapping[str, int]:
        """The choices of one participant, by question."""
        with self._lock:
            rows = self._database.execute(
                "SELECT question, choice FROM answers WHERE participant = ?", (participant,)
            ).fetchall()
        return {str(question): int(choice) for question, choice in rows}

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()


def read_answers(path: Path, study: str) -> tuple[StoredAnswer, ...]:
    """All answers of a study, also while it is being served; none if there is no such file.

    Raises:
        RASError: If the file is damaged or belongs to another study.
    """
    if not path.exists():
        return ()
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database:
            database.execute("PRAGMA query_only = ON")
            _check_study(database, study, path)
            rows = database.execute(
                "SELECT participant, question, left_image, right_image, choice FROM answers "
                "ORDER BY participant, question"
            ).fetchall()
    except sqlite3.Error as error:
        raise RASError(f"the answers {str(path)!r} cannot be read: {error}") from error
    return tuple(StoredAnswer(*row) for row in rows)


def _check_study(database: sqlite3.Connection, study: str, path: Path) -> None:
    row = database.execute("SELECT id FROM study").fetchone()
    if row is None or row[0] != study:
        raise RASError(
            f"the answers {str(path)!r} belong to another study; move the file out of the folder"
        )
