"""What the demonstration is made of."""

from __future__ import annotations

from m3_integrations import Passage
from m3_integrations.core.explain import Explanation, VectorMatch
from m3_integrations.demo import Demo, python_topics, segments, shares, world
from m3_integrations.retrieval.ingestion import IngestReport
from m3_integrations.retrieval.retriever import Match


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


def test_a_page_escapes_what_it_shows(tmp_path):
    demo = Demo("tiny", IngestReport(1, 0, 0), [], {"<script>": {"ndcg@10": 1.0}}, 1)
    demo.render(tmp_path / "page.html")
    assert "&lt;script&gt;" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_small_world_has_questions_with_answers():
    collection = world()
    held = {passage.id for passage in collection.passages}
    assert all(query.relevant.keys() <= held for query in collection.queries)
