"""Questions that a language model writes about passages: what it is asked, what it answers, and the pairs as JSONL.

It stands in `core` because it is about texts alone: nudging and training both learn from such pairs, and the doors of
the frameworks bring the language model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from m3_integrations.core.texts import Passage, Query

T = TypeVar("T")
PROMPT = """Here is a passage.

---
{passage}
---

Write {count} different questions that this passage answers. Write them in the language of the passage, as people who
have not seen it would ask: each must be understood on its own, so do not speak of "the passage" or "the text".
Answer with the questions alone, one a line."""

# "1." "2)" "(3)" "4:" "Q5:" "Question 6." "7、" "- " "* " "• ", and the digits of every script.
_NUMBERING = re.compile(
    r"^\s*(?:[-*+•–—>]+\s+|\(\d{1,3}\)\s*|\d{1,3}\s*(?:[.):]\s+|[、．）：]\s*)|(?:q|question)\s*\d{0,3}\s*[.):]\s+)+",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.IGNORECASE | re.DOTALL)
_BREAKS = [re.compile(kind) for kind in (r"\n\s*\n", r"[.!?…]\s+|[。！？।؟]\s*", r"\s+")]  # paragraph, sentence, word
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "'": "'", "`": "`", "**": "**", "*": "*", "__": "__"}


def asked_of(passage: Passage, count: int, prompt: str = PROMPT) -> str:
    """What a language model is asked about a passage: the prompt with {passage} and {count} filled in.

    Other braces stay. Raises ValueError for a prompt without {passage}, and for a count below 1.
    """
    if "{passage}" not in prompt:
        raise ValueError("a prompt says where the passage stands: write {passage} in it, and {count} if it may vary")
    if count < 1:
        raise ValueError(f"per_passage must be at least 1, got {count}")
    return prompt.replace("{count}", str(count)).replace("{passage}", passage.text)


def questions_in(answer: str, count: int) -> list[str]:
    """The first `count` questions of an answer, one a line, or a JSON list of them.

    Numbering, bullets, quotation marks and thinking aloud are stripped; headings that end with a colon, fences, empty
    lines and what was asked before are dropped.
    """
    said = _THOUGHT.sub("", answer).strip()
    distinct = {_alike(line): line for line in reversed([_bare(line) for line in _listed(said)]) if line}
    return list(reversed(distinct.values()))[:count]


def queries_about(passages: Sequence[Passage], answers: Sequence[str], per_passage: int) -> list[Query]:
    """The questions of one answer a passage, as queries that their passages answer.

    Ids are "<passage id>-question-1" and on. A question asked of several passages is one query, answered by all.
    """
    texts: dict[str, tuple[str, str]] = {}
    relevant: dict[str, dict[str, float]] = {}
    for passage, answer in zip(passages, answers, strict=True):
        for i, question in enumerate(questions_in(answer, per_passage), 1):
            asked = _alike(question)
            texts.setdefault(asked, (f"{passage.id}-question-{i}", question))
            relevant.setdefault(asked, {})[passage.id] = 1.0
    return [Query(id, text, relevant[asked]) for asked, (id, text) in texts.items()]


def sampled(passages: Sequence[T], count: int | None, rng: np.random.Generator | None) -> list[T]:
    """`count` passages drawn without repetition, in their order; all where count is None or is not fewer.

    Raises ValueError where it takes a generator and there is none.
    """
    if count is None or count >= len(passages):
        return list(passages)
    if rng is None:
        raise ValueError(f"drawing {count} of {len(passages)} passages takes rng=numpy.random.default_rng(0)")
    return [passages[i] for i in sorted(rng.choice(len(passages), count, replace=False))]


def passages_of(text: str, id: str, length: int = 1000) -> list[Passage]:
    """A long text as passages of up to `length` characters; ids are "<id>-1" and on.

    It is cut between paragraphs, or where these are longer between sentences, else between words.
    """
    parts, start = [], 0
    while start < len(text):
        end = _cut(text, start, length)
        parts.append(text[start:end].strip())
        start = end
    return [Passage(f"{id}-{i}", part) for i, part in enumerate((part for part in parts if part), 1)]


def write_pairs(path: str | os.PathLike[str], queries: Iterable[Query], passages: Iterable[Passage]) -> None:
    """Write each query with each passage that answers it as one line of JSON: query, passage, text, weight, id.

    "passage" is the id and "text" its text; a click log has the same fields, so `read_clicks` reads the file too.
    Raises ValueError for an answer that is none of the passages.
    """
    texts = {passage.id: passage.text for passage in passages}
    lines = [_pair(query, id, grade, texts) for query in queries for id, grade in query.relevant.items()]
    target = Path(path)
    half_written = target.with_name(f"{target.name}.part")
    half_written.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    half_written.replace(target)


def read_pairs(path: str | os.PathLike[str]) -> tuple[list[Query], list[Passage]]:
    """The queries and passages that `write_pairs` wrote, in the order in which they come first.

    Raises ValueError, naming file and line, for a line that is no pair.
    """
    asked: dict[str, tuple[str, dict[str, float]]] = {}
    texts: dict[str, str] = {}
    with Path(path).open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                pair = _read_pair(f"{path}:{number}", line)
                asked.setdefault(pair["id"], (pair["query"], {}))[1][pair["passage"]] = pair["weight"]
                texts.setdefault(pair["passage"], pair["text"])
    queries = [Query(id, text, relevant) for id, (text, relevant) in asked.items()]
    return queries, [Passage(id, text) for id, text in texts.items()]


def _listed(said: str) -> list[str]:
    fenceless = "\n".join(line for line in said.splitlines() if not line.lstrip().startswith("```"))
    try:
        listed = json.loads(fenceless)
    except json.JSONDecodeError:
        return fenceless.splitlines()
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else fenceless.splitlines()


def _bare(line: str) -> str:
    text = _unquoted(_NUMBERING.sub("", _unquoted(line)))
    return "" if text.endswith((":", "：")) or not any(each.isalnum() for each in text) else text


def _unquoted(line: str) -> str:
    text = " ".join(line.split())
    for first, last in _QUOTES.items():
        inner = text[len(first) : len(text) - len(last)]
        if text.startswith(first) and text.endswith(last) and inner and first not in inner:
            return _unquoted(inner)
    return text


def _alike(question: str) -> str:
    return " ".join(question.casefold().split())


def _cut(text: str, start: int, length: int) -> int:
    """Where the passage that begins at `start` ends: at the best kind of break in the second half of what it may be."""
    if len(text) - start <= length:
        return len(text)
    for kind in _BREAKS:
        breaks = [found.end() for found in kind.finditer(text, start, start + length)]
        if breaks and breaks[-1] - start >= length / 2:
            return breaks[-1]
    return start + length


def _pair(query: Query, passage: str, grade: float, texts: Mapping[str, str]) -> str:
    if passage not in texts:
        raise ValueError(f"query {query.id!r} is answered by {passage!r}, which is none of the passages; pass it too")
    fields = {"query": query.text, "passage": passage, "text": texts[passage], "weight": grade, "id": query.id}
    return json.dumps(fields, ensure_ascii=False)


def _read_pair(at: str, line: str) -> dict[str, Any]:
    try:
        pair = json.loads(line)
    except json.JSONDecodeError as broken:
        raise ValueError(f"{at} is no JSON: {broken}") from broken
    named = isinstance(pair, dict) and all(isinstance(pair.get(name), str) for name in ("query", "passage", "text"))
    if not named or not isinstance(pair.get("weight", 1), int | float):
        raise ValueError(
            f'{at} is no pair; a line is {{"query": "...", "passage": "doc-1", "text": "...", "id": "q1"}}'
        )
    return {"weight": 1.0, **pair, "id": str(pair.get("id") or f"pair-{_alike(pair['query'])}")}
