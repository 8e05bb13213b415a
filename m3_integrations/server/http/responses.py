"""Answers of the server: JSON, errors in the shapes of TEI and OpenAI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from m3_integrations.core.errors import MissingMode, UnsupportedFilter, WriterBusy, WrongEncoder

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_SECURITY = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_ERROR_TYPES = {
    401: "Unauthenticated",
    403: "Forbidden",
    409: "Conflict",
    413: "Validation",
    422: "Validation",
    503: "Overloaded",
}


class RefusedRequest(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: What is wrong, and one fix.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def refuse_expected_errors() -> Iterator[None]:
    """Turn errors that a request or another process causes into answers.

    Raises:
        RefusedRequest: Instead of such an error.
    """
    try:
        yield
    except (MissingMode, UnsupportedFilter) as error:
        raise RefusedRequest(422, str(error)) from error
    except WriterBusy as error:
        raise RefusedRequest(503, str(error)) from error
    except WrongEncoder as error:
        raise RefusedRequest(503, "the model of the index changed; restart the server") from error


def json_response(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as JSON."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # lone surrogates and integers of more than 64 bits, which JSON itself can express
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, media_type="application/json", headers={**_SECURITY, **(headers or {})})


def bytes_response(body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return bytes of a media type."""
    return Response(body, headers={**_SECURITY, "Content-Type": media_type, **(headers or {})})


def error_response(path: str, status: int, message: str) -> Response:
    """Return an error in the shape of the API that the path belongs to.

    Args:
        path: Path of the request; /v1 is OpenAI's API, any other has the shape of text-embeddings-inference.
        status: HTTP status.
        message: What is wrong.
    """
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        value: Any = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    else:
        value = {"error": message, "error_type": _ERROR_TYPES.get(status, HTTPStatus(status).phrase)}
    headers = dict(_SECURITY)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        headers["Connection"] = "close"  # the rest of the body is not read
    return Response(json.dumps(value).encode(), status, media_type="application/json", headers=headers)
