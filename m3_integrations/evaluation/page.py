"""An evaluation as one self-contained HTML page, with the queries that gained and lost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from m3_integrations.core.display import FieldsDisplay, html_table
from m3_integrations.core.titles import first_words
from m3_integrations.core.types import Query
from m3_integrations.evaluation.metrics import Metric
from m3_integrations.index.base import Index

SHOWN = 3  # best passages of a query
EXCERPT = 160  # characters of a passage
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class FoundPassage(NamedTuple):
    """One of the best passages of a query; its text is empty if the index does not hold it."""

    id: str
    text: str
    is_relevant: bool


class QueryOutcome(NamedTuple):
    """The metric of one query with two rankings, and their best passages."""

    query: Query
    before: float
    after: float
    best_before: Sequence[str]
    best_after: Sequence[str]

    @property
    def gain(self) -> float:
        return self.after - self.before


def outcomes(
    before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]], queries: Sequence[Query], metric: str
) -> list[QueryOutcome]:
    """Compare two rankings query by query.

    Args:
        before: Passage ids by query id.
        after: The same of the other ranking.
        queries: Judged queries; those without a relevant passage are left out.
        metric: Name of the metric.

    Returns:
        Outcomes, largest gain first.
    """
    value = Metric.parse(metric)
    found = [
        QueryOutcome(
            query,
            value(before.get(query.id, ()), query.relevant),
            value(after.get(query.id, ()), query.relevant),
            list(before.get(query.id, ()))[:SHOWN],
            list(after.get(query.id, ()))[:SHOWN],
        )
        for query in queries
        if any(grade > 0 for grade in query.relevant.values())
    ]
    return sorted(found, key=lambda outcome: (-outcome.gain, outcome.query.id))


@dataclass(frozen=True, repr=False)
class EvaluationPage(FieldsDisplay):
    """Content of the page.

    Attributes:
        title: What was evaluated.
        metric: Metric of the comparison.
        baseline: Name of the ranking before.
        default: Name of the ranking after.
        plans: Figures by name of the ranking: metrics, gain, low, high, latency_ms.
        languages: Metric by language and ranking.
        cross_lingual: Metric by language of queries and passages.
        outcomes: Queries, largest gain first.
        texts: Texts of passages by id.
    """

    title: str
    metric: str
    baseline: str
    default: str
    plans: Mapping[str, Mapping[str, Any]]
    languages: Mapping[str, Mapping[str, float]]
    cross_lingual: Mapping[str, Mapping[str, float]]
    outcomes: Sequence[QueryOutcome]
    texts: Mapping[str, str]

    @property
    def won(self) -> list[QueryOutcome]:
        """Queries that gained, largest gain first."""
        return [each for each in self.outcomes if each.gain > 0]

    @property
    def lost(self) -> list[QueryOutcome]:
        """Queries that lost, largest loss first."""
        return [each for each in reversed(self.outcomes) if each.gain < 0]

    def passages(self, outcome: QueryOutcome, ids: Sequence[str]) -> list[FoundPassage]:
        """Return the best passages of a query.

        Args:
            outcome: Outcome of a query.
            ids: Ids of the passages.
        """
        relevant = outcome.query.relevant
        return [FoundPassage(id, self.texts.get(id, ""), relevant.get(id, 0) > 0) for id in ids]

    def _repr_html_(self) -> str:
        names = list(self.plans[self.default]["metrics"])
        rows = [[name, *(f"{plan['metrics'][each]:.4f}" for each in names)] for name, plan in self.plans.items()]
        return html_table(["ranking", *names], rows)

    def render(self) -> str:
        """Return the page as HTML."""
        templates = Environment(
            loader=PackageLoader("m3_integrations", "templates"), autoescape=True, undefined=StrictUndefined
        )
        templates.filters["printable"] = lambda text: _UNPRINTABLE.sub("\ufffd", text)
        return templates.get_template("evaluation.html").render(page=self)


def texts_of(index: Index, found: Sequence[QueryOutcome]) -> dict[str, str]:
    """Return the beginnings of the passages of the queries that gained or lost.

    Args:
        index: The index of the passages.
        found: Outcomes of the queries.
    """
    ids = {id for each in found if each.gain for id in (*each.best_before, *each.best_after)}
    known = index.passages(sorted(index.content_hashes(ids)))
    return {passage.id: first_words(passage.text, EXCERPT) for passage in known}
