"""Rows of a forward pass wait for the store that wants them, and for no other text or vector."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from m3_integrations.adapters.embedding_cache import (
    EmbeddingCache,
    complete_query,
    dense_of_passages,
    dense_of_queries,
    fill_missing_modes,
    request_modes,
)
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import WrongDimension
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", ""]


class Counting(HashEncoder):
    """Remembers what it was asked to encode, and in which modes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []

    def _encode(self, texts, modes):
        self.asked.append((list(texts), frozenset(self.modes if modes is None else modes)))
        return super()._encode(texts, modes)


@pytest.fixture
def encoder():
    return Counting(seed=3)


def test_while_nobody_wants_more_the_dense_vector_is_all_that_is_made(encoder):
    dense_of_passages(encoder, TEXTS)
    dense_of_queries(encoder, TEXTS)
    recent = request_modes(encoder, MODES)
    del recent
    dense_of_passages(encoder, TEXTS)
    assert [modes for _, modes in encoder.asked] == [frozenset(["dense"])] * 3


def test_what_a_store_wants_is_made_in_the_pass_for_the_dense_vector(encoder):
    recent = request_modes(encoder, MODES)
    dense = dense_of_passages(encoder, TEXTS)
    whole = fill_missing_modes(encoder, recent, TEXTS, list(dense), MODES)
    assert encoder.asked == [(TEXTS, frozenset(MODES))]
    judge = HashEncoder(seed=3).encode_passages(TEXTS)
    assert np.array_equal(whole.dense, judge.dense)
    assert (whole.sparse != judge.sparse).nnz == 0
    assert np.array_equal(whole.multi_vector.values, judge.multi_vector.values)


def test_two_encoders_with_one_fingerprint_share_what_they_made():
    one, other = Counting(seed=3), Counting(seed=3)
    recent = request_modes(one, MODES)
    dense = dense_of_passages(other, TEXTS)
    fill_missing_modes(one, recent, TEXTS, list(dense), MODES)
    assert one.asked == []


def test_a_vector_that_the_pass_did_not_make_is_kept_and_the_rest_is_made_anew(encoder):
    recent = request_modes(encoder, MODES)
    dense = dense_of_passages(encoder, TEXTS)
    moved = [dense[0], -dense[1], None]
    whole = fill_missing_modes(encoder, recent, TEXTS, moved, MODES)
    assert encoder.asked[1:] == [([TEXTS[1], TEXTS[2]], frozenset(MODES))]
    assert np.array_equal(whole.dense, [dense[0], -dense[1], dense[2]])
    assert (whole.sparse != HashEncoder(seed=3).encode_passages(TEXTS).sparse).nnz == 0


def test_the_same_vector_under_another_text_is_not_taken_for_it(encoder):
    recent = request_modes(encoder, MODES)
    dense = dense_of_passages(encoder, ["a red cat"])
    whole = fill_missing_modes(encoder, recent, ["a blue dog"], [dense[0]], MODES)
    assert encoder.asked[-1][0] == ["a blue dog"]
    assert (whole.sparse != HashEncoder(seed=3).encode_passages(["a blue dog"]).sparse).nnz == 0


def test_a_question_is_not_taken_for_a_passage(encoder):
    recent = request_modes(encoder, MODES)
    dense = dense_of_passages(encoder, ["a red cat"])
    complete_query(encoder, recent, "a red cat", dense[0], MODES)
    assert encoder.asked[-1] == (["a red cat"], frozenset(["sparse", "multi_vector"]))
    asked = dense_of_queries(encoder, ["a red cat"])
    before = len(encoder.asked)
    complete_query(encoder, recent, "a red cat", asked[0], MODES)
    assert len(encoder.asked) == before


def test_a_question_without_text_has_its_dense_vector_alone(encoder):
    recent = request_modes(encoder, MODES)
    only = complete_query(encoder, recent, None, [1.0] * 32, ["dense"])
    assert only.modes == {"dense"}
    assert encoder.asked == []
    with pytest.raises(ValueError, match=r"\['sparse'\] are computed from the query's text; give query_str"):
        complete_query(encoder, recent, None, [1.0] * 32, ["sparse"])


def test_vectors_that_are_all_given_need_no_pass(encoder):
    given = fill_missing_modes(encoder, request_modes(encoder, ["dense"]), TEXTS, [[0.5] * 32] * 3, ["dense"])
    assert given.modes == {"dense"}
    assert encoder.asked == []


def test_a_vector_of_another_width_says_what_to_do(encoder):
    with pytest.raises(WrongDimension, match=r"'a red cat' has the shape \(3,\).*\(32,\); embed with the model"):
        fill_missing_modes(encoder, request_modes(encoder, MODES), ["a red cat"], [[1.0, 2.0, 3.0]], MODES)


def test_rows_are_bounded_in_bytes_and_the_oldest_go_first():
    encoded = HashEncoder().encode_passages(["one", "two", "six"])
    each = 4 * 32 + 8 * 1 + 4 * 16 * 2  # dense; one token; two vectors
    rows = EmbeddingCache(limit=2 * each)
    rows.put(["one", "two", "six"], encoded)
    assert (len(rows), rows.dropped) == (2, 1)
    assert rows.get("one", encoded.dense[0]) is None
    assert rows.get("six", encoded.dense[2]) is not None
    rows.discard("six", encoded.dense[2])
    rows.discard("six", encoded.dense[2])
    rows.put(["one"], encoded.take([0]))
    assert (len(rows), rows.dropped) == (2, 1)


def test_rows_are_kept_and_found_from_many_threads():
    encoder = HashEncoder()
    rows, lost = EmbeddingCache(limit=1 << 20), []

    def keep_and_find(number):
        for i in range(20):
            text = f"text {number} {i}"
            encoded = encoder.encode_passages([text])
            rows.put([text], encoded)
            lost.extend([text] if rows.get(text, encoded.dense[0]) is None else [])
            rows.discard(text, encoded.dense[0])

    threads = [threading.Thread(target=keep_and_find, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert lost == []
    assert len(rows) == 0
