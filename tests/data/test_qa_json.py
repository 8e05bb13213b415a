"""Judged questions from datasets, folders and qrels files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection, read_beir, read_judged, read_qrels
from m3_integrations.data.qa_json import load_qa_dataset

WORLD = Path(__file__).parents[2] / "examples" / "world"
PARTS = {
    "queries": {"q1": "Who?", "q2": "When?", "q3": "Why?"},
    "corpus": {"a": "A.", "b": "B."},
    "relevant_docs": {"q1": ["a"], "q2": ["b", "a"]},
}
EXPECTED = JudgedCollection(
    [Passage("a", "A."), Passage("b", "B.")],
    [Query("q1", "Who?", {"a": 1.0}), Query("q2", "When?", {"b": 1.0, "a": 1.0}), Query("q3", "Why?")],
)


def test_an_object_with_queries_corpus_and_answers_is_a_dataset():
    assert load_qa_dataset(SimpleNamespace(**PARTS)) == EXPECTED
    assert load_qa_dataset(EXPECTED) is EXPECTED


def test_a_json_file_is_read_plain_or_gzipped(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({**PARTS, "mode": "text"}))
    with gzip.open(tmp_path / "set.json.gz", "wt", encoding="utf-8") as packed:
        json.dump(PARTS, packed)
    assert load_qa_dataset(tmp_path / "set.json") == EXPECTED
    assert load_qa_dataset(str(tmp_path / "set.json.gz")) == EXPECTED


def test_answers_can_have_grades():
    graded = SimpleNamespace(**{**PARTS, "relevant_docs": {"q1": {"a": 2, "b": 0}}})
    assert load_qa_dataset(graded).queries[0].relevant == {"a": 2.0, "b": 0.0}


def test_answers_of_unknown_queries_are_ignored():
    short = SimpleNamespace(**{**PARTS, "queries": {"q2": "When?"}})
    assert load_qa_dataset(short).queries == [EXPECTED.queries[1]]


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ({"q9": ["a"]}, "answers 'q9' and none of its queries; is it another dataset's"),
        ({"q1": ["z"]}, "'z' answers query 'q1', and its corpus does not hold it; add that text"),
        ({"q1": "a"}, r"a list of ids, got 'a'; write \[\"a\"\]"),
    ],
)
def test_inconsistent_datasets_raise(relevant, message):
    with pytest.raises(ValueError, match=message):
        load_qa_dataset(SimpleNamespace(**{**PARTS, "relevant_docs": relevant}))


def test_an_object_that_is_not_a_dataset_raises(tmp_path):
    with pytest.raises(ValueError, match=r"has \.queries, \.corpus and \.relevant_docs"):
        load_qa_dataset(object())
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "is not a question-answer dataset"),
        ('{"queries": {}}', "is not a question-answer dataset"),
    ):
        (tmp_path / "set.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_qa_dataset(tmp_path / "set.json")


def test_read_judged_reads_the_queries_of_read_beir():
    assert read_judged(WORLD, "dev") == read_beir(WORLD, "dev").queries


TREC = "q2 0 a 1\nq1 0 b 2\nq1 0 a 0\n"
BEIR = "query-id\tcorpus-id\tscore\nq2\ta\t1\nq1\tb\t2\nq1\ta\t0\n"
JSONL = '{"_id": "q1", "text": "Who?"}\n\n{"id": "q2", "text": "When?"}\n{"_id": "q3", "text": "Why?"}\n'
TSV = "q1\tWho?\nq2\tWhen?\nq3\tWhy?\n"


@pytest.mark.parametrize("qrels", [TREC, BEIR, BEIR.partition("\n")[2]], ids=["trec", "beir", "bare"])
@pytest.mark.parametrize(("name", "queries"), [("queries.jsonl", JSONL), ("queries.tsv", TSV)])
@pytest.mark.parametrize("packed", [False, True])
def test_qrels_are_read_in_every_format(tmp_path, name, queries, qrels, packed):
    ending, opener = (".gz", gzip.open) if packed else ("", open)
    for file, text in ((name, queries), ("qrels.txt", qrels)):
        with opener(tmp_path / f"{file}{ending}", "wt", encoding="utf-8") as written:
            written.write(text)
    assert read_qrels(tmp_path / f"{name}{ending}", tmp_path / f"qrels.txt{ending}") == [
        Query("q1", "Who?", {"b": 2.0, "a": 0.0}),
        Query("q2", "When?", {"a": 1.0}),
    ]


def test_the_two_ways_to_read_a_folder_agree():
    assert read_qrels(WORLD / "queries.jsonl", WORLD / "qrels" / "train.tsv") == read_judged(WORLD)


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        (JSONL, "q9 0 a 1", "qrels.txt:1 grades query 'q9'"),
        (JSONL, "q1 a", "qrels.txt:1 is neither 'query 0 passage grade'"),
        (JSONL, "q1 0 a 1\nq1 0 b much", "qrels.txt:2 has the grade 'much'"),
        ("{", TREC, "queries.jsonl:1 is not JSON"),
        ("3", TREC, "queries.jsonl:1 is not a JSON object"),
        ('{"_id": "q1"}', TREC, "queries.jsonl:1 is no query"),
    ],
)
def test_an_invalid_line_raises_with_its_location(tmp_path, queries, qrels, message):
    (tmp_path / "queries.jsonl").write_text(queries)
    (tmp_path / "qrels.txt").write_text(qrels)
    with pytest.raises(ValueError, match=message):
        read_qrels(tmp_path / "queries.jsonl", tmp_path / "qrels.txt")
