"""Adapters of both frameworks search by the plan that an index keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from m3_integrations import (
    LocalIndex,
    MemoryIndex,
    Nudger,
    Passage,
    QdrantIndex,
    Query,
    Retriever,
    SearchPlan,
    langchain,
    llama_index,
)
from m3_integrations.core.encoded import MODES
from m3_integrations.errors import WrongCollection
from m3_integrations.index import copy_index
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(weights={"dense": 1.0, "sparse": 0.01, "multi_vector": 0.01})
MEANS = HashEncoder(weights={"dense": 1.0, "sparse": 0.5, "multi_vector": 0.01}, sparse_score="mean")
TEXTS = [f"topic{i % 7} word{i} noise{i % 3}" for i in range(40)]
QUESTION = "word3 topic5 noise1"
JUDGED = [Query(f"q{i}", f"word{i % 40} topic{i % 7}", {f"p{i % 40}": 1.0}) for i in range(80)]
PLAN = SearchPlan(weights={"dense": 0.01, "sparse": 2.0, "multi_vector": 0.5})


@pytest.fixture(params=["memory", "local", "qdrant"])
def index(request, tmp_path):
    opened = {
        "memory": MemoryIndex,
        "local": lambda: LocalIndex.open(tmp_path / "index", ENCODER),
        "qdrant": lambda: QdrantIndex.open(":memory:", "passages", ENCODER),
    }[request.param]()
    with opened:
        opened.add([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)], ENCODER.encode_passages(TEXTS))
        yield opened


def ranking(index, plan=None, k=5, encoder=ENCODER):
    return [
        (each.passage.id, pytest.approx(each.score)) for each in Retriever(encoder, index, plan).retrieve(QUESTION, k)
    ]


def rankings_of_adapters(index, encoder=ENCODER):
    """Return the best five with scores, by adapter."""
    store = langchain.M3VectorStore(langchain.M3Embeddings(encoder=encoder), index)
    llama_store = llama_index.M3VectorStore(index, encoder)
    query = VectorStoreQuery(
        query_embedding=encoder.encode_queries([QUESTION]).dense[0].tolist(),
        query_str=QUESTION,
        similarity_top_k=5,
        mode=VectorStoreQueryMode.SEMANTIC_HYBRID,
    )
    answer = llama_store.query(query)
    nodes = llama_index.M3Retriever(index, encoder, 5).retrieve(QUESTION)
    documents = langchain.M3Retriever(index=index, encoder=encoder, k=5).invoke(QUESTION)
    return {
        "langchain store": [(each.id, score) for each, score in store.similarity_search_with_score(QUESTION, k=5)],
        "llama_index store": list(zip(answer.ids, answer.similarities, strict=True)),
        "llama_index retriever": [(each.node.node_id, each.score) for each in nodes],
        "langchain retriever": [
            (each.id, score) for each, (_, score) in zip(documents, ranking(index, encoder=encoder), strict=True)
        ],
    }


def test_every_adapter_uses_the_plan_of_the_index(index):
    index.plan = PLAN
    expected = ranking(index, PLAN)
    assert expected != ranking(index, SearchPlan(weights=ENCODER.weights))
    assert all(found == expected for found in rankings_of_adapters(index).values())


@pytest.mark.parametrize("weights", [None, PLAN.weights])
def test_every_adapter_fuses_ranks_if_the_plan_of_the_index_does(index, weights):
    index.plan = SearchPlan(weights=weights, fusion="rrf")
    expected = ranking(index, SearchPlan(weights=weights or dict.fromkeys(MODES, 1.0), fusion="rrf"))
    assert expected != ranking(index, SearchPlan(weights=weights))
    assert all(score.expected < 0.1 for _, score in expected)
    assert all(found == expected for found in rankings_of_adapters(index).values())
    memory = MemoryIndex()
    copy_index(index, memory)
    assert ranking(memory) == expected


def test_rank_fusion_scales_relevance_to_1_and_cannot_be_nudged():
    (text,) = TEXTS[:1]
    store = langchain.M3VectorStore.from_texts([text], langchain.M3Embeddings(encoder=ENCODER))
    store.index.plan = SearchPlan(fusion="rrf")
    assert store.similarity_search_with_relevance_scores(text, k=1)[0][1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="a nudge improves a weighted sum of scores, got fusion='rrf'"):
        Nudger(ENCODER, store.index, SearchPlan(fusion="rrf"))


def test_a_nudge_sets_the_plan_and_revert_restores_the_earlier_one(index):
    index.plan = PLAN
    before = ranking(index)
    nudger = Nudger(ENCODER, index)
    report = nudger.fit(JUDGED[:50], JUDGED[50:], modes=("dense", "sparse", "multi_vector"))
    assert index.plan == report.plan == nudger.plan
    assert all(found == ranking(index, report.plan) for found in rankings_of_adapters(index).values())
    nudger.revert()
    assert index.plan == PLAN
    assert ranking(index) == before
    nudger.revert(1)
    assert index.plan == report.plan


def test_a_nudge_of_some_modes_leaves_the_plan_of_the_index(index):
    index.plan = PLAN
    nudger = Nudger(ENCODER, index)
    nudger.fit(JUDGED[:50], JUDGED[50:], modes=("dense", "sparse", "multi_vector"))
    report = nudger.fit(JUDGED[:50], JUDGED[50:], modes=("dense",))
    assert report.plan == nudger.plan == SearchPlan(propose=("dense",), weights={"dense": 1.0})
    assert index.plan == PLAN
    nudger.revert(2)
    assert index.plan == PLAN


def test_a_given_plan_and_other_modes_ignore_the_weights_of_the_index(index):
    index.plan = PLAN
    retriever = Retriever(ENCODER, index, SearchPlan(modes=("dense", "sparse")))
    assert retriever.weights == {"dense": 1.0, "sparse": 0.01}
    given = SearchPlan(weights={"dense": 1.0})
    assert (
        langchain.M3VectorStore(langchain.M3Embeddings(encoder=ENCODER), index, plan=given)
        .similarity_search(QUESTION, k=1)[0]
        .id
        == ranking(index, given, 1)[0][0]
    )


def test_a_plan_with_a_mode_that_is_missing_falls_back_to_the_weights_of_the_others():
    pair = MemoryIndex()
    encoded = ENCODER.encode_passages(TEXTS, ("dense", "sparse"))
    pair.add([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)], encoded)
    pair.plan = PLAN
    with pytest.warns(UserWarning, match="multi_vector"):
        assert Retriever(ENCODER, pair).weights == {"dense": 1.0, "sparse": 0.01}


def test_a_retriever_follows_the_plan_while_it_changes(tmp_path: Path):
    with LocalIndex.open(tmp_path / "index", ENCODER) as writer, LocalIndex.open(tmp_path / "index") as reader:
        writer.add([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)], ENCODER.encode_passages(TEXTS))
        retriever = Retriever(ENCODER, reader)
        assert retriever.weights == ENCODER.weights
        writer.plan = PLAN
        assert retriever.weights == PLAN.weights


def test_every_adapter_keeps_the_sums_of_a_plan_that_was_stored_before_means(index):
    index.plan = PLAN
    expected = ranking(index)
    stored = {name: value for name, value in PLAN.to_json().items() if name != "sparse_score"}
    index.plan = SearchPlan.from_json(stored)
    assert rankings_of_adapters(index, MEANS) == dict.fromkeys(rankings_of_adapters(index), expected)


def test_every_adapter_divides_sparse_scores_by_the_convention_of_the_encoder(index):
    plan = SearchPlan(weights=MEANS.weights)
    expected = ranking(index, plan, encoder=MEANS)
    assert expected == ranking(index, replace(plan, sparse_score="mean")) != ranking(index, plan)
    assert rankings_of_adapters(index, MEANS) == dict.fromkeys(rankings_of_adapters(index), expected)


def test_every_adapter_applies_the_idf_of_the_index(index):
    index.plan = replace(PLAN, sparse_score="idf")
    if isinstance(index, QdrantIndex):
        with pytest.raises(WrongCollection, match="Qdrant does not count"):
            ranking(index)
        return
    expected = ranking(index, index.plan)
    assert expected != ranking(index, replace(PLAN, sparse_score="mean"))
    assert all(found == expected for found in rankings_of_adapters(index).values())


def test_a_nudge_records_the_sparse_score_of_its_weights(index):
    nudger = Nudger(MEANS, index, SearchPlan(sparse_score="sum"))
    report = nudger.fit(JUDGED[:50], JUDGED[50:], modes=("dense", "sparse", "multi_vector"))
    assert report.plan.sparse_score == index.plan.sparse_score == "sum"
    means = Nudger(MEANS, index).refit()
    assert means.plan.sparse_score is None
    assert [version.sparse_score for version in nudger.versions()] == ["sum", "mean"]
    nudger = Nudger(MEANS, index)
    nudger.revert(1)
    assert index.plan.weights == report.plan.weights
    assert index.plan.sparse_score == "sum"
