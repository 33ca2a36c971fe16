"""Hostile input: refused, nothing shown that should not be, and the server still up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from ras_dit.study.folder import ANSWERS
from ras_dit.study.limits import RateLimit
from ras_dit.study.store import read_answers
from studies import (
    QUESTIONS,
    Reply,
    call,
    secrets_of,
    served,
    small_study,
    start,
    study,
    take_part,
)

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
