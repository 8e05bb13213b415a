"""Question generation with fake language models of LangChain."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.runnables import RunnableLambda

from m3_integrations.core.types import Passage, Query
from m3_integrations.langchain.convert import to_passage
from m3_integrations.langchain.nudging.question_generation import agenerate_questions, generate_questions

DOCUMENTS = [Document(id="forth", page_content="The Forth Bridge"), Document(id="zhaozhou", page_content="赵州桥")]
ANSWERS = ["1. Who built it?\n2. Who built it?\n3. When?", "谁建造的？"]
EXPECTED = [
    Query("forth-question-1", "Who built it?", {"forth": 1.0}),
    Query("forth-question-2", "When?", {"forth": 1.0}),
    Query("zhaozhou-question-1", "谁建造的？", {"zhaozhou": 1.0}),
]


@pytest.mark.parametrize("kind", [FakeListLLM, FakeListChatModel])
def test_llms_and_chat_models_generate_questions(kind):
    assert generate_questions(kind(responses=ANSWERS), DOCUMENTS, max_concurrency=1) == EXPECTED


@pytest.mark.parametrize("kind", [FakeListLLM, FakeListChatModel])
async def test_async_generation_matches_sync(kind):
    assert await agenerate_questions(kind(responses=ANSWERS), DOCUMENTS, max_concurrency=1) == EXPECTED


def test_the_prompt_shows_each_document():
    shown = []
    echo = RunnableLambda(lambda prompt: shown.append(prompt) or "Why?")
    generate_questions(echo, DOCUMENTS, 3, "{count}: {passage}", max_concurrency=1)
    assert shown == ["3: The Forth Bridge", "3: 赵州桥"]


def test_a_document_without_an_id_gets_the_id_of_the_store():
    document = Document("The Forth Bridge")
    queries = generate_questions(FakeListLLM(responses=["Why?"]), [document])
    assert queries[0].relevant == {to_passage(document).id: 1.0}


def test_a_sample_limits_the_documents():
    llm = FakeListLLM(responses=["Why?"])
    passages = [Passage("a", "A."), Passage("b", "B.")]
    queries = generate_questions(llm, passages, sample=1, rng=np.random.default_rng(0))
    assert [query.text for query in queries] == ["Why?"]
    assert len(queries[0].relevant) == 1


def test_a_prompt_without_a_passage_is_rejected():
    with pytest.raises(ValueError, match=r"write \{passage\} where it goes"):
        generate_questions(FakeListLLM(responses=["Why?"]), DOCUMENTS, prompt="Ask.")
