"""Question generation with mock LLMs of LlamaIndex."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.schema import TextNode

from m3_integrations.core.types import Passage, Query
from m3_integrations.llama_index.finetuning.question_generation import agenerate_questions, generate_questions

NODES = [
    TextNode(id_="forth", text="The Forth Bridge", metadata={"year": 1890}),
    TextNode(id_="zhaozhou", text="赵州桥"),
]


class Echo(CustomLLM):
    """LLM that answers with numbered questions about the last line of the prompt, and records the prompts."""

    prompts: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        about = prompt.splitlines()[-1]
        return CompletionResponse(text=f"Sure:\n1. What is {about}?\n2. What is {about}?\n3. Where is {about}?")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


PROMPT = "Ask {count} about\n{passage}"
EXPECTED = [
    Query("forth-question-1", "What is The Forth Bridge?", {"forth": 1.0}),
    Query("forth-question-2", "Where is The Forth Bridge?", {"forth": 1.0}),
    Query("zhaozhou-question-1", "What is 赵州桥?", {"zhaozhou": 1.0}),
    Query("zhaozhou-question-2", "Where is 赵州桥?", {"zhaozhou": 1.0}),
]


def test_the_prompt_shows_each_node_as_embedded_and_its_questions_name_it():
    llm = Echo(prompts=[])
    assert generate_questions(llm, NODES, 2, PROMPT) == EXPECTED
    assert llm.prompts == ["Ask 2 about\nyear: 1890\n\nThe Forth Bridge", "Ask 2 about\n赵州桥"]


async def test_async_generation_matches_sync():
    assert await agenerate_questions(Echo(prompts=[]), NODES, 2, PROMPT, workers=2) == EXPECTED


def test_passages_are_accepted_instead_of_nodes():
    passages = [Passage("forth", "The Forth Bridge"), Passage("zhaozhou", "赵州桥")]
    assert generate_questions(Echo(prompts=[]), passages, 2, PROMPT) == EXPECTED


def test_the_mock_llm_receives_the_prompt():
    passage = Passage("forth", "Which bridge is long?")
    assert generate_questions(MockLLM(), [passage], 1, "{passage}") == [
        Query("forth-question-1", "Which bridge is long?", {"forth": 1.0})
    ]


def test_a_sample_limits_the_passages():
    queries = generate_questions(Echo(prompts=[]), NODES, 1, PROMPT, sample=1, rng=np.random.default_rng(0))
    assert len(queries) == 1
    assert queries[0] in EXPECTED


def test_a_prompt_without_a_passage_is_rejected_before_any_call():
    llm = Echo(prompts=[])
    with pytest.raises(ValueError, match=r"write \{passage\} where it goes"):
        generate_questions(llm, NODES, prompt="Ask.")
    assert llm.prompts == []
