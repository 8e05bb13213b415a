"""Asking an index: candidates by the modes that propose, scored exactly in every weighted mode."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import MissingMode, ModeDropped, UnknownId
from m3_integrations.core.fusion import weighted_sum
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Passage
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Found, Hybrid, HybridIndex, Index, Where

_TRIES = 2


@dataclass(frozen=True, slots=True)
class Match:
    """A passage that was found. score is the sum of `by_mode`: what each mode gave, its weight included."""

    passage: Passage
    score: float
    by_mode: Mapping[Mode, float]


class _Usable(NamedTuple):
    """The part of a plan that this encoder and this index can carry out."""

    propose: tuple[Mode, ...]
    weights: Mapping[Mode, float]

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self.propose) | frozenset(self.weights)


class Retriever:
    """Hybrid retrieval over any encoder and any index that holds the encoder's vectors.

    An index that puts the modes together itself (`HybridIndex`) is asked for the whole plan at once; one far away is
    asked twice: the best by the weighted sum, then the scores of those few mode by mode, for `Match.by_mode`.
    """

    def __init__(self, encoder: Encoder, index: Index, plan: SearchPlan | None = None) -> None:
        self.encoder = encoder
        self.index = index
        self.plan = plan or SearchPlan()
        self._said: set[Mode] = set()

    def retrieve(self, query: str, k: int = 10, where: Where | None = None) -> list[Match]:
        """The best k passages for a question, best first, ties by id; fewer only where fewer were found."""
        return self.retrieve_many([query], k, where)[0]

    def retrieve_many(self, queries: Sequence[str], k: int = 10, where: Where | None = None) -> list[list[Match]]:
        """The best k passages for each question, from one pass through the model."""
        if self._is_new():
            _check_k(k)
            return [[] for _ in queries]
        return self.retrieve_encoded(self.encode(queries), k, where)

    async def aretrieve(self, query: str, k: int = 10, where: Where | None = None) -> list[Match]:
        """`retrieve` while the event loop goes on; questions that are awaited at the same time share a pass."""
        if await on_thread(self._is_new):
            return await on_thread(self.retrieve, query, k, where)
        matches = await on_thread(self.retrieve_encoded, await self.aencode(query), k, where)
        return matches[0]

    async def aencode(self, query: str) -> Encoded:
        """A question in the modes that the plan needs, from a pass with others that are awaited at the same time."""
        return await gathered(self._encode_each, query)

    def _encode_each(self, queries: Sequence[str]) -> list[Encoded]:
        encoded = self.encode(queries)
        return [encoded.take([i]) for i in range(len(encoded))]

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that the plan needs of a question here. Raises MissingMode where none of them is to be had."""
        return self.encoder.modes if self._is_new() else self._usable().modes

    def encode(self, queries: Sequence[str]) -> Encoded:
        """Questions in the modes that the plan needs and no others; over an empty index, in all of the encoder's."""
        return self.encoder.encode_queries(queries, self.modes)

    def retrieve_encoded(
        self,
        queries: Encoded,
        k: int = 10,
        where: Where | None = None,
        *,
        candidates: Mapping[Mode, int] | None = None,
    ) -> list[list[Match]]:
        """The best k passages for questions that were encoded before. Modes that they lack drop out of the plan.

        candidates: how many a mode proposes, where that is not the plan's number (or k, where k is higher).
        """
        _check_k(k)
        if self._is_new():
            return [[] for _ in range(len(queries))]
        counts = {mode: max(k, self.plan.candidates) for mode in MODES} | dict(candidates or {})
        for _ in range(_TRIES):
            try:
                return self._search(queries, k, where, counts)
            except UnknownId:
                continue  # a candidate was deleted by another thread or process after it was found: look again
        return self._search(queries, k, where, counts)

    def _is_new(self) -> bool:
        """Whether the index never held a passage: it remembers that, where a count may be a way there and back."""
        return not self.index.modes

    def _search(self, queries: Encoded, k: int, where: Where | None, counts: Mapping[Mode, int]) -> list[list[Match]]:
        usable = self._usable(queries.modes)
        asked = Hybrid({mode: counts[mode] for mode in usable.propose}, usable.weights)
        if isinstance(self.index, HybridIndex) and self.index.is_hybrid(queries, asked):
            return [_best(found, usable.weights, k) for found in self.index.find(queries, asked, k, where)]
        candidates = self._propose(queries, asked, where)
        return self._rank(queries, asked.weights, candidates, k)

    def _propose(self, queries: Encoded, asked: Hybrid, where: Where | None) -> list[list[str]]:
        """For each query the union of what each proposing mode found."""
        found: list[set[str]] = [set() for _ in range(len(queries))]
        for mode, count in asked.propose.items():
            for ids, hits in zip(found, self.index.search(mode, queries, count, where), strict=True):
                ids.update(hit.id for hit in hits)
        return [sorted(ids) for ids in found]

    def _rank(
        self, queries: Encoded, weights: Mapping[Mode, float], candidates: Sequence[Sequence[str]], k: int
    ) -> list[list[Match]]:
        scores = {mode: self.index.score(mode, queries, candidates) for mode in weights}
        best = []
        for i, ids in enumerate(candidates):
            by_mode = {mode: each[i].tolist() for mode, each in scores.items()}
            total = [0.0] * len(ids)
            for mode, weight in weights.items():  # in the order in which `weighted_sum` adds them
                total = [score + weight * part for score, part in zip(total, by_mode[mode], strict=True)]
            first = sorted(range(len(ids)), key=lambda j: (-total[j], ids[j]))[:k]
            said = [{mode: by_mode[mode][j] for mode in by_mode} for j in first]
            best.append([(ids[j], weighted_sum(each, weights)) for j, each in zip(first, said, strict=True)])
        return self._matches(best)

    def _matches(self, ranked: Sequence[Sequence[tuple[str, tuple[float, Mapping[Mode, float]]]]]) -> list[list[Match]]:
        wanted = sorted({id for best in ranked for id, _ in best})
        passages = dict(zip(wanted, self.index.passages(wanted), strict=True))
        return [[Match(passages[id], score, parts) for id, (score, parts) in best] for best in ranked]

    def _usable(self, asked: frozenset[Mode] | None = None) -> _Usable:
        """What of the plan can be done here; says once a mode that cannot."""
        there = self.encoder.modes & self.index.modes & (asked or self.encoder.modes)
        stated = self.encoder.weights if self.plan.weights is None else self.plan.weights
        weights = {mode: stated[mode] for mode in MODES if stated.get(mode)}
        planned = frozenset(self.plan.propose) | weights.keys()
        if self.plan.propose == SearchPlan().propose and self.plan.weights is None:
            planned &= self.encoder.modes  # nobody asked this encoder for more than it has
        self._say_dropped(planned - there)
        usable = _Usable(
            tuple(mode for mode in self.plan.propose if mode in there),
            {mode: weight for mode, weight in weights.items() if mode in there},
        )
        if not usable.propose or not usable.weights:
            raise MissingMode(
                f"the plan proposes by {list(self.plan.propose)} and weighs {list(weights)}, but the index holds "
                f"{sorted(self.index.modes)} and the encoder gives {sorted(self.encoder.modes)}; "
                "choose others with SearchPlan(propose=..., weights=...)"
            )
        return usable

    def _say_dropped(self, modes: frozenset[Mode]) -> None:
        for mode in sorted(modes - self._said):
            self._said.add(mode)
            warnings.warn(
                f"the plan uses {mode!r}, which the index ({sorted(self.index.modes)}) or the encoder "
                f"({sorted(self.encoder.modes)}) does not have; searching without it",
                ModeDropped,
                stacklevel=4,
            )


def _best(found: Sequence[Found], weights: Mapping[Mode, float], k: int) -> list[Match]:
    """The best k by the weighted sum, ties by id."""
    matches = [Match(each.passage, *weighted_sum(each.by_mode, weights)) for each in found]
    return sorted(matches, key=lambda match: (-match.score, match.passage.id))[:k]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
