"""Prompts, parsing of answers, and files of question-passage pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.click_log import Click, read_clicks
from m3_integrations.data.question_generation import (
    PROMPT,
    build_prompt,
    chunk_text,
    parse_questions,
    read_pairs,
    sample_passages,
    to_queries,
    write_pairs,
)

FORTH = Passage("forth", "The Forth Bridge was opened in 1890. {count} {passage}")
ZHAOZHOU = Passage("zhaozhou", "赵州桥建于隋代。")


def test_the_prompt_holds_the_passage_the_count_and_the_language():
    prompt = build_prompt(FORTH, 3)
    assert FORTH.text in prompt
    assert "Write 3 different questions" in prompt
    assert "in the language of the passage" in prompt
    assert PROMPT.count("{passage}") == 1


def test_a_custom_prompt_may_hold_other_braces():
    prompt = build_prompt(ZHAOZHOU, 1, 'Answer as {"question": "..."}: {passage}')
    assert prompt == 'Answer as {"question": "..."}: 赵州桥建于隋代。'


def test_a_prompt_without_the_passage_raises():
    with pytest.raises(ValueError, match=r"write \{passage\} where it goes"):
        build_prompt(FORTH, 1, "Ask something.")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build_prompt(FORTH, 0)


@pytest.mark.parametrize(
    "line",
    [
        "Who built it?",
        "1. Who built it?",
        "12) Who built it?",
        "(3) Who built it?",
        "4: Who built it?",
        "٢. Who built it?",
        "2、Who built it?",
        "- Who built it?",
        "* 1. Who built it?",
        "• Who built it?",
        "Q1: Who built it?",
        "Question 2. Who built it?",
        '3. "Who built it?"',
        "“Who built it?”",
        "1. **Who built it?**",
        "**1. Who built it?**",
        "  Who  built it?  ",
    ],
)
def test_numbering_and_quotation_marks_are_stripped(line):
    assert parse_questions(line, 5) == ["Who built it?"]


@pytest.mark.parametrize(
    "question",
    [
        "1890 saw which bridge opened?",
        "3.5 mm jacks: who made the first?",
        "Q fever comes from which bacterium?",
        "What does 'cantilever' mean in \"cantilever bridge\"?",
        "谁建造了赵州桥？",
        "كم عمر الجسر؟",
    ],
)
def test_numbers_and_quotation_marks_within_a_question_stay(question):
    assert parse_questions(question, 5) == [question]


def test_headings_fences_reasoning_empty_lines_and_repetitions_are_dropped():
    answer = """<think>The passage is about a bridge.
Who?</think>
Here are your questions:

```
1. Who built it?
2. who  built IT?
---
3. When was it opened?
4. Where does it stand?
```"""
    assert parse_questions(answer, 5) == ["Who built it?", "When was it opened?", "Where does it stand?"]
    assert parse_questions(answer, 2) == ["Who built it?", "When was it opened?"]
    assert parse_questions("", 2) == []


def test_a_json_list_of_questions_is_read_as_one():
    assert parse_questions('```json\n["Who?", "When was it?", 3]\n```', 5) == ["Who?", "When was it?"]


@given(st.text(max_size=80), st.integers(1, 4))
def test_any_answer_gives_at_most_the_requested_number_of_nonempty_questions(answer, count):
    questions = parse_questions(answer, count)
    assert len(questions) <= count
    assert all(question.strip() for question in questions)
    assert len({" ".join(question.casefold().split()) for question in questions}) == len(questions)


def test_a_question_about_two_passages_becomes_one_query():
    queries = to_queries([FORTH, ZHAOZHOU], ["Who built it?\nWhen?", "1. who built it?\n2. 哪个朝代？"], 2)
    assert queries == [
        Query("forth-question-1", "Who built it?", {"forth": 1.0, "zhaozhou": 1.0}),
        Query("forth-question-2", "When?", {"forth": 1.0}),
        Query("zhaozhou-question-2", "哪个朝代？", {"zhaozhou": 1.0}),
    ]


def test_a_sample_keeps_the_order_and_is_the_same_for_the_same_generator():
    every = list(range(50))
    drawn = sample_passages(every, 7, np.random.default_rng(1))
    assert drawn == sample_passages(every, 7, np.random.default_rng(1)) == sorted(set(drawn))
    assert len(drawn) == 7
    assert sample_passages(every, None, None) == sample_passages(every, 50, None) == every
    with pytest.raises(ValueError, match=r"rng=numpy\.random\.default_rng"):
        sample_passages(every, 7, None)


@given(st.text(alphabet="ab .\n。?", max_size=400), st.integers(5, 60))
def test_a_long_text_is_cut_into_passages_that_lose_only_white_space(text, length):
    passages = chunk_text(text, "book", length)
    assert all(0 < len(passage.text) <= length for passage in passages)
    assert "".join("".join(passage.text.split()) for passage in passages) == "".join(text.split())
    assert [passage.id for passage in passages] == [f"book-{i}" for i in range(1, len(passages) + 1)]


def test_a_long_text_is_cut_between_paragraphs_then_sentences_then_words():
    def texts(text):
        return [passage.text for passage in chunk_text(text, "book", 20)]

    assert texts("One. Two words\n\nthree four five") == ["One. Two words", "three four five"]
    assert texts("One two three. Four five six seven") == ["One two three.", "Four five six seven"]
    assert texts("one two three four five six") == ["one two three four", "five six"]
    assert texts("赵州桥建于隋代。石拱桥由李春设计建造。桥长五十米。") == [
        "赵州桥建于隋代。石拱桥由李春设计建造。",
        "桥长五十米。",
    ]


def test_pairs_round_trip_and_are_a_click_log(tmp_path):
    path = tmp_path / "pairs.jsonl"
    queries = [Query("q1", "谁？", {"zhaozhou": 2.0, "forth": 1.0}), Query("q2", "Who?", {"forth": 1.0})]
    write_pairs(path, queries, [FORTH, ZHAOZHOU])
    assert read_pairs(path) == (queries, [ZHAOZHOU, FORTH])
    assert read_clicks(path)[0] == Click("谁？", "zhaozhou", 2.0)
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[2])["text"] == FORTH.text


def test_pairs_without_an_id_or_a_weight_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"query": "Who?", "passage": "a", "text": "A."}\n{"query": "who?", "passage": "b", "text": "B."}\n'
    )
    queries, passages = read_pairs(path)
    assert [(query.text, query.relevant) for query in queries] == [("Who?", {"a": 1.0, "b": 1.0})]
    assert passages == [Passage("a", "A."), Passage("b", "B.")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", ":1 is not JSON"),
        ('{"query": "a"}', ":1 is not a pair; a line is"),
        ('{"query": "a", "passage": "b", "text": "c", "weight": "d"}', ":1 is not a pair"),
    ],
)
def test_a_line_that_is_not_a_pair_raises_with_its_location(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_an_answer_that_is_not_among_the_passages_raises(tmp_path):
    with pytest.raises(ValueError, match="not among the passages; pass it too"):
        write_pairs(tmp_path / "pairs.jsonl", [Query("q", "Who?", {"x": 1.0})], [FORTH])
    assert list(tmp_path.iterdir()) == []
