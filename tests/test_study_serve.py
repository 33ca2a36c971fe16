"""The server: what it answers, what it refuses, and that it loses nothing when it is killed."""

from __future__ import annotations

import json
import random
import socket
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from ras_dit.cli import main
from ras_dit.errors import RASError
from ras_dit.study.assignment import assignment
from ras_dit.study.folder import ANSWERS, KEY, read_manifest
from ras_dit.study.limits import RateLimit
from ras_dit.study.serve import ServeOptions
from ras_dit.study.store import AnswerStore, read_answers
from studies import Reply, ServerProcess, call, served, small_study, take_part

PEOPLE, QUESTIONS = 50, 14
HOSTILE = [
    "' OR 1=1 --",
    "'; DROP TABLE answers; --",
    '"><script>alert(1)</script>',
    "<img src=x onerror=alert(1)>",
    "../../key.json",
    "..%2f..%2fkey.json",
    "%2e%2e/key.json",
    "/etc/passwd",
    "${7*7}{{7*7}}",
    "\u202e\u0000\ud800",
    "0" * 32,
    "9" * 400,
    "-1",
    "1e3",
    "\u0663",
    "",
]


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


@pytest.fixture(scope="module")
def victim(address: str) -> str:
    """A participant of it, who answered everything."""
    return take_part(address, [1] * QUESTIONS)


def start(address: str) -> str:
    """A new participant."""
    reply = call(f"{address}api/participants", "POST", {})
    assert reply.status == 201
    return str(reply.json["participant"])


def secrets_of(folder: Path) -> list[bytes]:
    """What must never leave the server."""
    key = json.loads((folder / KEY).read_text())
    with closing(sqlite3.connect(folder / ANSWERS)) as database:
        people = [row[0] for row in database.execute("SELECT id FROM participants")]
        seeds = [row[0] for row in database.execute("SELECT seed FROM participants")]
    return [text.encode() for text in (key["secret"], "sample_ratio", "root:", *people, *seeds)]


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


def study(folder: Path) -> str:
    """Id of a study."""
    return read_manifest(folder).study


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
        for body in [*bodies, *({"code": text} for text in HOSTILE)]:
            assert call(f"{address}api/participants", "POST", body).status == 403
        assert call(f"{address}api/participants", "POST", {"code": "sesame-7"}).status == 201


# Hostile input.


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field(text: str, address: str, lasting: Path, victim: str) -> None:
    before = read_answers(lasting / ANSWERS, study(lasting))
    sendable = quote(text.encode("utf-8", "replace"), safe="/.%")
    header = text.encode("ascii", "ignore").decode().replace("\0", "")
    replies = [
        call(f"{address}{sendable}"),
        call(f"{address}images/{sendable}"),
        call(f"{address}images/{sendable}.png"),
        call(f"{address}api/{sendable}"),
        call(f"{address}api/answers/{sendable}", "PUT", {"choice": 1}, participant=victim),
        call(f"{address}api/answers/1", "PUT", {"choice": text}, participant=victim),
        call(f"{address}api/answers/1", "PUT", {text: 1}, participant=victim),
        call(f"{address}api/answers/1", "PUT", {"choice": 1}, participant=header),
        call(
            f"{address}api/answers/1", "PUT", {"choice": 1, "participant": text}, participant=victim
        ),
        call(f"{address}api/session", participant=header),
        call(f"{address}api/session", Authorization=header or "x", Cookie=header or "x"),
        call(f"{address}api/participants", "POST", {"participant": text, "seed": text}),
        call(f"{address}api/participants", "POST", [text]),
    ]
    # An empty name is the page itself.
    refused = replies if text else replies[1:]
    assert all(400 <= reply.status < 500 for reply in refused), [r.status for r in replies]
    assert_nothing_shown(replies, lasting, text)
    assert read_answers(lasting / ANSWERS, study(lasting)) == before
    assert call(address).status == 200


