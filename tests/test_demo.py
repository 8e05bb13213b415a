"""What the demonstration is made of."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from m3_integrations import MemoryIndex, Nudger, Passage, Query, ingest
from m3_integrations.demo import Answer, Demo, DemoQuestion, python_topics, segments, world
from m3_integrations.encoders.explain import Explanation, VectorMatch
from m3_integrations.retrieval.highlighting import EXCERPT, excerpt_segments, shares, word_pairs, word_segments
from m3_integrations.retrieval.ingestion import IngestReport
from m3_integrations.retrieval.retriever import Match
from m3_integrations.testing import HashEncoder


def explained(passage: str, *places: tuple[int, int, float]) -> Explanation:
    late = tuple(VectorMatch("q", "p", score, score, (0, 1), (start, stop)) for start, stop, score in places)
    return Explanation("q", passage, 1.0, {}, (), late)


def test_segments_join_to_the_passage_and_the_strongest_is_hottest():
    cut = segments(explained("one two three", (0, 3, 0.2), (8, 13, 0.4)))
    assert "".join(each.text for each in cut) == "one two three"
    assert [(each.text, each.heat) for each in cut] == [("one", 0.2 / 0.4), (" two ", 0.0), ("three", 1.0)]


def matched(query, passage, *pairs):
    """An explanation by pairs of words, each found in its text, and a strength."""
    late = [
        VectorMatch("q", "p", 1.0, 1.0, _place(query, asked), _place(passage, found), strength)
        for asked, found, strength in pairs
    ]
    return Explanation(query, passage, 1.0, {"multi_vector": 1.0}, (), tuple(late))


def _place(text, word):
    return text.index(word), text.index(word) + len(word)


def test_pairs_of_words_share_a_style_and_weak_ones_are_faint():
    explanation = matched("eine rote Brücke", "a red bridge", ("rote", "red", 0.5), ("Brücke", "bridge", 0.8))
    with_faint = matched("eine Brücke", "a red bridge", ("eine", "a", 0.2), ("Brücke", "bridge", 0.8))
    assert word_pairs(explanation) == [("rote", "red", "m0"), ("Brücke", "bridge", "m1")]
    assert word_pairs(with_faint) == [("Brücke", "bridge", "m0")]
    match = Match(Passage("a", "a red bridge"), 1.0, {})
    assert [part for part in word_segments(match, with_faint) if part.style] == [("a", "faint"), ("bridge", "m0")]


def test_every_occurrence_of_a_matched_word_is_marked_after_the_title():
    passage = Passage("a", "Bridge\nThe bridge is a Bridge.", {"title": "Bridge"})
    parts = word_segments(Match(passage, 1.0, {}), matched("Brücke", passage.text, ("Brücke", "bridge", 0.8)))
    assert [part.text for part in parts] == ["The ", "bridge", " is a ", "Bridge", "."]
    assert [part.text for part in parts if part.style] == ["bridge", "Bridge"]


@pytest.mark.parametrize("place", [0, 500, 985], ids=["at the beginning", "in the middle", "at the end"])
def test_an_excerpt_is_short_and_holds_the_strongest_match(place):
    text = "".join("word " if i != place // 5 else "Brücke " for i in range(200))
    parts = excerpt_segments(Match(Passage("a", text), 1.0, {}), matched("bridge", text, ("bridge", "Brücke", 0.8)))
    assert [part.text for part in parts if part.style] == ["Brücke"]
    assert len("".join(part.text for part in parts)) <= EXCERPT + 10


def test_segments_of_a_passage_that_nothing_matched_are_the_passage():
    assert [each.text for each in segments(explained("one two"))] == ["one two"]


def test_shares_add_up_to_one():
    match = Match(Passage("a", "text"), 2.0, {"dense": 0.5, "multi_vector": 1.5})
    assert shares(match) == {"dense": 0.5 / 2.0, "multi_vector": 1.5 / 2.0}


def test_pythons_topics_are_passages_of_their_own():
    passages = list(python_topics())
    assert len({passage.id for passage in passages}) == len(passages) > 100
    assert all(passage.text.strip() for passage in passages)


def test_long_topics_are_split_so_that_the_model_reads_each_passage_whole(mini):
    passages = [*world().passages, *python_topics()]
    assert max(mini.token_count([passage.text for passage in passages])) <= mini.max_length


@pytest.fixture(scope="module")
def nudged():
    """A small index, and the report of a nudge of it in all modes."""
    encoder, index = HashEncoder(), MemoryIndex()
    ingest(encoder, index, [Passage(f"p{i}", f"room {i} of the house") for i in range(20)])
    train, dev = ([Query(f"{part}{i}", f"{part} <b>nick{i}", {f"p{i}": 1.0}) for i in range(20)] for part in "ab")
    return index, Nudger(encoder, index).fit(train, dev, test=dev, modes=encoder.modes, method="nudge-n")


def shown(folder, nudged, before, after):
    """The first page of a demonstration with these figures, read as XML, which it is."""
    index, report = nudged
    demo = Demo("tiny", IngestReport(1, 0, 0), [], before, 1, report, after)
    demo.render(folder, index)
    return ET.fromstring((folder / "index.html").read_text(encoding="utf-8"))


def test_a_page_escapes_what_it_shows(tmp_path, nudged):
    figures = {"<script>": {"ndcg@10": 1.0}}
    page = shown(tmp_path, nudged, figures, figures)
    assert not list(page.iter("script"))
    assert "&lt;script&gt;" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_page_ends_with_a_picture_of_each_mode_and_the_way_to_the_report(tmp_path, nudged):
    page = shown(tmp_path, nudged, {"all": {"ndcg@10": 0.5}}, {"all": {"ndcg@10": 0.625}})
    curves = [figure for figure in page.iter("figure") if figure.get("class") == "curves"]
    assert len(curves) == len(nudged[1].curves) == 3
    (link,) = page.iter("a")
    assert (tmp_path / link.get("href")).is_file()
    assert "0.500 → 0.625" in "".join(page.itertext())


def test_an_answer_is_shown_by_title_and_language_with_its_words_and_never_by_id(tmp_path, nudged):
    index, report = nudged
    passage = Passage("raw-id", "Brücke\nDie rote Brücke steht.", {"title": "Brücke", "language": "de"})
    explanation = matched("red bridge", passage.text, ("red", "rote", 0.5), ("bridge", "Brücke steht", 0.8))
    found = Match(passage, 1.0, {"dense": 0.25, "sparse": 0.75})
    answer = Answer(DemoQuestion("red bridge", "en"), {"dense": passage, "sparse": None}, [found], [explanation])
    figures = {"all": {"ndcg@10": 0.5}}
    Demo("tiny", IngestReport(1, 0, 0), [answer], figures, 1, report, figures).render(tmp_path, index)
    page = ET.fromstring((tmp_path / "index.html").read_text(encoding="utf-8"))
    (card,) = page.iter("article")
    assert [title.text for title in card.iter("div") if title.get("class") == "title"] == ["Brücke", "Brücke"]
    assert {each.get("lang") for each in card.iter() if each.get("class") == "title"} == {"de"}
    assert card.find("h3").get("lang") == "en"
    assert {mark.text for mark in card.iter("mark")} == {"rote", "Brücke"}
    assert card.find(".//*[@class='bar']").get("aria-label") == "score 1.00: dense 25%, sparse 75%"
    text = "".join(card.itertext())
    assert "dense alone ✓" in text
    assert "sparse alone ✗" in text
    assert "raw-id" not in text


def test_the_default_is_compared_with_the_best_other_plan(nudged):
    before = {"multi_vector": {"accuracy@1": 0.5}, "all": {"accuracy@1": 0.5}}
    worse, better = ({**before, "all": {"accuracy@1": value}} for value in (0.25, 0.75))
    demos = [Demo("tiny", IngestReport(1, 0, 0), [], before, 1, nudged[1], after) for after in (worse, better)]
    assert demos[0].comparison.startswith("Late interaction alone ranks best on these questions, most")
    assert demos[1].comparison == "Searching with all three modes, the default, ranks best."


def test_a_plan_that_did_not_gain_is_named(nudged):
    before = {"dense": {"ndcg@10": 0.5}, "sparse": {"ndcg@10": 0.5}, "all": {"ndcg@10": 0.5}}
    after = {"dense": {"ndcg@10": 0.75}, "sparse": {"ndcg@10": 0.25}, "all": {"ndcg@10": 0.5}}
    demo = Demo("tiny", IngestReport(1, 0, 0), [], before, 1, nudged[1], after)
    assert [remark for remark in demo.remarks if "did not gain" in remark] == [
        "sparse did not gain: nDCG@10 0.500 before, 0.250 after",
        "all did not gain: nDCG@10 0.500 before, 0.500 after",
    ]


def test_the_small_world_has_questions_with_answers():
    collection = world()
    held = {passage.id for passage in collection.passages}
    assert all(query.relevant.keys() <= held for query in collection.queries)
