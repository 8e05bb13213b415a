"""Endpoints of the page: the page itself, its parts that change, its files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.titles import title_of
from m3_integrations.encoders.base import has_content
from m3_integrations.index import Index
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.nudging.report.html import environment, language_of
from m3_integrations.retrieval.retriever import Match
from m3_integrations.server.batching import BatchingEncoder
from m3_integrations.server.http.fields import list_fields
from m3_integrations.server.http.page.form import MAX_OPTIONS, FilterControl, SearchForm, filter_controls, where_of
from m3_integrations.server.http.page.passage import PassageDetails, describe_passage
from m3_integrations.server.http.page.search import SHOWN, PageResult, PageSearch
from m3_integrations.server.http.responses import RefusedRequest, bytes_response, refuse_expected_errors
from m3_integrations.server.http.search import choose_index
from m3_integrations.server.settings import ServerSettings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
MODE_LABELS = {
    "dense": "meaning",
    "sparse": "same words",
    "multi_vector": "meaning, word by word",
}
_FIELDS_AGE = 30.0  # seconds that the filters of an index are remembered


@dataclass(frozen=True)
class PageView:
    """Content of the page.

    Attributes:
        form: What was asked for.
        names: Names of the indexes.
        name: Name of the index that is searched; "" if there is none.
        passages: Number of its passages.
        search: The search; None if there is no index.
        controls: Filters.
        results: Results, best first.
        details: The passage shown in full.
        error: Why there are no results; "" without an error.
        can_undo: Whether the index holds nudged vectors.
    """

    form: SearchForm
    names: Sequence[str] = ()
    name: str = ""
    passages: int = 0
    search: PageSearch | None = None
    controls: Sequence[FilterControl] = ()
    results: Sequence[PageResult] = ()
    details: PassageDetails | None = None
    error: str = ""
    can_undo: bool = False


class PageEndpoints:
    """Handlers of the page.

    Args:
        batching: Encoder of the queries.
        indexes: Indexes by name.
        settings: The key; with one, `home` shows only where to enter it.
    """

    def __init__(self, batching: BatchingEncoder, indexes: Mapping[str, Index], settings: ServerSettings) -> None:
        self._batching = batching
        self._indexes = indexes
        self._needs_key = settings.api_key is not None
        self._fields: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._templates = environment()
        self._templates.filters |= {"title_of": title_of, "language_of": language_of}
        self._templates.globals |= {"shown": SHOWN, "mode_labels": MODE_LABELS}

    def routes(self) -> list[Route]:
        """Return the routes of the page; with a key, those without one are in `OPEN_PATHS` of the guard."""
        handlers = {
            "/": self.home,
            "/page": self.content,
            "/page/results": self.results,
            "/page/passage": self.passage,
            "/page/style.css": self.style,
            "/page/script.js": self.script,
            "/page/icon.svg": self.icon,
        }
        return [Route(path, handler, methods=["GET"]) for path, handler in handlers.items()]

    async def home(self, request: Request) -> Response:
        """Return the page; with a key, only a form for the key, since browsers open addresses without it."""
        return self._html("key.html") if self._needs_key else await self.content(request)

    async def content(self, request: Request) -> Response:
        """Return the whole page, with the results of the query in its address."""
        form = SearchForm()
        try:
            form = SearchForm.from_params(request.query_params.multi_items())
            view = await self._view(form, is_explained=True)
        except RefusedRequest as error:
            view, status = await self._view(SearchForm(index=None), error=str(error)), error.status
            return self._html("serve.html", status, view=view)
        return self._html("serve.html", view=view)

    async def results(self, request: Request) -> Response:
        """Return the results of a query, with `explained` those whose words the model compares."""
        begin = time.perf_counter()
        form = SearchForm.from_params(request.query_params.multi_items())
        view = await self._view(form, is_explained="explained" in request.query_params, has_details=False)
        return self._html("results.html", view=view, milliseconds=1000 * (time.perf_counter() - begin))

    async def passage(self, request: Request) -> Response:
        """Return a passage in full."""
        form = SearchForm.from_params(request.query_params.multi_items())
        name, index = self._choose(form)
        search = PageSearch(self._batching.encoder, index, form)
        with refuse_expected_errors():
            encoded = await self._encode(search)
            details = await to_thread(_describe, search, encoded, [])
        if details is None:
            raise RefusedRequest(404, "this passage is no longer in the index; search again")
        return self._html("passage.html", view=PageView(form, name=name, search=search, details=details))

    async def style(self, _: Request) -> Response:
        """Return the stylesheet, which the reports share."""
        return bytes_response(self._templates.get_template("page.css").render().encode(), "text/css; charset=utf-8")

    async def script(self, _: Request) -> Response:
        """Return the script."""
        return bytes_response(_read("serve.js"), "text/javascript; charset=utf-8")

    async def icon(self, _: Request) -> Response:
        """Return the icon."""
        return bytes_response(_read("icon.svg"), "image/svg+xml")

    async def _view(
        self, form: SearchForm, *, is_explained: bool = False, has_details: bool = True, error: str = ""
    ) -> PageView:
        """Search, and collect what the page shows."""
        if not self._indexes:
            return PageView(form, error=error)
        name, index = self._choose(form)
        search = PageSearch(self._batching.encoder, index, form)
        controls = await to_thread(self._controls, name, index)
        with refuse_expected_errors():
            encoded = await self._encode(search)
            found = await to_thread(_find, search, encoded, controls, is_explained)
            details = await to_thread(_describe, search, encoded, found) if has_details and encoded else None
        can_undo = has_details and await to_thread(self._is_nudged, index)
        names = list(self._indexes)
        return PageView(form, names, name, len(index), search, controls, found, details, error, can_undo)

    def _choose(self, form: SearchForm) -> tuple[str, Index]:
        return choose_index(self._indexes, form.index or next(iter(self._indexes), None))

    async def _encode(self, search: PageSearch) -> Encoded | None:
        """Encode the query in every mode; None if there is nothing to search by."""
        query = search.form.query
        if not search.index.modes or not (await to_thread(has_content, search.encoder, [query]))[0]:
            return None
        return await self._batching.encode("query", [query])

    def _controls(self, name: str, index: Index) -> list[FilterControl]:
        """Return the filters of an index; its fields are listed again after some time."""
        listed, fields = self._fields.get(name, (0.0, []))
        if not fields or time.monotonic() - listed > _FIELDS_AGE:
            fields = list_fields(index, MAX_OPTIONS)
            self._fields[name] = (time.monotonic(), fields)
        return filter_controls(fields, len(index))

    def _is_nudged(self, index: Index) -> bool:
        return Feedback(self._batching.encoder, index).version > 0

    def _html(self, template: str, status: int = 200, **context: Any) -> Response:
        html = self._templates.get_template(template).render(**context)
        answer = bytes_response(
            html.encode("utf-8", "replace"),  # passages may hold halves of surrogate pairs
            "text/html; charset=utf-8",
            {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"},
        )
        answer.status_code = status
        return answer


def _find(
    search: PageSearch, encoded: Encoded | None, controls: Sequence[FilterControl], is_explained: bool
) -> list[PageResult]:
    where = where_of(search.form, controls)
    if encoded is None:
        return []
    found = search.find(encoded, where)
    return search.explain(encoded, found) if is_explained else found


def _describe(search: PageSearch, encoded: Encoded | None, found: Sequence[PageResult]) -> PassageDetails | None:
    """Describe the selected passage, otherwise the first result; None if there is none."""
    selected = search.form.selected
    result = next((each for each in found if selected in (None, each.passage.id)), None)
    if result is None and selected is not None:
        known = search.index.passages(list(search.index.content_hashes([selected])))
        result = next((PageResult(Match(each, 0.0, {}), search.equal_words(each), {}) for each in known), None)
    if result is None:
        return None
    if encoded is not None and not result.explanation.late:
        (result,) = search.explain(encoded, [result])
    return describe_passage(search, encoded, result)


def _read(name: str) -> bytes:
    return (files("m3_integrations") / "templates" / name).read_bytes()