def assert_nothing_shown(replies: list[Reply], folder: Path, text: str = "") -> None:
    """No secrets, no tracebacks, and nothing of what was sent."""
    for reply in replies:
        for secret in secrets_of(folder):
            assert secret not in reply.body
        assert b"Traceback" not in reply.body
        if "<" in text:
            assert text.encode() not in reply.body
            assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("choice", [0, 6, -1, 2.5, 3.0, True, None, "3", [3], {"a": 3}, 10**4000])
def test_only_five_choices_exist(choice: object, address: str, victim: str) -> None:
    raw = b'{"choice": 1' + b"0" * 4000 + b"}" if choice == 10**4000 else None
    body = None if raw else {"choice": choice}
    reply = call(f"{address}api/answers/1", "PUT", body, raw=raw, participant=victim)
    assert reply.status == 400
    session = call(f"{address}api/session", participant=victim).json
    assert set(session["answers"].values()) == {1}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[" * 4000,
        b"\xff\xfe",
        b"null",
        b'"x"',
        b'{"choice": NaN}',
        b"{}",
        b'{"choice":1}x',
    ],
)
def test_what_is_not_the_json_expected_is_refused(raw: bytes, address: str, victim: str) -> None:
    place = f"{address}api/answers/1"
    assert call(place, "PUT", raw=raw, participant=victim).status == 400


def test_forms_of_other_pages_are_refused(address: str) -> None:
    # The only types that a foreign page can send without being asked for permission first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        sent = {"Content_Type": kind}
        assert call(f"{address}api/participants", "POST", raw=b"{}", **sent).status == 415


def test_nobody_answers_for_or_reads_another(address: str, victim: str) -> None:
    other = start(address)
    almost = victim[:-1] + ("0" if victim[-1] != "0" else "1")
    for wrong in ("", almost, f"{victim}0", f"{victim}, {other}", victim[:31], "0" * 32):
        for reply in (
            call(f"{address}api/session", participant=wrong),
            call(f"{address}api/answers/1", "PUT", {"choice": 5}, participant=wrong),
        ):
            assert reply.status == 401, wrong
    # Whatever is named in the body, the answer is that of the one who sends it.
    place = f"{address}api/answers/1"
    assert call(place, "PUT", {"choice": 5, "participant": victim}, participant=other).status == 400
    assert call(place, "PUT", {"choice": 5}, participant=other).status == 200
    assert set(call(f"{address}api/session", participant=victim).json["answers"].values()) == {1}
    assert call(f"{address}api/session", participant=other).json["answers"] == {"1": 5}
    # There is no other way to read answers.
    for path in ("answers", "api/answers", "api/participants", f"api/session/{victim}", ANSWERS):
        assert call(f"{address}{path}", participant=other).status in {404, 405}
    assert call(f"{address}api/answers/1", participant=victim).status == 405


