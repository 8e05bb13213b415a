"""What the demonstration is made of."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from m3_integrations import MemoryIndex, Nudger, Passage, Query, ingest
from m3_integrations.core.explain import Explanation, VectorMatch
from m3_integrations.demo import Demo, python_topics, segments, shares, world
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


def test_segments_of_a_passage_that_nothing_matched_are_the_passage():
    assert [each.text for each in segments(explained("one two"))] == ["one two"]


def test_shares_add_up_to_one():
    match = Match(Passage("a", "text"), 2.0, {"dense": 0.5, "multi_vector": 1.5})
    assert shares(match) == {"dense": 0.5 / 2.0, "multi_vector": 1.5 / 2.0}


def test_pythons_topics_are_passages_of_their_own():
    passages = list(python_topics())
    assert len({passage.id for passage in passages}) == len(passages) > 100
    assert all(passage.text.strip() for passage in passages)


@pytest.fixture(scope="module")
def nudged():
    """A small index, and the report of a nudge of it in all modes."""
    encoder, index = HashEncoder(), MemoryIndex()
    ingest(encoder, index, [Passage(f"p{i}", f"room {i} of the house") for i in range(20)])
    train, dev = ([Query(f"{part}{i}", f"{part} <b>nick{i}", {f"p{i}": 1.0}) for i in range(20)] for part in "ab")
    return index, Nudger(encoder, index).fit(train, dev, test=dev, modes=encoder.modes, method="n")


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
