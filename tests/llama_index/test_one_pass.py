"""Behind LlamaIndex each text goes through the model once, counted in the tokens that the transformer is given."""

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


class Meter:
    """Counts the tokens that a transformer is given, padding left out."""

    def __init__(self, encoder: M3Encoder) -> None:
        self.tokens = self.passes = 0
        self._pad = encoder.checkpoint.special.pad
        encoder.checkpoint.backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.tokens += int((ids != self._pad).sum())
        self.passes += 1

    def spent(self) -> int:
        """The tokens since the last time asked."""
        tokens, self.tokens = self.tokens, 0
        return tokens


@pytest.fixture
def encoder(bge_m3):
    return M3Encoder.from_pretrained(str(bge_m3()))


@pytest.fixture
def meter(encoder):
    return Meter(encoder)


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


def test_the_meter_sees_every_token_that_is_read(encoder, meter):
    encoder.encode_passages(TEXTS)
    assert meter.spent() == sum(encoder.token_count(TEXTS))
    encoder.encode_queries(["where the bridge is"])
    assert meter.spent() == of_question(encoder, "where the bridge is")


@pytest.mark.parametrize("options", [{}, {"use_async": True}, {"insert_batch_size": 2}])
def test_a_vector_store_index_reads_each_text_once_for_all_modes(store, encoder, meter, options):
    over(store, encoder, **options)
    assert meter.spent() == of_nodes(encoder)
    judge = encoder.encode_passages([node.get_content("embed") for node in NODES])
    kept = store.index.vectors([node.node_id for node in NODES])
    assert kept.modes == frozenset(MODES)
    assert np.allclose(kept.dense, judge.dense, atol=1e-5)
    assert np.allclose(kept.sparse.toarray(), judge.sparse.toarray(), atol=1e-5)
    assert np.allclose(kept.multi_vector.values, judge.multi_vector.values, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "sparse", "text_search", "hybrid", "semantic_hybrid", "mmr"])
async def test_a_question_is_read_once_in_every_mode(store, encoder, meter, mode):
    retriever = over(store, encoder).as_retriever(vector_store_query_mode=mode)
    meter.spent()
    retriever.retrieve("what bridge")
    assert meter.spent() == of_question(encoder, "what bridge")
    await retriever.aretrieve("where")
    assert meter.spent() == of_question(encoder, "where")


def test_a_pipeline_reads_each_text_once(store, encoder, meter):
    pipeline = IngestionPipeline(transformations=[M3Embedding(encoder=encoder)], vector_store=store)
    pipeline.run(nodes=[node.model_copy() for node in NODES])
    assert meter.spent() == of_nodes(encoder)
    assert len(store.index) == len(NODES)


def test_embeddings_out_of_a_pipelines_cache_are_kept_and_the_rest_is_read_once(encoder, meter):
    cache = IngestionCache()
    for made in (None, M3VectorStore):
        store = None if made is None else made(MemoryIndex(), encoder)
        pipeline = IngestionPipeline(transformations=[M3Embedding(encoder=encoder)], cache=cache, vector_store=store)
        nodes = pipeline.run(nodes=[node.model_copy() for node in NODES])
        assert meter.spent() == of_nodes(encoder)
    assert store.index.vectors([node.node_id for node in nodes]).dense.tolist() == [node.embedding for node in nodes]


def test_an_index_of_ours_reads_each_text_and_question_once(encoder, meter):
    made = M3Index(NODES, encoder=encoder)
    assert meter.spent() == of_nodes(encoder)
    made.insert(Document(text="a new passage"))
    assert meter.spent() == sum(encoder.token_count(["a new passage"]))
    made.as_retriever().retrieve("what bridge")
    assert meter.spent() == of_question(encoder, "what bridge")


def test_without_a_store_an_embedding_makes_the_dense_vector_alone(encoder, meter):
    M3Embedding(encoder=encoder).get_text_embedding_batch(TEXTS)
    assert meter.spent() == sum(encoder.token_count(TEXTS))


def test_a_node_that_was_changed_after_it_was_embedded_is_read_again(store, encoder, meter):
    (embedded,) = M3Embedding(encoder=encoder)([NODES[0].model_copy()])
    embedded.set_content("another text")
    meter.spent()
    store.add([embedded])
    assert meter.spent() == of_nodes(encoder, [embedded])
    judge = encoder.encode_passages([embedded.get_content("embed")])
    assert np.allclose(store.index.vectors(["n0"], ["sparse"]).sparse.toarray(), judge.sparse.toarray(), atol=1e-5)
    assert store.index.vectors(["n0"]).dense[0].tolist() == embedded.embedding


def test_nothing_waits_once_it_is_kept(store, encoder):
    over(store, encoder)
    assert len(store.recent.passages) == 0


def test_what_does_not_fit_in_the_bytes_that_may_wait_is_read_again_and_said(encoder, meter):
    store = M3VectorStore(MemoryIndex(), encoder, waiting_bytes=1)
    with pytest.warns(M3Warning, match="allow more, or hand over fewer texts at once"):
        over(store, encoder)
    assert meter.spent() == 2 * of_nodes(encoder)
    assert len(store.index) == len(NODES)


def test_texts_beside_index_nodes_are_found(store, encoder):
    pointer = IndexNode(id_="pointer", text="about bridges", index_id="bridges")
    context = StorageContext.from_defaults(vector_store=store)
    made = VectorStoreIndex([*NODES, pointer], storage_context=context, embed_model=M3Embedding(encoder=encoder))
    answer = made.as_retriever(similarity_top_k=9).retrieve("where the bridge is")
    assert {each.node.node_id for each in answer} == {"pointer", *(node.node_id for node in NODES)}
