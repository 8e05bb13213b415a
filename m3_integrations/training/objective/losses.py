"""Losses on score matrices: InfoNCE, M3, GTE, and distillation from a teacher.

Conventions of all functions: scores have shape (rows, columns), one row per query and one column per passage, and are
not divided by the temperature. `positive`, shape (rows,), is the column of each row's positive. `excluded`, shape
(rows, columns), is True for columns that are not negatives of the row, such as false negatives; never for the positive.
Losses are means over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3_integrations.core.encoded import Mode
from m3_integrations.training.objective.scores import ScoreLayout, ScoreMatrices

LossVariant = Literal["code", "paper"]


class Loss(NamedTuple):
    """A loss to minimize, and its detached terms by name, for logging."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class LossWeights:
    """Weights of M3's loss.

    Attributes:
        scores: Weights of the modes in the summed score.
        terms: Weights of the modes' terms in L and L'.
        scale: Factor of L + L'.
    """

    scores: Mapping[Mode, float]
    terms: Mapping[Mode, float]
    scale: float


# "code": FlagEmbedding 1.4.2, finetune/embedder/encoder_only/m3/modeling.py, and the paper's later versions.
# "paper": arXiv 2402.03216, first version, section 3.3.
LOSS_WEIGHTS: Mapping[LossVariant, LossWeights] = {
    "code": LossWeights(
        scores={"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0},
        terms={"dense": 1.0, "sparse": 0.1, "multi_vector": 1.0},
        scale=1 / 2,
    ),
    "paper": LossWeights(
        scores={"dense": 1.0, "sparse": 1.0, "multi_vector": 1.0},
        terms={"dense": 1.0, "sparse": 1.0, "multi_vector": 1.0},
        scale=1.0,
    ),
}


def info_nce(scores: Tensor, positive: Tensor, *, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """Compute InfoNCE (van den Oord et al. 2018, arXiv 1807.03748).

    -log( e^{s(q, p+) / τ} / Σ_p e^{s(q, p) / τ} )

    Args:
        scores: Scores, shape (rows, columns). All columns but the positive are negatives: the whole matrix for in-batch
            negatives, `own_scores` of it for each query's own hard negatives only.
        positive: Column of each row's positive, shape (rows,).
        temperature: τ, above 0.
        excluded: Columns left out of the sum, shape (rows, columns).

    Returns:
        Mean over rows.

    Raises:
        ValueError: If temperature is not above 0.
    """
    return functional.cross_entropy(_logits(scores, temperature, excluded), positive)


def own_scores(scores: Tensor, layout: ScoreLayout) -> Tensor:
    """Select each query's scores with its own passages.

    Args:
        scores: Scores, shape (rows, passages).
        layout: Layout of the scores.

    Returns:
        Scores, shape (rows, group), the positive in column 0. Their layout is `layout.own_layout()`, in which
        `layout.missing_mask()` is excluded.
    """
    return scores.gather(1, layout.groups.clamp(min=0))


def false_negatives(passages: Tensor, layout: ScoreLayout, known: Tensor | None = None) -> Tensor:
    """Mark repetitions of the row's positive and known answers to its query.

    Args:
        passages: A number per passage, equal for equal texts, shape (passages,).
        layout: Layout of the scores.
        known: Numbers of further passages that answer each row's query, shape (rows, any); -1 pads.

    Returns:
        Mask for `excluded`, shape (rows, passages).
    """
    answers = passages[layout.positive][:, None]
    if known is not None:
        answers = torch.cat([answers, known], dim=1)
    found = (passages[None, :, None] == answers[:, None, :]).any(dim=-1)
    return found.scatter(1, layout.positive[:, None], False)


def m3_loss(
    scores: Mapping[Mode, Tensor],
    layout: ScoreLayout,
    *,
    temperature: float,
    variant: LossVariant = "code",
    self_distillation: bool = True,
    weights: Mapping[Mode, float | Tensor] | None = None,
    teacher: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Loss:
    """Compute M3's loss with self-knowledge distillation (arXiv 2402.03216, section 3.3).

    L is the mean of the contrastive losses of each mode and of the summed score. L' is the mean of the modes'
    distillation losses, with the softmax of the summed score as the teacher.

    Args:
        scores: Scores by mode, each (rows, columns).
        layout: Layout of the scores.
        temperature: Temperature of every softmax over scores, above 0.
        variant: "code" for (L + L') / 2 with FlagEmbedding's weights; "paper" for L + L' as in the paper's first
            version.
        self_distillation: Add L'; otherwise the loss is L.
        weights: Weights of the modes in the summed score, numbers or one for each row, shape (rows, 1); None for the
            variant's.
        teacher: An external teacher's scores of each query's own passages, shape (rows, group). They replace the labels
            in L (`own_passage_distillation`).
        excluded: Columns that are not negatives, shape (rows, columns).

    Returns:
        The loss. Its terms are the contrastive loss of each mode, that of the summed score as "sum", and the
        distillation loss of each mode as "distil_<mode>".

    Raises:
        ValueError: If temperature is not above 0.
    """
    loss_weights = LOSS_WEIGHTS[variant]
    total = weighted_sum(scores, loss_weights.scores if weights is None else weights)

    def contrast(matrix: Tensor) -> Tensor:
        if teacher is None:
            return info_nce(matrix, layout.positive, temperature=temperature, excluded=excluded)
        return own_passage_distillation(matrix, teacher, layout, temperature=temperature, excluded=excluded)

    def distil(matrix: Tensor) -> Tensor:
        return _soft_cross_entropy(matrix, total.detach(), temperature, temperature, excluded)

    terms = {**{str(mode): contrast(matrix) for mode, matrix in scores.items()}, "sum": contrast(total)}
    loss = _weighted_mean(terms, {**loss_weights.terms, "sum": 1.0})
    if self_distillation:
        distilled = {str(mode): distil(matrix) for mode, matrix in scores.items()}
        loss = loss_weights.scale * (loss + _weighted_mean(distilled, loss_weights.terms))
        terms |= {f"distil_{mode}": term for mode, term in distilled.items()}
    return Loss(loss, {name: term.detach() for name, term in terms.items()})


def weighted_sum(scores: Mapping[Mode, Tensor], weights: Mapping[Mode, float | Tensor]) -> Tensor:
    """Sum the modes' scores by weight, 0 if missing: s_inter of M3 (section 3.3)."""
    return torch.stack([weights.get(mode, 0.0) * matrix for mode, matrix in scores.items()]).sum(dim=0)


def gte_loss(
    scores: ScoreMatrices, layout: ScoreLayout, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """Compute GTE's improved contrastive loss (arXiv 2308.03281, section 3.3).

    One partition function covers all four directions: -log( e^{s(q_i, d_i) / τ} / Z_i ),
    Z_i = Σ_j e^{s(q_i, d_j) / τ} + Σ_{j≠i} e^{s(q_i, q_j) / τ} + Σ_j e^{s(q_j, d_i) / τ} + Σ_{j≠i} e^{s(d_j, d_i) / τ}.
    Hard negatives are passages of the first sum and, if they belong to other queries, of the last.

    Args:
        scores: The four score matrices of one mode.
        layout: Layout of the scores.
        temperature: τ, above 0.
        excluded: Passages omitted from the first and last sum, shape (rows, passages). Queries with an excluded
            positive are omitted from the two others.

    Returns:
        Mean over rows.

    Raises:
        ValueError: If temperature is not above 0.
    """
    own_query = layout.query[:, None] == torch.arange(len(layout.positives), device=layout.query.device)
    own_passages, excluded_queries = layout.own_mask(), None
    if excluded is not None:
        excluded_queries = excluded[:, layout.positives]
        own_query, own_passages = own_query | excluded_queries, own_passages | excluded
    query_passage = _logits(scores.query_passage, temperature, excluded)
    partition = torch.cat(
        [
            query_passage,
            _logits(scores.query_query, temperature, own_query),
            _logits(scores.passage_query, temperature, excluded_queries),
            _logits(scores.passage_passage, temperature, own_passages),
        ],
        dim=1,
    )
    return (partition.logsumexp(dim=1) - query_passage.gather(1, layout.positive[:, None]).squeeze(1)).mean()


def kl_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    teacher_temperature: float = 1.0,
    excluded: Tensor | None = None,
) -> Tensor:
    """Compute a distillation loss (Hinton et al. 2015, arXiv 1503.02531).

    KL( softmax(teacher / τ_t) ‖ softmax(student / τ) )

    Args:
        student: Scores to train, shape (rows, columns).
        teacher: An external teacher's scores of the same passages, such as a cross-encoder's; gets no gradient.
        temperature: τ, above 0.
        teacher_temperature: τ_t, above 0; default 1.
        excluded: Columns without a teacher's score, shape (rows, columns).

    Returns:
        Mean over rows.

    Raises:
        ValueError: If a temperature is not above 0.
    """
    target = teacher.detach()
    cross_entropy = _soft_cross_entropy(student, target, temperature, teacher_temperature, excluded)
    return cross_entropy - _soft_cross_entropy(target, target, teacher_temperature, teacher_temperature, excluded)


def own_passage_distillation(
    scores: Tensor, teacher: Tensor, layout: ScoreLayout, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """Distill a teacher's distribution over own passages, with in-batch negatives.

    Each own passage in turn is contrasted with all columns but the own passages before it, weighted by the teacher's
    probability ("m3_kd_loss" of FlagEmbedding 1.4.2, abc/finetune/embedder/AbsModeling.py).

    Args:
        scores: Scores to train, shape (rows, columns).
        teacher: The teacher's scores of the columns in `layout.groups`, shape (rows, group).
        layout: Layout of the scores.
        temperature: Temperature of the scores, above 0; that of the teacher is 1.
        excluded: Columns that are not negatives, shape (rows, columns).

    Returns:
        Mean over rows.

    Raises:
        ValueError: If temperature is not above 0.
    """
    logits = _logits(scores, temperature, excluded)
    columns, ignored = layout.groups.clamp(min=0), layout.missing_mask()
    if excluded is not None:
        ignored = ignored | excluded.gather(1, columns)
    target = _logits(teacher.detach(), 1.0, ignored).softmax(dim=1)
    own = _mask(logits.gather(1, columns), ignored)
    others = _mask(logits, layout.own_mask()).logsumexp(dim=1, keepdim=True)
    own_from_here = own.flip(1).logcumsumexp(dim=1).flip(1)
    return (target * (torch.logaddexp(others, own_from_here) - own)).sum(dim=1).mean()


def _soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float, excluded: Tensor | None
) -> Tensor:
    target = _logits(teacher, teacher_temperature, excluded).softmax(dim=1)
    return -(target * _logits(student, temperature, excluded).log_softmax(dim=1)).sum(dim=1).mean()


def _logits(scores: Tensor, temperature: float, excluded: Tensor | None) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    return logits if excluded is None else _mask(logits, excluded)


def _mask(logits: Tensor, mask: Tensor) -> Tensor:
    # Not -inf: times a probability of 0 it is NaN.
    return logits.masked_fill(mask, torch.finfo(logits.dtype).min)


def _weighted_mean(terms: Mapping[str, Tensor], weights: Mapping[Any, float]) -> Tensor:
    """Sum of the weighted terms divided by their number, as in FlagEmbedding."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).mean()
