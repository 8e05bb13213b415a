"""Checks of every request before it is handled: host, origin, key, size, time."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_integrations.server.http.responses import RefusedRequest, error_response
from m3_integrations.server.settings import ServerSettings

# Without a key: for load balancers, the page's form to enter the key with its files, and the description of the
# endpoints, which a browser cannot send a key for.
OPEN_PATHS = ("/health", "/", "/page/style.css", "/page/script.js", "/page/icon.svg", "/docs", "/openapi.json")
DISCARDED = 16 << 20  # bytes above the limit that are read, since a client that is still sending misses the answer
CLIENT_CLOSED = 499  # nginx's status of a request whose client went away
_JSON = "application/json"
_log = logging.getLogger(__name__)


class _Disconnected(Exception):
    """The client went away before its request was complete."""


class RequestGuard:
    """ASGI middleware that refuses requests before they reach the application.

    Refused are requests with the Host or the Origin of another site, without the key, with a body that is too large,
    too slow or not JSON, and requests above the limit of concurrent ones.

    Args:
        app: The application.
        settings: Key and limits.
        is_streaming: Whether answers may be streams of any duration, as those of MCP; they have no time limit then.
        on_answer: Called with path, status and seconds of each request; the status is 499 if the client went away.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        *,
        is_streaming: bool = False,
        on_answer: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.is_streaming = is_streaming
        self._on_answer = on_answer
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begin = time.perf_counter()
        answer = _AnswerSender(send)
        self._in_progress += 1
        try:
            await self._handle(scope, receive, answer)
        finally:
            self._in_progress -= 1
            if self._on_answer is not None:
                self._on_answer(scope["path"], answer.status or CLIENT_CLOSED, time.perf_counter() - begin)

    async def _handle(self, scope: Scope, receive: Receive, answer: _AnswerSender) -> None:
        """Check a request and pass it on; errors become answers unless one has begun."""
        path = scope["path"]
        try:
            if self._in_progress > self.settings.max_requests:
                raise RefusedRequest(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self.settings.max_requests} requests are in progress; try again later",
                )
            self._check_headers(scope)
            body = await self._read_body(scope, receive)
            limit = None if self.is_streaming else self.settings.request_timeout
            async with asyncio.timeout(limit):
                await self.app(scope, _replay(body, receive), answer)
        except _Disconnected:
            return
        except RefusedRequest as error:
            status, message = error.status, str(error)
        except TimeoutError:
            status = HTTPStatus.GATEWAY_TIMEOUT
            message = f"no answer within {self.settings.request_timeout:g} s; send fewer texts"
        except Exception:
            _log.exception("error in %s", path)
            status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the log of the server has the details"
        else:
            return
        if answer.status is not None:
            raise ConnectionAbortedError(message)  # the connection is closed, so that no partial answer looks complete
        await error_response(path, status, message)(scope, receive, answer)

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.settings.accepts_host(host):
            raise RefusedRequest(
                HTTPStatus.FORBIDDEN,
                f"the Host {host!r} is not this server; use its address, or start it with --allowed-host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RefusedRequest(HTTPStatus.FORBIDDEN, f"pages of {origin!r} may not use this server")
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS  # POST / is an endpoint
        if self.settings.api_key is not None and not is_open:
            _check_key(headers.get("authorization", ""), self.settings.api_key)
        has_body = scope["method"] in ("POST", "PUT", "PATCH")
        if has_body and headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise RefusedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send the body as Content-Type: {_JSON}")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_body + DISCARDED:
            raise self._too_large()

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] in ("GET", "HEAD"):
            return b""
        body, length, limit = bytearray(), 0, self.settings.max_body
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    part, has_more = message.get("body", b""), message.get("more_body", False)
                    length += len(part)
                    if length <= limit:
                        body += part
                    else:
                        body.clear()
                    if length > limit and (not has_more or length > limit + DISCARDED):
                        raise self._too_large()
                    if not has_more:
                        return bytes(body)
        except TimeoutError:
            raise RefusedRequest(
                HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {self.settings.body_timeout:g} s"
            ) from None

    def _too_large(self) -> RefusedRequest:
        limit = f"{self.settings.max_body:,} bytes"
        return RefusedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has over {limit}; send fewer texts")


class _AnswerSender:
    """The send function of a request, and the status of the answer if it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _check_key(header: str, key: str) -> None:
    scheme, _, given = header.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise RefusedRequest(HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong; send Authorization: Bearer KEY")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that gives the body first, then what arrives."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
