"""Endpoints that record feedback and learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.errors import UnknownId
from m3_integrations.core.types import is_blank
from m3_integrations.encoders.base import Encoder
from m3_integrations.index import Index
from m3_integrations.nudging.feedback import LEAST_QUESTIONS, Feedback
from m3_integrations.server.http.encoding import INVALID
from m3_integrations.server.http.responses import REPORT_POLICY, RefusedRequest, bytes_response, json_response
from m3_integrations.server.http.schemas import FeedbackRequest, IndexRequest
from m3_integrations.server.http.search import choose_index
from m3_integrations.server.learning import Learner

_RUNNING = "learning is running; wait until GET /learn says that it is done"


class FeedbackEndpoints:
    """Handlers of the endpoints that record feedback and learn from it.

    Args:
        encoder: The encoder of the indexes.
        indexes: Indexes by name.
    """

    def __init__(self, encoder: Encoder, indexes: Mapping[str, Index]) -> None:
        self._encoder = encoder
        self._indexes = indexes
        self._learners = {name: Learner(encoder, index) for name, index in indexes.items()}

    async def record(self, request: FeedbackRequest) -> Response:
        """Record a judgement; the answer is sent when it is on disk."""
        name, index = choose_index(self._indexes, request.index)
        feedback = Feedback(self._encoder, index)
        if is_blank(request.query):
            raise RefusedRequest(INVALID, "the query is empty; send the query that found the passage")
        try:
            await to_thread(feedback.add, request.query, request.id, request.useful)
        except UnknownId as error:
            raise RefusedRequest(404, str(error)) from error
        return await self._count(name, feedback)

    async def count(self, request: IndexRequest) -> Response:
        """Count the judgements."""
        name, index = choose_index(self._indexes, request.index)
        return await self._count(name, Feedback(self._encoder, index))

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
        return bytes_response(html.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": REPORT_POLICY})

    async def undo(self, request: IndexRequest) -> Response:
        """Restore the original vectors."""
        name, learner = self._learner(request)
        if not await to_thread(learner.undo):
            raise RefusedRequest(409, _RUNNING)
        return _status(name, learner)

    def stop(self) -> None:
        """Cancel what is being learned."""
        for learner in self._learners.values():
            learner.stop()

    def _learner(self, request: IndexRequest) -> tuple[str, Learner]:
        name, _ = choose_index(self._indexes, request.index)
        return name, self._learners[name]

    async def _count(self, name: str, feedback: Feedback) -> Response:
        counts: dict[str, Any] = (await to_thread(feedback.counts))._asdict()
        return json_response({"index": name, **counts, "wanted": LEAST_QUESTIONS})


def _status(name: str, learner: Learner) -> Response:
    return json_response({"index": name, **learner.status.to_json()})
