"""What keeps the server up under floods, giant bodies and slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY_BYTES = 4096
BODY_SECONDS = 10.0
HEADER_SECONDS = 10.0
# A large picture over a slow line takes this long at most.
RESPONSE_SECONDS = 300.0
_REMEMBERED_CLIENTS = 10_000

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}


class RateLimit:
    """A token bucket per client address, for a bounded number of addresses.

    Args:
        per_second: Requests that an address may make in the long run.
        burst: Requests that it may make at once.
        clock: Seconds; tests give their own.
    """

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Count a request: 0 if it is allowed, else seconds until the next one would be."""
        client = _network(address)
        now = self._clock()
        left, since = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _REMEMBERED_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


def _network(address: str) -> str:
    """One household has one IPv4 address, but a whole /64 of IPv6 addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))


class Guard:
    """Middleware: rate, size and time limits before the application, safe headers after it.

    Args:
        app: The application. It gets the whole body in one message.
        rate: Limit of all requests.
        body_seconds: Time in which a body must have arrived.
        response_seconds: Time in which a response must have been taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        rate: RateLimit,
        body_seconds: float = BODY_SECONDS,
        response_seconds: float = RESPONSE_SECONDS,
    ) -> None:
        self._app = app
        self._rate = rate
        self._body_seconds = body_seconds
        self._response_seconds = response_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        wait = self._rate.wait(client_address(scope))
        if wait:
            refusal = too_many(wait)
            await refusal(scope, receive, send_safely)
            return
        body = await self._body(scope, receive)
        if isinstance(body, JSONResponse):
            await body(scope, receive, send_safely)
            return
        # Returning before the response is complete makes uvicorn close the connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._response_seconds):
                await self._app(scope, _replay(body, receive), send_safely)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | JSONResponse:
        too_large = refuse(413, f"the body is larger than {BODY_BYTES} bytes", close=True)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 12 or int(declared) > BODY_BYTES:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return refuse(400, "the body is not whole", close=True)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > BODY_BYTES:
                        return too_large
        except TimeoutError:
            return refuse(408, "the body did not arrive in time", close=True)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed


def client_address(scope: Scope) -> str:
    """The client's address; one bucket for all where a transport has none."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def refuse(status: int, reason: str, *, close: bool = False) -> JSONResponse:
    """A refusal. The reason never repeats what was sent."""
    headers = {"Connection": "close"} if close else None
    return JSONResponse({"error": reason}, status, headers)


def too_many(wait: float) -> JSONResponse:
    """The refusal of one request too many."""
    response = refuse(429, "too many requests; wait a moment")
    response.headers["Retry-After"] = str(max(1, round(wait + 0.5)))
    return response


class PunctualProtocol(H11Protocol):
    """Uvicorn's protocol, closing connections whose request line and headers never end."""

    header_seconds = HEADER_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection has to say what it wants."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when the headers are complete; start it for the next request's."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._deadline is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def protocol_with(header_seconds: float) -> type[asyncio.Protocol]:
    """The protocol with another limit."""
    members: dict[str, Any] = {"header_seconds": header_seconds}
    return type("PunctualProtocol", (PunctualProtocol,), members)
