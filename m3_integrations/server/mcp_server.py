"""MCP server over one index: search and fetch, and with write access remember, forget and feedback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from starlette.types import ASGIApp

from m3_integrations import __version__
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.errors import M3Error
from m3_integrations.core.titles import first_words, title_of
from m3_integrations.core.types import Passage, is_blank
from m3_integrations.encoders.base import Encoder
from m3_integrations.index import Index
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.server.http.guard import RequestGuard
from m3_integrations.server.settings import ServerSettings

EXCERPT = 500  # characters of a text in the results of a search
PATH = "/mcp"
REMEMBERED = 10_000  # passages whose last query is known, for feedback
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_APPENDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


class IndexTools:
    """The tools of an MCP server.

    Each answers with JSON in one text, as assistants expect of `search` and `fetch`.

    Args:
        encoder: Encoder of queries and remembered texts.
        index: Index to search.
        name: Name of the index in the URLs of passages that have none.
        k: Number of results of a search.
    """

    def __init__(self, encoder: Encoder, index: Index, name: str, k: int) -> None:
        self._encoder = encoder
        self._index = index
        self._name = name
        self._k = k
        self._retriever = Retriever(encoder, index)
        self._feedback = Feedback(encoder, index)
        self._found_by: dict[str, str] = {}  # last query by passage, oldest first

    async def search(self, query: str) -> str:
        """Search by meaning and by words, in any language of the model.

        Returns the best passages as {"results": [{"id", "title", "url", "text"}]}; fetch returns the whole text.
        """
        matches = await self._retriever.aretrieve(query, self._k)
        self._remember_query(query, matches)
        results = [{**self._head(each.passage), "text": first_words(each.passage.text, EXCERPT)} for each in matches]
        return _to_json({"results": results})

    async def fetch(self, id: str) -> str:
        """Return a passage by its id as {"id", "title", "url", "text", "metadata"}."""
        passage = await to_thread(self._read, id)
        return _to_json({**self._head(passage), "text": passage.text, "metadata": dict(passage.metadata)})

    async def remember(
        self, text: str, id: str | None = None, title: str | None = None, metadata: dict[str, Any] | None = None
    ) -> str:
        """Store a text. A passage with the same id is replaced; without an id, the same text is stored once."""
        if is_blank(text):
            raise ToolError("the text is empty; send what to remember")
        chosen = id or f"note-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        stated = {**(metadata or {}), **({} if title is None else {"title": title})}
        await to_thread(self._add, Passage(chosen, text, stated))
        return _to_json({"id": chosen})

    async def forget(self, id: str) -> str:
        """Delete a passage by its id."""
        passage = await to_thread(self._read, id)
        await to_thread(self._delete, passage.id)
        return _to_json({"deleted": passage.id})

    async def feedback(self, id: str, useful: bool, query: str | None = None) -> str:
        """Say whether a passage was useful, so that later searches learn from it.

        The query is the one that found it; without it, the last search that returned the passage.
        """
        asked = query or self._found_by.get(id)
        if asked is None or is_blank(asked):
            raise ToolError(f"no search returned {id!r} lately; send the query that found it")
        await to_thread(self._judge, asked, id, useful)
        return _to_json({"id": id, "query": asked, "useful": useful})

    def _remember_query(self, query: str, matches: Sequence[Match]) -> None:
        for match in matches:
            self._found_by.pop(match.passage.id, None)
            self._found_by[match.passage.id] = query
        while len(self._found_by) > REMEMBERED:
            del self._found_by[next(iter(self._found_by))]

    def _judge(self, query: str, id: str, is_useful: bool) -> None:
        try:
            self._feedback.add(query, id, is_useful)
        except M3Error as error:
            raise ToolError(str(error)) from error

    def _read(self, id: str) -> Passage:
        try:
            (passage,) = self._index.passages([id])
        except M3Error as error:
            raise ToolError(f"there is no passage {id!r}; take an id from the results of search") from error
        return passage

    def _add(self, passage: Passage) -> None:
        try:
            ingest(self._encoder, self._index, [passage])
        except (M3Error, ValueError) as error:
            raise ToolError(str(error)) from error

    def _delete(self, id: str) -> None:
        try:
            self._index.delete([id])
        except M3Error as error:
            raise ToolError(str(error)) from error

    def _head(self, passage: Passage) -> dict[str, str]:
        """Return id, title and URL: the passage's own, otherwise one that names index and id."""
        own = passage.metadata.get("url")
        name, id = (quote(each, safe="", errors="replace") for each in (self._name, passage.id))
        url = own if isinstance(own, str) and own else f"m3://{name}/{id}"
        return {"id": passage.id, "title": title_of(passage), "url": url}


def create_mcp_server(
    encoder: Encoder, index: Index, *, name: str = "passages", k: int = 10, can_write: bool = False
) -> MCPServer:
    """Create an MCP server over an index.

    Args:
        encoder: Encoder that filled the index.
        index: The index.
        name: Name of the index, which assistants see.
        k: Number of results of a search.
        can_write: Whether there are the tools `remember`, `forget` and `feedback` too.

    Returns:
        The server; `run("stdio")` serves one assistant, `create_mcp_app` any number over HTTP.
    """
    tools = IndexTools(encoder, index, name, k)
    access = "Search, read, add and delete" if can_write else "Search and read"
    server = MCPServer(
        f"m3 {name}", version=__version__, instructions=f"{access} the passages of {name!r}.", log_level="WARNING"
    )
    offered: list[tuple[Callable[..., Any], ToolAnnotations]] = [(tools.search, _READS), (tools.fetch, _READS)]
    if can_write:
        offered += [(tools.remember, _WRITES), (tools.forget, _WRITES), (tools.feedback, _APPENDS)]
    for tool, hints in offered:
        server.add_tool(tool, annotations=hints, structured_output=False)
    return server


def create_mcp_app(server: MCPServer, settings: ServerSettings) -> ASGIApp:
    """Create the HTTP application of an MCP server, with streamable HTTP at /mcp.

    Args:
        server: Server of `create_mcp_server`.
        settings: Key, names and limits, checked as those of `create_app`.

    Returns:
        An ASGI application.
    """
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)  # the guard checks hosts and origins
    app = server.streamable_http_app(
        streamable_http_path=PATH, transport_security=unchecked, max_request_body_size=settings.max_body
    )
    return RequestGuard(app, settings, is_streaming=True)


def _to_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape
        return json.dumps(value)
    return text
