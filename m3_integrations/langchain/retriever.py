"""M3Retriever: hybrid retrieval over any of our indexes as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr

from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.sharing import EncoderOptions
from m3_integrations.index.base import Where
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain.convert import Filter, documents_of, passage_of, where_of
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever


class M3Retriever(BaseRetriever):
    """Documents by dense, lexical and late-interaction score, as the plan weighs them.

    index: any of our indexes. encoder: the one that filled it; None is m3-mini. k and filter are defaults, which
    `invoke(question, k=..., filter=...)` overrides. filter: `{"year": {"$gte": 2020}}` or a Where.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any
    encoder: Any = None
    k: int = Field(default=4, gt=0)
    plan: SearchPlan | None = None
    filter: Any = None
    _retriever: Retriever = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        self.encoder = self.encoder or EncoderOptions().load()
        self._retriever = Retriever(self.encoder, self.index, self.plan)

    @classmethod
    def from_documents(cls, documents: Iterable[Document], *, encoder: Any = None, **options: Any) -> M3Retriever:
        """Encode documents into an index in memory, and retrieve from it."""
        encoder, index = encoder or EncoderOptions().load(), MemoryIndex()
        ingest(encoder, index, map(passage_of, documents))
        return cls(index=index, encoder=encoder, **options)

    @classmethod
    def from_folder(cls, folder: str | Path, *, encoder: Any = None, **options: Any) -> M3Retriever:
        """Retrieve from a LocalIndex folder. Raises WrongEncoder where another encoder filled it."""
        encoder = encoder or EncoderOptions().load()
        return cls(index=LocalIndex.open(folder, encoder), encoder=encoder, **options)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | Where | None = None,
    ) -> list[Document]:
        return documents_of(self._retriever.retrieve(query, *self._asked(k, filter)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | Where | None = None,
    ) -> list[Document]:
        return documents_of(await self._retriever.aretrieve(query, *self._asked(k, filter)))

    def _asked(self, k: int | None, filter: Filter | Where | None) -> tuple[int, Where | None]:
        return self.k if k is None else k, where_of(self.filter if filter is None else filter)
