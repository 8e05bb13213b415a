"""Question generation with a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.async_utils import run_jobs
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.question_generation import PROMPT, build_prompt, sample_passages, to_queries
from m3_integrations.llama_index.convert import to_passage

__all__ = ["PROMPT", "agenerate_questions", "generate_questions"]


def generate_questions(
    llm: LLM,
    passages: Sequence[BaseNode | Passage],
    per_passage: int = 2,
    prompt: str = PROMPT,
    *,
    sample: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[Query]:
    """Generate questions about passages, one LLM call at a time.

    Args:
        llm: The LLM.
        passages: Nodes, shown as they are embedded, or passages.
        per_passage: Questions per passage.
        prompt: Prompt with the placeholders {passage} and {count}.
        sample: Number of passages to draw; default all.
        rng: Random generator for `sample`.

    Returns:
        Queries, each with the passages that answer it.

    Raises:
        ValueError: If the prompt has no {passage}.
    """
    chosen = _passages(passages, sample, rng)
    answers = [llm.complete(text).text for text in _prompts(chosen, per_passage, prompt)]
    return to_queries(chosen, answers, per_passage)


async def agenerate_questions(
    llm: LLM,
    passages: Sequence[BaseNode | Passage],
    per_passage: int = 2,
    prompt: str = PROMPT,
    *,
    sample: int | None = None,
    rng: np.random.Generator | None = None,
    workers: int = 4,
) -> list[Query]:
    """Generate questions as `generate_questions` does, with concurrent LLM calls.

    Args:
        llm: The LLM.
        passages: See `generate_questions`.
        per_passage: See `generate_questions`.
        prompt: See `generate_questions`.
        sample: See `generate_questions`.
        rng: See `generate_questions`.
        workers: Number of concurrent calls.
    """
    chosen = _passages(passages, sample, rng)
    jobs = [llm.acomplete(text) for text in _prompts(chosen, per_passage, prompt)]
    answers = await run_jobs(jobs, workers=workers)
    return to_queries(chosen, [answer.text for answer in answers], per_passage)


def _passages(
    passages: Sequence[BaseNode | Passage], sample: int | None, rng: np.random.Generator | None
) -> list[Passage]:
    return [to_passage(each) if isinstance(each, BaseNode) else each for each in sample_passages(passages, sample, rng)]


def _prompts(passages: Sequence[Passage], per_passage: int, prompt: str) -> list[str]:
    return [build_prompt(passage, per_passage, prompt) for passage in passages]
