"""Differentiable scores of each mode: torch counterpart of `m3_integrations.core.scoring`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from m3_integrations.core.encoded import MODES, Mode, Modes
from m3_integrations.core.errors import WrongDimension
from m3_integrations.training.objective.model import Representations, max_weight_per_token

_TOKEN_PAIRS = 1 << 18  # compared at once by MaxSim, 1 MB of float32; at least one whole query
_ACCELERATOR_TOKEN_PAIRS = 1 << 27  # 512 MB of float32


@dataclass(frozen=True)
class ScoreLayout:
    """Assignment of the columns of score matrices to queries.

    Attributes:
        query: Position of each row's query among all queries, shape (rows,).
        groups: Columns of each row's own passages, shape (rows, group): positive, hard negatives, -1 as padding.
        positives: Column of each query's positive, shape (queries,).
        passages: Number of columns.
    """

    query: Tensor
    groups: Tensor
    positives: Tensor
    passages: int

    @classmethod
    def of(cls, groups: Tensor, passages: int) -> ScoreLayout:
        """Build the layout of a single process, with one row per query."""
        return cls(torch.arange(len(groups), device=groups.device), groups, groups[:, 0], passages)

    @classmethod
    def side_by_side(cls, queries: int, group: int = 1, device: torch.device | str = "cpu") -> ScoreLayout:
        """Build the layout of `group` adjacent passages per query, the positive first."""
        return cls.of(torch.arange(queries * group, device=device).view(queries, group), queries * group)

    @property
    def positive(self) -> Tensor:
        """Column of each row's positive, shape (rows,)."""
        return self.groups[:, 0]

    def own_mask(self) -> Tensor:
        """Mask of each row's own passages, shape (rows, passages)."""
        columns = torch.where(self.missing_mask(), self.passages, self.groups)
        mask = torch.zeros(len(columns), self.passages + 1, dtype=torch.bool, device=columns.device)
        return mask.scatter(1, columns, True)[:, :-1]

    def missing_mask(self) -> Tensor:
        """Mask of the padding in `groups`, shape (rows, group)."""
        return self.groups < 0

    def own_layout(self) -> ScoreLayout:
        """Build the layout of `own_scores`, whose columns are each query's own passages only."""
        size = self.groups.shape[1]
        columns = torch.arange(size, device=self.groups.device).expand_as(self.groups)
        groups = torch.where(self.missing_mask(), -1, columns)
        return ScoreLayout(self.query, groups, torch.zeros_like(self.positives), size)


class ScoreMatrices(NamedTuple):
    """Scores of a batch of pairs in all four directions.

    Attributes:
        query_passage: Each query with all passages, shape (rows, passages).
        query_query: Each query with all queries, shape (rows, queries).
        passage_query: Each query's positive with all queries, shape (rows, queries).
        passage_passage: Each query's positive with all passages, shape (rows, passages).
    """

    query_passage: Tensor
    query_query: Tensor
    passage_query: Tensor
    passage_passage: Tensor


def score_matrices(
    mode: Mode, queries: Representations, passages: Representations, layout: ScoreLayout
) -> ScoreMatrices:
    """Compute the four score matrices of one mode for the rows of a layout."""
    own, positives = queries.take(layout.query), passages.take(layout.positive)
    return ScoreMatrices(
        query_passage=score_mode(mode, own, passages),
        query_query=score_mode(mode, own, queries),
        passage_query=score_mode(mode, queries, positives).T,
        passage_passage=score_mode(mode, positives, passages),
    )


def score_modes(
    queries: Representations, passages: Representations, modes: Modes, *, reduced: bool = False
) -> dict[Mode, Tensor]:
    """Score queries against passages in each mode; shapes (queries, passages).

    Args:
        queries: Representations of the queries.
        passages: Representations of the passages.
        modes: Modes to score.
        reduced: Compute the products of late interaction in bfloat16 on an accelerator; the other modes are exact.
    """
    return {mode: score_mode(mode, queries, passages, reduced=reduced) for mode in MODES if mode in modes}


