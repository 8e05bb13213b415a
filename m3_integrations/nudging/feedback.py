"""Feedback: judgements of search results in the ledger of an index, and nudges that learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Modes
from m3_integrations.core.errors import UnknownId
from m3_integrations.core.types import Query, is_blank
from m3_integrations.data.load import SHARES
from m3_integrations.data.splits import normalize_question, split_by_text
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Fingerprinted, Index
from m3_integrations.index.local.ledger_file import ledger_file
from m3_integrations.nudging.ledger import Judgement, Ledger, now, to_stored_time
from m3_integrations.nudging.method.variants import MethodChoice
from m3_integrations.nudging.nudger import Nudger, open_ledger
from m3_integrations.nudging.progress import OnProgress
from m3_integrations.nudging.report.report import NudgeReport
from m3_integrations.retrieval.retriever import Retriever

LEAST_QUESTIONS = 30  # with a useful passage, below which no nudge is tried
ENOUGH_QUESTIONS = 100  # from which a gain of some percent is usually significant
FIRST = 10  # results in which passages judged not useful are counted


class FeedbackCounts(NamedTuple):
    """Judgements of an index; of several of one passage for one query, the last counts.

    Attributes:
        judged: Number of judgements.
        useful: Those that are useful.
        not_useful: The others.
        questions: Number of different queries with a useful passage.
    """

    judged: int
    useful: int
    not_useful: int
    questions: int


class NotUseful(NamedTuple):
    """Passages judged not useful that are among the first results of their queries.

    Attributes:
        judged: Number of these judgements.
        before: How many were among the first results before learning.
        after: How many are now.
    """

    judged: int
    before: int
    after: int


class Learned(NamedTuple):
    """What was learned from feedback.

    Attributes:
        message: What happened, in plain sentences.
        report: Report of the nudge; None if there was too little feedback to try one.
        not_useful: Change of passages judged not useful; None if there are none or nothing was tried.
    """

    message: str
    report: NudgeReport | None
    not_useful: NotUseful | None


def read_judgements(encoder: Fingerprinted, index: Index, path: str | Path | None = None) -> list[Judgement]:
    """Return every judgement in the ledger of an index, oldest first, without creating a ledger.

    Args:
        encoder: The encoder that filled the index, or its fingerprint alone.
        index: The index.
        path: File of the ledger; by default that of the index.
    """
    if not _has_ledger(encoder, index, path):
        return []
    with _opened(encoder, index, path) as ledger:
        return ledger.judgements()


def _has_ledger(encoder: Fingerprinted, index: Index, path: str | Path | None) -> bool:
    """Return whether there may be a ledger; opening one would create it."""
    folder: Path | None = getattr(index, "folder", None)
    return path is not None or folder is None or ledger_file(folder, encoder.fingerprint).is_file()


@contextmanager
def _opened(encoder: Fingerprinted, index: Index, path: str | Path | None) -> Iterator[Ledger]:
    ledger = open_ledger(index, encoder, path)
    try:
        yield ledger
    finally:
        if ledger.path is not None:  # one in memory lives as long as the index
            ledger.close()


class Feedback:
    """Judgements of search results of an index, in the ledger of its nudges.

    Judgements are appended and never changed. `Nudger.forget_queries` deletes old ones, and `delete(..., purge=True)`
    of a LocalIndex those of the passages.

    Args:
        encoder: The encoder that filled the index.
        index: The index.
        ledger: File of the ledger; by default that of the index, as for `Nudger`.
        keeps_queries: Whether the texts of queries are recorded. Judgements without them are counted, but nothing is
            learned from them.
    """

    def __init__(
        self,
        encoder: Encoder,
        index: Index,
        *,
        ledger: str | Path | None = None,
        keeps_queries: bool = True,
    ) -> None:
        self.encoder, self.index, self.keeps_queries = encoder, index, keeps_queries
        self._path = ledger

    def add(self, query: str, passage: str, is_useful: bool) -> None:
        """Record whether a passage was useful for a query; it is on disk when the call returns.

        Args:
            query: Text of the query.
            passage: Id of the passage.
            is_useful: The judgement.

        Raises:
            ValueError: If the query is blank.
            UnknownId: If the index has no such passage.
            WriterBusy: If another process writes for longer than a write waits.
        """
        if is_blank(query):
            raise ValueError("the query is empty; give the query that found the passage")
        if passage not in self.index.content_hashes([passage]):
            raise UnknownId(f"the index has no passage {passage!r}; give the id of a result")
        self.extend([Judgement(query if self.keeps_queries else None, passage, is_useful, now())])

    def extend(self, judgements: Sequence[Judgement]) -> None:
        """Record judgements of another ledger with their times.

        Args:
            judgements: The judgements.
        """
        if judgements:
            with self._ledger() as ledger:
                ledger.add_judgements(judgements)

    def judgements(self) -> list[Judgement]:
        """Return every judgement, oldest first."""
        return read_judgements(self.encoder, self.index, self._path)

    @property
    def version(self) -> int:
        """Version of the nudge that the index holds; 0 for the original vectors."""
        with self._ledger() as ledger:
            return ledger.current

    def counts(self) -> FeedbackCounts:
        """Return the numbers of judgements."""
        known = self.judgements()
        judged = [each.is_useful for each in known if each.query is None]
        grades = _grades(known)
        judged += [is_useful for of_query in grades.values() for is_useful in of_query.values()]
        questions = sum(any(of_query.values()) for of_query in grades.values())
        return FeedbackCounts(len(judged), sum(judged), len(judged) - sum(judged), questions)

    def forget_before(self, moment: datetime) -> int:
        """Delete judgements and questions recorded before a time, as `Nudger.forget_queries` does.

        Args:
            moment: The time; without a zone, in UTC.

        Returns:
            Number of deleted queries and judgements.
        """
        if not _has_ledger(self.encoder, self.index, self._path):
            return 0
        with self._ledger() as ledger:
            return ledger.forget_before(to_stored_time(moment))

    def _ledger(self) -> AbstractContextManager[Ledger]:
        return _opened(self.encoder, self.index, self._path)

    def learn(
        self,
        *,
        modes: Modes | None = None,
        metric: str = "ndcg@10",
        method: MethodChoice = "auto",
        seed: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Learned:
        """Nudge the index by its feedback; nothing moves without a significant gain on held-out questions.

        Passages judged useful become judged queries, split by text into training, validation and test. Judgements of
        passages that are not useful move nothing: they are counted among the first results before and after.

        Args:
            modes: Modes to nudge; all by default.
            metric: Ranking metric to maximize.
            method: Method for dense vectors, as in `Nudger.fit`.
            seed: Seed of the split.
            on_progress: As in `Nudger.fit`.

        Returns:
            What happened, and the report of the nudge.

        Raises:
            PassagesChanged: If another process changed passages in the meantime; call it again.
        """
        known = set(self.index.ids())
        grades = _grades(each for each in self.judgements() if each.passage in known)
        liked = _queries(grades, is_useful=True)
        if len(liked) < LEAST_QUESTIONS:
            return Learned(_too_few(len(liked)), None, None)
        train, validation, test = split_by_text(liked, SHARES, np.random.default_rng(seed))
        disliked = _queries(grades, is_useful=False)
        nudged = modes or self.encoder.modes & self.index.modes
        with closing(Nudger(self.encoder, self.index, ledger=self._path)) as nudger:
            before = self._count_first(disliked)
            held = next((each.moved for each in nudger.versions() if each.number == nudger.version), 0)
            report = nudger.fit(
                train, validation, test=test, modes=nudged, metric=metric, method=method, on_progress=on_progress
            )
            after = self._count_first(disliked)
        judged = sum(len(query.relevant) for query in disliked)
        not_useful = NotUseful(judged, before, after) if judged else None
        return Learned(_describe(report, len(liked), held, not_useful), report, not_useful)

    def _count_first(self, queries: Sequence[Query]) -> int:
        """Count the judged passages of queries that are among their first results."""
        found = Retriever(self.encoder, self.index).retrieve_many([query.text for query in queries], FIRST)
        pairs = zip(queries, found, strict=True)
        return sum(match.passage.id in query.relevant for query, matches in pairs for match in matches)


def _grades(judgements: Iterable[Judgement]) -> dict[str, dict[str, bool]]:
    """Return the last judgement of each passage by query, under the first spelling of the query."""
    spellings: dict[str, str] = {}
    grades: dict[str, dict[str, bool]] = {}
    for query, passage, is_useful, _ in judgements:
        if query is not None:
            text = spellings.setdefault(normalize_question(query), query)
            grades.setdefault(text, {})[passage] = is_useful
    return grades


def _queries(grades: Mapping[str, Mapping[str, bool]], *, is_useful: bool) -> list[Query]:
    """Return the queries with a passage of this judgement, and these passages."""
    chosen = {text: {id: 1.0 for id, each in of.items() if each is is_useful} for text, of in grades.items()}
    return [Query(f"feedback-{i}", text, of) for i, (text, of) in enumerate(chosen.items(), 1) if of]


def _too_few(questions: int) -> str:
    have = f"{questions} question{'s have' if questions != 1 else ' has'} a useful passage"
    return (
        f"Not enough evidence yet, nothing moved: {have}. Judge the results of at least {LEAST_QUESTIONS} questions; "
        f"{ENOUGH_QUESTIONS} are usually enough."
    )


def _describe(report: NudgeReport, questions: int, held: int, not_useful: NotUseful | None) -> str:
    """Say what a fit did, what became of the nudge before it, and where passages judged not useful are."""
    sentences = [report.summary]
    if not report.moved:
        sentences = [
            f"Not enough evidence yet, nothing moved: no gain from {questions} questions is significant. "
            f"Judge more results; {max(ENOUGH_QUESTIONS, 2 * questions)} questions may show one."
        ]
        if held:
            sentences.append("The original vectors are restored, as the earlier nudge no longer shows a gain.")
    if not_useful is not None:
        sentences.append(
            f"Of {not_useful.judged} passages judged not useful, {not_useful.before} were among the first {FIRST} "
            f"results, and {not_useful.after} are now."
        )
    return " ".join(sentences)
