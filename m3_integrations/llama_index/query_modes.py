"""Conversion of a VectorStoreQuery to a search plan and a filter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from inspect import currentframe
from numbers import Integral
from typing import Any

from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from m3_integrations.core.encoded import Mode
from m3_integrations.core.types import SearchPlan
from m3_integrations.index.filters import Field, Where, all_of
from m3_integrations.llama_index.convert import NODE_ID, REF_DOC_ID, to_where

_MODES: Mapping[VectorStoreQueryMode, tuple[Mode, ...]] = {
    VectorStoreQueryMode.DEFAULT: ("dense",),
    VectorStoreQueryMode.MMR: ("dense",),
    VectorStoreQueryMode.SPARSE: ("sparse",),
    VectorStoreQueryMode.TEXT_SEARCH: ("sparse",),
    VectorStoreQueryMode.HYBRID: ("dense", "sparse"),
    VectorStoreQueryMode.SEMANTIC_HYBRID: ("dense", "sparse", "multi_vector"),
}
LEXICAL = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)


MMR_OPTIONS = frozenset(("mmr_threshold", "mmr_prefetch_factor", "mmr_prefetch_k"))
_MMR_THRESHOLD = 0.5
_MMR_PREFETCH_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """A search plan, the number of nodes to return, and candidates set by the query."""

    plan: SearchPlan
    k: int
    candidates: Mapping[Mode, int]


def to_request(
    query: VectorStoreQuery, sum_of: Callable[[Collection[Mode]], SearchPlan], candidates: int
) -> QueryRequest:
    """Convert a query to a search plan.

    Args:
        query: `alpha` scales the weights of a hybrid query: 0.5 keeps their proportions, 1 drops the sparse mode, 0
            uses the sparse mode alone. `hybrid_top_k` is the number of nodes of a hybrid query, `sparse_top_k` the
            number of sparse candidates and, if `hybrid_top_k` is set, `similarity_top_k` that of dense candidates.
        sum_of: Returns a plan with the weights of a hybrid query that sums some modes.
        candidates: Candidates per mode of a hybrid query.

    Raises:
        ValueError: If the query mode is not supported, `alpha` is outside [0, 1], or a `top_k` is below 1.
    """
    _check_counts(query)
    modes = _to_modes(query.mode)
    if len(modes) == 1:
        return QueryRequest(SearchPlan(modes, 1, {modes[0]: 1.0}), _top_k(query), {})
    summed = sum_of(modes)
    weights = _scale_weights(modes, summed.weights or {}, query.alpha)
    propose = _candidate_modes(query.alpha)
    plan = SearchPlan(propose, candidates, weights, sparse_score=summed.sparse_score, fusion=summed.fusion)
    return QueryRequest(plan, _top_k(query), _candidate_counts(query))


def query_to_where(query: VectorStoreQuery) -> Where | None:
    """Combine filters, `doc_ids` and `node_ids` of a query; an empty list selects nothing."""
    parts = [
        to_where(query.filters),
        Field(REF_DOC_ID, "in", query.doc_ids) if query.doc_ids is not None else None,
        Field(NODE_ID, "in", query.node_ids) if query.node_ids is not None else None,
    ]
    conditions = [part for part in parts if part is not None]
    return all_of(*conditions) if len(conditions) > 1 else next(iter(conditions), None)


def check_top_k(name: str, count: Any) -> None:
    """Raise ValueError if a number of nodes is not an integer above 0."""
    if not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")


def mmr_settings(query: VectorStoreQuery, options: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of nodes that MMR selects from, and its threshold.

    Args:
        query: Its `mmr_threshold` is used if `options` do not name it; None is 0.5.
        options: `mmr_threshold`, and `mmr_prefetch_k`, the number of nodes to select from, or `mmr_prefetch_factor`,
            their number per node to return; default 4.

    Raises:
        ValueError: If `mmr_prefetch_k` and `mmr_prefetch_factor` are both given, or the threshold is outside [0, 1].
    """
    count, factor = options.get("mmr_prefetch_k"), options.get("mmr_prefetch_factor")
    if count is not None and factor is not None:
        raise ValueError("mmr_prefetch_k and mmr_prefetch_factor are both given; leave one of them out")
    if count is None:
        count = query.similarity_top_k * (_MMR_PREFETCH_FACTOR if factor is None else factor)
    threshold = options.get("mmr_threshold", query.mmr_threshold)
    threshold = _MMR_THRESHOLD if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"mmr_threshold must be between 0 (diversity only) and 1 (relevance only), got {threshold}")
    return max(query.similarity_top_k, int(count)), threshold


def drop_default_node_ids(query: VectorStoreQuery) -> VectorStoreQuery:
    """Return the query of a retriever made by `VectorStoreIndex.as_retriever()` without its `node_ids`.

    For a store that keeps texts, VectorStoreIndex records its index and image nodes alone, and `as_retriever` passes
    these as `node_ids`, which would exclude every text node. Any other `node_ids` are a choice of the user.
    """
    retriever = _calling_retriever() if query.node_ids is not None else None
    return query if retriever is None or not _is_default(query, retriever) else replace(query, node_ids=None)


def _is_default(query: VectorStoreQuery, retriever: VectorIndexRetriever) -> bool:
    index, ids = retriever._index, query.node_ids or []
    recorded = list(index.index_struct.nodes_dict.values())
    # as_retriever alone passes the callback manager of the index; a retriever made directly has its own.
    is_from_as_retriever = retriever.callback_manager is index._callback_manager and not index._store_nodes_override
    return is_from_as_retriever and recorded[: len(ids)] == ids


def _calling_retriever() -> VectorIndexRetriever | None:
    frame = currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, VectorIndexRetriever):
            return caller
        frame = frame.f_back
    return None


def _to_modes(mode: VectorStoreQueryMode) -> tuple[Mode, ...]:
    if mode not in _MODES:
        raise ValueError(
            f"M3VectorStore does not support the query mode {getattr(mode, 'value', mode)!r}; set "
            f"vector_store_query_mode to one of {[each.value for each in _MODES]}"
        )
    return _MODES[mode]


def _check_counts(query: VectorStoreQuery) -> None:
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        count = getattr(query, name)
        if count is not None or name == "similarity_top_k":
            check_top_k(name, count)


def _top_k(query: VectorStoreQuery) -> int:
    own = {
        VectorStoreQueryMode.SPARSE: query.sparse_top_k,
        VectorStoreQueryMode.HYBRID: query.hybrid_top_k,
        VectorStoreQueryMode.SEMANTIC_HYBRID: query.hybrid_top_k,
    }.get(query.mode)
    return query.similarity_top_k if own is None else own


def _candidate_counts(query: VectorStoreQuery) -> dict[Mode, int]:
    counts: dict[Mode, int] = {}
    if query.hybrid_top_k is not None:
        counts["dense"] = query.similarity_top_k
    if query.sparse_top_k is not None:
        counts["sparse"] = query.sparse_top_k
    return counts


def _candidate_modes(alpha: float | None) -> tuple[Mode, ...]:
    if alpha == 0:
        return ("sparse",)
    return ("dense",) if alpha == 1 else ("dense", "sparse")


def _scale_weights(modes: tuple[Mode, ...], weights: Mapping[Mode, float], alpha: float | None) -> dict[Mode, float]:
    if alpha is None:
        return {mode: weights.get(mode, 0.0) for mode in modes}
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 (sparse only) and 1 (no sparse score), got {alpha}")
    scales = {mode: 1 - alpha if mode == "sparse" else alpha for mode in modes}
    return {mode: scale * (weights.get(mode) or 1.0) for mode, scale in scales.items()}
