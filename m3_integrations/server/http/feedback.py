"""Endpoints that record feedback and learn from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.errors import M3Error, UnknownId
from m3_integrations.core.types import is_blank
from m3_integrations.encoders.base import Encoder
from m3_integrations.index import Index
from m3_integrations.nudging.feedback import LEAST_QUESTIONS, Feedback
from m3_integrations.server.http.encoding import INVALID
from m3_integrations.server.http.responses import REPORT_POLICY, RefusedRequest, bytes_response, json_response
from m3_integrations.server.http.schemas import FeedbackRequest, IndexRequest
from m3_integrations.server.http.search import choose_index
from m3_integrations.server.learning import Learner
from m3_integrations.server.settings import ServerSettings

_DAY = 86_400.0  # seconds
_log = logging.getLogger(__name__)
_RUNNING = "learning is running; wait until GET /learn says that it is done"


class FeedbackEndpoints:
    """Handlers of the endpoints that record feedback and learn from it.

    Args:
        encoder: The encoder of the indexes.
        indexes: Indexes by name.
        settings: Whether texts are recorded, and when judgements are forgotten.
    """

    def __init__(self, encoder: Encoder, indexes: Mapping[str, Index], settings: ServerSettings) -> None:
        self._indexes = indexes
        self._forget_after = settings.forget_after
        self._feedback = {
            name: Feedback(encoder, index, keeps_queries=settings.keeps_queries) for name, index in indexes.items()
        }
        self._learners = {name: Learner(encoder, index, self._feedback[name]) for name, index in indexes.items()}

    async def record(self, request: FeedbackRequest) -> Response:
        """Record a judgement; the answer is sent when it is on disk."""
        name, _ = choose_index(self._indexes, request.index)
        if is_blank(request.query):
            raise RefusedRequest(INVALID, "the query is empty; send the query that found the passage")
        try:
            await to_thread(self._feedback[name].add, request.query, request.id, request.useful)
        except UnknownId as error:
            raise RefusedRequest(404, str(error)) from error
        return await self._count(name)

    async def count(self, request: IndexRequest) -> Response:
        """Count the judgements."""
        name, _ = choose_index(self._indexes, request.index)
        return await self._count(name)

    async def learn(self, request: IndexRequest) -> Response:
        """Start learning."""
        name, learner = self._learner(request)
        if not await to_thread(learner.start):
            raise RefusedRequest(409, _RUNNING)
        return _status(name, learner)

    async def learning(self, request: IndexRequest) -> Response:
        """Return the state of the last run."""
        return _status(*self._learner(request))

    async def report(self, request: IndexRequest) -> Response:
        """Return the report of the last run as a page."""
        _, learner = self._learner(request)
        html = learner.status.html
        if html is None:
            raise RefusedRequest(404, "there is no report; start with POST /learn")
        return bytes_response(
            html.encode("utf-8", "replace"), "text/html; charset=utf-8", {"Content-Security-Policy": REPORT_POLICY}
        )

    async def undo(self, request: IndexRequest) -> Response:
        """Restore the original vectors."""
        name, learner = self._learner(request)
        if not await to_thread(learner.undo):
            raise RefusedRequest(409, _RUNNING)
        return _status(name, learner)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forget old judgements while the block runs; afterwards, cancel what is being learned."""
        forgetting = asyncio.create_task(self._forget_daily())
        try:
            yield
        finally:
            forgetting.cancel()
            for learner in self._learners.values():
                await to_thread(learner.stop)

    async def _forget_daily(self) -> None:
        while self._forget_after is not None:
            await to_thread(self._forget, datetime.now(UTC) - timedelta(days=self._forget_after))
            await asyncio.sleep(_DAY)

    def _forget(self, moment: datetime) -> None:
        for name, feedback in self._feedback.items():
            try:
                feedback.forget_before(moment)
            except M3Error as error:  # such as a ledger in use
                _log.warning("feedback of %s is forgotten later: %s", name, error)

    def _learner(self, request: IndexRequest) -> tuple[str, Learner]:
        name, _ = choose_index(self._indexes, request.index)
        return name, self._learners[name]

    async def _count(self, name: str) -> Response:
        counts: dict[str, Any] = (await to_thread(self._feedback[name].counts))._asdict()
        return json_response({"index": name, **counts, "wanted": LEAST_QUESTIONS})


def _status(name: str, learner: Learner) -> Response:
    return json_response({"index": name, **learner.status.to_json()})
