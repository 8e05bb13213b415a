"""Losses on score matrices: what is asked of the scores, whatever mode or model they come from.

Everywhere: scores are (rows, columns), a row a query and a column a passage, higher is better, not yet divided by the
temperature. positive: (rows,), the column of each row's positive. excluded: (rows, columns), True for what must not be
pushed away though it is no labelled positive; never the positive itself. A loss is a mean over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3_integrations.core.encoded import Mode
from m3_integrations.training.scores import Directions, Layout

Variant = Literal["code", "paper"]


class Loss(NamedTuple):
    """A loss to descend, and the terms that it was made of, detached, to be watched."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How the terms of M3's loss are weighed: in the summed score that teaches, in the loss, and L + L' as a whole."""

    summed: Mapping[Mode, float]
    terms: Mapping[Mode, float]
    whole: float


# "code": FlagEmbedding 1.4.2, finetune/embedder/encoder_only/m3/modeling.py, and the paper's later versions.
# "paper": arXiv 2402.03216, first version, section 3.3.
RECIPES: Mapping[Variant, Recipe] = {
    "code": Recipe(
        summed={"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0},
        terms={"dense": 1.0, "sparse": 0.1, "multi_vector": 1.0},
        whole=1 / 2,
    ),
    "paper": Recipe(
        summed={"dense": 1.0, "sparse": 1.0, "multi_vector": 1.0},
        terms={"dense": 1.0, "sparse": 1.0, "multi_vector": 1.0},
        whole=1.0,
    ),
}


def info_nce(scores: Tensor, positive: Tensor, *, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """-log( e^{s(q, p+) / τ} / Σ_p e^{s(q, p) / τ} ) (van den Oord et al. 2018, arXiv 1807.03748).

    scores: (rows, columns). Every other column is a negative: pass the whole matrix for in-batch negatives, and
    `own_scores` of it for a query's own hard negatives alone.
    """
    return functional.cross_entropy(_logits(scores, temperature, excluded), positive)


def own_scores(scores: Tensor, layout: Layout) -> Tensor:
    """(rows, group): each query's scores with the passages that came with it alone; its positive is in column 0.

    `layout.alone()` is the layout of what comes, and `layout.absent()` is excluded in it.
    """
    return scores.gather(1, layout.groups.clamp(min=0))


def false_negatives(passages: Tensor, layout: Layout, known: Tensor | None = None) -> Tensor:
    """(rows, passages): True where a passage is the row's positive over again, or is known to answer its query.

    passages: (passages,) a number a text, the same for the same text. known: (rows, any) the numbers of passages that
    answer each row's query, -1 where there are no more.
    """
    answers = passages[layout.positive][:, None]
    if known is not None:
        answers = torch.cat([answers, known], dim=1)
    found = (passages[None, :, None] == answers[:, None, :]).any(dim=-1)
    return found.scatter(1, layout.positive[:, None], False)


def m3(
    scores: Mapping[Mode, Tensor],
    layout: Layout,
    *,
    temperature: float,
    variant: Variant = "code",
    self_distillation: bool = True,
    weights: Mapping[Mode, float] | None = None,
    teacher: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Loss:
    """M3's loss over several modes (arXiv 2402.03216, section 3.3).

    L is the mean of the modes' contrastive losses and that of the summed score; L' the mean of the modes' distillation
    losses, in which the softmax of the summed score teaches each. The answer is (L + L') / 2 as FlagEmbedding
    computes it (variant "code"), L + L' as the paper's first version writes ("paper"), L without self-distillation.

    scores: mode -> (rows, columns). weights: of the summed score; None takes the variant's. teacher: (rows, group), an
    external teacher's scores of each query's own passages, which take the place of the labels in L (`in_turn`).
    The terms are each mode's contrastive loss, "sum" the summed score's, and "distil_" before a mode its part of L'.
    """
    recipe = RECIPES[variant]
    total = summed(scores, recipe.summed if weights is None else weights)

    def contrast(matrix: Tensor) -> Tensor:
        if teacher is None:
            return info_nce(matrix, layout.positive, temperature=temperature, excluded=excluded)
        return in_turn(matrix, teacher, layout, temperature=temperature, excluded=excluded)

    def distil(matrix: Tensor) -> Tensor:
        return _soft_cross_entropy(matrix, total.detach(), temperature, temperature, excluded)

    terms = {**{str(mode): contrast(matrix) for mode, matrix in scores.items()}, "sum": contrast(total)}
    loss = _mean(terms, {**recipe.terms, "sum": 1.0})
    if self_distillation:
        taught = {str(mode): distil(matrix) for mode, matrix in scores.items()}
        loss = recipe.whole * (loss + _mean(taught, recipe.terms))
        terms |= {f"distil_{mode}": term for mode, term in taught.items()}
    return Loss(loss, {name: term.detach() for name, term in terms.items()})


def summed(scores: Mapping[Mode, Tensor], weights: Mapping[Mode, float]) -> Tensor:
    """(rows, columns): the weighted sum of the modes' scores, s_inter (arXiv 2402.03216, section 3.3)."""
    return torch.stack([weights.get(mode, 0.0) * matrix for mode, matrix in scores.items()]).sum(dim=0)


def gte(scores: Directions, layout: Layout, *, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """GTE's improved contrastive loss: one partition function over all four directions (arXiv 2308.03281, section 3.3).

    -log( e^{s(q_i, d_i) / τ} / Z_i ), Z_i = Σ_j e^{s(q_i, d_j) / τ} + Σ_{j≠i} e^{s(q_i, q_j) / τ}
    + Σ_j e^{s(q_j, d_i) / τ} + Σ_{j≠i} e^{s(d_j, d_i) / τ}.
    Hard negatives are passages in the first sum and, of other queries, in the last. excluded: (rows, passages); a
    passage that it names is left out of both, and a query whose positive it names out of the two others.
    """
    myself = layout.query[:, None] == torch.arange(len(layout.positives), device=layout.query.device)
    own, alike = layout.own(), None
    if excluded is not None:
        alike = excluded[:, layout.positives]
        myself, own = myself | alike, own | excluded
    asked = _logits(scores.query_passage, temperature, excluded)
    partition = torch.cat(
        [
            asked,
            _logits(scores.query_query, temperature, myself),
            _logits(scores.passage_query, temperature, alike),
            _logits(scores.passage_passage, temperature, own),
        ],
        dim=1,
    )
    return (partition.logsumexp(dim=1) - asked.gather(1, layout.positive[:, None]).squeeze(1)).mean()


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    teacher_temperature: float = 1.0,
    excluded: Tensor | None = None,
) -> Tensor:
    """KL( softmax(teacher / τ_t) ‖ softmax(student / τ) ), an external teacher's ranking taught as a distribution
    (Hinton et al. 2015, arXiv 1503.02531).

    student, teacher: (rows, columns), scores of the same passages, such as a cross-encoder's; the teacher learns
    nothing. excluded: columns that the teacher did not score.
    """
    taught = _soft_cross_entropy(student, teacher.detach(), temperature, teacher_temperature, excluded)
    return taught - _soft_cross_entropy(
        teacher.detach(), teacher.detach(), teacher_temperature, teacher_temperature, excluded
    )


def in_turn(
    scores: Tensor, teacher: Tensor, layout: Layout, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """A teacher's distribution over each query's own passages, taught beside in-batch negatives: each own passage in
    turn stands against all columns but the own ones before it, with the teacher's probability as its weight
    ("m3_kd_loss" of FlagEmbedding 1.4.2, abc/finetune/embedder/AbsModeling.py).

    scores: (rows, columns). teacher: (rows, group), its scores of the columns in `layout.groups`.
    """
    logits = _logits(scores, temperature, excluded)
    columns, silent = layout.groups.clamp(min=0), layout.absent()
    if excluded is not None:
        silent = silent | excluded.gather(1, columns)
    taught = _logits(teacher.detach(), 1.0, silent).softmax(dim=1)
    own = _masked(logits.gather(1, columns), silent)
    others = _masked(logits, layout.own()).logsumexp(dim=1, keepdim=True)
    not_before = own.flip(1).logcumsumexp(dim=1).flip(1)
    return (taught * (torch.logaddexp(others, not_before) - own)).sum(dim=1).mean()


def _soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float, excluded: Tensor | None
) -> Tensor:
    taught = _logits(teacher, teacher_temperature, excluded).softmax(dim=1)
    return -(taught * _logits(student, temperature, excluded).log_softmax(dim=1)).sum(dim=1).mean()


def _logits(scores: Tensor, temperature: float, excluded: Tensor | None) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    return logits if excluded is None else _masked(logits, excluded)


def _masked(logits: Tensor, where: Tensor) -> Tensor:
    # Not -inf: a probability of 0 times that is no number.
    return logits.masked_fill(where, torch.finfo(logits.dtype).min)


def _mean(terms: Mapping[str, Tensor], weights: Mapping[Any, float]) -> Tensor:
    """The weighted terms, over how many they are, as FlagEmbedding divides them."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).mean()
