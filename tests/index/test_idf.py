"""Sparse scores with the inverse document frequency of the passages that an index holds at the time of a search."""

from __future__ import annotations

import warnings
from math import log, sqrt

import numpy as np
import pytest

from m3_integrations import Field, LocalIndex, MemoryIndex, Nudger, Passage, QdrantIndex, Query, Retriever, SearchPlan
from m3_integrations.core.encoded import Encoded
from m3_integrations.errors import WrongCollection
from m3_integrations.evaluation import evaluate_plans
from m3_integrations.index import copy_index
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(dense_dim=8, multi_vector_dim=4, vocab_size=512, sparse_score="idf")
# Passages of two common words and a rare one each: 40 of them, so that LocalIndex has lists of rare and columns of
# common tokens.
TEXTS = {f"p{i:02}": f"red {'blue' if i % 2 else 'green'} word{i} topic{i % 7}" for i in range(40)}
QUERIES = ["red word3", "blue topic2 unknown", "green green topic5", "unknown", ""]
PLAN = SearchPlan(("sparse",), weights={"sparse": 1.0})


@pytest.fixture(params=["memory", "local"])
def index(request, tmp_path):
    with MemoryIndex() if request.param == "memory" else LocalIndex.open(tmp_path / "index", ENCODER) as opened:
        write(opened, TEXTS)
        yield opened


def write(index, texts):
    index.add([Passage(id, text) for id, text in texts.items()], ENCODER.encode_passages(list(texts.values())))


def row(text):
    """Return the weights of a text by token."""
    rows = ENCODER.encode_passages([text]).sparse
    return dict(zip(rows.indices.tolist(), rows.data.tolist(), strict=True))


def expected_scores(query, texts):
    """Return the scores by id: the query's weights times sqrt(idf), over their sum, times the passage's weights."""
    passages = {id: row(text) for id, text in texts.items()}
    weights = {}
    for token, weight in row(query).items():
        count = sum(token in passage for passage in passages.values())
        weights[token] = weight * sqrt(log(1 + (len(texts) - count + 0.5) / (count + 0.5)))
    total = sum(weights.values()) or 1.0
    return {
        id: sum(weight / total * passage.get(token, 0.0) for token, weight in weights.items())
        for id, passage in passages.items()
    }


def assert_scores_are_those_of(index, texts):
    queries = ENCODER.encode_queries(QUERIES)
    scores = index.score("sparse", queries, [sorted(texts)] * len(QUERIES))
    found = index.search("sparse", queries, 100)
    matches = Retriever(ENCODER, index, PLAN).retrieve_encoded(queries, 100)
    for i, query in enumerate(QUERIES):
        expected = expected_scores(query, texts)
        assert scores[i].tolist() == pytest.approx([expected[id] for id in sorted(texts)], rel=1e-5)
        positive = {id: pytest.approx(score, rel=1e-5) for id, score in expected.items() if score > 0}
        assert {hit.id: hit.score for hit in found[i]} == positive
        assert {match.passage.id: match.score for match in matches[i]} == positive


def test_every_write_counts_at_once(index):
    texts = dict(TEXTS)
    assert_scores_are_those_of(index, texts)
    index.delete([f"p{i:02}" for i in range(0, 30, 2)])
    texts = {id: text for id, text in texts.items() if int(id[1:]) >= 30 or int(id[1:]) % 2}
    assert_scores_are_those_of(index, texts)
    replaced = {"p01": "green word3", "p03": "unknown red", "p99": "topic2"}
    write(index, replaced)
    texts |= replaced
    assert_scores_are_those_of(index, texts)
    index.set_vectors(["p05", "p07"], ENCODER.encode_passages(["word3 word3", "unknown topic5"]).only(("sparse",)))
    texts |= {"p05": "word3 word3", "p07": "unknown topic5"}
    assert_scores_are_those_of(index, texts)
    index.delete(list(texts))
    assert index.search("sparse", ENCODER.encode_queries(["red"]), 3) == [[]]


def test_another_reader_of_a_folder_follows_a_writer(tmp_path):
    with LocalIndex.open(tmp_path / "index", ENCODER) as writer, LocalIndex.open(tmp_path / "index") as reader:
        write(writer, TEXTS)
        assert_scores_are_those_of(reader, TEXTS)
        writer.delete(["p00", "p01"])
        assert_scores_are_those_of(reader, {id: text for id, text in TEXTS.items() if id not in ("p00", "p01")})


def test_all_modes_together_give_the_numbers_of_the_exact_index(tmp_path):
    plan = SearchPlan(weights={"dense": 0.5, "sparse": 2.0, "multi_vector": 1.0})
    memory = MemoryIndex()
    with LocalIndex.open(tmp_path / "index", ENCODER) as local:
        for index in (memory, local):
            write(index, TEXTS)
            index.delete(["p10", "p11", "p12"])
        exact, found = (Retriever(ENCODER, each, plan).retrieve_many(QUERIES[:4], 20) for each in (memory, local))
    assert found == exact
    means = Retriever(ENCODER, memory, SearchPlan(weights=plan.weights, sparse_score="mean"))
    assert means.retrieve(QUERIES[0], 20) != exact[0]


