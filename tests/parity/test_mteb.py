"""MTEB's evaluation of our wrappers, offline on a local task, equals ours."""

from __future__ import annotations

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import SearchProtocol

from m3_integrations import MemoryIndex, Passage, Query, Retriever, SearchPlan, ingest
from m3_integrations.core.errors import MissingMode
from m3_integrations.evaluation import evaluate
from m3_integrations.evaluation.mteb import MtebEncoder, MtebSearch
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder()
ROWS = [
    {"id": f"p{i:03d}", "title": f"title{i % 7}", "text": f"alpha{i % 20} beta{i % 9} gamma{i}"} for i in range(120)
]
QUERIES = [
    Query(f"q{i}", f"alpha{i % 20} beta{i % 9} title{i % 7}", {f"p{i:03d}": 2.0, f"p{(i + 60) % 120:03d}": 1.0})
    for i in range(40)
]
PLANS = {
    "dense": SearchPlan(propose=("dense",), weights={"dense": 1.0}),
    "sparse": SearchPlan(propose=("sparse",), weights={"sparse": 1.0}),
    "multi_vector": SearchPlan(propose=("multi_vector",), weights={"multi_vector": 1.0}),
    None: SearchPlan(),
}


def make_task(top_ranked=None):
    """A retrieval task in memory; with top_ranked, one of reranking."""

    class LocalTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalTask",
            description="Passages and questions of a test.",
            dataset={"path": "local/none", "revision": "1"},
            type="Reranking" if top_ranked else "Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc=None, **kwargs):
            data = {
                "corpus": Dataset.from_list(ROWS),
                "queries": Dataset.from_list([{"id": query.id, "text": query.text} for query in QUERIES]),
                "relevant_docs": {q.id: {id: int(grade) for id, grade in q.relevant.items()} for q in QUERIES},
                "top_ranked": top_ranked,
            }
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return LocalTask()


def ndcg(model, task):
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]["ndcg_at_10"]


@pytest.fixture(scope="module")
def index():
    filled = MemoryIndex()
    ingest(ENCODER, filled, (Passage(row["id"], f"{row['title']}\n{row['text']}") for row in ROWS))
    return filled


@pytest.mark.parametrize("mode", PLANS)
def test_the_search_wrapper_has_our_ndcg(mode, index):
    found = Retriever(ENCODER, index, PLANS[mode]).retrieve_many([query.text for query in QUERIES], 1000)
    run = {query.id: [match.passage.id for match in each] for query, each in zip(QUERIES, found, strict=True)}
    model = MtebSearch(ENCODER, mode)
    assert isinstance(model, SearchProtocol)
    assert ndcg(model, make_task()) == pytest.approx(evaluate(run, QUERIES)["ndcg@10"], abs=1e-5)


def test_the_encoder_wrapper_has_the_ndcg_of_dense_search():
    assert ndcg(MtebEncoder(ENCODER), make_task()) == pytest.approx(
        ndcg(MtebSearch(ENCODER, "dense"), make_task()), abs=1e-5
    )


@pytest.mark.parametrize("mode", PLANS)
def test_only_the_passages_of_top_ranked_are_ranked(mode, index):
    top_ranked = {q.id: [*q.relevant, *(f"p{(i + j) % 120:03d}" for j in (3, 5, 7))] for i, q in enumerate(QUERIES)}
    model = MtebSearch(ENCODER, mode)
    model.index(ROWS)
    rows = [{"id": query.id, "text": query.text} for query in QUERIES]
    found = model.search(rows, top_k=100, top_ranked=top_ranked)
    assert {id: set(scores) for id, scores in found.items()} == {id: set(ids) for id, ids in top_ranked.items()}
    run = {id: list(scores) for id, scores in found.items()}
    assert ndcg(MtebSearch(ENCODER, mode), make_task(top_ranked)) == pytest.approx(
        evaluate(run, QUERIES)["ndcg@10"], abs=1e-5
    )


def test_models_are_named_by_mode_and_fingerprint():
    meta = MtebSearch(ENCODER, "multi_vector", name="m3-mini").mteb_model_meta
    assert (meta.name, meta.model_type) == ("m3-integrations/m3-mini-multi-vector", ["late-interaction"])
    assert meta.revision == ENCODER.fingerprint[:12]
    with pytest.raises(MissingMode, match="is not available"):
        MtebSearch(HashEncoder(modes=("dense",)), "sparse")
    with pytest.raises(ValueError, match="leave one of them out"):
        MtebSearch(ENCODER, "dense", SearchPlan())
