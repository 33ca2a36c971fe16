"""The study as a web page: a few routes, no state but the store."""

from __future__ import annotations

import hmac
import json
import re
import socket
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ras_dit.errors import RASError
from ras_dit.study.assignment import Shown, assignment
from ras_dit.study.folder import ANSWERS, IMAGES, Manifest, read_manifest
from ras_dit.study.limits import (
    BODY_SECONDS,
    HEADER_SECONDS,
    Guard,
    RateLimit,
    client_address,
    protocol_with,
    refuse,
    too_many,
)
from ras_dit.study.store import AnswerStore

SHORTEST_CODE = 6
_STARTS_AT_ONCE, _STARTS_PER_SECOND = 100.0, 1.0
_MOST_CONNECTIONS = 800
_BEARER = re.compile(r"Bearer ([0-9a-f]{32})")
_PAGE_TYPES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "zoom.js": "text/javascript",
    "online.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a study is served.

    Attributes:
        code: What participants must type to take part; ``None`` lets everyone in.
        rate: Requests per second that one address may make in the long run, ten times as many
            at once.
        most_participants: Participants that the study takes.
        header_seconds: Time for the headers of a request to arrive.
        body_seconds: Time for its body.

    Raises:
        RASError: If a value is out of range.
    """

    code: str | None = None
    rate: float = 50.0
    most_participants: int = 10_000
    header_seconds: float = HEADER_SECONDS
    body_seconds: float = BODY_SECONDS

    def __post_init__(self) -> None:
        if self.code is not None and len(self.code) < SHORTEST_CODE:
            raise RASError(
                f"the access code has {len(self.code)} characters; expected at least "
                f"{SHORTEST_CODE}, because short ones can be guessed"
            )
        for name in ("rate", "most_participants", "header_seconds", "body_seconds"):
            if not getattr(self, name) > 0:
                raise RASError(f"{name}={getattr(self, name)}; expected a number above 0")


class StudySite:
    """The routes of one study.

    Args:
        folder: The study folder. Only the manifest, the pictures and the answers are opened.
        manifest: Its manifest.
        store: Its answers.
        options: How to serve it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, store: AnswerStore, options: ServeOptions
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._options = options
        self._starts = RateLimit(_STARTS_PER_SECOND, _STARTS_AT_ONCE)
        # Paths are made from the manifest only, never from what a client asks for.
        self._pictures = {
            name: folder / IMAGES / name
            for question in manifest.questions
            for name in question.images
        }
        page = resources.files("ras_dit.study") / "page"
        self._index = (page / "index.html").read_bytes()
        self._page_files = {name: (page / name).read_bytes() for name in _PAGE_TYPES}

    def application(self) -> Starlette:
        """The ASGI application."""
        site = Starlette(
            routes=[
                Route("/", self._show_page),
                Route("/images/{name}", self._show_picture),
                Route("/api/study", self._describe),
                Route("/api/participants", self._start, methods=["POST"]),
                Route("/api/session", self._session),
                Route("/api/answers/{position}", self._answer, methods=["PUT"]),
                Route("/{name}", self._show_page_file),
            ],
            middleware=[
                Middleware(
                    Guard,
                    rate=RateLimit(self._options.rate, 10 * self._options.rate),
                    body_seconds=self._options.body_seconds,
                )
            ],
            exception_handlers={HTTPException: _plain_refusal, sqlite3.Error: _not_stored},
        )
        # A redirect would repeat the host that the client names.
        site.router.redirect_slashes = False
        return site

    def _show_page(self, _: Request) -> Response:
        return Response(self._index, media_type="text/html")

    def _show_page_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._page_files:
            raise HTTPException(404)
        return Response(self._page_files[name], media_type=_PAGE_TYPES[name])

    def _show_picture(self, request: Request) -> Response:
        path = self._pictures.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404)
        caching = {"Cache-Control": "private, max-age=86400, immutable"}
        return FileResponse(path, media_type="image/png", headers=caching)

    def _describe(self, _: Request) -> Response:
        return JSONResponse(
            {
                "study": self._manifest.study,
                "title": self._manifest.title,
                "consent": self._manifest.consent,
                "count": len(self._manifest.questions),
                "code": "access" if self._options.code is not None else "none",
            }
        )

    async def _start(self, request: Request) -> Response:
        wait = self._starts.wait(client_address(request.scope))
        if wait:
            return too_many(wait)
        body = await _body(request)
        if not set(body) <= {"code"}:
            raise HTTPException(400, "expected no field but the access code")
        if self._options.code is not None and not _same(body.get("code"), self._options.code):
            raise HTTPException(403, "the access code is not right")
        participant = await run_in_threadpool(
            self._store.add_participant, self._options.most_participants
        )
        if participant is None:
            raise HTTPException(403, "this study has all the participants it takes")
        return JSONResponse({"participant": participant}, 201)

    async def _session(self, request: Request) -> Response:
        participant, shown = await self._participant(request)
        choices = await run_in_threadpool(self._store.choices, participant)
        questions = [
            {"prompt": item.prompt, "left": item.left, "right": item.right} for item in shown
        ]
        answers = {
            position: choices[item.question]
            for position, item in enumerate(shown, 1)
            if item.question in choices
        }
        return JSONResponse({"questions": questions, "answers": answers})

    async def _answer(self, request: Request) -> Response:
        participant, shown = await self._participant(request)
        position = request.path_params["position"]
        if re.fullmatch(r"[1-9][0-9]{0,4}", position) is None or int(position) > len(shown):
            raise HTTPException(404)
        body = await _body(request)
        choice = body.get("choice")
        # A bool is an int to Python, and 3.0 equals 3: only real integers pass.
        if set(body) != {"choice"} or type(choice) is not int or not 1 <= choice <= 5:
            raise HTTPException(400, "expected a choice from 1 to 5")
        await run_in_threadpool(self._store.record, participant, shown[int(position) - 1], choice)
        return JSONResponse({"stored": True})

    async def _participant(self, request: Request) -> tuple[str, tuple[Shown, ...]]:
        match = _BEARER.fullmatch(request.headers.get("authorization", ""))
        participant = match[1] if match else ""
        seed = await run_in_threadpool(self._store.seed, participant)
        if seed is None:
            raise HTTPException(401, "no participant of this study")
        return participant, assignment(seed, self._manifest.questions)


