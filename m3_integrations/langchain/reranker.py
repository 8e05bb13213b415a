"""M3Reranker: a document compressor for exact reranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict  # pydantic rejects typing.TypedDict before Python 3.12

from m3_integrations.adapters.encoder_registry import picklable_config, resolve_encoder
from m3_integrations.adapters.encoder_settings import EncoderSettings
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import Mode
from m3_integrations.encoders.base import Encoder
from m3_integrations.retrieval.reranking import RerankResult, rerank, weights_of


class RerankInput(TypedDict):
    """Input of M3Reranker in a chain: a query and the documents retrieved for it."""

    query: str
    documents: Sequence[Document]


class M3Reranker(EncoderSettings, BaseDocumentCompressor, RunnableSerializable[Mapping[str, Any], list[Document]]):
    """Document compressor for exact reranking by the hybrid score or one mode.

    To rerank by one mode, write `M3Reranker(mode="multi_vector")`. In a chain it takes {"query": ..., "documents":
    ...}. The input documents are not changed; the returned ones have `metadata["relevance_score"]` and, with
    `keep_mode_scores`, the score of each mode as `metadata["score_by_mode"]`.

    Attributes:
        model: "m3-mini" (default), a local folder or a hub id, loaded at the first use.
        top_n: Number of documents to return, best first; default 5.
        mode: "hybrid" (default), "dense", "sparse" or "multi_vector".
        weights: Weights of the hybrid score; default the model's.
        keep_mode_scores: Add the score of each mode to the metadata; default False.
        given_encoder: A loaded encoder instead of `model`, passed as `encoder=`.

    Raises:
        ValidationError: If `weights` are given with a single mode.
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

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        weights_of(self.mode, self.weights)
        return self

    @property
    def InputType(self) -> type[RerankInput]:
        """Type of the input for the schemas of LangChain."""
        return RerankInput

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at the first use."""
        return super().encoder if self.given_encoder is None else resolve_encoder(self.given_encoder)

    def __getstate__(self) -> dict[Any, Any]:
        bare = self.model_copy(update={"given_encoder": picklable_config(self.given_encoder, self)})
        return super(M3Reranker, bare).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.given_encoder)] = self.given_encoder
        return super().__deepcopy__(memo)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the `top_n` best documents, best first.

        Args:
            documents: Documents to rerank.
            query: The query.
            callbacks: Ignored, as scoring emits no events.
        """
        weights = weights_of(self.mode, self.weights)
        results = rerank(self.encoder, query, [document.page_content for document in documents], weights)
        return [self._with_scores(documents[each.position], each) for each in results[: self.top_n]]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        return await to_thread(self.compress_documents, documents, query, callbacks)

    def invoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Rerank as a step of a chain.

        Args:
            input: A `RerankInput`.
            config: Configuration of the run.
            **kwargs: Passed to LangChain.

        Returns:
            The best documents, best first.

        Raises:
            ValueError: If the input has another form.
        """
        return self._call_with_config(self._rerank, input, config, **kwargs)

    async def ainvoke(
        self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        return await self._acall_with_config(self._arerank, input, config, **kwargs)

    def _rerank(self, input: Mapping[str, Any]) -> list[Document]:
        if not isinstance(input, Mapping) or not {"query", "documents"} <= input.keys():
            raise ValueError(
                f"M3Reranker takes a dict of query and documents, got {input!r:.80}; put "
                "RunnableParallel(query=RunnablePassthrough(), documents=retriever) before it"
            )
        return self.compress_documents(input["documents"], input["query"])

    async def _arerank(self, input: Mapping[str, Any]) -> list[Document]:
        return await to_thread(self._rerank, input)

    def _with_scores(self, document: Document, result: RerankResult) -> Document:
        scores: dict[str, Any] = {"relevance_score": result.score}
        if self.keep_mode_scores:
            scores["score_by_mode"] = dict(result.by_mode)
        return document.model_copy(update={"metadata": {**document.metadata, **scores}})
