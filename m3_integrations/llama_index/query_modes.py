"""What a VectorStoreQuery asks for, as a plan of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from m3_integrations.core.encoded import Mode
from m3_integrations.core.plan import SearchPlan
from m3_integrations.index.where import Field, Where, all_of
from m3_integrations.llama_index.convert import NODE_ID, REF_DOC_ID, where_of

_MODES: Mapping[VectorStoreQueryMode, tuple[Mode, ...]] = {
    VectorStoreQueryMode.DEFAULT: ("dense",),
    VectorStoreQueryMode.MMR: ("dense",),
    VectorStoreQueryMode.SPARSE: ("sparse",),
    VectorStoreQueryMode.TEXT_SEARCH: ("sparse",),
    VectorStoreQueryMode.HYBRID: ("dense", "sparse"),
    VectorStoreQueryMode.SEMANTIC_HYBRID: ("dense", "sparse", "multi_vector"),
}
LEXICAL = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)


@dataclass(frozen=True, slots=True)
class Ask:
    """The plan of a search, how many nodes to answer, and how many a mode proposes where the query says so."""

    plan: SearchPlan
    k: int
    candidates: Mapping[Mode, int]


def ask_of(query: VectorStoreQuery, weights: Mapping[Mode, float], candidates: int) -> Ask:
    """The plan of a query. weights: of a hybrid, as the model recommends or the user says.

    alpha shares a hybrid out: 0.5 leaves the modes in the proportion of their weights, 1 leaves the lexical mode out,
    0 leaves it alone. hybrid_top_k, sparse_top_k and similarity_top_k are what LlamaIndex says of them: how many a
    hybrid answers, how many the lexical mode and, where hybrid_top_k is given, the dense one put forward.
    Raises ValueError for a mode that is none of ours, and for an alpha outside [0, 1].
    """
    modes = _modes(query.mode)
    if len(modes) == 1:
        return Ask(_single(modes[0], query, candidates), _answers(query), {})
    plan = SearchPlan(_proposing(query.alpha), candidates, _shared(modes, weights, query.alpha))
    return Ask(plan, _answers(query), _proposed(query))


def where_of_query(query: VectorStoreQuery) -> Where | None:
    """Its filters, and the nodes and documents that it keeps to; an empty list of either keeps to nothing."""
    parts = [
        where_of(query.filters),
        Field(REF_DOC_ID, "in", query.doc_ids) if query.doc_ids else None,
        Field(NODE_ID, "in", query.node_ids) if query.node_ids else None,
    ]
    asked = [part for part in parts if part is not None]
    return all_of(*asked) if len(asked) > 1 else next(iter(asked), None)


def _modes(mode: VectorStoreQueryMode) -> tuple[Mode, ...]:
    if mode not in _MODES:
        raise ValueError(
            f"M3VectorStore has no query mode {getattr(mode, 'value', mode)!r}; set vector_store_query_mode to one of "
            f"{[each.value for each in _MODES]}"
        )
    return _MODES[mode]


def _single(mode: Mode, query: VectorStoreQuery, candidates: int) -> SearchPlan:
    count = candidates if query.mode == VectorStoreQueryMode.MMR else 1
    return SearchPlan((mode,), count, {mode: 1.0})


def _answers(query: VectorStoreQuery) -> int:
    stated = {
        VectorStoreQueryMode.SPARSE: query.sparse_top_k,
        VectorStoreQueryMode.HYBRID: query.hybrid_top_k,
        VectorStoreQueryMode.SEMANTIC_HYBRID: query.hybrid_top_k,
    }.get(query.mode)
    return query.similarity_top_k if stated is None else stated


def _proposed(query: VectorStoreQuery) -> dict[Mode, int]:
    counts: dict[Mode, int] = {}
    if query.hybrid_top_k is not None:
        counts["dense"] = query.similarity_top_k
    if query.sparse_top_k is not None:
        counts["sparse"] = query.sparse_top_k
    return counts


def _proposing(alpha: float | None) -> tuple[Mode, ...]:
    if alpha == 0:
        return ("sparse",)
    return ("dense",) if alpha == 1 else ("dense", "sparse")


def _shared(modes: tuple[Mode, ...], weights: Mapping[Mode, float], alpha: float | None) -> dict[Mode, float]:
    if alpha is None:
        return {mode: weights.get(mode, 0.0) for mode in modes}
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is between 0 (lexical alone) and 1 (no lexical score), got {alpha}")
    shares = {mode: 1 - alpha if mode == "sparse" else alpha for mode in modes}
    return {mode: share * (weights.get(mode) or 1.0) for mode, share in shares.items()}
