"""Retrievers over M3 indexes in LlamaIndex's retrievers, engines and evaluators."""

from __future__ import annotations

import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, RecursiveRetriever, RouterRetriever
from llama_index.core.schema import IndexNode, TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import RetrieverTool
from pydantic import Field

from m3_integrations.llama_index import M3Embedding, M3Index, M3Rerank, M3Retriever, M3VectorStore

NODES = [
    TextNode(id_="cat", text="a red cat"),
    TextNode(id_="dog", text="a blue dog"),
    TextNode(id_="bird", text="a green bird"),
]
STONES = [TextNode(id_="granite", text="hard granite stone"), TextNode(id_="chalk", text="soft chalk stone")]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Use a mock LLM."""
    monkeypatch.setattr(Settings, "_llm", MockLLM())


def through_the_store(nodes, encoder, **options):
    context = StorageContext.from_defaults(vector_store=M3VectorStore(encoder=encoder))
    made = VectorStoreIndex(nodes, storage_context=context, embed_model=M3Embedding(encoder=encoder))
    return made.as_retriever(vector_store_query_mode="hybrid", **options)


def alone(nodes, encoder, **options):
    return M3Retriever.from_nodes(nodes, encoder, **options)


def through_the_index(nodes, encoder, **options):
    return M3Index(nodes, encoder=encoder).as_retriever(**options)


@pytest.fixture(params=[alone, through_the_store, through_the_index])
def over(request, hash_encoder):
    return lambda nodes, **options: request.param(nodes, hash_encoder, **options)


def found(scored):
    return [each.node.node_id for each in scored]


async def test_a_query_engine_answers_from_the_retrieved_nodes(over, hash_encoder):
    rerank = M3Rerank(encoder=hash_encoder, top_n=1)
    engine = RetrieverQueryEngine.from_args(over(NODES, similarity_top_k=3), node_postprocessors=[rerank])
    assert found(engine.query("a blue dog").source_nodes) == ["dog"]
    assert found((await engine.aquery("a blue dog")).source_nodes) == ["dog"]


async def test_a_router_selects_the_retriever_with_the_nearest_description(over, hash_encoder):
    tools = [
        RetrieverTool.from_defaults(over(NODES, similarity_top_k=1), description="animals cat dog bird"),
        RetrieverTool.from_defaults(over(STONES, similarity_top_k=1), description="stone granite chalk"),
    ]
    selector = EmbeddingSingleSelector.from_defaults(embed_model=M3Embedding(encoder=hash_encoder))
    router = RouterRetriever(selector=selector, retriever_tools=tools)
    assert found(router.retrieve("granite stone")) == ["granite"]
    assert found(await router.aretrieve("dog cat")) in (["dog"], ["cat"])


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
@pytest.mark.parametrize("use_async", [True, False])
def test_query_fusion_combines_two_retrievers(over, mode, use_async):
    retrievers = [over(NODES, similarity_top_k=2), over(STONES, similarity_top_k=2)]
    fusion = QueryFusionRetriever(retrievers, num_queries=1, mode=mode, use_async=use_async, similarity_top_k=4)
    answer = fusion.retrieve("blue dog stone")
    assert "dog" in found(answer)
    assert {"granite", "chalk"} & set(found(answer))


async def test_recursion_follows_an_index_node(over):
    pointers = [
        IndexNode(id_="to-animals", text="about animals", index_id="animals"),
        IndexNode(id_="to-stones", text="about stones", index_id="stones"),
    ]
    recursive = RecursiveRetriever(
        "root",
        retriever_dict={
            "root": over(pointers, similarity_top_k=1),
            "animals": over(NODES, similarity_top_k=3),
            "stones": over(STONES, similarity_top_k=3),
        },
    )
    assert set(found(recursive.retrieve("animals"))) == {"cat", "dog", "bird"}
    assert set(found(recursive.retrieve("about stones"))) == {"granite", "chalk"}
    assert set(found(await recursive.aretrieve("about stones"))) == {"granite", "chalk"}


def test_retrieval_continues_in_the_objects_of_a_vector_store_index(hash_encoder):
    inner = alone(STONES, hash_encoder, similarity_top_k=2)
    made = VectorStoreIndex(
        NODES,
        objects=[IndexNode(id_="p", text="about stones", index_id="stones", obj=inner)],
        storage_context=StorageContext.from_defaults(vector_store=M3VectorStore(encoder=hash_encoder)),
        embed_model=M3Embedding(encoder=hash_encoder),
    )
    retriever = made.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1)
    assert set(found(retriever.retrieve("about stones"))) == {"granite", "chalk"}
    assert found(retriever.retrieve("a blue dog")) == ["dog"]


async def test_the_retriever_evaluator_measures_a_retriever(over):
    names = ["hit_rate", "mrr", "precision", "recall", "ap", "ndcg"]
    evaluator = RetrieverEvaluator.from_metric_names(names, retriever=over(NODES, similarity_top_k=2))
    expected = {"hit_rate": 1.0, "mrr": 1.0, "precision": 0.5, "recall": 1.0, "ap": 1.0, "ndcg": 1.0}
    assert evaluator.evaluate("a blue dog", ["dog"]).metric_vals_dict == pytest.approx(expected)
    assert (await evaluator.aevaluate("a blue dog", ["dog"])).metric_vals_dict == pytest.approx(expected)
    assert evaluator.evaluate("a blue dog", ["fish"]).metric_vals_dict["mrr"] == 0.0


class EventRecorder(BaseEventHandler):
    events: list = Field(default_factory=list)

    def handle(self, event, **_):
        self.events.append(event)


@pytest.fixture
def events():
    root, recorder = get_dispatcher(), EventRecorder()
    root.add_event_handler(recorder)
    yield recorder.events
    root.event_handlers.remove(recorder)


async def test_instrumentation_gets_retrieval_and_embedding_events(over, hash_encoder, events):
    retriever = over(NODES, similarity_top_k=2)
    for ask in (retriever.retrieve, retriever.aretrieve):
        events.clear()
        answer = ask("a blue dog")
        nodes = answer if isinstance(answer, list) else await answer
        assert [type(each) for each in events] == [
            RetrievalStartEvent, EmbeddingStartEvent, EmbeddingEndEvent, RetrievalEndEvent,
        ]  # fmt: skip
        assert events[2].chunks == ["a blue dog"]
        assert events[2].embeddings[0] == pytest.approx(hash_encoder.encode_queries(["a blue dog"]).dense[0].tolist())
        assert events[3].nodes == nodes


def test_instrumentation_gets_the_embedding_events_of_an_index(hash_encoder, events):
    M3Index(NODES, encoder=hash_encoder)
    assert [type(each) for each in events] == [EmbeddingStartEvent, EmbeddingEndEvent]
    assert events[1].chunks == [node.get_content() for node in NODES]


def test_callbacks_get_retrieval_and_embedding_events(hash_encoder):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    made = M3Index(NODES, encoder=hash_encoder, callback_manager=CallbackManager([debug]))
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1
    made.as_retriever(similarity_top_k=1).retrieve("a blue dog")
    ((_, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert found(end.payload[EventPayload.NODES]) == ["dog"]
    assert debug.get_event_pairs(CBEventType.EMBEDDING)[1][1].payload[EventPayload.CHUNKS] == ["a blue dog"]
