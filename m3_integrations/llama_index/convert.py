"""Conversions between LlamaIndex nodes and filters and our passages and `Where`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from m3_integrations.adapters.datetimes import TIMES, restore_datetimes, serialize_datetimes
from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.types import Passage, ScoreCalibration
from m3_integrations.index.filters import Field, Operator, Where, all_of, any_of, none_of, too_deep_error
from m3_integrations.index.records import json_metadata
from m3_integrations.retrieval.plan_calibration import match_probabilities
from m3_integrations.retrieval.retriever import Match

NODE_ID = "_node_id"
REF_DOC_ID = "_ref_doc_id"
_NODE_TYPE = "_node_type"
_NODE_CONTENT = "_node_content"
_INTERNAL_KEYS = (_NODE_CONTENT, _NODE_TYPE, NODE_ID, REF_DOC_ID)
_OPERATORS: Mapping[FilterOperator, Operator] = {
    FilterOperator.EQ: "==",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.LT: "<",
    FilterOperator.GTE: ">=",
    FilterOperator.LTE: "<=",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "not in",
    FilterOperator.CONTAINS: "contains",
    FilterOperator.TEXT_MATCH: "contains",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "icontains",
}
_TEXT_OPERATORS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_CONDITIONS: Mapping[FilterCondition, Callable[..., Where]] = {
    FilterCondition.AND: all_of,
    FilterCondition.OR: any_of,
    FilterCondition.NOT: none_of,
}


def to_passage(node: BaseNode) -> Passage:
    """Convert a node to a passage, reversibly by `to_node`.

    The text is the node's content in `MetadataMode.EMBED`. The metadata holds the node's own metadata, for filters, and
    the serialized node. Dates and times are filtered as ISO 8601 text, those with a time zone in UTC.

    Args:
        node: Any node. The object of an IndexNode is not stored, as it may be a retriever or a query engine.

    Raises:
        ValueError: If a metadata value is not JSON; the message names the node, the key and the value.
    """
    plain = _json_metadata(node)
    times = plain.pop(TIMES, None)
    without_object = {"obj": None} if isinstance(node, IndexNode) else {}
    stored = node_to_metadata_dict(node.model_copy(update={"metadata": plain, **without_object}))
    # LlamaIndex overwrites user fields named "doc_id", "document_id" and "ref_doc_id"; filters mean the user's fields.
    user_metadata = _without(plain, _INTERNAL_KEYS)
    internal = {NODE_ID: node.node_id, REF_DOC_ID: node.ref_doc_id, TIMES: times}
    metadata = {**stored, **user_metadata, **{name: value for name, value in internal.items() if value}}
    return Passage(node.node_id, node.get_content(MetadataMode.EMBED), metadata)


def to_node(passage: Passage) -> BaseNode:
    """Convert a passage to its original node, or to a TextNode if it has none."""
    if _NODE_CONTENT in passage.metadata:
        node = metadata_dict_to_node(dict(passage.metadata))
        node.metadata = restore_datetimes({**node.metadata, TIMES: passage.metadata.get(TIMES, ())})
        return node
    return TextNode(id_=passage.id, text=passage.text, metadata=restore_datetimes(passage.metadata))


def to_nodes(matches: Sequence[Match], calibration: ScoreCalibration | None = None) -> list[NodeWithScore]:
    """Convert matches to scored nodes, in the same order.

    Args:
        matches: Matches.
        calibration: Calibration of their scores; the nodes then have probabilities as scores.
    """
    scores = [match.score for match in matches] if calibration is None else match_probabilities(calibration, matches)
    return [NodeWithScore(node=to_node(each.passage), score=score) for each, score in zip(matches, scores, strict=True)]


def to_where(filters: MetadataFilters | Where | None) -> Where | None:
    """Convert metadata filters to a `Where`.

    Args:
        filters: Filters, possibly nested. Empty filters match every node, as in LlamaIndex's own stores. A `Where` and
            None are returned unchanged.

    Raises:
        UnsupportedFilter: If an operator or a value has no equivalent.
    """
    if filters is None or isinstance(filters, Where):
        return filters
    if not isinstance(filters, MetadataFilters):
        raise UnsupportedFilter(f"filters must be MetadataFilters or a Where, got {filters!r}")
    if not filters.filters:
        return all_of()
    try:
        parts = [_to_field(each) if isinstance(each, MetadataFilter) else to_where(each) for each in filters.filters]
    except RecursionError:
        raise too_deep_error() from None
    return _CONDITIONS[filters.condition or FilterCondition.AND](*parts)


def to_filters(where: Where) -> MetadataFilters:
    """Convert a `Where` to metadata filters, the inverse of `to_where`.

    Raises:
        UnsupportedFilter: If LlamaIndex has no equivalent filter.
    """
    if isinstance(where, Field):
        return MetadataFilters(filters=[_to_filter(where)])
    condition = next(each for each, combine in _CONDITIONS.items() if isinstance(where, type(combine())))
    if where == any_of():
        raise UnsupportedFilter("LlamaIndex has no filter that matches nothing")
    parts = [_to_filter(each) if isinstance(each, Field) else to_filters(each) for each in where.parts]
    return MetadataFilters(filters=parts, condition=condition)


def _json_metadata(node: BaseNode) -> dict[str, Any]:
    try:
        return json_metadata(serialize_datetimes(node.metadata))
    except ValueError as error:
        text = node.get_content(MetadataMode.NONE)[:40]
        raise ValueError(f"node {node.node_id!r}, {text!r}: {error}") from None


def _without(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in names}


def _to_field(each: MetadataFilter) -> Where:
    if each.operator in _TEXT_OPERATORS and not isinstance(each.value, str):
        raise UnsupportedFilter(f"{each.operator.value!r} on {each.key!r} takes a string, got {each.value!r}")
    if each.operator in _OPERATORS:
        return Field(each.key, _OPERATORS[each.operator], each.value)
    if each.operator == FilterOperator.ANY:
        return any_of(*(Field(each.key, "contains", value) for value in _values(each)))
    if each.operator == FilterOperator.ALL:
        return all_of(*(Field(each.key, "contains", value) for value in _values(each)))
    if each.operator == FilterOperator.IS_EMPTY:
        empty: tuple[Any, ...] = (None, "", [])
        return any_of(Field(each.key, "exists", False), *(Field(each.key, "==", value) for value in empty))
    supported = sorted({operator.value for operator in _OPERATORS} | {"any", "all", "is_empty"})
    raise UnsupportedFilter(
        f"the filter operator {each.operator.value!r} on {each.key!r} is not supported; use one of {supported}"
    )


def _values(each: MetadataFilter) -> list[Any]:
    if not isinstance(each.value, list):
        raise UnsupportedFilter(f"{each.operator.value!r} on {each.key!r} takes a list of values, got {each.value!r}")
    return list(each.value)


def _to_filter(field: Field) -> MetadataFilter:
    operator = next((each for each, ours in _OPERATORS.items() if ours == field.operator), None)
    if operator is None:
        raise UnsupportedFilter(f"LlamaIndex has no filter operator for {field.operator!r} on {field.name!r}")
    value = list(field.value) if field.operator in ("in", "not in") else field.value
    try:
        return MetadataFilter(key=field.name, operator=operator, value=value)
    except ValidationError as error:
        raise UnsupportedFilter(f"LlamaIndex filters do not accept {value!r} for {field.name!r}") from error
