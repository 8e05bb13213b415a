"""Losses against values computed by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import tensor

from m3_integrations.training.objective.losses import (
    false_negatives,
    gte_loss,
    info_nce,
    kl_distillation,
    m3_loss,
    own_passage_distillation,
    own_scores,
    weighted_sum,
)
from m3_integrations.training.objective.scores import ScoreLayout, ScoreMatrices

MODES = ("dense", "sparse", "multi_vector")


def approx(value):
    return pytest.approx(value, rel=1e-5)


def test_info_nce_is_the_negative_log_softmax_of_the_positive():
    scores = tensor([[2.0, 1.0], [0.0, 3.0]])
    first, second = -log(exp(2) / (exp(2) + exp(1))), -log(exp(3) / (exp(0) + exp(3)))
    assert info_nce(scores, tensor([0, 1]), temperature=1).item() == approx((first + second) / 2)


def test_temperature_divides_the_scores():
    scores = tensor([[0.9, 0.7, 0.1]])
    softmax = exp(0.9 / 0.1) / (exp(0.9 / 0.1) + exp(0.7 / 0.1) + exp(0.1 / 0.1))
    assert info_nce(scores, tensor([0]), temperature=0.1).item() == approx(-log(softmax))


def test_equal_scores_give_the_log_of_their_number():
    assert info_nce(torch.zeros(3, 12), tensor([0, 4, 8]), temperature=0.05).item() == approx(log(12))


def test_an_excluded_column_changes_neither_loss_nor_gradient():
    scores = tensor([[2.0, 1.0, 5.0]], requires_grad=True)
    loss = info_nce(scores, tensor([0]), temperature=1, excluded=tensor([[False, False, True]]))
    loss.backward()
    assert loss.item() == approx(-log(exp(2) / (exp(2) + exp(1))))
    assert scores.grad[0, 2] == 0
    assert scores.grad[0, 1] > 0 > scores.grad[0, 0]


def test_own_scores_contrast_a_query_with_its_own_passages_only():
    layout = ScoreLayout.of(tensor([[0, 2, 3], [1, 4, -1]]), passages=5)
    scores = tensor([[1.0, 9.0, 2.0, 3.0, 9.0], [9.0, 4.0, 9.0, 9.0, 5.0]])
    loss = info_nce(
        own_scores(scores, layout), layout.own_layout().positive, temperature=1, excluded=layout.missing_mask()
    )
    first, second = -log(exp(1) / (exp(1) + exp(2) + exp(3))), -log(exp(4) / (exp(4) + exp(5)))
    assert loss.item() == approx((first + second) / 2)


def test_repeated_positives_and_known_answers_are_false_negatives():
    layout = ScoreLayout.of(tensor([[0, 3], [1, 4], [2, 5]]), passages=6)
    texts = tensor([7, 8, 7, 9, 5, 8])  # queries 0 and 2 have one positive; query 1's positive is query 2's negative
    known = tensor([[5, -1], [-1, -1], [9, 8]])
    assert false_negatives(texts, layout, known).tolist() == [
        [False, False, True, False, True, False],
        [False, False, False, False, False, True],
        [True, True, False, True, False, True],
    ]


def test_temperature_must_be_above_zero():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        info_nce(torch.zeros(1, 2), tensor([0]), temperature=0)


def test_gte_has_one_partition_function_over_four_directions():
    matrices = ScoreMatrices(
        query_passage=tensor([[0.9, 0.2], [0.1, 0.8]]),
        query_query=tensor([[1.0, 0.3], [0.3, 1.0]]),
        passage_query=tensor([[0.9, 0.1], [0.2, 0.8]]),
        passage_passage=tensor([[1.0, 0.4], [0.4, 1.0]]),
    )
    first = exp(0.9) / (exp(0.9) + exp(0.2) + exp(0.3) + exp(0.9) + exp(0.1) + exp(0.4))
    second = exp(0.8) / (exp(0.1) + exp(0.8) + exp(0.3) + exp(0.2) + exp(0.8) + exp(0.4))
    loss = gte_loss(matrices, ScoreLayout.side_by_side(2), temperature=1)
    assert loss.item() == approx(-(log(first) + log(second)) / 2)


def test_gte_excludes_a_false_negative_in_every_direction():
    generator = torch.Generator().manual_seed(0)
    matrices = ScoreMatrices(*(torch.rand(3, 3, generator=generator).requires_grad_() for _ in range(4)))
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    excluded[0, 2] = True
    gte_loss(matrices, ScoreLayout.side_by_side(3), temperature=1, excluded=excluded).backward()
    assert [matrix.grad[0, 2].item() for matrix in matrices] == [0, 0, 0, 0]
    assert all(matrix.grad[0, 1] > 0 for matrix in matrices)


def three_modes(rows=3, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {mode: torch.rand(rows, columns, generator=generator, dtype=torch.float64) for mode in MODES}


def cross_entropy(scores, teacher):
    return -(teacher.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def test_m3_loss_has_the_weights_of_the_published_code():
    scores, layout = three_modes(), ScoreLayout.side_by_side(3, 2)
    dense, lexical, late = (scores[mode] / 0.5 for mode in MODES)
    combined = dense + 0.3 * lexical + late

    def nce(matrix):
        return info_nce(matrix, tensor([0, 2, 4]), temperature=1)

    labeled = (nce(dense) + nce(combined) + 0.1 * nce(lexical) + nce(late)) / 4
    distilled = sum(w * cross_entropy(s, combined) for w, s in [(1, dense), (0.1, lexical), (1, late)]) / 3
    loss = m3_loss(scores, layout, temperature=0.5)
    assert loss.total.item() == approx(((labeled + distilled) / 2).item())
    assert loss.terms["sparse"].item() == approx(nce(lexical).item())
    assert loss.terms["distil_multi_vector"].item() == approx(cross_entropy(late, combined).item())
    assert m3_loss(scores, layout, temperature=0.5, self_distillation=False).total.item() == approx(labeled.item())


def test_m3_loss_has_the_weights_of_the_first_paper():
    scores, layout = three_modes(), ScoreLayout.side_by_side(3, 2)
    combined = sum(scores.values())
    labeled = sum(info_nce(s, layout.positive, temperature=1) for s in [*scores.values(), combined]) / 4
    distilled = sum(cross_entropy(s, combined) for s in scores.values()) / 3
    assert m3_loss(scores, layout, temperature=1, variant="paper").total.item() == approx((labeled + distilled).item())


def test_the_summed_score_gets_no_gradient_as_the_teacher():
    scores = {mode: matrix.requires_grad_() for mode, matrix in three_modes().items()}
    weights = {"dense": 1.0, "sparse": 0.0, "multi_vector": 0.0}
    m3_loss(scores, ScoreLayout.side_by_side(3, 2), temperature=1, weights=weights).total.backward()
    lexical, dense = (scores[mode].detach().clone().requires_grad_() for mode in ("sparse", "dense"))
    labeled, teacher = info_nce(lexical, tensor([0, 2, 4]), temperature=1), scores["dense"].detach()
    (0.5 * 0.1 * (labeled / 4 + cross_entropy(lexical, teacher) / 3)).backward()
    torch.testing.assert_close(scores["sparse"].grad, lexical.grad)
    # Dense is its own teacher and its own sum here: only the labels give a gradient, and they do so twice.
    (0.5 * 2 * info_nce(dense, tensor([0, 2, 4]), temperature=1) / 4).backward()
    torch.testing.assert_close(scores["dense"].grad, dense.grad)


def test_the_weighted_sum_covers_the_available_modes():
    scores = {"dense": tensor([[1.0]]), "sparse": tensor([[10.0]])}
    assert weighted_sum(scores, {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}).item() == approx(1 + 0.3 * 10)


def test_the_divergence_from_an_identical_teacher_is_zero():
    teacher = tensor([[1.0, 2.0, 3.0]])
    assert kl_distillation(5 * teacher, teacher, temperature=5).item() == pytest.approx(0, abs=1e-6)


def test_distillation_is_the_kl_divergence_of_the_softmaxes():
    student, teacher = tensor([[0.0, log(3)]]), tensor([[log(2), 0.0]])
    p, q = (2 / 3, 1 / 3), (1 / 4, 3 / 4)
    expected = p[0] * log(p[0] / q[0]) + p[1] * log(p[1] / q[1])
    assert kl_distillation(student, teacher, temperature=1).item() == approx(expected)


def test_columns_without_a_teacher_score_are_ignored():
    student = tensor([[0.0, log(3), 8.0]], requires_grad=True)
    teacher, absent = tensor([[log(2), 0.0, -torch.inf]]), tensor([[False, False, True]])
    loss = kl_distillation(student, teacher, temperature=1, excluded=absent)
    loss.backward()
    assert loss.item() == approx(kl_distillation(student[:, :2], teacher[:, :2], temperature=1).item())
    assert student.grad[0, 2] == 0
    assert torch.isfinite(student.grad).all()


def test_each_own_passage_in_turn_stands_against_those_that_are_not_above_it():
    layout = ScoreLayout.of(tensor([[0, 2], [1, -1]]), passages=3)
    scores, teacher = tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]), tensor([[log(3), 0.0], [5.0, -torch.inf]])
    first = 3 / 4 * -log(exp(1) / (exp(1) + exp(2) + exp(3))) + 1 / 4 * -log(exp(3) / (exp(2) + exp(3)))
    second = -log(exp(1) / (exp(0) + exp(1) + exp(2)))
    assert own_passage_distillation(scores, teacher, layout, temperature=1).item() == approx((first + second) / 2)


def test_an_excluded_own_passage_is_ignored():
    layout = ScoreLayout.of(tensor([[0, 1]]), passages=3)
    scores, teacher = tensor([[1.0, 2.0, 3.0]], requires_grad=True), tensor([[0.0, 4.0]])
    loss = own_passage_distillation(scores, teacher, layout, temperature=0.1, excluded=tensor([[False, True, False]]))
    loss.backward()
    assert loss.item() == approx(-log(exp(10) / (exp(10) + exp(30))))
    assert scores.grad[0, 1] == 0
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_scores_are_float32(dtype):
    scores = tensor([[0.9, 0.5]], dtype=dtype)
    assert info_nce(scores, tensor([0]), temperature=0.001).dtype == torch.float32