def score_mode(mode: Mode, queries: Representations, passages: Representations, *, reduced: bool = False) -> Tensor:
    """Score queries against passages in one mode; `reduced` as in `score_modes`.

    Returns:
        Scores, shape (queries, passages).

    Raises:
        MissingMode: If either side lacks the mode.
    """
    query, passage = queries.tensor(mode), passages.tensor(mode)
    if mode == "dense":
        return dense_scores(query, passage)
    if mode == "sparse":
        return sparse_scores(query, queries.ids, passage, passages.ids)
    if query.device.type == "cpu":
        return multi_vector_scores(query, queries.content, passage, passages.content)
    query, passage = (each.bfloat16() if reduced else each for each in (query, passage))
    return multi_vector_scores(query, queries.content, passage, passages.content, _ACCELERATOR_TOKEN_PAIRS)


def dense_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """Compute inner products of (queries, dim) and (passages, dim) vectors."""
    _check_same_dim(queries, passages)
    return queries @ passages.T


def sparse_scores(queries: Tensor, query_ids: Tensor, passages: Tensor, passage_ids: Tensor) -> Tensor:
    """Compute lexical scores (M3, arXiv 2402.03216, section 3.2).

    A score is the sum of the products of the weights of shared tokens. A token that occurs several times in a text
    counts once, with its largest weight. Memory grows with the distinct tokens of the queries, not with the vocabulary.

    Args:
        queries: Weights of the queries' tokens, at least 0, shape (queries, length).
        query_ids: Token ids, same shape.
        passages: Weights of the passages' tokens, at least 0, shape (passages, length).
        passage_ids: Token ids, same shape.

    Returns:
        Scores, shape (queries, passages).
    """
    columns = torch.unique(query_ids[queries.detach() > 0])
    return max_weight_per_token(queries, query_ids, columns) @ max_weight_per_token(passages, passage_ids, columns).T


def lexical_mass(weights: Tensor, ids: Tensor) -> Tensor:
    """Compute the sum of a text's lexical weights, each token's largest once; 1 for a text without any.

    Args:
        weights: Weights of the tokens, at least 0, shape (texts, length).
        ids: Token ids, same shape.

    Returns:
        Sums, shape (texts,).
    """
    columns = torch.unique(ids[weights.detach() > 0])
    sums = max_weight_per_token(weights, ids, columns).sum(dim=1)
    return torch.where(sums > 0, sums, 1.0)


def multi_vector_scores(
    queries: Tensor, query_content: Tensor, passages: Tensor, passage_content: Tensor, max_pairs: int = _TOKEN_PAIRS
) -> Tensor:
    """Compute MaxSim scores (M3, arXiv 2402.03216, section 3.2).

    A score is the mean over the query's vectors of the maximum inner product with the passage's vectors.

    Args:
        queries: Vectors, shape (queries, length, dim).
        query_content: True at positions with a vector, shape (queries, length).
        passages: Vectors, shape (passages, length, dim).
        passage_content: True at positions with a vector, shape (passages, length).
        max_pairs: Maximum token pairs compared at once; only the maxima are stored for the gradient.

    Returns:
        Scores, shape (queries, passages); 0 if either text has no vector.

    Raises:
        WrongDimension: If the vectors of queries and passages differ in dimension.
    """
    _check_same_dim(queries, passages)
    rows = max(1, max_pairs // max(1, queries.shape[1] * passage_content.numel()))
    chunks = zip(torch.split(queries, rows), torch.split(query_content, rows), strict=True)
    return torch.cat([_maxsim(*chunk, passages, passage_content) for chunk in chunks])


def _maxsim(queries: Tensor, query_content: Tensor, passages: Tensor, passage_content: Tensor) -> Tensor:
    products = torch.einsum("qid,pjd->qipj", queries, passages)
    best = products.masked_fill_(~passage_content, torch.finfo(products.dtype).min).max(dim=-1).values
    defined = query_content[:, :, None] & passage_content.any(dim=1)
    counts = query_content.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(defined, best.float(), 0.0).sum(dim=1) / counts


def _check_same_dim(queries: Tensor, passages: Tensor) -> None:
    if queries.shape[-1] != passages.shape[-1]:
        raise WrongDimension(f"queries have {queries.shape[-1]} dimensions and passages {passages.shape[-1]}")
