"""Retriever: candidates by some modes, rescored exactly by all weighted modes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.display import html_table
from m3_integrations.core.encoded import MODES, Encoded, Fusion, Mode, Modes, SparseScore
from m3_integrations.core.errors import MissingMode, ModeDropped, UnknownId
from m3_integrations.core.scoring import reciprocal_ranks, weighted_sum
from m3_integrations.core.titles import first_words
from m3_integrations.core.types import Passage, ScoreCalibration, SearchPlan, positive_integer
from m3_integrations.encoders.base import Encoder, has_content, sparse_score_of
from m3_integrations.index.base import HybridHit, HybridIndex, HybridRequest, Index, Where

_TRIES = 2
_EXCERPT = 300  # characters of a passage in a notebook


@dataclass(frozen=True, slots=True)
class Match:
    """A passage found; `score` is the sum of `by_mode`, weighted scores or, with rank fusion, reciprocal ranks."""

    passage: Passage
    score: float
    by_mode: Mapping[Mode, float]

    def _repr_html_(self) -> str:
        parts = " · ".join(f"{mode} {part:.3f}" for mode, part in self.by_mode.items())
        return html_table((f"{self.score:.3f}", self.passage.id), [(parts, first_words(self.passage.text, _EXCERPT))])


class _EffectivePlan(NamedTuple):
    """The part of a plan that the encoder and the index support."""

    propose: tuple[Mode, ...]
    weights: Mapping[Mode, float]
    sparse_score: SparseScore | None
    fusion: Fusion

    def apply_to(self, queries: Encoded) -> Encoded:
        """Return the queries with the sparse scores of the plan; without one, as the encoder gives them."""
        return queries if self.sparse_score is None else queries.with_sparse_score(self.sparse_score)

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self.propose) | frozenset(self.weights)


class Retriever:
    """Hybrid retrieval over any encoder and any index that holds its vectors.

    An index that implements `HybridIndex` runs the whole plan in one call, except rank fusion.

    Args:
        encoder: Encoder of the questions.
        index: Index to search.
        plan: Search plan. Default: the plan of the index; if it has none, dense and sparse search generate 100
            candidates each, scored in all modes.
    """

    def __init__(self, encoder: Encoder, index: Index, plan: SearchPlan | None = None) -> None:
        self.encoder = encoder
        self.index = index
        self._plan = plan
        self._warned: set[Mode] = set()

    @property
    def plan(self) -> SearchPlan:
        """The plan given, otherwise the present one of the index, otherwise the default."""
        return self._plan or self.index.plan or SearchPlan()

    @property
    def weights(self) -> Mapping[Mode, float]:
        """Weights of the modes that are summed.

        Raises:
            MissingMode: If encoder and index have no mode of the plan.
        """
        return self._effective_plan(self.plan).weights

    @property
    def sparse_score(self) -> SparseScore:
        """The sparse score that the weights are for, see `SearchPlan`."""
        return self._effective_plan(self.plan).sparse_score or sparse_score_of(self.encoder)

    @property
    def fusion(self) -> Fusion:
        """How the scores of the modes are fused, see `SearchPlan`."""
        return self._effective_plan(self.plan).fusion

    @property
    def calibration(self) -> ScoreCalibration | None:
        """Calibration of the scores, if the plan has one and all of its weights take effect."""
        plan = self.plan
        if plan.calibration is None or plan.weights is None or self._index_is_empty():
            return None
        stated = {mode: weight for mode, weight in plan.weights.items() if weight}
        return plan.calibration if self._effective_plan(plan).weights == stated else None

    def retrieve(self, query: str, k: int = 10, where: Where | None = None) -> list[Match]:
        """Find the best k passages for a question, best first, ties by id.

        A question without content (empty, or whitespace only) finds nothing.

        Args:
            query: The question.
            k: Number of passages, at least 1.
            where: Metadata filter.

        Returns:
            At most k matches, best first.

        Raises:
            ValueError: If k is below 1.
            MissingMode: If the encoder and the index have no mode of the plan.
        """
        return self.retrieve_many([query], k, where)[0]

    def retrieve_many(self, queries: Sequence[str], k: int = 10, where: Where | None = None) -> list[list[Match]]:
        """Find the best k passages for each question with one call of the encoder; see `retrieve`.

        Args:
            queries: Questions.
            k: Number of passages per question, at least 1.
            where: Metadata filter; None searches all passages.

        Returns:
            The matches of each question, in the order of `queries`.
        """
        positive_integer("k", k)
        matches: list[list[Match]] = [[] for _ in queries]
        if self._index_is_empty():
            return matches
        rows = [row for row, full in enumerate(has_content(self.encoder, queries)) if full]
        if rows:
            found = self.retrieve_encoded(self.encode([queries[row] for row in rows]), k, where)
            for row, each in zip(rows, found, strict=True):
                matches[row] = each
        return matches

    async def aretrieve(self, query: str, k: int = 10, where: Where | None = None) -> list[Match]:
        """`retrieve` for asyncio; concurrent questions share a forward pass."""
        if await to_thread(self._finds_nothing, query):
            return await to_thread(self.retrieve, query, k, where)
        matches = await to_thread(self.retrieve_encoded, await self.aencode(query), k, where)
        return matches[0]

    async def aencode(self, query: str) -> Encoded:
        """Encode a question in the modes of the plan, in one pass with concurrent ones.

        Args:
            query: The question.

        Returns:
            A batch of one text.
        """
        return await micro_batched(self._encode_each, query)

    def _encode_each(self, queries: Sequence[str]) -> list[Encoded]:
        encoded = self.encode(queries)
        return [encoded.take([i]) for i in range(len(encoded))]

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that the plan needs of a question.

        Raises:
            MissingMode: If none is available.
        """
        return self.encoder.modes if self._index_is_empty() else self._effective_plan(self.plan).modes

    def encode(self, queries: Sequence[str]) -> Encoded:
        """Encode questions in the modes of the plan; for an empty index in all modes of the encoder.

        Args:
            queries: Questions.

        Returns:
            One row per question.
        """
        if self._index_is_empty():
            return self.encoder.encode_queries(queries)
        plan = self._effective_plan(self.plan)
        return plan.apply_to(self.encoder.encode_queries(queries, plan.modes))

    def retrieve_encoded(
        self, queries: Encoded, k: int = 10, where: Where | None = None, *, candidates: Mapping[Mode, int] | None = None
    ) -> list[list[Match]]:
        """Find the best k passages for encoded questions; modes that they lack are left out.

        Args:
            queries: Encoded questions.
            k: Number of passages, at least 1.
            where: Metadata filter.
            candidates: Number of candidates by mode, instead of the plan's (or k, if that is higher).

        Returns:
            The matches of each question.
        """
        positive_integer("k", k)
        if self._index_is_empty():
            return [[] for _ in range(len(queries))]
        plan = self.plan
        counts = {mode: max(k, plan.candidates) for mode in MODES} | dict(candidates or {})
        effective = self._effective_plan(plan, queries.modes)
        queries = effective.apply_to(queries)
        for _ in range(_TRIES):
            try:
                return self._search(queries, k, where, effective, counts)
            except UnknownId:
                continue  # another thread or process deleted a candidate: search again
        return self._search(queries, k, where, effective, counts)

    def _finds_nothing(self, query: str) -> bool:
        return self._index_is_empty() or not has_content(self.encoder, [query])[0]

    def _index_is_empty(self) -> bool:
        """Return whether the index never held a passage; unlike a count, this needs no request."""
        return not self.index.modes

    def _search(
        self, queries: Encoded, k: int, where: Where | None, plan: _EffectivePlan, counts: Mapping[Mode, int]
    ) -> list[list[Match]]:
        request = HybridRequest({mode: counts[mode] for mode in plan.propose}, plan.weights)
        is_sum = plan.fusion == "sum"
        if is_sum and isinstance(self.index, HybridIndex) and self.index.supports_hybrid(queries, request):
            return [_best(found, plan.weights, k) for found in self.index.search_hybrid(queries, request, k, where)]
        candidates = self._candidates(queries, request, where)
        return self._rescore(queries, plan, candidates, k)

    def _candidates(self, queries: Encoded, request: HybridRequest, where: Where | None) -> list[list[str]]:
        """Return for each query the union of what each candidate mode found."""
        found: list[set[str]] = [set() for _ in range(len(queries))]
        for mode, count in request.candidate_counts.items():
            for ids, hits in zip(found, self.index.search(mode, queries, count, where), strict=True):
                ids.update(hit.id for hit in hits)
        return [sorted(ids) for ids in found]

    def _rescore(
        self, queries: Encoded, plan: _EffectivePlan, candidates: Sequence[Sequence[str]], k: int
    ) -> list[list[Match]]:
        weights = plan.weights
        scores = {mode: self.index.score(mode, queries, candidates) for mode in weights}
        top: list[dict[str, Mapping[Mode, float]]] = []
        for i, ids in enumerate(candidates):
            by_mode = {mode: each[i].tolist() for mode, each in scores.items()}
            if plan.fusion == "rrf":
                by_mode = {m: reciprocal_ranks(ids, each, skip_zeros=m == "sparse") for m, each in by_mode.items()}
            total = [0.0] * len(ids)
            for mode, weight in weights.items():  # in the order of `weighted_sum`
                total = [score + weight * part for score, part in zip(total, by_mode[mode], strict=True)]
            first = sorted(range(len(ids)), key=lambda j: (-total[j], ids[j]))[:k]
            top.append({ids[j]: {mode: by_mode[mode][j] for mode in by_mode} for j in first})
        wanted = sorted({id for found in top for id in found})
        passages = dict(zip(wanted, self.index.passages(wanted), strict=True))
        return [_best([HybridHit(passages[id], found[id]) for id in found], weights, k) for found in top]

    def _effective_plan(self, plan: SearchPlan, query_modes: frozenset[Mode] | None = None) -> _EffectivePlan:
        """Return the supported part of a plan, warning once for each mode left out."""
        available = self.encoder.modes & self.index.modes & (query_modes or self.encoder.modes)
        summed = frozenset(self.encoder.modes if plan.summed is None else plan.summed)
        planned = frozenset(plan.propose) | summed
        is_default = replace(plan, candidates=SearchPlan().candidates, sparse_score=None, fusion="sum") == SearchPlan()
        if is_default:
            planned &= self.encoder.modes  # the defaults adapt to the encoder
        self._warn_dropped(planned - available)
        propose = tuple(mode for mode in plan.propose if mode in available)
        if is_default and not propose:  # late interaction alone
            propose = tuple(_in_order(summed & available))
        effective = _EffectivePlan(propose, *self._weights(plan, summed & available))
        if not effective.propose or not effective.weights:
            raise MissingMode(
                f"the plan uses {list(plan.propose)} for candidates and sums {_in_order(summed)}, but the index has "
                f"{sorted(self.index.modes)} and the encoder {sorted(self.encoder.modes)}; choose others with "
                "SearchPlan(propose=..., weights=...)"
            )
        return effective

    def _weights(
        self, plan: SearchPlan, modes: frozenset[Mode]
    ) -> tuple[dict[Mode, float], SparseScore | None, Fusion]:
        """Return the weights of these modes, and the sparse score and the fusion that they are for.

        A given plan's own are kept if it sums more of the modes.
        """
        if plan.weights is None or not (plan is self._plan or modes == frozenset(plan.summed or ())):
            default = default_plan(self.encoder, self.index, modes, plan.fusion)
            asked = plan.sparse_score if plan.weights is None else None
            plan = replace(default, sparse_score=asked or default.sparse_score)
        stated = plan.weights or {}
        return {mode: stated[mode] for mode in _in_order(modes) if stated.get(mode)}, plan.sparse_score, plan.fusion

    def _warn_dropped(self, modes: frozenset[Mode]) -> None:
        for mode in sorted(modes - self._warned):
            self._warned.add(mode)
            warnings.warn(
                f"the plan uses {mode!r}, which the index ({sorted(self.index.modes)}) or the encoder "
                f"({sorted(self.encoder.modes)}) does not have; searching without it",
                ModeDropped,
                stacklevel=4,
            )


