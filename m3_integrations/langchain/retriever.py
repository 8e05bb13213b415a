"""M3Retriever: hybrid retrieval over any of our indexes as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr

from m3_integrations.core.encoder import Encoder
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.sharing import EncoderOptions
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Where
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain.convert import Filter, documents_of, passage_of, where_of
from m3_integrations.langchain.settings import require_filler
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever


class M3Retriever(BaseRetriever):
    """Documents by dense, lexical and late-interaction score, as the plan weighs them.

    index: any of our indexes. encoder: the one that filled it; None is m3-mini, read when it is first needed. k and
    filter are defaults, which `invoke(question, k=..., filter=...)` overrides. filter: `{"year": {"$gte": 2020}}` or a
    Where. Questions that are awaited at the same time share a forward pass.
    Raises WrongEncoder, at the first use, where the index is a folder that another encoder filled.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    index: Any
    given_encoder: Any = Field(default=None, alias="encoder", repr=False)
    k: int = Field(default=4, gt=0)
    plan: SearchPlan | None = None
    filter: Any = None
    _retriever: Retriever | None = PrivateAttr(default=None)

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

    @property
    def encoder(self) -> Encoder:
        """What reads the questions, in all its modes."""
        return self._loaded().encoder

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | Where | None = None,
    ) -> list[Document]:
        return documents_of(self._loaded().retrieve(query, *self._asked(k, filter)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | Where | None = None,
    ) -> list[Document]:
        retriever = self._retriever
        if retriever is None:
            retriever = await on_thread(self._loaded)
        return documents_of(await retriever.aretrieve(query, *self._asked(k, filter)))

    def _loaded(self) -> Retriever:
        """One retriever, so that questions which are awaited together meet in it."""
        if self._retriever is None:
            encoder = self.given_encoder or EncoderOptions().load()
            require_filler(self.index, encoder)
            self._retriever = Retriever(encoder, self.index, self.plan)
        return self._retriever

    def _asked(self, k: int | None, filter: Filter | Where | None) -> tuple[int, Where | None]:
        return self.k if k is None else k, where_of(self.filter if filter is None else filter)
