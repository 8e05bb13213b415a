"""Documents and filters of LangChain to passages and `Where`, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import content_hash
from m3_integrations.index.where import Field, Operator, Where, all_of, any_of, none_of
from m3_integrations.retrieval.retriever import Match

Filter: TypeAlias = Mapping[str, Any]
_OPERATORS: Mapping[str, Operator] = {
    "$eq": "==",
    "$ne": "!=",
    "$lt": "<",
    "$lte": "<=",
    "$gt": ">",
    "$gte": ">=",
    "$in": "in",
    "$nin": "not in",
    "$contains": "contains",
    "$exists": "exists",
}
_TOGETHER: Mapping[str, Callable[..., Where]] = {"$and": all_of, "$or": any_of, "$nor": none_of}


def passage_of(document: Document) -> Passage:
    """A document as a passage; one without id gets one from its content, so that adding it again replaces it."""
    unnamed = Passage("?", document.page_content, document.metadata)
    return Passage(document.id or content_hash(unnamed)[:32], document.page_content, document.metadata)


def document_of(passage: Passage) -> Document:
    return Document(id=passage.id, page_content=passage.text, metadata=dict(passage.metadata))


def documents_of(matches: Sequence[Match]) -> list[Document]:
    """Matches as documents, in their order."""
    return [document_of(match.passage) for match in matches]


def where_of(filter: Filter | Where | None) -> Where | None:
    """A filter in LangChain's usual notation as a Where; a Where stays as it is.

    `{"year": {"$gte": 2020}, "lang": "de"}`: all conditions hold. "$and", "$or", "$nor" take lists, "$not" a filter.
    Raises UnsupportedFilter for what a Where cannot say.
    """
    return None if filter is None else _where(filter)


def _where(filter: Filter | Where) -> Where:
    if isinstance(filter, Where):
        return filter
    if not isinstance(filter, Mapping):
        raise UnsupportedFilter(f"a filter is a dict or a Where, got {filter!r}")
    return all_of(*(_condition(name, asked) for name, asked in filter.items()))


def _condition(name: str, asked: Any) -> Where:
    if name in _TOGETHER:
        if not isinstance(asked, (list, tuple)):
            raise UnsupportedFilter(f"{name!r} takes a list of filters, got {asked!r}")
        return _TOGETHER[name](*map(_where, asked))
    if name == "$not":
        return none_of(_where(asked))
    if name.startswith("$"):
        raise UnsupportedFilter(f"{name!r} is not supported; use one of {[*_TOGETHER, '$not']} or a field's name")
    if not isinstance(asked, Mapping):
        return Field(name, "==", asked)
    return all_of(*(_field(name, operator, value) for operator, value in asked.items()))


def _field(name: str, operator: str, value: Any) -> Where:
    if operator not in _OPERATORS:
        raise UnsupportedFilter(f"{operator!r} on {name!r} is not supported; use one of {sorted(_OPERATORS)}")
    return Field(name, _OPERATORS[operator], value)