def test_a_filter_changes_no_score(index):
    query = ENCODER.encode_queries(["blue topic2"])
    index.add([Passage("x", "blue", {"kind": "x"})], ENCODER.encode_passages(["blue"]))
    everything = {hit.id: hit.score for hit in index.search("sparse", query, 100)[0]}
    assert index.search("sparse", query, 3, Field("kind", "==", "x")) == [[("x", everything["x"])]]


def test_idf_of_an_index_without_passages_is_finite():
    index = MemoryIndex()
    assert np.isfinite(index.idf(np.array([1, 2]))).all()
    write(index, {"a": "red"})
    index.delete(["a"])
    assert np.isfinite(index.idf(np.array([1, 2]))).all()


def test_a_copy_of_an_index_gives_the_same_scores(index):
    index.plan = SearchPlan(weights={"dense": 1.0, "sparse": 1.0}, sparse_score="idf")
    target = MemoryIndex()
    copy_index(index, target)
    other = HashEncoder(dense_dim=8, multi_vector_dim=4, vocab_size=512)  # whose own convention is sums
    assert Retriever(other, target).retrieve("red word3", 9) == Retriever(other, index).retrieve("red word3", 9)
    assert Retriever(other, target).sparse_score == "idf"


def test_a_query_keeps_its_weights_and_is_a_mean_outside_an_index():
    encoded = ENCODER.encode_queries(["red blue"])
    with_idf = encoded.with_idf(lambda tokens: np.arange(1, len(tokens) + 1, dtype=np.float32))
    assert np.array_equal(encoded.sparse.toarray(), encoded.with_sparse_score("mean").sparse.toarray())
    assert with_idf.sparse.sum() == pytest.approx(1.0)
    raw = encoded.with_sparse_score("sum").sparse
    expected = raw.data * np.sqrt([1, 2])
    assert with_idf.sparse.data == pytest.approx(expected / expected.sum())
    for derived in (with_idf.take([0]), with_idf.only(("sparse",)), with_idf.join(with_idf).take([1])):
        assert np.array_equal(derived.sparse.data, with_idf.sparse.data)
    assert np.array_equal(with_idf.with_sparse_score("sum").sparse.data, raw.data)
    with pytest.raises(ValueError, match="cannot join different sparse scores"):
        with_idf.join(encoded)


def test_merged_phrasings_get_the_idf_of_the_index(index):
    encoded = ENCODER.encode_queries(["red word3", "blue word3"])
    merged, word = encoded.merge_queries(), ENCODER.encode_queries(["word3"])
    assert merged.sparse_score == "idf"
    (plain,) = index.score("sparse", merged.with_sparse_score("mean"), [["p03"]])
    (weighted,) = index.score("sparse", merged, [["p03"]])
    assert weighted[0] != plain[0]
    assert index.search("sparse", merged, 1)[0][0].id == index.search("sparse", word, 1)[0][0].id == "p03"


def test_idf_leaves_other_sparse_scores_alone():
    for score in ("sum", "mean"):
        encoded = ENCODER.encode_queries(["red blue"]).with_sparse_score(score)
        assert encoded.with_idf(lambda tokens: np.zeros(len(tokens), np.float32)) is encoded
    dense = Encoded(dense=[[1.0]]).with_sparse_score("idf")
    assert dense.with_idf(lambda _: np.zeros(0, np.float32)) is dense


def test_qdrant_refuses_it_and_says_what_to_do():
    with QdrantIndex.open(":memory:", "passages") as index:
        write(index, TEXTS)
        query = ENCODER.encode_queries(["red"])
        for call in (
            lambda: index.search("sparse", query, 1),
            lambda: index.score("sparse", query, [["p00"]]),
            lambda: Retriever(ENCODER, index).retrieve("red"),
        ):
            with pytest.raises(WrongCollection, match="Qdrant does not count; search with SearchPlan"):
                call()
        assert Retriever(ENCODER, index, SearchPlan(sparse_score="mean")).retrieve("red", 1)
        assert index.search("dense", query.only(("dense",)), 1)[0]


def test_a_nudge_is_evaluated_with_the_numbers_of_a_search(index):
    judged = [Query(f"q{i}", f"red topic{i % 7} word{i % 40}", {f"p{(i + 7) % 40:02}": 1.0}) for i in range(60)]
    before = evaluate_plans(ENCODER, index, judged[40:], {"sparse": PLAN}, ["ndcg@10"])["sparse"]["ndcg@10"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = Nudger(ENCODER, index).fit(judged[:40], judged[40:], modes=("sparse",))
    assert report.validation.before == pytest.approx(before, abs=1e-9)


def test_an_explanation_has_the_idf_of_the_index(mini):
    index = MemoryIndex()
    texts = ["the red bridge", "the blue bridge", "the green house"]
    index.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], mini.encode_passages(texts))
    retriever = Retriever(mini, index, SearchPlan(("sparse",), weights={"sparse": 0.5}, sparse_score="idf"))
    match = retriever.retrieve("the bridge", 1)[0]
    explanation = mini.explain("the bridge", match.passage.text, retriever.weights, retriever.sparse_score, index.idf)
    assert explanation.score == pytest.approx(match.score, rel=1e-5)
    assert 0.5 * sum(each.score for each in explanation.lexical) == pytest.approx(match.score, rel=1e-5)
    assert mini.explain("the bridge", match.passage.text, {"sparse": 0.5}, "idf").score != explanation.score
