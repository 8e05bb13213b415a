"""Documents and filters of LangChain to passages and `Where`, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.texts import Passage
from m3_integrations.core.times import as_text, times_as_text, times_restored
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
    """A document as a passage, see `passage`."""
    return passage(document.page_content, document.metadata, document.id)


def passage(text: str, metadata: Mapping[str, Any], id: str | None = None) -> Passage:
    """A text with metadata as a passage; one without id gets one from its content, so that adding it again replaces it.

    Dates and times in the metadata are kept as ISO 8601, which filters compare as text, and come back as what they
    were. Raises ValueError, naming the key, for other values that JSON cannot say.
    """
    unnamed = Passage(id or "(without id)", text, times_as_text(metadata))
    return Passage(id or content_hash(unnamed)[:32], text, unnamed.metadata)


def document_of(passage: Passage) -> Document:
    """The document that a passage was made of."""
    return Document(id=passage.id, page_content=passage.text, metadata=times_restored(passage.metadata))


def documents_of(matches: Sequence[Match]) -> list[Document]:
    """Matches as documents, in their order."""
    return [document_of(match.passage) for match in matches]


def where_of(filter: Filter | Where | None) -> Where | None:
    """A filter in LangChain's usual notation as a Where; a Where stays as it is.

    `{"year": {"$gte": 2020}, "lang": "de"}`: all conditions hold. "$and", "$or", "$nor" take lists, "$not" a filter.
    A date or time is compared with those in the metadata, as ISO 8601.
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
        return Field(name, "==", as_text(asked))
    return all_of(*(_field(name, operator, value) for operator, value in asked.items()))


def _field(name: str, operator: str, value: Any) -> Where:
    if operator not in _OPERATORS:
        raise UnsupportedFilter(f"{operator!r} on {name!r} is not supported; use one of {sorted(_OPERATORS)}")
    return Field(name, _OPERATORS[operator], as_text(list(value) if isinstance(value, (set, frozenset)) else value))
