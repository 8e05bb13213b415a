"""Each text is encoded once behind LlamaIndex, measured by the tokens of the transformer."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import Document, IndexNode, TextNode

from m3_integrations import M3Encoder, MemoryIndex
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import M3Warning
from m3_integrations.llama_index import M3Embedding, M3Index, M3VectorStore

TEXTS = ["where the bridge is", "мост через волга", "a passage", "what", "where the bridge is"]
NODES = [TextNode(id_=f"n{i}", text=text, metadata={"page": i}) for i, text in enumerate(TEXTS)]


class TokenCounter:
    """Counts the tokens of a transformer's inputs, without padding."""

    def __init__(self, encoder: M3Encoder) -> None:
        self.tokens = self.passes = 0
        self._pad = encoder.checkpoint.special.pad
        encoder.checkpoint.backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.tokens += int((ids != self._pad).sum())
        self.passes += 1

    def spent(self) -> int:
        """Return the number of tokens since the last call."""
        tokens, self.tokens = self.tokens, 0
        return tokens


@pytest.fixture
def encoder(bge_m3):
    return M3Encoder.from_pretrained(str(bge_m3()))


@pytest.fixture
def counter(encoder):
    return TokenCounter(encoder)


@pytest.fixture
def store(encoder):
    return M3VectorStore(MemoryIndex(), encoder)


def of_nodes(encoder, nodes=NODES):
    return sum(encoder.token_count([node.get_content("embed") for node in nodes]))


def of_question(encoder, question):
    return len(encoder.query_spans(question)) + 1  # the cls token has no vector among them


def over(store, encoder, **options):
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(NODES, storage_context=context, embed_model=M3Embedding(encoder=encoder), **options)


def test_the_token_counter_counts_every_token(encoder, counter):
    encoder.encode_passages(TEXTS)
    assert counter.spent() == sum(encoder.token_count(TEXTS))
    encoder.encode_queries(["where the bridge is"])
    assert counter.spent() == of_question(encoder, "where the bridge is")


@pytest.mark.parametrize("options", [{}, {"use_async": True}, {"insert_batch_size": 2}])
def test_a_vector_store_index_encodes_each_text_once_for_all_modes(store, encoder, counter, options):
    over(store, encoder, **options)
    assert counter.spent() == of_nodes(encoder)
    expected = encoder.encode_passages([node.get_content("embed") for node in NODES])
    stored = store.index.vectors([node.node_id for node in NODES])
    assert stored.modes == frozenset(MODES)
    assert np.allclose(stored.dense, expected.dense, atol=1e-5)
    assert np.allclose(stored.sparse.toarray(), expected.sparse.toarray(), atol=1e-5)
    assert np.allclose(stored.multi_vector.values, expected.multi_vector.values, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "sparse", "text_search", "hybrid", "semantic_hybrid", "mmr"])
async def test_a_query_is_encoded_once_in_every_query_mode(store, encoder, counter, mode):
    retriever = over(store, encoder).as_retriever(vector_store_query_mode=mode)
    counter.spent()
    retriever.retrieve("what bridge")
    assert counter.spent() == of_question(encoder, "what bridge")
    await retriever.aretrieve("where")
    assert counter.spent() == of_question(encoder, "where")


def test_a_pipeline_encodes_each_text_once(store, encoder, counter):
    pipeline = IngestionPipeline(transformations=[M3Embedding(encoder=encoder)], vector_store=store)
    pipeline.run(nodes=[node.model_copy() for node in NODES])
    assert counter.spent() == of_nodes(encoder)
    assert len(store.index) == len(NODES)


def test_cached_embeddings_are_kept_and_the_other_modes_encoded_once(encoder, counter):
    cache = IngestionCache()
    for made in (None, M3VectorStore):
        store = None if made is None else made(MemoryIndex(), encoder)
        pipeline = IngestionPipeline(transformations=[M3Embedding(encoder=encoder)], cache=cache, vector_store=store)
        nodes = pipeline.run(nodes=[node.model_copy() for node in NODES])
        assert counter.spent() == of_nodes(encoder)
    assert store.index.vectors([node.node_id for node in nodes]).dense.tolist() == [node.embedding for node in nodes]


def test_m3_index_encodes_each_text_and_query_once(encoder, counter):
    made = M3Index(NODES, encoder=encoder)
    assert counter.spent() == of_nodes(encoder)
    made.insert(Document(text="a new passage"))
    assert counter.spent() == sum(encoder.token_count(["a new passage"]))
    made.as_retriever().retrieve("what bridge")
    assert counter.spent() == of_question(encoder, "what bridge")


def test_without_a_store_only_the_dense_vector_is_computed(encoder, counter):
    M3Embedding(encoder=encoder).get_text_embedding_batch(TEXTS)
    assert counter.spent() == sum(encoder.token_count(TEXTS))


def test_a_node_changed_after_embedding_is_encoded_again(store, encoder, counter):
    (embedded,) = M3Embedding(encoder=encoder)([NODES[0].model_copy()])
    embedded.set_content("another text")
    counter.spent()
    store.add([embedded])
    assert counter.spent() == of_nodes(encoder, [embedded])
    expected = encoder.encode_passages([embedded.get_content("embed")])
    assert np.allclose(store.index.vectors(["n0"], ["sparse"]).sparse.toarray(), expected.sparse.toarray(), atol=1e-5)
    assert store.index.vectors(["n0"]).dense[0].tolist() == embedded.embedding


def test_add_removes_its_rows_from_the_cache(store, encoder):
    over(store, encoder)
    assert len(store.recent.passages) == 0


def test_rows_beyond_the_cache_limit_are_encoded_again_with_a_warning(encoder, counter):
    store = M3VectorStore(MemoryIndex(), encoder, waiting_bytes=1)
    with pytest.warns(M3Warning, match="allow more, or hand over fewer texts at once"):
        over(store, encoder)
    assert counter.spent() == 2 * of_nodes(encoder)
    assert len(store.index) == len(NODES)


def test_text_nodes_are_found_in_a_store_with_index_nodes(store, encoder):
    pointer = IndexNode(id_="pointer", text="about bridges", index_id="bridges")
    context = StorageContext.from_defaults(vector_store=store)
    made = VectorStoreIndex([*NODES, pointer], storage_context=context, embed_model=M3Embedding(encoder=encoder))
    answer = made.as_retriever(similarity_top_k=9).retrieve("where the bridge is")
    assert {each.node.node_id for each in answer} == {"pointer", *(node.node_id for node in NODES)}
