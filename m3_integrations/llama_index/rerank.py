"""M3Rerank: a node postprocessor for exact reranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in __all__
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from m3_integrations.adapters.encoder_registry import encoder_options
from m3_integrations.adapters.encoder_settings import EncoderSettings
from m3_integrations.core.encoded import Mode
from m3_integrations.encoders.base import Encoder
from m3_integrations.retrieval.reranking import RerankResult, rerank, weights_of

dispatcher = get_dispatcher(__name__)


class M3Rerank(EncoderSettings, BaseNodePostprocessor):
    """Node postprocessor for exact reranking by the hybrid score or one mode.

    To rerank by one mode, write `M3Rerank(mode="multi_vector")`.

    The input nodes are not changed. `keep_retrieval_score` adds the previous score to each returned node as
    `metadata["retrieval_score"]`, and `keep_mode_scores` the score of each mode as `metadata["score_by_mode"]`. Both
    keys are excluded from the text that embedding models and language models read.

    Args:
        model: "m3-mini", a local folder or a hub id.
        encoder: An encoder to use instead of `model`. See `EncoderSettings` for copies.
        settings: The fields below, and the options of `EncoderSettings`.

    Raises:
        ValueError: If `weights` are given with a single mode.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="m3-mini", description="m3-mini, a local folder, or a hub id.")
    top_n: int = Field(default=5, gt=0, description="Number of nodes to return, best first.")
    mode: Mode | Literal["hybrid"] = Field(default="hybrid", description="hybrid, dense, sparse or multi_vector.")
    weights: dict[Mode, float] | None = Field(
        default=None, description="Weights of the hybrid score; None: the model's."
    )
    keep_retrieval_score: bool = Field(default=False, description="Add the previous score to the metadata.")
    keep_mode_scores: bool = Field(default=False, description="Add the score of each mode to the metadata.")

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        options = encoder_options(encoder)
        super().__init__(**{**options, "model": model or options.get("model", "m3-mini"), **settings})
        self._encoder = encoder

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        weights_of(self.mode, self.weights)
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex serializes the component."""
        return "M3Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("M3Rerank needs a query; call postprocess_nodes(nodes, query_str='...')")
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            reranked = self._rerank(nodes, query_bundle.query_str)
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    def _rerank(self, nodes: Sequence[NodeWithScore], query: str) -> list[NodeWithScore]:
        texts = [each.node.get_content(MetadataMode.EMBED) for each in nodes]
        results = rerank(self.encoder, query, texts, weights_of(self.mode, self.weights))
        return [self._with_scores(nodes[each.position], each) for each in results[: self.top_n]]

    def _with_scores(self, node: NodeWithScore, result: RerankResult) -> NodeWithScore:
        scores: dict[str, Any] = {}
        if self.keep_retrieval_score:
            scores["retrieval_score"] = node.score
        if self.keep_mode_scores:
            scores["score_by_mode"] = dict(result.by_mode)
        return NodeWithScore(node=_add_metadata(node.node, scores) if scores else node.node, score=result.score)


def _add_metadata(node: BaseNode, added: Mapping[str, Any]) -> BaseNode:
    """Add metadata, excluded from the text for embedding and language models."""
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **added},
            "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *added],
            "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *added],
        }
    )
