"""nudge_store over LangChain stores and documents."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from m3_integrations import LocalIndex, MemoryIndex
from m3_integrations.core.errors import UnknownId
from m3_integrations.core.types import Query
from m3_integrations.langchain import M3Embeddings, M3VectorStore, nudge_store
from m3_integrations.testing import HashEncoder
from tests.slang import CORPUS, PASSAGES, queries

DOCUMENTS = [Document(id=id, page_content=text, metadata={"id": id}) for id, text in CORPUS.items()]
TRAIN, DEV = queries("train", 2), queries("dev", 1)


class Closed(Embeddings):
    """Embeddings with vectors of other lengths than 1; counts its calls."""

    def __init__(self):
        self.batches = []
        self.questions = 0

    def embed_query(self, text):
        self.questions += 1
        return (2 * HashEncoder(64).encode_queries([text]).dense[0]).tolist()

    def embed_documents(self, texts):
        self.batches.append(len(texts))
        return (3 * HashEncoder(64).encode_passages(texts).dense).tolist()


class Foreign(VectorStore):
    """A vector store unknown to the package."""

    def similarity_search(self, query, k=4, **kwargs):
        return []

    @classmethod
    def from_texts(cls, texts, embedding, metadatas=None, *, ids=None, **kwargs):
        return cls()


class Wrapped:
    """A store with the members of HoldsVectors."""

    def __init__(self, similarity, embeddings):
        self.similarity = similarity
        self.embeddings = embeddings
        self.rows = dict(zip(CORPUS, embeddings.embed_documents(list(CORPUS.values())), strict=True))

    def read_vectors(self):
        return list(self.rows), list(self.rows.values())

    def write_vectors(self, ids, vectors):
        self.rows.update(zip(ids, vectors, strict=True))


@pytest.fixture(scope="module")
def embedding():
    return M3Embeddings(encoder=HashEncoder(64))


def in_memory(embedding):
    store = InMemoryVectorStore(embedding)
    store.add_documents(DOCUMENTS)
    return store


def found(store, **settings):
    """Return recall@1 of new queries."""
    evaluated = queries("test", 1)
    return np.mean([store.similarity_search(each.text, k=1, **settings)[0].id in each.relevant for each in evaluated])


@pytest.mark.parametrize("kind", ["ours", "closed"])
def test_a_nudged_in_memory_vector_store_answers_new_queries(embedding, kind):
    store = in_memory(embedding if kind == "ours" else Closed())
    before, documents = found(store), store.get_by_ids(list(CORPUS))
    done = nudge_store(store, TRAIN, DEV)
    assert before < 0.3
    assert found(store) > 0.6
    assert done.nudged.before < 0.5 < done.nudged.after
    assert done.nudged.method == "nudge-n"
    assert store.get_by_ids(list(CORPUS)) == documents


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_only_the_dense_vectors_of_m3_vector_store_change(embedding, tmp_path, kind):
    index = MemoryIndex() if kind == "memory" else LocalIndex.open(tmp_path / "index", embedding.encoder)
    store = M3VectorStore(embedding, index)
    store.add_documents(DOCUMENTS)
    before, stored = found(store, mode="dense"), index.vectors(list(CORPUS))
    done = nudge_store(store, TRAIN, DEV, method="nudge-m")
    after = index.vectors(list(CORPUS))
    assert found(store, mode="dense") > before + 0.3
    assert np.linalg.norm(after.dense, axis=1).max() > 1.1
    assert (after.sparse != stored.sparse).nnz == 0
    np.testing.assert_array_equal(after.multi_vector.values, stored.multi_vector.values)
    done.revert()
    np.testing.assert_array_equal(index.vectors(list(CORPUS)).dense, stored.dense)


def test_revert_restores_the_vectors(embedding):
    store = in_memory(Closed())
    before = {id: dict(entry) for id, entry in store.store.items()}
    done = nudge_store(store, TRAIN, DEV)
    assert store.store != before
    done.revert()
    assert store.store == before


def test_nudge_m_is_rejected_for_cosine_before_embedding():
    closed = Closed()
    store = in_memory(closed)
    with pytest.raises(ValueError, match=r"compares by cosine.*use method='nudge-n'"):
        nudge_store(store, TRAIN, DEV, method="nudge-m")
    assert closed.questions == 0
    with pytest.raises(ValueError, match=r"use method='nudge-n'"):
        nudge_store(DOCUMENTS, TRAIN, DEV, embedding=closed, method="nudge-m", similarity="cosine")
    assert len(closed.batches) == 1


def test_documents_are_embedded_in_one_batch_and_their_vectors_returned(embedding):
    closed = Closed()
    done = nudge_store(DOCUMENTS, TRAIN, DEV, embedding=closed)
    assert closed.batches == [PASSAGES]
    assert closed.questions == len(TRAIN) + len(DEV)
    store = in_memory(embedding)
    same = nudge_store(store, TRAIN, DEV)
    for id, vector in done.vectors.items():
        np.testing.assert_allclose(vector, same.vectors[id], atol=1e-5)
    with pytest.raises(ValueError, match="no store was written"):
        done.revert()


def test_another_store_can_be_wrapped(embedding):
    wrapped = Wrapped("dot", embedding)
    start = dict(wrapped.rows)
    done = nudge_store(wrapped, TRAIN, DEV, method="nudge-m", gamma=0.5)
    assert wrapped.rows == done.vectors
    lengths = [np.linalg.norm(np.subtract(wrapped.rows[id], start[id])) for id in CORPUS]
    assert max(lengths) == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ValueError, match=r"use method='nudge-n'"):
        nudge_store(Wrapped("cosine", embedding), TRAIN, DEV, method="nudge-m")


def test_a_store_without_vector_access_is_rejected_with_a_fix():
    with pytest.raises(ValueError, match=r"vectors of a Foreign.*nudge_store\(documents, train, embedding="):
        nudge_store(Foreign(), TRAIN, DEV)


def test_without_validation_queries_are_held_out_by_the_seed(embedding):
    def tuned(seed):
        return nudge_store(DOCUMENTS, TRAIN, embedding=embedding, method="nudge-n", seed=seed).nudged

    assert tuned(1).gamma == tuned(1).gamma
    assert tuned(1).after != tuned(2).after
    with pytest.raises(ValueError, match="give validation queries, or gamma"):
        nudge_store(DOCUMENTS, TRAIN[:1], embedding=embedding)


def test_documents_without_ids_and_unknown_answers_are_rejected(embedding):
    with pytest.raises(ValueError, match=r"write Document\(id='doc-1'"):
        nudge_store([Document("without id")], TRAIN, DEV, embedding=embedding)
    with pytest.raises(ValueError, match="every document needs a unique id"):
        nudge_store([*DOCUMENTS, DOCUMENTS[0]], TRAIN, DEV, embedding=embedding)
    with pytest.raises(ValueError, match=r"pass embedding=M3Embeddings\(\)"):
        nudge_store(DOCUMENTS, TRAIN, DEV)
    with pytest.raises(UnknownId, match="answered by 'elsewhere', which is none of the 40 passages"):
        nudge_store(DOCUMENTS, [Query("q", "?", {"elsewhere": 1.0})], DEV, embedding=embedding)
    with pytest.raises(ValueError, match="no passage to move; add some first"):
        nudge_store(InMemoryVectorStore(embedding), TRAIN, DEV)
