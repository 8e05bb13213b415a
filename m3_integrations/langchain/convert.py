"""Conversions between LangChain documents and filters and our passages and `Where`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document

from m3_integrations.adapters.datetimes import restore_datetimes, serialize_datetimes
from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.types import Passage
from m3_integrations.index.base import content_hash
from m3_integrations.index.filters import Field, Operator, Where, all_of, any_of, none_of, too_deep_error
from m3_integrations.index.records import json_metadata
from m3_integrations.retrieval.retriever import Match

Filter: TypeAlias = Mapping[str, Any]
SearchFilter: TypeAlias = Filter | Where | None
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
_COMBINATIONS: Mapping[str, Callable[..., Where]] = {"$and": all_of, "$or": any_of, "$nor": none_of}


def to_passage(document: Document) -> Passage:
    """Convert a document to a passage, as `texts_to_passages` does."""
    return next(to_passages([document]))


def to_passages(documents: Iterable[Document]) -> Iterator[Passage]:
    """Convert documents to passages, as `texts_to_passages` does."""
    for position, each in enumerate(documents):
        yield _to_passage(position, each.page_content, each.metadata, each.id)


def texts_to_passages(
    texts: Iterable[str], metadatas: Iterable[Mapping[str, Any] | None], ids: Iterable[str | None]
) -> list[Passage]:
    """Convert texts with metadata to passages.

    Args:
        texts: The texts.
        metadatas: JSON-like metadata of each; None for none. Dates and times are stored as ISO 8601, and those with a
            time zone in UTC, so that filters compare instants.
        ids: Id of each; None for a hash of text and metadata, so that adding the same text again replaces it.

    Raises:
        ValueError: If a value cannot be represented in JSON; the message names the document, the key and the value.
    """
    return [_to_passage(i, *each) for i, each in enumerate(zip(texts, metadatas, ids, strict=True))]


def _to_passage(position: int, text: str, metadata: Mapping[str, Any] | None, id: str | None) -> Passage:
    try:
        unnamed = Passage(id or "(without id)", text, json_metadata(serialize_datetimes(metadata or {})))
    except ValueError as error:
        raise ValueError(f"document {id or position!r}, {str(text)[:40]!r}: {error}") from None
    return Passage(id or content_hash(unnamed)[:32], text, unnamed.metadata)


def to_document(passage: Passage) -> Document:
    """Convert a passage to a document, the inverse of `to_passage`."""
    return Document(id=passage.id, page_content=passage.text, metadata=restore_datetimes(passage.metadata))


def to_documents(matches: Sequence[Match]) -> list[Document]:
    """Convert matches to documents, in the same order."""
    return [to_document(match.passage) for match in matches]


def to_where(filter: SearchFilter) -> Where | None:
    """Convert a filter in LangChain's usual notation to a `Where`.

    Args:
        filter: For example `{"year": {"$gte": 2020}, "lang": "de"}`; all conditions must hold. "$and", "$or" and "$nor"
            take lists of filters, "$not" takes a filter. Dates and times with a time zone are compared as instants. A
            `Where` and None are returned unchanged.

    Raises:
        UnsupportedFilter: If an operator or a value has no equivalent.
    """
    try:
        return None if filter is None else _to_where(filter)
    except RecursionError:
        raise too_deep_error() from None


def _to_where(filter: Filter | Where) -> Where:
    if isinstance(filter, Where):
        return filter
    if not isinstance(filter, Mapping):
        raise UnsupportedFilter(f"a filter must be a dict or a Where, got {filter!r}")
    return all_of(*(_to_condition(name, value) for name, value in filter.items()))


def _to_condition(name: str, value: Any) -> Where:
    if name in _COMBINATIONS:
        if not isinstance(value, (list, tuple)):
            raise UnsupportedFilter(f"{name!r} takes a list of filters, got {value!r}")
        return _COMBINATIONS[name](*map(_to_where, value))
    if name == "$not":
        return none_of(_to_where(value))
    if name.startswith("$"):
        raise UnsupportedFilter(f"{name!r} is not supported; use one of {[*_COMBINATIONS, '$not']} or a field's name")
    if not isinstance(value, Mapping):
        return Field(name, "==", value)
    return all_of(*(_to_field(name, operator, operand) for operator, operand in value.items()))


def _to_field(name: str, operator: str, value: Any) -> Where:
    if operator not in _OPERATORS:
        raise UnsupportedFilter(f"{operator!r} on {name!r} is not supported; use one of {sorted(_OPERATORS)}")
    return Field(name, _OPERATORS[operator], value)
