"""M3 components in the retrievers and compressors of langchain-classic."""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.stores import InMemoryByteStore, InMemoryStore

from m3_integrations.langchain import M3Embeddings, M3Reranker, M3Retriever, M3VectorStore
from tests.langchain.conftest import DOCUMENTS, TEXTS, Events


def ids(documents):
    return [document.id for document in documents]


async def test_a_compression_retriever_reranks(store, counting):
    from langchain_classic.retrievers import ContextualCompressionRetriever

    reranker = M3Reranker(encoder=counting, mode="multi_vector", top_n=2)
    base = M3Retriever(index=store.index, encoder=counting, k=5)
    compressing = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)
    expected = reranker.compress_documents(base.invoke("red cat"), "red cat")
    assert compressing.invoke("red cat") == expected
    assert await compressing.ainvoke("red cat") == expected
    events = Events()
    compressing.invoke("red cat", {"callbacks": [events]})
    assert [kind for kind, _ in events.seen] == ["start", "start", "end", "end"]


async def test_rerankers_work_in_a_compressor_pipeline(store, counting):
    from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline

    coarse = M3Reranker(encoder=counting, mode="dense", top_n=4)
    fine = M3Reranker(encoder=counting, mode="multi_vector", top_n=2)
    pipeline = DocumentCompressorPipeline(transformers=[coarse, fine])
    found = pipeline.compress_documents(DOCUMENTS, "red cat")
    assert ids(found) == ids(fine.compress_documents(coarse.compress_documents(DOCUMENTS, "red cat"), "red cat"))
    assert ids(await pipeline.acompress_documents(DOCUMENTS, "red cat")) == ids(found)


async def test_an_ensemble_retriever_combines_m3_with_other_retrievers(store, counting):
    from langchain_classic.retrievers import EnsembleRetriever

    parts = [store.as_retriever(search_kwargs={"mode": mode, "k": 3}) for mode in ("dense", "sparse")]
    ensemble = EnsembleRetriever(retrievers=parts, weights=[0.5, 0.5], id_key=None)
    places = [ids(part.invoke("a red cat")) for part in parts]
    scores = {
        id: sum(0.5 / (60 + found.index(id) + 1) for found in places if id in found) for id in {*places[0], *places[1]}
    }
    found = ensemble.invoke("a red cat")
    assert ids(found)[0] == max(scores, key=lambda id: scores[id])
    assert set(ids(found)) == set(scores)
    assert await ensemble.ainvoke("a red cat") == found


async def test_a_parent_document_retriever_finds_parents_by_their_children(counting, any_index):
    from langchain_classic.retrievers import ParentDocumentRetriever
    from langchain_text_splitters import CharacterTextSplitter

    store = M3VectorStore(M3Embeddings(encoder=counting), any_index)
    splitter = CharacterTextSplitter(separator=".", chunk_size=12, chunk_overlap=0)
    parents = ParentDocumentRetriever(vectorstore=store, docstore=InMemoryStore(), child_splitter=splitter)
    long = [Document("a red cat. a blue dog. a cow"), Document("a green bird. a grey fish. an ant")]
    parents.add_documents(long, ids=["one", "two"])
    assert len(store.index) == 6
    assert parents.invoke("a green bird")[0] == long[1]
    assert (await parents.ainvoke("a blue dog"))[0] == long[0]
    await parents.aadd_documents([Document("a white owl. a black hen")], ids=["three"])
    assert parents.invoke("a white owl")[0].page_content.startswith("a white owl")


async def test_cache_backed_embeddings_embed_each_text_once(counting):
    from langchain_classic.embeddings import CacheBackedEmbeddings

    plain, bytes_ = M3Embeddings(encoder=counting), InMemoryByteStore()
    cached = CacheBackedEmbeddings.from_bytes_store(
        plain, bytes_, namespace=plain.model, query_embedding_cache=True, key_encoder="sha256"
    )
    first = cached.embed_documents(TEXTS)
    assert first == plain.embed_documents(TEXTS)
    counting.passages.clear()
    assert cached.embed_documents(TEXTS) == first
    assert counting.passages == []
    assert await cached.aembed_query("red") == plain.embed_query("red")
    store = M3VectorStore.from_texts(TEXTS, cached)
    assert store.similarity_search("a red cat", k=1)[0].page_content == "a red cat"


async def test_a_multi_query_retriever_uses_m3_retriever(store, counting):
    from langchain_classic.retrievers import MultiQueryRetriever

    several = MultiQueryRetriever.from_llm(
        retriever=store.as_retriever(search_kwargs={"k": 1}),
        llm=FakeListChatModel(responses=["a red cat\na blue dog"]),
    )
    assert set(ids(await several.ainvoke("pets"))) == {"d0", "d1"}