def default_plan(encoder: Encoder, index: Index, modes: Modes, fusion: Fusion | None = None) -> SearchPlan:
    """Return a plan with the weights of these modes: the index's own, or the recommended ones.

    Args:
        encoder: Encoder of the questions.
        index: Index; the weights of its plan apply to exactly the modes and the fusion of the plan.
        modes: Modes that are fused.
        fusion: As in `SearchPlan`; None is that of the index's plan.
    """
    plan = index.plan or SearchPlan()
    fusion = fusion or plan.fusion
    if plan.weights is None:
        return SearchPlan(weights=_recommended(encoder, modes, fusion), sparse_score=plan.sparse_score, fusion=fusion)
    if plan.fusion == fusion and frozenset(plan.summed or ()) == frozenset(modes):
        return plan
    return SearchPlan(weights=_recommended(encoder, modes, fusion), fusion=fusion)


def _recommended(encoder: Encoder, modes: Modes, fusion: Fusion) -> Mapping[Mode, float]:
    return encoder.weights_for(modes) if fusion == "sum" else dict.fromkeys(_in_order(modes), 1.0)


def _in_order(modes: Modes) -> list[Mode]:
    return [mode for mode in MODES if mode in modes]


def _best(found: Sequence[HybridHit], weights: Mapping[Mode, float], k: int) -> list[Match]:
    """Return the best k by the weighted sum, ties by id."""
    matches = [Match(each.passage, *weighted_sum(each.by_mode, weights)) for each in found]
    return sorted(matches, key=lambda match: (-match.score, match.passage.id))[:k]
