"""M3Reranker: exact scores over documents that another retriever found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypedDict

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from m3_integrations.core.encoded import Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions
from m3_integrations.core.threads import on_thread
from m3_integrations.retrieval.reranking import Ranked, rerank, weights_of


class Found(TypedDict):
    """A question, and the documents that were found for it."""

    query: str
    documents: Sequence[Document]


class M3Reranker(BaseDocumentCompressor, RunnableSerializable[Found, list[Document]]):
    """Ranks documents by the hybrid score, or by one mode: `M3Reranker(mode="multi_vector")`.

    A document compressor, and a link of a chain that takes {"query": ..., "documents": ...}.
    model: "m3-mini", a local folder or a hub id, read when it is first needed; an encoder that is given goes before it.
    The documents that come in stay as they were; those that come out carry metadata["relevance_score"] and, with
    `keep_mode_scores`, what each mode gave as metadata["score_by_mode"].
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    model: str = "m3-mini"
    top_n: int = Field(default=5, gt=0)
    mode: Mode | Literal["hybrid"] = "hybrid"
    weights: dict[Mode, float] | None = None
    keep_mode_scores: bool = False
    given_encoder: Any = Field(default=None, alias="encoder", repr=False)
    _encoder: Encoder | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _only_a_hybrid_is_weighed(self) -> Self:
        weights_of(self.mode, self.weights)
        return self

    @property
    def encoder(self) -> Encoder:
        """What scores: the encoder that was given, or the one of `model`, read when it is first needed."""
        if self._encoder is None:
            self._encoder = self.given_encoder or EncoderOptions(model=self.model).load()
        return self._encoder

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best `top_n` documents, best first."""
        weights = weights_of(self.mode, self.weights)
        ranked = rerank(self.encoder, query, [document.page_content for document in documents], weights)
        return [self._scored(documents[each.position], each) for each in ranked[: self.top_n]]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        return await on_thread(self.compress_documents, documents, query, callbacks)

    def invoke(self, input: Found, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """`compress_documents` as a link of a chain. Raises ValueError for an input of another shape."""
        return self._call_with_config(self._best, input, config, **kwargs)

    async def ainvoke(self, input: Found, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return await self._acall_with_config(self._abest, input, config, **kwargs)

    def _best(self, found: Found) -> list[Document]:
        _require_found(found)
        return self.compress_documents(found["documents"], found["query"])

    async def _abest(self, found: Found) -> list[Document]:
        return await on_thread(self._best, found)

    def _scored(self, document: Document, ranked: Ranked) -> Document:
        scores: dict[str, Any] = {"relevance_score": ranked.score}
        if self.keep_mode_scores:
            scores["score_by_mode"] = dict(ranked.by_mode)
        return document.model_copy(update={"metadata": {**document.metadata, **scores}})


def _require_found(found: object) -> None:
    if not isinstance(found, Mapping) or not {"query", "documents"} <= found.keys():
        raise ValueError(
            f"M3Reranker takes a dict of query and documents, got {found!r:.80}; put "
            "RunnableParallel(query=RunnablePassthrough(), documents=retriever) before it"
        )
