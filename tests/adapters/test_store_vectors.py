"""Passages by id: who may be pushed, whose lengths count, and what an answer by id must name."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.adapters.store_vectors import NudgeOptions, QueryVectors, StoreVectors, hold_out, to_matrix
from m3_integrations.core.errors import UnknownId, WrongDimension
from m3_integrations.core.types import Query

KINDS = 20  # passages of each kind
OPTIONS = NudgeOptions(metric="accuracy@1", propagate=None)


def problem(turnable=KINDS, times=1):
    """Passages x that training asks for along y, each in four axes of its own, and two decoys beside each.

    Asked for along y, a passage must go there by more than the 0.3 of its decoy. Half of them are asked for along x
    too, where their decoy has 0.97: turned far enough for y they would have less, cos(arcsin 0.3) = 0.954, and pushed
    as far they keep 1. `turnable` others are asked for along y alone. Validation asks along x so many times.
    """
    x, y, u, v = np.eye(4 * 2 * KINDS, dtype=np.float32).reshape(4, 2 * KINDS, -1)
    vectors = np.concatenate([x, 0.97 * x + np.sqrt(1 - 0.97**2) * u, 0.3 * y + np.sqrt(1 - 0.3**2) * v])
    ids = [f"{kind}{i}" for kind in ("passage", "decoy-x", "decoy-y") for i in range(2 * KINDS)]
    asked_for = range(KINDS + turnable)
    train = _asked("train", [*asked_for] * 3, y)
    judges = _asked("y", [*asked_for], y), _asked("x", [*range(KINDS)] * times, x)
    validation = QueryVectors(
        [*judges[0].queries, *judges[1].queries], np.concatenate([each.vectors for each in judges])
    )
    return ids, vectors, train, validation


def _asked(name, rows, axes):
    return QueryVectors(
        [Query(f"{name}-{i}", f"{name} {i}?", {f"passage{row}": 1.0}) for i, row in enumerate(rows)], axes[rows]
    )


def test_auto_pushes_where_that_is_better_and_the_store_similarity_dot_product():
    ids, vectors, train, validation = problem()
    nudged = StoreVectors(ids, vectors, "dot").nudge(train, validation, OPTIONS)
    assert (nudged.method, nudged.before, nudged.after) == ("nudge-m", pytest.approx(1 / 3), pytest.approx(1))


@pytest.mark.parametrize("similarity", ["cosine", None])
def test_elsewhere_auto_turns_what_a_turn_helps(similarity):
    ids, vectors, train, validation = problem()
    nudged = StoreVectors(ids, vectors, similarity).nudge(train, validation, OPTIONS)
    assert (nudged.method, nudged.after) == ("nudge-n", pytest.approx(2 / 3))
    assert np.linalg.norm(nudged.passages, axis=1) == pytest.approx(1, abs=1e-5)


def test_elsewhere_auto_moves_nothing_where_only_a_push_helps():
    ids, vectors, train, validation = problem(turnable=0, times=6)  # more than train and validation ask along y
    assert StoreVectors(ids, vectors, "dot").nudge(train, validation, OPTIONS).after == pytest.approx(1)
    nudged = StoreVectors(ids, vectors, "cosine").nudge(train, validation, OPTIONS)
    assert (nudged.method, nudged.moved, nudged.after) == ("nudge-n", 0, nudged.before)


@pytest.mark.parametrize("similarity", ["cosine", None])
def test_lengths_of_passages_and_questions_do_not_count_for_a_cosine(similarity):
    ids, vectors, train, validation = problem()
    scales = np.random.default_rng(2).uniform(0.1, 9, (len(vectors), 1)).astype(np.float32)
    longer = [QueryVectors(each.queries, 3 * each.vectors) for each in (train, validation)]
    turning = OPTIONS._replace(method="nudge-n")
    plain = StoreVectors(ids, vectors, similarity).nudge(train, validation, turning)
    scaled = StoreVectors(ids, scales * vectors, similarity).nudge(*longer, turning)
    assert plain.after == scaled.after > plain.before
    np.testing.assert_allclose(plain.passages, scaled.passages, atol=1e-5)


def test_a_push_is_refused_for_a_cosine():
    ids, vectors, train, validation = problem()
    with pytest.raises(ValueError, match=r"compares by cosine.*use method='nudge-n'"):
        StoreVectors(ids, vectors, "cosine").nudge(train, validation, OPTIONS._replace(method="nudge-m"))


def test_an_answer_that_is_no_passage_is_named():
    ids, vectors, train, _ = problem()
    with pytest.raises(UnknownId, match="query 'train-2' is answered by 'passage2', which is none of the 2 passages"):
        StoreVectors(ids[:2], vectors[:2]).to_judged(train)


def test_queries_are_held_out_whole_and_by_the_seed():
    queries = [Query(f"q{i}", f"question {i // 2}", {}) for i in range(40)]
    train, validation = hold_out(queries, 3)
    assert (train, validation) == hold_out(queries, 3) != hold_out(queries, 4)
    assert (train, validation) == hold_out(queries[::-1], 3)
    assert len(validation) == 8
    assert not {query.text for query in train} & {query.text for query in validation}


def test_vectors_of_two_widths_are_an_error_and_none_are_none():
    assert to_matrix([]).shape == (0, 0)
    with pytest.raises(WrongDimension, match=r"different dimensions: \[1, 2\]"):
        to_matrix([[1.0], [1.0, 2.0]])
