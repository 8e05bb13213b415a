"""The ASGI application: routes, validation of requests, errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from m3_integrations.encoders.base import Encoder
from m3_integrations.index import Index
from m3_integrations.server.batching import BatchingEncoder
from m3_integrations.server.http import openapi
from m3_integrations.server.http.encoding import EncodingEndpoints
from m3_integrations.server.http.feedback import FeedbackEndpoints
from m3_integrations.server.http.guard import RequestGuard
from m3_integrations.server.http.page.endpoints import PageEndpoints
from m3_integrations.server.http.responses import (
    RefusedRequest,
    bytes_response,
    json_response,
    refuse_expected_errors,
)
from m3_integrations.server.http.schemas import (
    EmbedAllRequest,
    EmbedRequest,
    FeedbackRequest,
    FieldsRequest,
    IndexRequest,
    OpenAIEmbeddingsRequest,
    PassagesRequest,
    RerankRequest,
    SearchRequest,
    TextsRequest,
)
from m3_integrations.server.http.search import SearchEndpoints
from m3_integrations.server.metrics import ServerMetrics
from m3_integrations.server.settings import ServerSettings

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_DEFAULTS = ServerSettings()
_OTHER = "other"  # path label of requests to unknown paths, whose number is unbounded
_NAMED_ERRORS = 3
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def create_app(
    encoder: Encoder, indexes: Mapping[str, Index] | None = None, settings: ServerSettings = _DEFAULTS
) -> ASGIApp:
    """Create the HTTP application.

    Args:
        encoder: Encoder of all requests.
        indexes: Indexes by name, each filled by this encoder.
        settings: Key, names and limits. Port and host are those of the server that runs the application.

    Returns:
        An ASGI application. It does not close the indexes.
    """
    metrics = ServerMetrics()
    batching = BatchingEncoder(encoder, metrics)
    encoding = EncodingEndpoints(batching, settings)
    search = SearchEndpoints(batching, indexes or {}, settings)
    feedback = FeedbackEndpoints(encoder, indexes or {}, settings)
    endpoints: list[tuple[openapi.PathItem, Handler]] = [
        _get("/health", "Whether the server answers; needs no key.", _health),
        _get("/info", "Model, dimensions, limits and fingerprint.", _without_body(encoding.info)),
        _post("/embed", "Dense vectors.", EmbedRequest, encoding.embed),
        _post("/embed_sparse", "Sparse weights by token id.", TextsRequest, encoding.embed_sparse),
        _post("/embed_all", "All modes from one forward pass.", EmbedAllRequest, encoding.embed_all),
        _post("/rerank", "Rank texts for a query.", RerankRequest, encoding.rerank),
        _post("/v1/embeddings", "Dense vectors (OpenAI).", OpenAIEmbeddingsRequest, encoding.openai_embeddings),
        _get("/v1/models", "The model (OpenAI).", _without_body(encoding.openai_models)),
        _get("/indexes", "Name, modes and passages of each index.", _without_body(search.list_indexes)),
        _post("/search", "Search an index.", SearchRequest, search.search),
        _post("/passages", "Passages by id.", PassagesRequest, search.passages),
        _query("/fields", "Metadata fields and their values, for filters.", FieldsRequest, search.fields),
        _post("/feedback", "Record whether a passage was useful for a query.", FeedbackRequest, feedback.record),
        _query("/feedback", "Number of judgements.", IndexRequest, feedback.count),
        _post("/learn", "Start a nudge from the feedback.", IndexRequest, feedback.learn),
        _query("/learn", "State of the nudge.", IndexRequest, feedback.learning),
        _query("/learn/report", "Report of the nudge as HTML.", IndexRequest, feedback.report),
        _post("/undo", "Restore the original vectors.", IndexRequest, feedback.undo),
        _get("/metrics", "Metrics for Prometheus.", partial(_metrics, metrics)),
    ]
    paths = [path for path, _ in endpoints]
    document = openapi.describe(paths, needs_key=settings.api_key is not None)
    routes = [Route(path.path, handler, methods=[path.method]) for path, handler in endpoints]
    routes += [
        Route("/", _handler(EmbedRequest, encoding.embed), methods=["POST"]),  # as TEI and huggingface_hub have it
        *PageEndpoints(batching, indexes or {}, settings).routes(),
        Route("/openapi.json", partial(_document, document)),
        Route("/docs", partial(_page, openapi.render(paths))),
    ]
    labels = {route.path for route in routes}

    def count(path: str, status: int, seconds: float) -> None:
        metrics.count_request(path if path in labels else _OTHER, status, seconds)

    others = [Route(path, _wrong_method, methods=_METHODS) for path in sorted(labels)]

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with feedback.running():
            yield

    # Errors reach the guard.
    router = Router([*routes, *others], redirect_slashes=False, default=_not_found, lifespan=lifespan)
    return RequestGuard(router, settings, on_answer=count)


def _get(path: str, summary: str, handler: Handler) -> tuple[openapi.PathItem, Handler]:
    return openapi.PathItem(path, "GET", summary), handler


def _post(
    path: str, summary: str, model: type[Body], handle: Callable[[Body], Awaitable[Response]]
) -> tuple[openapi.PathItem, Handler]:
    return openapi.PathItem(path, "POST", summary, model), _handler(model, handle)


def _query(
    path: str, summary: str, model: type[Body], handle: Callable[[Body], Awaitable[Response]]
) -> tuple[openapi.PathItem, Handler]:
    return openapi.PathItem(path, "GET", summary, query=model), _handler(model, handle)


def _handler(model: type[Body], handle: Callable[[Body], Awaitable[Response]]) -> Handler:
    """Return a handler that validates the body or the query string, and turns expected errors into answers."""

    async def respond(request: Request) -> Response:
        try:
            with refuse_expected_errors():
                if request.method in ("GET", "HEAD"):
                    return await handle(model.model_validate(dict(request.query_params)))
                return await handle(model.model_validate_json(await request.body()))
        except ValidationError as error:
            is_json = all(each["type"] != "json_invalid" for each in error.errors(include_url=False))
            raise RefusedRequest(422 if is_json else 400, _describe(error)) from None

    return respond


def _describe(error: ValidationError) -> str:
    """Return what is wrong with a body, without repeating the body."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [": ".join(filter(None, [".".join(map(str, each["loc"])), each["msg"]])) for each in found[:_NAMED_ERRORS]]
    more = f"; and {len(found) - _NAMED_ERRORS} more" if len(found) > _NAMED_ERRORS else ""
    return "; ".join(lines) + more


def _without_body(handle: Callable[[], Awaitable[Response]]) -> Handler:
    async def respond(_: Request) -> Response:
        return await handle()

    return respond


async def _health(_: Request) -> Response:
    return json_response({"status": "ok"})


async def _metrics(metrics: ServerMetrics, _: Request) -> Response:
    return bytes_response(metrics.to_text(), "text/plain; version=0.0.4; charset=utf-8")


async def _document(document: Mapping[str, Any], _: Request) -> Response:
    return json_response(document)


async def _page(page: str, _: Request) -> Response:
    return bytes_response(page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": _POLICY})


async def _wrong_method(request: Request) -> Response:
    raise RefusedRequest(405, f"{request.url.path} has no method {request.method}; see /docs")


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  # an ASGI application
    raise RefusedRequest(404, f"there is no endpoint {scope['path']}; see /docs")
