"""BM25, the lexical floor."""

from __future__ import annotations

import math

import pytest

from m3_integrations import Passage
from m3_integrations.evaluation import BM25, terms_of


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The BRIDGE, 26 years!", ["the", "bridge", "26", "years"]),
        ("中国人 in 2020", ["中国", "国人", "in", "2020"]),
        ("橋", ["橋"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ｔｅａ東京", ["tea", "東京"]),
        ("... !", []),
    ],
)
def test_terms_are_words_and_bigrams_of_scripts_without_spaces(text, terms):
    assert terms_of(text) == terms


def test_scores_are_those_of_lucenes_formula():
    searcher = BM25([Passage("a", "red cat"), Passage("b", "red dog dog"), Passage("c", "blue")])
    (hit, *others) = searcher.search("dog", 3)
    idf, length = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5)), 3 / 2
    assert (hit.id, others) == ("b", [])
    assert hit.score == pytest.approx(idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * length)), rel=1e-5)


def test_only_passages_with_a_term_are_found_and_ties_break_by_id():
    searcher = BM25([Passage("b", "red"), Passage("a", "red"), Passage("c", "blue")])
    assert [hit.id for hit in searcher.search("red", 10)] == ["a", "b"]
    assert [hit.id for hit in searcher.search("red", 1)] == ["a"]
    assert searcher.search("green", 10) == []
    assert searcher.search("?", 10) == []
    assert BM25([Passage("a", "!")]).search("red", 1) == []
