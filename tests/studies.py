"""Small studies for the tests: pictures drawn in a moment, servers in a thread or a process."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from PIL import Image, ImageDraw

from ras_dit.study.folder import ANSWERS, KEY, ArmRecord, Manifest, Pair, read_manifest, write_study
from ras_dit.study.serve import ServeOptions, listening_socket, make_server
from ras_dit.study.store import AnswerStore

QUESTIONS = 14
DENSE = ArmRecord("dense", None, 28, (1.0,))
SPARSE = ArmRecord("0.5", {"sample_ratio": 0.5}, 28, (0.5,))


def small_study(
    out: Path,
    count: int = QUESTIONS,
    *,
    a: ArmRecord = DENSE,
    b: ArmRecord = SPARSE,
    side: int = 96,
) -> Manifest:
    """A study whose pictures of A are round and of B square."""
    pairs = []
    for number in range(count):
        colour = f"hsl({360 * number // count}, 70%, 50%)"
        images = [Image.new("RGB", (side, side), "white") for _ in "ab"]
        box = (side // 6, side // 6, side - side // 6, side - side // 6)
        ImageDraw.Draw(images[0]).ellipse(box, fill=colour)
        ImageDraw.Draw(images[1]).rectangle(box, fill=colour)
        pairs.append(Pair(f"shape number {number + 1} of the study", number, *images))
    return write_study(
        out,
        pairs,
        {"a": a, "b": b},
        title="A study of shapes",
        consent=["You will see {count} pairs of shapes."],
        made_with={"model": "drawn"},
    )


@contextlib.contextmanager
def served(folder: Path, **options: Any) -> Iterator[str]:
    """The address of a study that is served by a thread of this process."""
    manifest = read_manifest(folder)
    listener = listening_socket("127.0.0.1", 0)
    store = AnswerStore(folder / ANSWERS, manifest.study)
    server = make_server(folder, manifest, store, ServeOptions(**options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        store.close()


class ServerProcess:
    """``ras-dit study serve`` in a process of its own, to be killed."""

    def __init__(self, folder: Path, port: int = 0, *words: str) -> None:
        command = [sys.executable, "-m", "ras_dit", "study", "serve", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = next(word for word in line.split() if word.startswith("http://"))
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def kill(self) -> None:
        """Kill it at once, as a power cut would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class Reply:
    """A server's reply."""

    status: int
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    address: str,
    method: str = "GET",
    body: object = None,
    *,
    participant: str | None = None,
    raw: bytes | None = None,
    **headers: str,
) -> Reply:
    """One request; refusals are replies too."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = raw
    if body is not None:
        data = json.dumps(body).encode()
    if data is not None:
        sent.setdefault("Content-Type", "application/json")
    if participant is not None:
        sent["Authorization"] = f"Bearer {participant}"
    request = Request(address, data, sent, method=method)
    try:
        with urlopen(request, timeout=30) as reply:
            return Reply(reply.status, reply.read(), reply.headers)
    except HTTPError as error:
        with error:
            return Reply(error.code, error.read(), error.headers)


def take_part(address: str, choices: Sequence[int] | None = None, count: int = QUESTIONS) -> str:
    """One participant who answers everything."""
    participant: str = call(f"{address}api/participants", "POST", {}).json["participant"]
    generator = random.Random(participant)
    for position in range(1, count + 1):
        choice = choices[position - 1] if choices else generator.randint(1, 5)
        place = f"{address}api/answers/{position}"
        assert call(place, "PUT", {"choice": choice}, participant=participant).status == 200
    return participant


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


def study(folder: Path) -> str:
    """Id of a study."""
    return read_manifest(folder).study
