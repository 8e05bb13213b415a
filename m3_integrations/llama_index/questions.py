"""Questions about nodes from a LlamaIndex language model, as judged queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.async_utils import run_jobs
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode

from m3_integrations.core.questions import PROMPT, asked_of, queries_about, sampled
from m3_integrations.core.texts import Passage, Query
from m3_integrations.llama_index.convert import passage_of

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
    """What people may ask of these passages, each with the passage that answers it.

    passages: nodes, read as they are embedded, or passages. prompt: has {passage} and {count}. sample: so many of them,
    drawn by rng. One call a passage, one after the other; `agenerate_questions` has several under way at once.
    Raises ValueError for a prompt without {passage}.
    """
    chosen = _passages(passages, sample, rng)
    answers = [llm.complete(asked).text for asked in _asked(chosen, per_passage, prompt)]
    return queries_about(chosen, answers, per_passage)


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
    """`generate_questions` with so many calls under way at once."""
    chosen = _passages(passages, sample, rng)
    jobs = [llm.acomplete(asked) for asked in _asked(chosen, per_passage, prompt)]
    answers = await run_jobs(jobs, workers=workers)
    return queries_about(chosen, [answer.text for answer in answers], per_passage)


def _passages(
    passages: Sequence[BaseNode | Passage], sample: int | None, rng: np.random.Generator | None
) -> list[Passage]:
    return [passage_of(each) if isinstance(each, BaseNode) else each for each in sampled(passages, sample, rng)]


def _asked(passages: Sequence[Passage], per_passage: int, prompt: str) -> list[str]:
    return [asked_of(passage, per_passage, prompt) for passage in passages]
