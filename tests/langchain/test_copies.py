"""Deep copies and pickles of LangChain components, before and after their first use, over every index."""

from __future__ import annotations

import copy
import pickle

import pytest
from langchain_core.documents import Document

from m3_integrations.core.errors import NotPicklable
from m3_integrations.index.qdrant.index import QdrantIndex
from m3_integrations.langchain import M3Embeddings, M3Reranker, M3Retriever, M3SparseEmbeddings, M3VectorStore

DOCUMENTS = [Document(id=text, page_content=text) for text in ("a red cat", "a blue dog", "a green bird")]
USES = {
    M3Embeddings: lambda each: each.embed_query("a blue dog"),
    M3SparseEmbeddings: lambda each: each.embed_query("a blue dog"),
    M3Reranker: lambda each: each.compress_documents(DOCUMENTS, "a blue dog"),
    M3Retriever: lambda each: each.invoke("a blue dog"),
    M3VectorStore: lambda each: each.similarity_search_with_score("a blue dog"),
}
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda each: pickle.loads(pickle.dumps(each))}


@pytest.fixture
def embeddings(bge_m3):
    return M3Embeddings(str(bge_m3()))


@pytest.fixture
def components(embeddings, any_index):
    encoder = embeddings.encoder
    store = M3VectorStore(embeddings, any_index)
    store.add_documents(DOCUMENTS)
    return [
        embeddings,
        M3Embeddings(encoder=encoder),
        M3SparseEmbeddings(embeddings.model),
        M3Reranker(model=embeddings.model),
        M3Reranker(encoder=encoder),
        M3Retriever(index=any_index, encoder=encoder),
        M3VectorStore(embeddings, any_index),
        store,
    ]


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("is_used", [False, True])
def test_a_copy_works_the_same_or_is_refused_with_a_fix(components, way, is_used):
    for each in components:
        use = USES[type(each)]
        before = use(each) if is_used else None
        if way == "pickle" and isinstance(getattr(each, "index", None), QdrantIndex):
            with pytest.raises(NotPicklable, match=r"QdrantIndex cannot be pickled.*QdrantIndex.open"):
                COPIES[way](each)
            continue
        made = COPIES[way](each)
        assert use(made) == (before or use(each))


def test_a_deep_copy_shares_the_encoder(components):
    for each in components:
        USES[type(each)](each)
        assert copy.deepcopy(each).encoder is each.encoder


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_over_a_folder_opens_it_again(embeddings, tmp_path, way):
    store = M3VectorStore.from_documents(DOCUMENTS, embeddings, folder=tmp_path / "index")
    made = COPIES[way](store)
    assert made.index is not store.index
    made.index.close()
    assert len(store.similarity_search("a blue dog")) == 3


def test_a_copy_over_memory_is_independent(embeddings):
    store = M3VectorStore.from_documents(DOCUMENTS, embeddings)
    for way in COPIES.values():
        made = way(store)
        made.delete()
        assert len(store.index) == 3


def test_a_reranker_with_an_unnamed_encoder_deep_copies_and_refuses_to_pickle(hash_encoder):
    for each in (M3Reranker(encoder=hash_encoder), M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder)):
        assert USES[type(each)](copy.deepcopy(each)) == USES[type(each)](each)
        with pytest.raises(NotPicklable, match=f"{type(each).__name__} cannot be pickled"):
            pickle.dumps(each)