@pytest.mark.parametrize("method", ["DELETE", "POST", "PATCH", "TRACE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(method: str, address: str) -> None:
    assert call(f"{address}api/answers/1", method, {"choice": 1}).status == 405


PATHS = [
    "/key.json",
    "//key.json",
    "/../key.json",
    "/images/../key.json",
    "/images/..%2fkey.json",
    "/images/%2e%2e/key.json",
    "/images/%2e%2e%2fkey.json",
    "/images/..%5ckey.json",
    "/images/....//key.json",
    "/images/%252e%252e%252fkey.json",
    "/images//etc/passwd",
    "/images/%00",
    "/images/",
    "/images",
    "/manifest.json",
    f"/{ANSWERS}",
    f"/{ANSWERS}-wal",
    "/page/index.html",
    "/consent.txt",
    "/..",
    "http://127.0.0.1/../key.json",
    "/%c0%ae%c0%ae/key.json",
]


def exchange(address: str, sent: bytes) -> bytes:
    """Everything the server says to raw bytes until it closes the connection."""
    place = urlsplit(address)
    assert place.hostname is not None
    received = b""
    with socket.create_connection((place.hostname, place.port or 80), timeout=30) as connection:
        try:
            connection.sendall(sent)
            while part := connection.recv(65536):
                received += part
        # It may hang up while we still talk.
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(path: str, address: str, lasting: Path, victim: str) -> None:
    host = b"Host: x\r\nConnection: close\r\n\r\n"
    reply = exchange(address, f"GET {path} HTTP/1.1\r\n".encode() + host)
    status = int(reply.split(b" ", 2)[1])
    assert status in {400, 404}, reply[:200]
    for secret in secrets_of(lasting):
        assert secret not in reply
    assert call(address).status == 200


def test_bodies_that_are_too_large_are_refused(address: str, victim: str) -> None:
    place = f"{address}api/answers/1"
    reply = call(place, "PUT", raw=b" " * 4097 + b'{"choice": 1}', participant=victim)
    assert reply.status == 413
    head = "PUT /api/answers/1 HTTP/1.1\r\nHost: x\r\n"
    huge = f"{head}Content-Length: 99999999999\r\n\r\n".encode() + b"x" * 100_000
    assert b" 413 " in exchange(address, huge).split(b"\r\n")[0]
    for length in ("-1", "1e9", "0x10", "9" * 5000):
        assert b" 4" in exchange(address, f"{head}Content-Length: {length}\r\n\r\n".encode())[:13]
    chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
    endless = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks * 50
    assert b" 413 " in exchange(address, endless).split(b"\r\n")[0]
    long_header = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000
    assert exchange(address, long_header).split(b"\r\n")[0] in {b"", b"HTTP/1.1 400 Bad Request"}
    assert call(place, "PUT", {"choice": 1}, participant=victim).status == 200


def test_slow_requests_are_cut_off(folder: Path) -> None:
    with served(folder, header_seconds=0.3, body_seconds=0.3) as address:
        head = b"PUT /api/answers/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n"
        # Each returns only because the server hangs up.
        assert exchange(address, b"") == b""
        assert exchange(address, b"GET / HTTP/1.1\r\nHo") == b""
        assert b" 408 " in exchange(address, head + b'{"choice"').split(b"\r\n")[0]
        assert start(address)


def test_a_crowd_of_silent_connections_does_not_stop_others(folder: Path) -> None:
    with served(folder, header_seconds=5.0) as address:
        place = urlsplit(address)
        silent = [socket.create_connection((place.hostname, place.port)) for _ in range(100)]
        try:
            assert start(address)
        finally:
            for connection in silent:
                connection.close()


def test_floods_are_slowed_down_and_pass(folder: Path) -> None:
    with served(folder, rate=1.0) as address:
        replies = [call(f"{address}icon.svg") for _ in range(30)]
        refused = [reply for reply in replies if reply.status == 429]
        assert {reply.status for reply in replies} == {200, 429}
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)


def test_many_new_participants_are_slowed_down(folder: Path) -> None:
    with served(folder, rate=1000.0) as address:
        for _ in range(100):
            start(address)
        statuses = [call(f"{address}api/participants", "POST", {}).status for _ in range(20)]
    assert 429 in statuses


def test_rate_limits_forgive_with_time_and_forget_nobody_else() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 4.0, clock=lambda: now[0])
    assert [limit.wait("10.0.0.1") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert limit.wait("10.0.0.2") == 0
    now[0] = 0.5
    assert limit.wait("10.0.0.1") == 0
    assert limit.wait("10.0.0.1") > 0
    # All addresses of one IPv6 household count as one.
    assert [limit.wait(f"2001:db8::{n:x}") for n in range(5)] == [0, 0, 0, 0, 0.5]
    assert limit.wait("2001:db8:0:1::1") == 0
    for number in range(20_000):
        limit.wait(f"client {number}")
    assert len(limit._buckets) <= 10_000


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


# Fifty people, and a server that is killed twice.


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
                assert done.acquire(timeout=60)
            # What was acknowledged before the power went is there before anything is mended.
            before = [(person, dict(person.acknowledged)) for person in people]
            server.kill()
            stored = stored_choices(folder)
            for person, acknowledged in before:
                assert {(person.participant, position) for position in acknowledged} <= set(stored)
            server = ServerProcess(folder, server.port, *words)
        for person in people:
            person.join(60)
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
