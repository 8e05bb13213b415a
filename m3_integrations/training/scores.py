"""How representations score against each other in each mode, differentiably: torch's twin of `core.encoded`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.errors import WrongDimension
from m3_integrations.training.model import Representations, by_token

_TOKEN_PAIRS = 1 << 18  # 1 MB of float32: what late interaction compares at once, though a whole query at least


@dataclass(frozen=True)
class Layout:
    """Which columns of the score matrices are whose.

    query: (rows,) the place of each row's query among all queries. groups: (rows, group) the columns of the passages
    that came with each row's query, its positive first, then its hard negatives, -1 where there are no more.
    positives: (queries,) the column of every query's positive. passages: how many columns there are.
    """

    query: Tensor
    groups: Tensor
    positives: Tensor
    passages: int

    @classmethod
    def of(cls, groups: Tensor, passages: int) -> Layout:
        """A row for each query, where one process holds them all."""
        return cls(torch.arange(len(groups), device=groups.device), groups, groups[:, 0], passages)

    @classmethod
    def side_by_side(cls, queries: int, group: int = 1, device: torch.device | str = "cpu") -> Layout:
        """Each query's passages next to each other, `group` of them, the positive first."""
        return cls.of(torch.arange(queries * group, device=device).view(queries, group), queries * group)

    @property
    def positive(self) -> Tensor:
        """(rows,) the column of each row's positive."""
        return self.groups[:, 0]

    def own(self) -> Tensor:
        """(rows, passages): True where the passage came with the row's query."""
        columns = torch.where(self.absent(), self.passages, self.groups)
        whose = torch.zeros(len(columns), self.passages + 1, dtype=torch.bool, device=columns.device)
        return whose.scatter(1, columns, True)[:, :-1]

    def absent(self) -> Tensor:
        """(rows, group): True where a query came with fewer passages than others."""
        return self.groups < 0

    def alone(self) -> Layout:
        """The same rows where a query's columns are its own passages (`own_scores`), and no others."""
        size = self.groups.shape[1]
        columns = torch.arange(size, device=self.groups.device).expand_as(self.groups)
        groups = torch.where(self.absent(), -1, columns)
        return Layout(self.query, groups, torch.zeros_like(self.positives), size)


class Directions(NamedTuple):
    """Every way in which a batch of pairs scores against itself.

    query_passage: (rows, passages), each query against all passages. query_query: (rows, queries), each query against
    all queries. passage_query: (rows, queries), each query's positive against all queries. passage_passage:
    (rows, passages), each query's positive against all passages.
    """

    query_passage: Tensor
    query_query: Tensor
    passage_query: Tensor
    passage_passage: Tensor


def directions(mode: Mode, queries: Representations, passages: Representations, layout: Layout) -> Directions:
    """The four score matrices of one mode for the rows of a layout."""
    asked, positives = queries.take(layout.query), passages.take(layout.positive)
    return Directions(
        query_passage=score_mode(mode, asked, passages),
        query_query=score_mode(mode, asked, queries),
        passage_query=score_mode(mode, queries, positives).T,
        passage_passage=score_mode(mode, positives, passages),
    )


def scores(queries: Representations, passages: Representations, modes: Collection[Mode]) -> dict[Mode, Tensor]:
    """Mode -> (queries, passages)."""
    return {mode: score_mode(mode, queries, passages) for mode in MODES if mode in modes}


def score_mode(mode: Mode, queries: Representations, passages: Representations) -> Tensor:
    """(queries, passages): the scores of one mode. Raises MissingMode where either side lacks it."""
    query, passage = queries.part(mode), passages.part(mode)
    if mode == "dense":
        return dense_scores(query, passage)
    if mode == "sparse":
        return sparse_scores(query, queries.ids, passage, passages.ids)
    return multi_vector_scores(query, queries.kept, passage, passages.kept)


def dense_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """(queries, passages): inner products. queries: (queries, dim); passages: (passages, dim)."""
    _require_one_width(queries, passages)
    return queries @ passages.T


def sparse_scores(queries: Tensor, query_ids: Tensor, passages: Tensor, passage_ids: Tensor) -> Tensor:
    """(queries, passages): the sum over shared tokens of the products of their weights, each the largest of its text
    (arXiv 2402.03216, section 3.2).

    queries, passages: (texts, length), weights >= 0, of which those that are 0 say nothing; ids: their token ids.
    Only tokens that some query weighs become columns: nothing is as wide as the vocabulary.
    """
    columns = torch.unique(query_ids[queries.detach() > 0])
    return by_token(queries, query_ids, columns) @ by_token(passages, passage_ids, columns).T


def multi_vector_scores(
    queries: Tensor, query_kept: Tensor, passages: Tensor, passage_kept: Tensor, at_once: int = _TOKEN_PAIRS
) -> Tensor:
    """(queries, passages): the mean over a query's vectors of the maximum over a passage's; 0 where either has none
    (arXiv 2402.03216, section 3.2).

    queries, passages: (texts, length, width); kept: (texts, length), True where there is a vector. at_once: how many
    pairs of tokens are compared at a time; of each only the best is kept for the gradient.
    """
    _require_one_width(queries, passages)
    few = max(1, at_once // max(1, queries.shape[1] * passage_kept.numel()))
    some = zip(torch.split(queries, few), torch.split(query_kept, few), strict=True)
    return torch.cat([_late_interaction(*each, passages, passage_kept) for each in some])


def _late_interaction(queries: Tensor, query_kept: Tensor, passages: Tensor, passage_kept: Tensor) -> Tensor:
    similar = torch.einsum("qiw,pjw->qipj", queries, passages)
    best = similar.masked_fill_(~passage_kept, torch.finfo(similar.dtype).min).max(dim=-1).values
    matters = query_kept[:, :, None] & passage_kept.any(dim=1)
    counts = query_kept.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(matters, best, 0.0).sum(dim=1) / counts


def _require_one_width(queries: Tensor, passages: Tensor) -> None:
    if queries.shape[-1] != passages.shape[-1]:
        raise WrongDimension(f"queries are {queries.shape[-1]} wide and passages {passages.shape[-1]}")
