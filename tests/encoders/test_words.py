"""Whole words around tokens, in scripts with and without spaces."""

from __future__ import annotations

import pytest

from m3_integrations.encoders.explain import Explanation, VectorMatch
from m3_integrations.encoders.words import word_at, words_of


@pytest.mark.parametrize(
    ("text", "piece", "word"),
    [
        ("Die Göltzschtalbrücke steht.", "brücke", "Göltzschtalbrücke"),
        ("call __getattr__ now", "tatt", "__getattr__"),
        ("नेत्रहीन लोग पढ़ते हैं?", "ढ़", "पढ़ते"),
        ("من هي العالمة", "عالم", "العالمة"),
        ("モスクワから何日", "スク", "モスクワ"),
        ("モスクワから何日", "から", "から"),
        ("火山灰威胁", "山", "山"),
        ("한국어를 적는", "어", "한국어를"),
        ("Nai\u0308ve Bayes", "ve", "Nai\u0308ve"),
        ("می\u200cخواهم", "خواهم", "می\u200cخواهم"),
        ('the "loop', ' "lo', "loop"),
    ],
)
def test_a_piece_becomes_its_whole_word(text, piece, word):
    start = text.index(piece)
    assert text[slice(*word_at(text, start, start + len(piece)))] == word


@pytest.mark.parametrize("text", ["?", " ", "", "…*"])
def test_punctuation_is_no_word(text):
    assert word_at(text, 0, len(text)) is None
    assert words_of(text) == []


def test_words_of_a_text_are_in_order_and_whole():
    text = "Ein Tee ohne Koffein: 抹茶!"
    assert [text[slice(*span)] for span in words_of(text)] == ["Ein", "Tee", "ohne", "Koffein", "抹", "茶"]


def match(query_at, passage_at, strength):
    return VectorMatch("q", "p", 1.0, 1.0, query_at, passage_at, strength)


def test_each_word_of_the_query_has_the_partner_of_its_strongest_token():
    late = match((0, 2), (9, 12), 0.2), match((2, 6), (0, 4), 0.8), match((7, 10), (9, 12), 0.4)
    words = Explanation("bridge red", "Brücken, rot", 1.0, {}, (), late).words
    assert [(each.query_at, each.passage_at, each.strength) for each in words] == [
        ((0, 6), (0, 7), 0.8),
        ((7, 10), (9, 12), 0.4),
    ]


def test_heat_is_on_whole_words_once_each_by_the_strongest_match():
    late = match((0, 2), (0, 2), 0.2), match((2, 6), (2, 4), 0.8), match((7, 10), (9, 12), 0.4)
    assert Explanation("bridge red", "Brücken, rot", 1.0, {}, (), late).passage_heat() == [(0, 7, 1.0), (9, 12, 0.5)]


def test_without_late_interaction_equal_words_match():
    explanation = Explanation("the Bridge", "old bridge, bridge", 1.0, {"sparse": 1.0}, (), ())
    assert [(each.query_at, each.passage_at) for each in explanation.words] == [((4, 10), (4, 10))]
    assert Explanation("bridge", "bridge", 1.0, {"dense": 1.0}, (), ()).words == []


def test_function_words_and_words_without_a_near_partner_match_weakly(mini):
    explanation = mini.explain("How do I leave a loop early?", "The break statement leaves the nearest loop.")
    strength = {explanation.query[slice(*each.query_at)]: each.strength for each in explanation.words}
    assert max(strength, key=strength.get) == "loop"
    assert strength["leave"] > 2 * max(strength.get(word, 0.0) for word in ("How", "do", "I", "a"))


@pytest.mark.parametrize("query", ["नेत्रहीन लोग कैसे पढ़ते हैं?", "何日かかる？", "__getattr__", "köprü hangisidir?"])
def test_matched_places_of_a_real_tokenizer_are_whole_words(query, mini):
    passage = "Le braille est un système d'écriture. 橋は赤い。 def __getattr__(self): Die Göltzschtalbrücke"
    explanation = mini.explain(query, passage)
    for text, places in ((query, [w.query_at for w in explanation.words]), (passage, explanation.passage_heat())):
        for start, stop, *_ in places:
            if word_at(text, start, stop) is not None:
                assert word_at(text, start, stop) == (start, stop)
