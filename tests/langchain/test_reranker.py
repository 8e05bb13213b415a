"""M3Reranker: exact reranking as a LangChain document compressor."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from pydantic import ValidationError

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.scoring import score
from m3_integrations.langchain import M3Reranker

TEXTS = ["nothing of the kind", "a blue dog", "a red dog", "a red cat"]


@pytest.fixture
def documents():
    return [Document(id=text, page_content=text, metadata={"n": [i]}) for i, text in enumerate(TEXTS)]


def exact(encoder, query, weights):
    return score(encoder.encode_queries([query]), encoder.encode_passages(TEXTS), weights)[0].tolist()


@pytest.mark.parametrize("mode", ["hybrid", *MODES])
def test_documents_are_ranked_by_the_exact_score_of_the_mode(hash_encoder, documents, mode):
    reranker = M3Reranker(encoder=hash_encoder, mode=mode, top_n=4)
    best = reranker.compress_documents(documents, "a red cat")
    judged = dict(
        zip(
            TEXTS,
            exact(hash_encoder, "a red cat", hash_encoder.weights if mode == "hybrid" else {mode: 1.0}),
            strict=True,
        )
    )
    assert best[0].page_content == "a red cat"
    assert [each.metadata["relevance_score"] for each in best] == pytest.approx(sorted(judged.values(), reverse=True))
    assert [each.metadata["relevance_score"] for each in best] == pytest.approx([judged[each.id] for each in best])


def test_weights_change_the_hybrid_score(hash_encoder, documents):
    weights = {"dense": 0.5, "sparse": 2.0}
    best = M3Reranker(encoder=hash_encoder, weights=weights, top_n=1).compress_documents(documents, "a red cat")
    assert best[0].metadata["relevance_score"] == pytest.approx(max(exact(hash_encoder, "a red cat", weights)))


def test_mode_scores_add_up_to_the_score(hash_encoder, documents):
    reranker = M3Reranker(encoder=hash_encoder, keep_mode_scores=True)
    for each in reranker.compress_documents(documents, "a red cat"):
        assert set(each.metadata["score_by_mode"]) == set(MODES)
        assert sum(each.metadata["score_by_mode"].values()) == each.metadata["relevance_score"]
        assert {type(part) for part in each.metadata["score_by_mode"].values()} == {float}


def test_the_input_is_not_changed(hash_encoder, documents):
    before = [document.model_copy(deep=True) for document in documents]
    M3Reranker(encoder=hash_encoder, keep_mode_scores=True).compress_documents(documents, "a red cat")
    assert documents == before


def test_top_n_limits_the_documents_and_no_documents_give_none(hash_encoder, documents):
    reranker = M3Reranker(encoder=hash_encoder, top_n=2)
    assert len(reranker.compress_documents(documents, "a red cat")) == 2
    assert len(reranker.compress_documents(documents[:1], "a red cat")) == 1
    assert reranker.compress_documents([], "a red cat") == []


async def test_async_matches_sync(hash_encoder, documents):
    reranker = M3Reranker(encoder=hash_encoder)
    assert await reranker.acompress_documents(documents, "red") == reranker.compress_documents(documents, "red")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "colbert"}, "'dense', 'sparse' or 'multi_vector'"),
        ({"weights": {"colbert": 1.0}}, "'dense', 'sparse' or 'multi_vector'"),
        ({"weights": {"dense": -1.0}}, "weights must be at least 0"),
        ({"mode": "dense", "weights": {"dense": 1.0}}, "leave one of them out"),
        ({"top_n": 0}, "greater than 0"),
        ({"topn": 3}, "topn"),
    ],
)
def test_an_invalid_setting_is_rejected_at_construction(hash_encoder, settings, message):
    with pytest.raises(ValidationError, match=message):
        M3Reranker(encoder=hash_encoder, **settings)


def test_the_model_is_loaded_at_the_first_use(documents):
    reranker = M3Reranker(model="no/such/folder")
    with pytest.raises(CheckpointError, match="no/such/folder"):
        reranker.compress_documents(documents, "red")


def test_the_input_schema_has_a_query_and_documents(hash_encoder):
    schema = M3Reranker(encoder=hash_encoder).get_input_jsonschema()["$defs"]["RerankInput"]
    assert schema["required"] == ["query", "documents"]
