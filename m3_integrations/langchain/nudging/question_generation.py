"""Question generation with a LangChain language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableConfig

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.question_generation import PROMPT, build_prompt, sample_passages, to_queries
from m3_integrations.langchain.convert import to_passage

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
    """Generate questions about documents, with one batch call of the model.

    Args:
        llm: The language model or chat model.
        passages: Documents, or passages. A document without an id gets the one that M3VectorStore gives it.
        per_passage: Questions per document.
        prompt: Prompt with the placeholders {passage} and {count}.
        sample: Number of documents to draw; default all.
        rng: Random generator for `sample`.
        max_concurrency: Number of concurrent calls; default LangChain's.

    Returns:
        Queries, each with the documents that answer it.

    Raises:
        ValueError: If the prompt has no {passage}.
    """
    chosen = _passages(passages, sample, rng)
    answers = _chain(llm).batch(_prompts(chosen, per_passage, prompt), _config(max_concurrency))
    return to_queries(chosen, answers, per_passage)


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
    """Generate questions as `generate_questions` does, with the async batch call of the model."""
    chosen = _passages(passages, sample, rng)
    answers = await _chain(llm).abatch(_prompts(chosen, per_passage, prompt), _config(max_concurrency))
    return to_queries(chosen, answers, per_passage)


def _passages(
    passages: Sequence[Document | Passage], sample: int | None, rng: np.random.Generator | None
) -> list[Passage]:
    return [to_passage(each) if isinstance(each, Document) else each for each in sample_passages(passages, sample, rng)]


def _prompts(passages: Sequence[Passage], per_passage: int, prompt: str) -> list[str]:
    return [build_prompt(passage, per_passage, prompt) for passage in passages]


def _chain(llm: BaseLanguageModel[Any]) -> Runnable[Any, str]:
    return llm | StrOutputParser()


def _config(max_concurrency: int | None) -> RunnableConfig:
    return {} if max_concurrency is None else {"max_concurrency": max_concurrency}
