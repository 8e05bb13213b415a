"""Questions about documents from a LangChain language model, as judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableConfig

from m3_integrations.core.questions import PROMPT, asked_of, queries_about, sampled
from m3_integrations.core.texts import Passage, Query
from m3_integrations.langchain.convert import passage_of

__all__ = ["PROMPT", "agenerate_questions", "generate_questions"]


def generate_questions(
    llm: BaseLanguageModel[Any],
    passages: Sequence[Document | Passage],
    per_passage: int = 2,
    prompt: str = PROMPT,
    *,
    sample: int | None = None,
    rng: np.random.Generator | None = None,
    max_concurrency: int | None = None,
) -> list[Query]:
    """What people may ask of these passages, each with the passage that answers it; the model is called in a batch.

    passages: documents (one without an id gets the one that M3VectorStore gives it) or passages. prompt: has {passage}
    and {count}. sample: so many passages, drawn by rng. max_concurrency: calls that run at once.
    Raises ValueError for a prompt without {passage}.
    """
    chosen = _passages(passages, sample, rng)
    answers = _chain(llm).batch(_asked(chosen, per_passage, prompt), _config(max_concurrency))
    return queries_about(chosen, answers, per_passage)


async def agenerate_questions(
    llm: BaseLanguageModel[Any],
    passages: Sequence[Document | Passage],
    per_passage: int = 2,
    prompt: str = PROMPT,
    *,
    sample: int | None = None,
    rng: np.random.Generator | None = None,
    max_concurrency: int | None = None,
) -> list[Query]:
    """`generate_questions` by the model's async batch."""
    chosen = _passages(passages, sample, rng)
    answers = await _chain(llm).abatch(_asked(chosen, per_passage, prompt), _config(max_concurrency))
    return queries_about(chosen, answers, per_passage)


def _passages(
    passages: Sequence[Document | Passage], sample: int | None, rng: np.random.Generator | None
) -> list[Passage]:
    return [passage_of(each) if isinstance(each, Document) else each for each in sampled(passages, sample, rng)]


def _asked(passages: Sequence[Passage], per_passage: int, prompt: str) -> list[str]:
    return [asked_of(passage, per_passage, prompt) for passage in passages]


def _chain(llm: BaseLanguageModel[Any]) -> Runnable[Any, str]:
    return llm | StrOutputParser()


def _config(max_concurrency: int | None) -> RunnableConfig:
    return {} if max_concurrency is None else {"max_concurrency": max_concurrency}
