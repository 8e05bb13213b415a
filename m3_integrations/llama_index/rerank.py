"""M3Rerank: exact scores over nodes that another retriever found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # core's own way in
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from m3_integrations.core.encoded import Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions, name_of
from m3_integrations.retrieval.reranking import Ranked, rerank, weights_of

dispatcher = get_dispatcher(__name__)


class M3Rerank(BaseNodePostprocessor):
    """Ranks nodes by the hybrid score, or by one mode: `M3Rerank(mode="multi_vector")`.

    `encoder` is used in place of the model, and does not travel: see M3Embedding.

    The nodes that come in stay as they were. With `keep_retrieval_score` each node that comes out carries its old score
    as metadata["retrieval_score"]; with `keep_mode_scores`, what each mode gave as metadata["score_by_mode"]. Neither
    is part of the text that models read.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="m3-mini", description="m3-mini, a local folder, or a hub id.")
    top_n: int = Field(default=5, gt=0, description="Nodes to answer, best first.")
    mode: Mode | Literal["hybrid"] = Field(default="hybrid", description="hybrid, dense, sparse or multi_vector.")
    weights: dict[Mode, float] | None = Field(default=None, description="Of the hybrid; None takes the model's own.")
    keep_retrieval_score: bool = Field(default=False, description="Keep the score that a node came with.")
    keep_mode_scores: bool = Field(default=False, description="Keep what each mode gave to the score.")
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(**{"model": model or name_of(encoder), **settings})
        self._encoder = encoder

    @model_validator(mode="after")
    def _only_a_hybrid_is_weighed(self) -> Self:
        weights_of(self.mode, self.weights)
        return self

    @classmethod
    def class_name(cls) -> str:
        return "M3Rerank"

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = EncoderOptions(model=self.model).load()
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        # Weights do not travel: the copy reads them where it wakes up. Other threads go on with those of this one.
        bare = self.model_copy()
        bare._encoder = None
        return super(M3Rerank, bare).__getstate__()

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("M3Rerank needs the question; call postprocess_nodes(nodes, query_str='...')")
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            best = self._best(nodes, query_bundle.query_str)
            event.on_end(payload={EventPayload.NODES: best})
        dispatcher.event(ReRankEndEvent(nodes=best))
        return best

    def _best(self, nodes: Sequence[NodeWithScore], query: str) -> list[NodeWithScore]:
        texts = [each.node.get_content(MetadataMode.EMBED) for each in nodes]
        ranked = rerank(self.encoder, query, texts, weights_of(self.mode, self.weights))
        return [self._scored(nodes[each.position], each) for each in ranked[: self.top_n]]

    def _scored(self, found: NodeWithScore, ranked: Ranked) -> NodeWithScore:
        kept: dict[str, Any] = {}
        if self.keep_retrieval_score:
            kept["retrieval_score"] = found.score
        if self.keep_mode_scores:
            kept["score_by_mode"] = dict(ranked.by_mode)
        return NodeWithScore(node=_with(found.node, kept) if kept else found.node, score=ranked.score)


def _with(node: BaseNode, kept: Mapping[str, Any]) -> BaseNode:
    """The node with more metadata, which no embedding and no language model is shown."""
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **kept},
            "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *kept],
            "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *kept],
        }
    )
