"""The server: what it answers, whom it lets in, and what it says when it cannot serve."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.study.folder import ANSWERS, KEY
from ras_dit.study.serve import ServeOptions
from ras_dit.study.store import AnswerStore, read_answers
from studies import (
    QUESTIONS,
    call,
    served,
    small_study,
    start,
    study,
    take_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of 14 pairs."""
    small_study(tmp_path / "study", side=16)
    return tmp_path / "study"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``address``."""
    folder = tmp_path_factory.mktemp("lasting") / "study"
    small_study(folder, side=16)
    return folder


@pytest.fixture(scope="module")
def address(lasting: Path) -> Iterator[str]:
    """A study that one server serves to many tests, whatever they do to it."""
    with served(lasting, rate=1000.0) as found:
        yield found


def test_a_participant_from_start_to_end(address: str, lasting: Path) -> None:
    participant = start(address)
    session = call(f"{address}api/session", participant=participant).json
    assert len(session["questions"]) == QUESTIONS
    assert session["answers"] == {}
    for side in ("left", "right"):
        picture = call(f"{address}images/{session['questions'][0][side]}")
        assert (picture.status, picture.headers["Content-Type"]) == (200, "image/png")
        assert (lasting / "images" / session["questions"][0][side]).read_bytes() == picture.body
    for position, choice in ((1, 5), (2, 3), (1, 1)):
        place = f"{address}api/answers/{position}"
        reply = call(place, "PUT", {"choice": choice}, participant=participant)
        assert (reply.status, reply.json) == (200, {"stored": True})
    again = call(f"{address}api/session", participant=participant).json
    assert again == {"questions": session["questions"], "answers": {"1": 1, "2": 3}}
    stored = {
        answer.left: answer.choice
        for answer in read_answers(lasting / ANSWERS, study(lasting))
        if answer.participant == participant
    }
    assert stored == {session["questions"][0]["left"]: 1, session["questions"][1]["left"]: 3}


def test_participants_get_different_orders_and_sides(address: str) -> None:
    sessions = [call(f"{address}api/session", participant=start(address)).json for _ in range(4)]
    orders = {tuple(q["prompt"] for q in session["questions"]) for session in sessions}
    lefts = {frozenset(q["left"] for q in session["questions"]) for session in sessions}
    assert len(orders) == len(lefts) == 4


def test_the_page_loads_nothing_from_outside(address: str) -> None:
    page = call(address)
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Set-Cookie"] is None
    texts = [page.body]
    for name in ("page.css", "page.js", "zoom.js", "online.js", "icon.svg"):
        reply = call(f"{address}{name}")
        assert reply.status == 200
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        texts.append(reply.body)
    joined = b"".join(texts).replace(b"http://www.w3.org/2000/svg", b"")
    assert b"http:" not in joined
    assert b"https:" not in joined
    assert b"innerHTML" not in joined


def test_the_key_is_not_needed_to_serve(folder: Path) -> None:
    (folder / KEY).unlink()
    with served(folder) as address:
        take_part(address)


def test_an_access_code_keeps_people_out(folder: Path) -> None:
    with served(folder, code="sesame-7") as address:
        assert call(f"{address}api/study").json["code"] == "access"
        bodies: list[object] = [{}, {"code": "Sesame-7"}, {"code": ["sesame-7"]}, {"code": None}]
        for body in [*bodies, {"code": "' OR 1=1 --"}, {"code": "\ud800"}, {"code": "x" * 4000}]:
            assert call(f"{address}api/participants", "POST", body).status == 403
        assert call(f"{address}api/participants", "POST", {"code": "sesame-7"}).status == 201


@pytest.mark.parametrize(
    "options", [{"code": "short"}, {"rate": 0.0}, {"most_participants": 0}, {"rate": float("nan")}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RASError, match="expected"):
        ServeOptions(**options)  # type: ignore[arg-type]


def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "serve", str(tmp_path / "absent")]) == 2
    assert "holds no study" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["study", "serve", str(folder), "--port", port]) == 2
    assert "give another --host or --port" in capsys.readouterr().err


def test_a_full_disk_is_no_acknowledgement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with served(folder) as address:
        participant = start(address)
        with monkeypatch.context() as patch:
            patch.setattr(AnswerStore, "record", fail)
            place = f"{address}api/answers/1"
            reply = call(place, "PUT", {"choice": 1}, participant=participant)
            assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert call(place, "PUT", {"choice": 1}, participant=participant).status == 200
