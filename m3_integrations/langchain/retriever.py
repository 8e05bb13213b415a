"""M3Retriever: hybrid retrieval over an index as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr

from m3_integrations.adapters.encoder_registry import (
    check_index_encoder,
    get_encoder,
    picklable_config,
    resolve_encoder,
)
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.types import SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.filters import Where
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain.convert import SearchFilter, to_documents, to_passages, to_where
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever


class M3Retriever(BaseRetriever):
    """Retriever of documents by a weighted sum of dense, sparse and multi-vector scores.

    `invoke(query, k=..., filter=...)` overrides the defaults of `k` and `filter`. Concurrent async queries are
    micro-batched into one forward pass. Deep copies share the encoder; pickles hold its options. Both open a folder
    again and copy an index in memory.

    Attributes:
        index: The index to search.
        given_encoder: The encoder whose vectors the index holds, passed as `encoder=`; default m3-mini.
        k: Number of documents to return; default 4.
        plan: Search plan; default that of the index.
        filter: For example `{"year": {"$gte": 2020}}`, or a `Where`.

    Raises:
        WrongEncoder: At the first use, if another encoder filled the index.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    index: Any
    given_encoder: Any = Field(default=None, alias="encoder", repr=False)
    k: int = Field(default=4, gt=0)
    plan: SearchPlan | None = None
    filter: Any = None
    _retriever: Retriever | None = PrivateAttr(default=None)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        encoder: Any = None,
        folder: str | Path | None = None,
        **options: Any,
    ) -> M3Retriever:
        """Encode documents into a MemoryIndex, or into the folder of a LocalIndex.

        Args:
            documents: Documents to encode and retrieve from.
            encoder: The encoder; default m3-mini.
            folder: Folder of a LocalIndex, created if missing; None keeps the documents in memory.
            **options: `k`, `plan` and `filter`.

        Returns:
            The retriever.
        """
        encoder = encoder or get_encoder()
        index = MemoryIndex() if folder is None else LocalIndex.open(folder, encoder)
        ingest(encoder, index, to_passages(documents))
        return cls(index=index, encoder=encoder, **options)

    @classmethod
    def from_folder(cls, folder: str | Path, *, encoder: Any = None, **options: Any) -> M3Retriever:
        """Retrieve from the folder of a LocalIndex.

        Args:
            folder: Folder of the index.
            encoder: The encoder that filled it; default m3-mini.
            **options: `k`, `plan` and `filter`.

        Returns:
            The retriever.

        Raises:
            WrongEncoder: If another encoder filled the folder.
        """
        encoder = encoder or get_encoder()
        return cls(index=LocalIndex.open(folder, encoder), encoder=encoder, **options)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the queries, with all its modes."""
        return self._get_retriever().encoder

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: SearchFilter = None,
    ) -> list[Document]:
        return to_documents(self._get_retriever().retrieve(query, *self._search_args(k, filter)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: SearchFilter = None,
    ) -> list[Document]:
        retriever = self._retriever
        if retriever is None:
            retriever = await to_thread(self._get_retriever)
        return to_documents(await retriever.aretrieve(query, *self._search_args(k, filter)))

    def __getstate__(self) -> dict[Any, Any]:
        bare = self.model_copy(update={"given_encoder": picklable_config(self.given_encoder, self)})
        bare._retriever = None
        return super(M3Retriever, bare).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> M3Retriever:
        memo = {} if memo is None else memo
        memo[id(self.given_encoder)] = self.given_encoder
        bare = self.model_copy()
        bare._retriever = None
        return super(M3Retriever, bare).__deepcopy__(memo)

    def _get_retriever(self) -> Retriever:
        """Return the one retriever of this object; it micro-batches concurrent queries."""
        if self._retriever is None:
            encoder = resolve_encoder(self.given_encoder)
            check_index_encoder(self.index, encoder)
            self._retriever = Retriever(encoder, self.index, self.plan)
        return self._retriever

    def _search_args(self, k: int | None, filter: SearchFilter) -> tuple[int, Where | None]:
        return self.k if k is None else k, to_where(self.filter if filter is None else filter)