async def _body(request: Request) -> Mapping[str, Any]:
    # Only scripts of this very page can send this type without the browser asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def _same(given: object, expected: str) -> bool:
    if not isinstance(given, str):
        return False
    sent = given.strip().encode("utf-8", "surrogatepass")
    return hmac.compare_digest(sent, expected.encode("utf-8", "surrogatepass"))


def _plain_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refuse(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


def _not_stored(_: Request, __: Exception) -> Response:
    response = refuse(503, "the answer could not be stored; try again")
    response.headers["Retry-After"] = "2"
    return response


def serve_study(
    folder: Path,
    options: ServeOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    behind_proxy: bool = False,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a study until the process is told to stop.

    Args:
        folder: The study folder.
        options: Limits and the access code.
        host: Address to listen on; ``"0.0.0.0"`` for every network.
        port: Port to listen on; 0 for any free one.
        behind_proxy: Take clients' addresses from the headers of a reverse proxy on this machine.
        on_ready: Called with the page's address when it can be opened.

    Raises:
        RASError: If the folder holds no study, or the address cannot be listened on.
    """
    manifest = read_manifest(folder)
    with listening_socket(host, port) as listener:
        store = AnswerStore(folder / ANSWERS, manifest.study)
        try:
            server = make_server(folder, manifest, store, options, behind_proxy=behind_proxy)
            shown_host = f"[{host}]" if ":" in host else host
            # Connections that come before the first turn of the loop wait in the socket's queue.
            on_ready(f"http://{shown_host}:{listener.getsockname()[1]}/")
            server.run(sockets=[listener])
        finally:
            store.close()


def make_server(
    folder: Path,
    manifest: Manifest,
    store: AnswerStore,
    options: ServeOptions,
    *,
    behind_proxy: bool = False,
) -> uvicorn.Server:
    """The server of a study, not yet running. It logs neither requests nor addresses."""
    return uvicorn.Server(
        uvicorn.Config(
            StudySite(folder, manifest, store, options).application(),
            http=protocol_with(options.header_seconds),
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="error",
            server_header=False,
            proxy_headers=behind_proxy,
            forwarded_allow_ips="127.0.0.1,::1",
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens already.

    Raises:
        RASError: If the address is in use, not allowed or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise RASError(
            f"cannot listen on {host}, port {port}: {error}; give another --host or --port"
        ) from error
