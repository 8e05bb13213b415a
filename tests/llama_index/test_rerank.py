"""M3Rerank: exact reranking as a LlamaIndex node postprocessor."""

from __future__ import annotations

import pickle

import pytest
from llama_index.core.bridge.pydantic import Field, ValidationError
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.scoring import score
from m3_integrations.llama_index import M3Rerank

TEXTS = ["nothing of the kind", "a blue dog", "a red dog", "a red cat"]


@pytest.fixture
def nodes():
    return [NodeWithScore(node=TextNode(id_=text, text=text), score=0.1 * i) for i, text in enumerate(TEXTS)]


def exact(encoder, query, weights):
    return score(encoder.encode_queries([query]), encoder.encode_passages(TEXTS), weights)[0].tolist()


@pytest.mark.parametrize("mode", ["hybrid", *MODES])
def test_nodes_are_ranked_by_the_exact_score_of_the_mode(hash_encoder, nodes, mode):
    best = M3Rerank(encoder=hash_encoder, mode=mode, top_n=4).postprocess_nodes(nodes, query_str="a red cat")
    weights = hash_encoder.weights if mode == "hybrid" else {mode: 1.0}
    judged = dict(zip(TEXTS, exact(hash_encoder, "a red cat", weights), strict=True))
    assert best[0].node.node_id == "a red cat"
    assert [each.score for each in best] == pytest.approx(sorted(judged.values(), reverse=True))
    assert [each.score for each in best] == pytest.approx([judged[each.node.node_id] for each in best])


def test_weights_change_the_hybrid_score(hash_encoder, nodes):
    weights = {"dense": 0.5, "sparse": 2.0}
    best = M3Rerank(encoder=hash_encoder, weights=weights, top_n=1).postprocess_nodes(nodes, query_str="a red cat")
    assert [each.score for each in best] == pytest.approx([max(exact(hash_encoder, "a red cat", weights))])


def test_top_n_limits_the_nodes_and_no_nodes_give_none(hash_encoder, nodes):
    rerank = M3Rerank(encoder=hash_encoder, top_n=2)
    assert len(rerank.postprocess_nodes(nodes, query_str="red")) == 2
    assert len(rerank.postprocess_nodes(nodes[:1], query_str="red")) == 1
    assert rerank.postprocess_nodes([], query_str="red") == []


def test_kept_scores_are_excluded_from_the_text_for_models(hash_encoder, nodes):
    rerank = M3Rerank(encoder=hash_encoder, keep_retrieval_score=True, keep_mode_scores=True)
    best = rerank.postprocess_nodes(nodes, query_str="a red cat")
    assert best[0].metadata["retrieval_score"] == nodes[3].score
    assert set(best[0].metadata["score_by_mode"]) == set(MODES)
    assert sum(best[0].metadata["score_by_mode"].values()) == best[0].score
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert best[0].node.get_content(mode) == "a red cat"
    again = rerank.postprocess_nodes(best, query_str="a red cat")
    assert [each.score for each in again] == [each.score for each in best]


def test_the_input_is_not_changed(hash_encoder, nodes):
    before = [each.model_copy(deep=True) for each in nodes]
    rerank = M3Rerank(encoder=hash_encoder, keep_retrieval_score=True, keep_mode_scores=True)
    rerank.postprocess_nodes(nodes, query_str="a red cat")
    assert nodes == before


def test_only_embedded_metadata_is_scored(hash_encoder):
    titled = TextNode(id_="titled", text="an animal", metadata={"title": "cat"})
    hidden = TextNode(id_="hidden", text="an animal", metadata={"title": "cat"}, excluded_embed_metadata_keys=["title"])
    found = [NodeWithScore(node=node) for node in (hidden, titled)]
    best = M3Rerank(encoder=hash_encoder, mode="sparse").postprocess_nodes(found, query_str="cat")
    assert [each.node.node_id for each in best] == ["titled", "hidden"]
    assert best[1].score == 0


async def test_async_matches_sync(hash_encoder, nodes):
    rerank = M3Rerank(encoder=hash_encoder)
    expected = rerank.postprocess_nodes(nodes, query_str="red")
    assert await rerank.apostprocess_nodes(nodes, QueryBundle("red")) == expected


def test_a_missing_query_is_rejected_with_a_fix(hash_encoder, nodes):
    with pytest.raises(ValueError, match=r"query_str='\.\.\.'"):
        M3Rerank(encoder=hash_encoder).postprocess_nodes(nodes)


class EventRecorder(BaseEventHandler):
    events: list = Field(default_factory=list)

    def handle(self, event, **_):
        self.events.append(event)


def test_instrumentation_gets_a_start_and_an_end_event(hash_encoder, nodes):
    root, recorder = get_dispatcher(), EventRecorder()
    root.add_event_handler(recorder)
    try:
        best = M3Rerank("the red one", encoder=hash_encoder, top_n=2).postprocess_nodes(nodes, query_str="red")
    finally:
        root.event_handlers.remove(recorder)
    start, end = recorder.events
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert (start.query.query_str, start.nodes, start.top_n, start.model_name) == ("red", nodes, 2, "the red one")
    assert end.nodes == best


def test_the_callback_manager_gets_a_start_and_an_end_event(hash_encoder, nodes):
    recorder = LlamaDebugHandler(print_trace_on_end=False)
    rerank = M3Rerank(encoder=hash_encoder, callback_manager=CallbackManager([recorder]))
    best = rerank.postprocess_nodes(nodes, query_str="red")
    ((start, end),) = recorder.get_event_pairs(CBEventType.RERANKING)
    assert start.payload[EventPayload.QUERY_STR] == "red"
    assert end.payload[EventPayload.NODES] == best


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
        M3Rerank(encoder=hash_encoder, **settings)


def test_from_dict_of_to_dict_gives_the_same_ranking(bge_m3, nodes):
    rerank = M3Rerank(str(bge_m3()), top_n=3, weights={"dense": 1.0, "sparse": 0.3}, keep_mode_scores=True)
    expected = rerank.postprocess_nodes(nodes, query_str="a red cat")
    for copy in (M3Rerank.from_dict(rerank.to_dict()), pickle.loads(pickle.dumps(rerank))):
        assert copy.to_dict() == rerank.to_dict()
        assert copy.postprocess_nodes(nodes, query_str="a red cat") == expected


def test_a_copy_never_replaces_a_passed_encoder_by_another_model(hash_encoder, nodes):
    copy = M3Rerank.from_dict(M3Rerank(encoder=hash_encoder).to_dict())
    with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
        copy.postprocess_nodes(nodes, query_str="red")
