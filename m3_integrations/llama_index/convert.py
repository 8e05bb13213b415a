"""Nodes and filters of LlamaIndex to passages and `Where`, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.texts import Passage
from m3_integrations.core.times import TIMES, times_as_text, times_restored
from m3_integrations.index.where import Field, Operator, Where, all_of, any_of, none_of
from m3_integrations.retrieval.retriever import Match

NODE_ID = "_node_id"
REF_DOC_ID = "_ref_doc_id"
NODE_TYPE = "_node_type"
_NODE = "_node_content"
_OWN = (_NODE, NODE_TYPE, NODE_ID, REF_DOC_ID)
_SAME: Mapping[FilterOperator, Operator] = {
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
}
_TOGETHER: Mapping[FilterCondition, Callable[..., Where]] = {
    FilterCondition.AND: all_of,
    FilterCondition.OR: any_of,
    FilterCondition.NOT: none_of,
}


def passage_of(node: BaseNode) -> Passage:
    """A node as a passage: its text as it is embedded, and all of the node in the metadata, for `node_of`.

    What an IndexNode points at stays behind: it may be a retriever or an engine. Dates and times in the metadata are
    kept as ISO 8601, which filters compare as text, and come back as what they were.
    """
    kept = node.model_copy(update={"obj": None}) if isinstance(node, IndexNode) else node
    stored = node_to_metadata_dict(kept)
    # LlamaIndex writes its "doc_id" and kin over fields of the same name; a filter means the field that the user gave.
    given = json.loads(stored[_NODE])["metadata"]
    own = {NODE_ID: node.node_id, REF_DOC_ID: node.ref_doc_id, TIMES: times_as_text(node.metadata).get(TIMES)}
    metadata = {**stored, **_without(given, _OWN), **{name: value for name, value in own.items() if value}}
    return Passage(node.node_id, node.get_content(MetadataMode.EMBED), metadata)


def node_of(passage: Passage) -> BaseNode:
    """The node that a passage was made of; a passage that was made otherwise becomes a TextNode."""
    if _NODE in passage.metadata:
        node = metadata_dict_to_node(dict(passage.metadata))
        node.metadata = times_restored({**node.metadata, TIMES: passage.metadata.get(TIMES, ())})
        return node
    return TextNode(id_=passage.id, text=passage.text, metadata=times_restored(passage.metadata))


def nodes_of(matches: Sequence[Match]) -> list[NodeWithScore]:
    """Matches as scored nodes, in their order."""
    return [NodeWithScore(node=node_of(match.passage), score=match.score) for match in matches]


def where_of(filters: MetadataFilters | Where | None) -> Where | None:
    """The filters as a Where; a Where stays as it is. Raises UnsupportedFilter for what a Where cannot say.

    No filters let everything through, whatever the condition, as in LlamaIndex's own stores.
    """
    if filters is None or isinstance(filters, Where):
        return filters
    if not isinstance(filters, MetadataFilters):
        raise UnsupportedFilter(f"filters are MetadataFilters or a Where, got {filters!r}")
    if not filters.filters:
        return all_of()
    parts = [_field(each) if isinstance(each, MetadataFilter) else where_of(each) for each in filters.filters]
    return _TOGETHER[filters.condition or FilterCondition.AND](*parts)


def filters_of(where: Where) -> MetadataFilters:
    """A Where as filters, for a round trip. Raises UnsupportedFilter for what LlamaIndex cannot say."""
    if isinstance(where, Field):
        return MetadataFilters(filters=[_filter(where)])
    condition = next(each for each, make in _TOGETHER.items() if isinstance(where, type(make())))
    if where == any_of():
        raise UnsupportedFilter("LlamaIndex has no filter that lets nothing through")
    parts = [_filter(each) if isinstance(each, Field) else filters_of(each) for each in where.parts]
    return MetadataFilters(filters=parts, condition=condition)


def _without(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name not in names}


def _field(each: MetadataFilter) -> Where:
    if each.operator == FilterOperator.TEXT_MATCH and not isinstance(each.value, str):
        raise UnsupportedFilter(f"'text_match' on {each.key!r} takes a string, got {each.value!r}")
    if each.operator in _SAME:
        return Field(each.key, _SAME[each.operator], each.value)
    if each.operator == FilterOperator.ANY:
        return any_of(*(Field(each.key, "contains", value) for value in _listed(each)))
    if each.operator == FilterOperator.ALL:
        return all_of(*(Field(each.key, "contains", value) for value in _listed(each)))
    if each.operator == FilterOperator.IS_EMPTY:
        empty: tuple[Any, ...] = (None, "", [])
        return any_of(Field(each.key, "exists", False), *(Field(each.key, "==", value) for value in empty))
    raise UnsupportedFilter(
        f"the filter operator {each.operator.value!r} on {each.key!r} is not supported; use one of "
        f"{sorted({operator.value for operator in _SAME} | {'any', 'all', 'is_empty'})}"
    )


def _listed(each: MetadataFilter) -> list[Any]:
    if not isinstance(each.value, list):
        raise UnsupportedFilter(f"{each.operator.value!r} on {each.key!r} takes a list of values, got {each.value!r}")
    return list(each.value)


def _filter(field: Field) -> MetadataFilter:
    operator = next((each for each, ours in _SAME.items() if ours == field.operator), None)
    if operator is None:
        raise UnsupportedFilter(f"LlamaIndex has no filter for {field.operator!r} on {field.name!r}")
    value = list(field.value) if field.operator in ("in", "not in") else field.value
    try:
        return MetadataFilter(key=field.name, operator=operator, value=value)
    except ValidationError as error:
        raise UnsupportedFilter(f"LlamaIndex's filters do not take {value!r}, asked of {field.name!r}") from error
