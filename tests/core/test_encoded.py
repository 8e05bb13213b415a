"""Encoded, MultiVectors and score: worked by hand on vectors short enough to check."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import scipy.sparse

from m3_integrations import Encoded, MultiVectors, score
from m3_integrations.core.encoded import MODES, check_modes
from m3_integrations.core.errors import MissingMode, NonFiniteVector, WrongDimension
from m3_integrations.core.scoring import dense_scores, multi_vector_scores, sparse_scores


def sparse(*rows):
    return scipy.sparse.csr_array(np.array(rows, np.float32))


def vectors(*texts):
    return MultiVectors.of(texts)


@pytest.fixture
def two():
    """Two texts in all three modes."""
    return Encoded(
        dense=[[1, 0], [0, 1]],
        sparse=sparse([0.5, 0, 2], [0, 3, 0]),
        multi_vector=vectors([[1, 0], [0, 1]], [[0.6, 0.8]]),
    )


def same(one, other):
    return one.modes == other.modes and all(_equal(getattr(one, mode), getattr(other, mode)) for mode in one.modes)


def _equal(one, other):
    if isinstance(one, MultiVectors):
        return np.array_equal(one.values, other.values) and np.array_equal(one.offsets, other.offsets)
    if scipy.sparse.issparse(one):
        return one.shape == other.shape and np.array_equal(one.toarray(), other.toarray())
    return np.array_equal(one, other)


# Scores


def test_dense_scores_are_inner_products():
    queries, passages = Encoded(dense=[[1, 2]]), Encoded(dense=[[3, 4], [5, 6]])
    assert score(queries, passages, {"dense": 1}).tolist() == [[1 * 3 + 2 * 4, 1 * 5 + 2 * 6]]


def test_sparse_scores_sum_the_products_over_shared_tokens():
    queries, passages = Encoded(sparse=sparse([1, 2, 0])), Encoded(sparse=sparse([0, 3, 4], [5, 6, 0], [0, 0, 7]))
    assert score(queries, passages, {"sparse": 1}).tolist() == [[2 * 3, 1 * 5 + 2 * 6, 0]]


def test_late_interaction_is_the_mean_of_each_query_vectors_maximum():
    query = vectors([[1, 0], [0, 1]])
    passage = vectors([[0.5, 0.25], [0.125, 1], [-1, -1]])
    scores = score(Encoded(multi_vector=query), Encoded(multi_vector=passage), {"multi_vector": 1})
    assert scores.tolist() == [[(0.5 + 1) / 2]]


def test_late_interaction_keeps_a_negative_maximum():
    assert multi_vector_scores(vectors([[1, 0]]), vectors([[-0.5, 0], [-0.25, 0]])).tolist() == [[-0.25]]


@pytest.mark.parametrize("empty", [0, 1])
def test_a_text_without_vectors_scores_0_in_late_interaction(empty):
    sides = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)]
    sides[empty] = np.zeros((0, 3), np.float32)
    assert multi_vector_scores(*(MultiVectors.of([side]) for side in sides)).tolist() == [[0]]


@pytest.mark.parametrize("tokens", [1, 7, 60, 200])
def test_long_passages_score_as_the_formula_says_and_empty_ones_between_them_0(tokens):
    random = np.random.default_rng(tokens)
    queries = MultiVectors.of([random.standard_normal((tokens, 384)), random.standard_normal((1, 384))])
    passages = MultiVectors.of([random.standard_normal((n, 384)) for n in (0, 1, 700, 0, 0, 33, 900, 0)])
    expected = [
        [(p.astype(np.float64) @ q.astype(np.float64).T).max(axis=0).mean() if len(p) else 0 for p in passages]
        for q in queries
    ]
    # Of inner products around √384, float32 keeps about seven digits.
    assert np.allclose(multi_vector_scores(queries, passages), expected, atol=1e-6 * np.sqrt(384), rtol=0)


def test_sparse_scores_are_the_same_by_row_and_by_column():
    random = np.random.default_rng(2)
    drawn = [scipy.sparse.random(n, 9000, density=0.02, format="csr", dtype=np.float32, rng=random) for n in (3, 50)]
    queries, passages = (Encoded(sparse=scipy.sparse.csr_array(each)).sparse for each in drawn)
    by_column = sparse_scores(queries, passages.tocsc())
    assert np.array_equal(sparse_scores(queries, passages), by_column)
    for i in range(3):
        assert np.array_equal(sparse_scores(queries[[i]], passages), by_column[[i]])
    assert np.allclose(by_column, (queries.astype(np.float64) @ passages.T.astype(np.float64)).toarray(), rtol=1e-6)


def test_the_hybrid_score_is_the_weighted_sum_of_the_modes(two):
    scores = score(two, two, {"dense": 1, "sparse": 0.5, "multi_vector": 2})
    own = 1 * 1 + 0.5 * (0.5 * 0.5 + 2 * 2) + 2 * (1 + 1) / 2
    across = 1 * 0 + 0.5 * 0 + 2 * (0.6 + 0.8) / 2
    assert scores[0] == pytest.approx([own, across])


def test_a_mode_without_weight_is_not_needed(two):
    dense = two.only(["dense"])
    assert score(dense, dense, {"dense": 1, "sparse": 0}).tolist() == [[1, 0], [0, 1]]


def test_scoring_needs_a_weight(two):
    with pytest.raises(ValueError, match=r"at least one of .* a weight"):
        score(two, two, {"dense": 0})


def test_scoring_in_a_mode_that_is_absent_says_what_to_pass(two):
    with pytest.raises(MissingMode, match=r"are \['dense'\]; pass modes=\('dense', 'multi_vector'\) to the encoder"):
        score(two, two.only(["dense"]), {"multi_vector": 1})


def test_scoring_in_a_mode_that_is_none_names_those_that_are(two):
    with pytest.raises(MissingMode, match="'bm25' is not a mode; the modes are"):
        score(two, two, {"bm25": 1})


def test_scoring_nothing_gives_an_empty_matrix(two):
    nothing = two.take([])
    assert score(nothing, two, dict.fromkeys(MODES, 1)).shape == (0, 2)
    assert score(two, nothing, dict.fromkeys(MODES, 1)).shape == (2, 0)


@pytest.mark.parametrize(
    ("queries", "passages", "mode", "message"),
    [
        ({"dense": [[1, 2]]}, {"dense": [[1, 2, 3]]}, "dense", "query has 2 dimensions and the passages 3"),
        ({"sparse": sparse([1, 2])}, {"sparse": sparse([1])}, "sparse", "query has 2 sparse columns .* passages 1"),
        (
            {"multi_vector": vectors([[1, 2]])},
            {"multi_vector": vectors([[1]])},
            "multi_vector",
            "query vectors are 2 wide and passage vectors 1",
        ),
    ],
)
def test_vectors_of_different_widths_do_not_score(queries, passages, mode, message):
    with pytest.raises(WrongDimension, match=message):
        score(Encoded(**queries), Encoded(**passages), {mode: 1})


@pytest.mark.parametrize("mode", MODES)
def test_a_pairs_score_does_not_depend_on_what_is_scored_beside_it(mode):
    random = np.random.default_rng(0)
    dense = random.standard_normal((40, 67))
    rows = np.maximum(random.standard_normal((40, 30)), 0)
    late = MultiVectors.of([random.standard_normal((n, 19)) for n in random.integers(0, 90, 40)])
    texts = Encoded(dense, scipy.sparse.csr_array(rows), late)
    together = score(texts, texts, {mode: 1})
    for q, p in [(0, 0), (3, 39), (17, 5)]:
        assert score(texts.take([q]), texts.take([p]), {mode: 1})[0, 0] == together[q, p]


def test_equal_passages_tie_exactly_wherever_they_stand():
    random = np.random.default_rng(1)
    passages = random.standard_normal((31, 67)).astype(np.float32)
    passages[[4, 30]] = passages[11]
    scores = dense_scores(random.standard_normal((5, 67)).astype(np.float32), passages)
    assert np.array_equal(scores[:, 4], scores[:, 11])
    assert np.array_equal(scores[:, 30], scores[:, 11])


# What goes in


def test_an_encoded_holds_at_least_one_mode():
    with pytest.raises(MissingMode, match="at least one of"):
        Encoded()


def test_the_modes_hold_the_same_number_of_texts():
    with pytest.raises(WrongDimension, match=r"same number of texts, got \{'dense': 1, 'sparse': 2\}"):
        Encoded(dense=[[1]], sparse=sparse([1], [2]))


def test_one_dense_vector_alone_is_refused_with_what_to_write():
    with pytest.raises(WrongDimension, match=r"write vectors\[None\] for one text"):
        Encoded(dense=[1, 2])


def test_a_list_of_arrays_is_no_multi_vector():
    with pytest.raises(WrongDimension, match=r"write MultiVectors\.of"):
        Encoded(multi_vector=[np.ones((1, 2))])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_nan_and_infinity_are_refused(mode, bad):
    parts = {"dense": [[1], [bad]], "sparse": sparse([1], [bad]), "multi_vector": vectors([[1]], [[bad]])}
    with pytest.raises(NonFiniteVector, match=f"the {mode} vectors hold NaN or infinity, first in row 1"):
        Encoded(**{mode: parts[mode]})


def test_the_row_that_is_named_is_that_of_the_text():
    with pytest.raises(NonFiniteVector, match="row 1"):
        Encoded(sparse=sparse([1, 2, 3, 4], [5, math.nan, 0, 0]))
    with pytest.raises(NonFiniteVector, match="row 1"):
        Encoded(multi_vector=vectors([[1], [2], [3]], [[4], [math.nan]]))


def test_infinities_that_cancel_are_seen():
    with pytest.raises(NonFiniteVector):
        Encoded(dense=[[math.inf, -math.inf]])


def test_large_vectors_whose_sum_overflows_are_finite():
    assert len(Encoded(dense=[[3e38, 3e38]])) == 1


def test_negative_sparse_weights_are_refused():
    with pytest.raises(ValueError, match=r"numpy\.maximum"):
        Encoded(sparse=sparse([-1.0]))


def test_zeros_and_repeated_columns_are_tidied_and_the_callers_array_left_alone():
    given = scipy.sparse.csr_array((np.array([1.0, 2, 0]), [1, 1, 0], [0, 3]), shape=(1, 3))
    assert Encoded(sparse=given).sparse.toarray().tolist() == [[0, 3, 0]]
    assert Encoded(sparse=given).sparse.nnz == 1
    assert given.nnz == 3


def test_vectors_come_out_as_float32():
    encoded = Encoded(np.ones((1, 2), np.float64), sparse([1]).astype(np.float64), vectors([[1]]))
    assert {encoded.dense.dtype, encoded.sparse.dtype, encoded.multi_vector.values.dtype} == {np.dtype(np.float32)}


def test_what_is_held_cannot_be_written_to(two):
    with pytest.raises(ValueError, match="read-only"):
        two.dense[0, 0] = 9
    with pytest.raises(ValueError, match="read-only"):
        two.multi_vector.values[0, 0] = 9


# Changing by answering with a new value


def test_take_follows_the_order_asked_and_may_repeat(two):
    taken = two.take([1, 0, 1])
    assert taken.dense.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert taken.sparse.toarray().tolist() == [[0, 3, 0], [0.5, 0, 2], [0, 3, 0]]
    assert taken.multi_vector.counts.tolist() == [1, 2, 1]
    assert taken.multi_vector[1].tolist() == [[1, 0], [0, 1]]


def test_taking_nothing_keeps_modes_and_widths(two):
    nothing = two.take([])
    assert (len(nothing), nothing.modes) == (0, two.modes)
    assert (nothing.dense.shape, nothing.sparse.shape, nothing.multi_vector.width) == ((0, 2), (0, 3), 2)


def test_only_keeps_the_modes_asked(two):
    assert two.only(["sparse", "dense"]).modes == {"sparse", "dense"}
    with pytest.raises(MissingMode, match=r"pass modes=\('dense', 'sparse'\)"):
        two.only(["dense"]).only(["sparse"])
    with pytest.raises(MissingMode, match="at least one of"):
        two.only([])


def test_touching_a_mode_that_is_absent_raises_a_key_error_too(two):
    with pytest.raises(KeyError):
        _ = two.only(["dense"]).multi_vector


def test_join_is_the_inverse_of_take(two):
    assert same(two.take([0]).join(two.take([1])), two)
    assert same(two.take([]).join(two, two.take([])), two)


def test_joining_needs_the_same_modes_and_widths(two):
    with pytest.raises(MissingMode, match=r"take \.only\(modes\) of both first"):
        two.join(two.only(["dense"]))
    with pytest.raises(WrongDimension, match=r"cannot join dense vectors of different widths \[2, 3\]"):
        two.only(["dense"]).join(Encoded(dense=[[1, 2, 3]]))
    with pytest.raises(WrongDimension, match="multi-vector"):
        two.only(["multi_vector"]).join(Encoded(multi_vector=vectors([[1, 2, 3]])))


def test_merged_phrasings_score_as_their_mean(two):
    passages = two.take([1, 0])
    for mode in ("dense", "sparse"):
        expected = score(two, passages, {mode: 1}).mean(axis=0)
        assert score(two.merge_queries(), passages, {mode: 1})[0] == pytest.approx(expected)


def test_a_mean_of_sparse_weights_divides_each_row_by_its_sum_and_can_be_undone():
    rows = scipy.sparse.csr_array(np.array([[1, 0, 3], [0, 0, 0], [0, 0.5, 0]], np.float32))
    sums = Encoded(sparse=rows)
    means = sums.with_sparse_score("mean")
    assert means.sparse.toarray().tolist() == [[1 / 4, 0, 3 / 4], [0, 0, 0], [0, 1, 0]]
    assert (sums.sparse_score, means.sparse_score) == ("sum", "mean")
    for derived in (means.take([2, 0]), means.only(("sparse",)).take([2]).join(means.take([0]))):
        assert derived.sparse.toarray().tolist() == [[0, 1, 0], [1 / 4, 0, 3 / 4]]
        assert derived.with_sparse_score("sum").sparse.toarray().tolist() == [[0, 0.5, 0], [1, 0, 3]]
    assert means.with_dense(np.zeros((3, 1))).sparse.toarray().tolist() == means.sparse.toarray().tolist()
    assert pickle.loads(pickle.dumps(means)).sparse.toarray().tolist() == means.sparse.toarray().tolist()


def test_merged_phrasings_with_means_score_as_the_mean_of_their_scores():
    rows = scipy.sparse.csr_array(np.array([[1, 0, 3], [0, 0.5, 0]], np.float32))
    merged = Encoded(sparse=rows).with_sparse_score("mean").merge_queries()
    assert merged.sparse.toarray().tolist() == [[1 / 8, 1 / 2, 3 / 8]]


def test_sums_and_means_of_sparse_weights_are_not_joined(two):
    with pytest.raises(ValueError, match="with_sparse_score of both"):
        two.join(two.with_sparse_score("mean"))
    with pytest.raises(ValueError, match=r"one of \['sum', 'mean', 'idf'\], got 'max'"):
        two.with_sparse_score("max")


def test_merged_phrasings_keep_all_vectors(two):
    assert two.merge_queries().multi_vector[0].tolist() == two.multi_vector.values.tolist()
    with pytest.raises(ValueError, match="no text to merge"):
        two.take([]).merge_queries()


def test_with_a_mode_replaces_that_and_leaves_the_rest(two):
    changed = two.with_dense([[2, 2], [3, 3]])
    assert changed.dense.tolist() == [[2, 2], [3, 3]]
    assert same(changed.only(["sparse", "multi_vector"]), two.only(["sparse", "multi_vector"]))
    assert two.with_sparse(sparse([1], [2])).sparse.toarray().tolist() == [[1], [2]]
    assert two.with_multi_vector(vectors([[5]], [[6]])).multi_vector.values.tolist() == [[5], [6]]
    assert two.dense.tolist() == [[1, 0], [0, 1]]


def test_with_a_mode_can_add_it(two):
    assert two.only(["dense"]).with_sparse(two.sparse).modes == {"dense", "sparse"}


def test_a_replacement_holds_as_many_texts(two):
    with pytest.raises(WrongDimension, match="same number of texts"):
        two.with_dense([[1, 2]])


# MultiVectors


def test_multi_vectors_are_read_like_a_sequence():
    texts = vectors([[1], [2]], np.zeros((0, 1)), [[3]])
    assert [each.tolist() for each in texts] == [[[1], [2]], [], [[3]]]
    assert (len(texts), texts[-1].tolist(), texts.counts.tolist()) == (3, [[3]], [2, 0, 1])
    with pytest.raises(IndexError):
        texts[3]


def test_multi_vectors_of_no_text_keep_the_width_that_is_said():
    assert (len(MultiVectors.of([], width=4)), MultiVectors.of([], width=4).width) == (0, 4)


def test_multi_vectors_of_different_widths_are_refused():
    with pytest.raises(WrongDimension, match=r"every text needs \(tokens, width\)"):
        vectors([[1, 2]], [[3]])


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 2, 1, 2], [[0, 2]]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(WrongDimension, match="offsets must rise from 0 to 2"):
        MultiVectors(np.ones((2, 3)), offsets)


def test_multi_vector_values_have_two_axes():
    with pytest.raises(WrongDimension, match=r"\(total, width\), got shape \(3,\)"):
        MultiVectors(np.ones(3), [0, 3])


# Modes


def test_a_bare_string_of_modes_is_refused_with_what_to_write():
    with pytest.raises(MissingMode, match=r"write modes=\('dense',\)"):
        check_modes("dense", MODES)


def test_modes_are_at_least_one():
    with pytest.raises(MissingMode, match="modes is empty"):
        check_modes([], MODES)


@pytest.mark.parametrize("column", [5, 2_000_000_000, -1, -2_000_000_000])
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
def test_sparse_positions_outside_the_matrix_are_refused(kind, column):
    sparse = scipy.sparse.csr_array(np.eye(3, 5, dtype=np.float32)).asformat(kind)
    positions = sparse.col if kind == "coo" else sparse.indices
    positions[1] = column
    with pytest.raises(WrongDimension, match=r"sparse columns are 0 to \d"):
        Encoded(sparse=sparse)


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 2, 2, 3], [0, 1, 2, 9], [0, 1, -2, 3]])
def test_sparse_offsets_that_do_not_rise_to_the_number_of_weights_are_refused(offsets):
    sparse = scipy.sparse.csr_array(np.eye(3, 5, dtype=np.float32))
    sparse.indptr[:] = offsets
    with pytest.raises(WrongDimension, match="sparse offsets must rise"):
        Encoded(sparse=sparse)


@pytest.mark.parametrize(
    "dense", [np.array([[1 + 2j]]), np.array([["1"]]), np.array([["2020-01-01"]], "datetime64[s]")]
)
def test_vectors_that_are_no_real_numbers_are_refused(dense):
    with pytest.raises(TypeError, match="arrays of real numbers"):
        Encoded(dense=dense)
    with pytest.raises(TypeError, match="arrays of real numbers"):
        MultiVectors.of([dense])
