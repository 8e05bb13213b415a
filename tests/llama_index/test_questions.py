"""Questions about nodes, from LlamaIndex's fake language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.schema import TextNode

from m3_integrations.core.texts import Passage, Query
from m3_integrations.llama_index.questions import agenerate_questions, generate_questions

NODES = [
    TextNode(id_="forth", text="The Forth Bridge", metadata={"year": 1890}),
    TextNode(id_="zhaozhou", text="赵州桥"),
]


class Echo(CustomLLM):
    """Numbers its questions, each about the last line of what it was shown; remembers what it was asked."""

    asked: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.asked.append(prompt)
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


def test_each_node_is_shown_as_it_is_embedded_and_answers_its_questions():
    llm = Echo(asked=[])
    assert generate_questions(llm, NODES, 2, PROMPT) == EXPECTED
    assert llm.asked == ["Ask 2 about\nyear: 1890\n\nThe Forth Bridge", "Ask 2 about\n赵州桥"]


async def test_the_same_is_awaited():
    assert await agenerate_questions(Echo(asked=[]), NODES, 2, PROMPT, workers=2) == EXPECTED


def test_passages_do_as_well_as_nodes():
    passages = [Passage("forth", "The Forth Bridge"), Passage("zhaozhou", "赵州桥")]
    assert generate_questions(Echo(asked=[]), passages, 2, PROMPT) == EXPECTED


def test_core_s_mock_says_the_prompt_back_and_so_it_is_seen():
    passage = Passage("forth", "Which bridge is long?")
    assert generate_questions(MockLLM(), [passage], 1, "{passage}") == [
        Query("forth-question-1", "Which bridge is long?", {"forth": 1.0})
    ]


def test_a_sample_asks_about_so_many():
    queries = generate_questions(Echo(asked=[]), NODES, 1, PROMPT, sample=1, rng=np.random.default_rng(0))
    assert len(queries) == 1
    assert queries[0] in EXPECTED


def test_a_prompt_without_the_passage_costs_no_call():
    llm = Echo(asked=[])
    with pytest.raises(ValueError, match=r"write \{passage\} in it"):
        generate_questions(llm, NODES, prompt="Ask.")
    assert llm.asked == []
