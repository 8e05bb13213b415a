"""Losses, worked by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import tensor

from m3_integrations.training.losses import false_negatives, gte, in_turn, info_nce, kl, m3, own_scores, summed
from m3_integrations.training.scores import Directions, Layout

MODES = ("dense", "sparse", "multi_vector")


def approx(value):
    return pytest.approx(value, rel=1e-5)


def test_info_nce_is_the_log_of_the_share_of_the_positive():
    scores = tensor([[2.0, 1.0], [0.0, 3.0]])
    first, second = -log(exp(2) / (exp(2) + exp(1))), -log(exp(3) / (exp(0) + exp(3)))
    assert info_nce(scores, tensor([0, 1]), temperature=1).item() == approx((first + second) / 2)


def test_temperature_divides_the_scores():
    scores = tensor([[0.9, 0.7, 0.1]])
    share = exp(0.9 / 0.1) / (exp(0.9 / 0.1) + exp(0.7 / 0.1) + exp(0.1 / 0.1))
    assert info_nce(scores, tensor([0]), temperature=0.1).item() == approx(-log(share))


def test_equal_scores_cost_the_log_of_their_number():
    assert info_nce(torch.zeros(3, 12), tensor([0, 4, 8]), temperature=0.05).item() == approx(log(12))


def test_an_excluded_column_neither_costs_nor_learns():
    scores = tensor([[2.0, 1.0, 5.0]], requires_grad=True)
    loss = info_nce(scores, tensor([0]), temperature=1, excluded=tensor([[False, False, True]]))
    loss.backward()
    assert loss.item() == approx(-log(exp(2) / (exp(2) + exp(1))))
    assert scores.grad[0, 2] == 0
    assert scores.grad[0, 1] > 0 > scores.grad[0, 0]


def test_hard_negatives_alone_are_the_columns_that_came_with_the_query():
    layout = Layout.of(tensor([[0, 2, 3], [1, 4, -1]]), passages=5)
    scores = tensor([[1.0, 9.0, 2.0, 3.0, 9.0], [9.0, 4.0, 9.0, 9.0, 5.0]])
    loss = info_nce(own_scores(scores, layout), layout.alone().positive, temperature=1, excluded=layout.absent())
    first, second = -log(exp(1) / (exp(1) + exp(2) + exp(3))), -log(exp(4) / (exp(4) + exp(5)))
    assert loss.item() == approx((first + second) / 2)


def test_the_same_text_and_known_answers_are_no_negatives():
    layout = Layout.of(tensor([[0, 3], [1, 4], [2, 5]]), passages=6)
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


def test_gte_divides_by_all_four_directions_at_once():
    ways = Directions(
        query_passage=tensor([[0.9, 0.2], [0.1, 0.8]]),
        query_query=tensor([[1.0, 0.3], [0.3, 1.0]]),
        passage_query=tensor([[0.9, 0.1], [0.2, 0.8]]),
        passage_passage=tensor([[1.0, 0.4], [0.4, 1.0]]),
    )
    first = exp(0.9) / (exp(0.9) + exp(0.2) + exp(0.3) + exp(0.9) + exp(0.1) + exp(0.4))
    second = exp(0.8) / (exp(0.1) + exp(0.8) + exp(0.3) + exp(0.2) + exp(0.8) + exp(0.4))
    loss = gte(ways, Layout.side_by_side(2), temperature=1)
    assert loss.item() == approx(-(log(first) + log(second)) / 2)


def test_gte_leaves_out_a_false_negative_in_every_direction():
    generator = torch.Generator().manual_seed(0)
    ways = Directions(*(torch.rand(3, 3, generator=generator).requires_grad_() for _ in range(4)))
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    excluded[0, 2] = True
    gte(ways, Layout.side_by_side(3), temperature=1, excluded=excluded).backward()
    assert [way.grad[0, 2].item() for way in ways] == [0, 0, 0, 0]
    assert all(way.grad[0, 1] > 0 for way in ways)


def three_modes(rows=3, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {mode: torch.rand(rows, columns, generator=generator, dtype=torch.float64) for mode in MODES}


def cross_entropy(scores, teacher):
    return -(teacher.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def test_m3_as_the_published_code_weighs_it():
    scores, layout = three_modes(), Layout.side_by_side(3, 2)
    dense, lexical, late = (scores[mode] / 0.5 for mode in MODES)
    together = dense + 0.3 * lexical + late

    def nce(matrix):
        return info_nce(matrix, tensor([0, 2, 4]), temperature=1)

    labelled = (nce(dense) + nce(together) + 0.1 * nce(lexical) + nce(late)) / 4
    taught = sum(w * cross_entropy(s, together) for w, s in [(1, dense), (0.1, lexical), (1, late)]) / 3
    loss = m3(scores, layout, temperature=0.5)
    assert loss.total.item() == approx(((labelled + taught) / 2).item())
    assert loss.terms["sparse"].item() == approx(nce(lexical).item())
    assert loss.terms["distil_multi_vector"].item() == approx(cross_entropy(late, together).item())
    assert m3(scores, layout, temperature=0.5, self_distillation=False).total.item() == approx(labelled.item())


def test_m3_as_the_first_paper_writes_it():
    scores, layout = three_modes(), Layout.side_by_side(3, 2)
    together = sum(scores.values())
    labelled = sum(info_nce(s, layout.positive, temperature=1) for s in [*scores.values(), together]) / 4
    taught = sum(cross_entropy(s, together) for s in scores.values()) / 3
    assert m3(scores, layout, temperature=1, variant="paper").total.item() == approx((labelled + taught).item())


def test_the_sum_teaches_and_does_not_learn_from_its_pupils():
    scores = {mode: matrix.requires_grad_() for mode, matrix in three_modes().items()}
    weights = {"dense": 1.0, "sparse": 0.0, "multi_vector": 0.0}
    m3(scores, Layout.side_by_side(3, 2), temperature=1, weights=weights).total.backward()
    lexical, dense = (scores[mode].detach().clone().requires_grad_() for mode in ("sparse", "dense"))
    labelled, teacher = info_nce(lexical, tensor([0, 2, 4]), temperature=1), scores["dense"].detach()
    (0.5 * 0.1 * (labelled / 4 + cross_entropy(lexical, teacher) / 3)).backward()
    torch.testing.assert_close(scores["sparse"].grad, lexical.grad)
    # Dense is its own teacher here, from which nothing is to be learned: labels alone move it, twice, the sum being it.
    (0.5 * 2 * info_nce(dense, tensor([0, 2, 4]), temperature=1) / 4).backward()
    torch.testing.assert_close(scores["dense"].grad, dense.grad)


def test_a_sum_weighs_the_modes_that_are_there():
    scores = {"dense": tensor([[1.0]]), "sparse": tensor([[10.0]])}
    assert summed(scores, {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}).item() == approx(1 + 0.3 * 10)


def test_the_divergence_from_a_teacher_that_agrees_is_nothing():
    teacher = tensor([[1.0, 2.0, 3.0]])
    assert kl(5 * teacher, teacher, temperature=5).item() == pytest.approx(0, abs=1e-6)


def test_the_divergence_from_a_teacher_is_that_of_their_softmaxes():
    student, teacher = tensor([[0.0, log(3)]]), tensor([[log(2), 0.0]])
    p, q = (2 / 3, 1 / 3), (1 / 4, 3 / 4)
    expected = p[0] * log(p[0] / q[0]) + p[1] * log(p[1] / q[1])
    assert kl(student, teacher, temperature=1).item() == approx(expected)


def test_columns_that_the_teacher_did_not_score_teach_nothing():
    student = tensor([[0.0, log(3), 8.0]], requires_grad=True)
    teacher, absent = tensor([[log(2), 0.0, -torch.inf]]), tensor([[False, False, True]])
    loss = kl(student, teacher, temperature=1, excluded=absent)
    loss.backward()
    assert loss.item() == approx(kl(student[:, :2], teacher[:, :2], temperature=1).item())
    assert student.grad[0, 2] == 0
    assert torch.isfinite(student.grad).all()


def test_each_own_passage_in_turn_stands_against_those_that_are_not_above_it():
    layout = Layout.of(tensor([[0, 2], [1, -1]]), passages=3)
    scores, teacher = tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]), tensor([[log(3), 0.0], [5.0, -torch.inf]])
    first = 3 / 4 * -log(exp(1) / (exp(1) + exp(2) + exp(3))) + 1 / 4 * -log(exp(3) / (exp(2) + exp(3)))
    second = -log(exp(1) / (exp(0) + exp(1) + exp(2)))
    assert in_turn(scores, teacher, layout, temperature=1).item() == approx((first + second) / 2)


def test_an_own_passage_that_is_excluded_teaches_nothing():
    layout = Layout.of(tensor([[0, 1]]), passages=3)
    scores, teacher = tensor([[1.0, 2.0, 3.0]], requires_grad=True), tensor([[0.0, 4.0]])
    loss = in_turn(scores, teacher, layout, temperature=0.1, excluded=tensor([[False, True, False]]))
    loss.backward()
    assert loss.item() == approx(-log(exp(10) / (exp(10) + exp(30))))
    assert scores.grad[0, 1] == 0
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_judged_in_float32(dtype):
    scores = tensor([[0.9, 0.5]], dtype=dtype)
    assert info_nce(scores, tensor([0]), temperature=0.001).dtype == torch.float32
