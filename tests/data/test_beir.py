"""BEIR folders are read whole or refused with the file and the line; run files go round."""

import gzip
import json
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import ir_measures
import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import read_beir, read_passages, read_qrels
from m3_integrations.data.trec import read_run, write_run
from m3_integrations.index.base import Hit

WORLD = Path(__file__).parents[2] / "examples" / "world"
HEADER = "query-id\tcorpus-id\tscore\n"


def jsonl(*objects: dict[str, object]) -> str:
    return "".join(json.dumps(fields) + "\n" for fields in objects)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        jsonl(
            {"_id": "a", "title": "Tea", "text": "Tea steeps.", "metadata": {"language": "en"}},
            {"_id": "b", "title": "", "text": "Kaffee"},
        )
    )
    (tmp_path / "queries.jsonl").write_text(
        jsonl({"_id": "q1", "text": "tea?"}, {"_id": "q2", "text": "coffee?"}, {"_id": "q3", "text": "milk?"})
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(HEADER + "q2\tb\t2\nq2\ta\t0\nq1\ta\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text(HEADER + "q3\tb\t1\n")
    return tmp_path


def test_a_title_precedes_the_text_and_is_in_the_metadata(folder):
    assert read_beir(folder).passages == [
        Passage("a", "Tea\nTea steeps.", {"language": "en", "title": "Tea"}),
        Passage("b", "Kaffee"),
    ]


def test_a_passage_with_only_a_title_has_no_empty_line(folder):
    (folder / "corpus.jsonl").write_text(
        jsonl({"_id": "a", "title": "Tea", "text": ""}, {"_id": "b", "text": "Kaffee"})
    )
    assert read_beir(folder).passages[0].text == "Tea"


def test_only_queries_judged_in_the_split_are_read(folder):
    assert read_beir(folder).queries == [Query("q1", "tea?", {"a": 1}), Query("q2", "coffee?", {"b": 2, "a": 0})]
    assert read_beir(folder, split="dev").queries == [Query("q3", "milk?", {"b": 1})]


def test_qrels_can_be_in_another_folder(folder):
    (folder / "qrels").rename(folder / "clicks")
    assert len(read_beir(folder, qrels="clicks").queries) == 2


def test_gzipped_files_are_read(folder):
    plain = read_beir(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_beir(folder) == plain


def test_the_corpus_can_be_called_passages(folder):
    expected = read_beir(folder)
    (folder / "corpus.jsonl").rename(folder / "passages.jsonl")
    assert read_beir(folder) == expected


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_ignored(folder):
    expected = read_beir(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_beir(folder) == expected


def test_numeric_ids_become_strings(folder):
    (folder / "corpus.jsonl").write_text(jsonl({"_id": 7, "text": "seven"}))
    (folder / "qrels" / "test.tsv").write_text(HEADER + "q1\t7\t1\n")
    assert read_beir(folder).queries[0].relevant == {"7": 1}


def test_a_collection_is_immutable(folder):
    with pytest.raises(FrozenInstanceError):
        read_beir(folder).passages = []


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_example_corpus_is_read(split):
    world = read_beir(WORLD, split)
    assert len(world.passages) > 60
    assert all(query.relevant for query in world.queries)


def test_a_missing_file_names_the_expected_and_the_existing_files(folder):
    (folder / "queries.jsonl").rename(folder / "questions.jsonl")
    message = (
        r"has no queries\.jsonl \(plain or \.gz\); .* holds corpus\.jsonl, qrels/dev\.tsv, qrels/test\.tsv, questions"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_beir(folder)


def test_a_missing_split_names_the_existing_ones(folder):
    with pytest.raises(FileNotFoundError, match=r"has no qrels/train\.tsv .* this one holds .*qrels/dev\.tsv"):
        read_beir(folder, split="train")


def test_a_missing_corpus_names_both_names(folder):
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no corpus\.jsonl or passages\.jsonl"):
        read_beir(folder)


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="this one holds nothing: there is no such folder"):
        read_beir(tmp_path / "elsewhere")


def test_the_files_of_a_large_folder_are_listed_in_part(tmp_path):
    for n in range(40):
        (tmp_path / f"{n:02d}.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"11\.txt and 28 more$"):
        read_beir(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": \n', r"corpus\.jsonl:2 is not JSON \("),
        ("corpus.jsonl", '["a"]\n', r"corpus\.jsonl:1 is not a JSON object"),
        ("corpus.jsonl", '{"key": "a", "text": "x"}\n', r"corpus\.jsonl:1 has no '_id'; a line is"),
        ("corpus.jsonl", '{"_id": "a"}\n', r"corpus\.jsonl:1 needs a string as 'text', got None"),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "", "metadata": 3}',
            r"corpus\.jsonl:1 needs an object as 'metadata', got 3",
        ),
        ("queries.jsonl", '\n{"_id": "q"}\n', r"queries\.jsonl:2 needs a string as 'text'"),
        ("qrels/test.tsv", "q1\ta\t1\n", r"test\.tsv has no header line; write .*query-id\\tcorpus-id\\tscore"),
        ("qrels/test.tsv", "", r"test\.tsv has no header line"),
        ("qrels/test.tsv", f"{HEADER}q1 a 1\n", r"test\.tsv:2 is not query, passage and grade"),
        ("qrels/test.tsv", f"{HEADER}q1\ta\tyes\n", r"test\.tsv:2 is not query, passage and grade"),
        ("qrels/test.tsv", f"{HEADER}q1\tz\t1\n", r"test\.tsv:2 grades passage 'z', which the corpus does not hold"),
        ("qrels/test.tsv", f"{HEADER}q9\ta\t1\n", r"test\.tsv:2 grades query 'q9', which queries\.jsonl does not hold"),
    ],
)
def test_an_invalid_line_raises_with_its_location(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_beir(folder)


ids = st.text(st.characters(categories=("L", "N", "P")), min_size=1)
scores = st.floats(allow_nan=False, allow_infinity=False)


@given(run=st.dictionaries(ids, st.lists(st.builds(Hit, ids, scores), min_size=1, unique_by=lambda hit: hit.id)))
def test_a_run_round_trips(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("runs") / "run.txt"
    ranked = {query: sorted(hits, key=lambda hit: (-hit.score, hit.id)) for query, hits in run.items()}
    write_run(path, ranked, "m3")
    assert read_run(path) == ranked


def test_a_run_file_has_six_columns(tmp_path):
    write_run(tmp_path / "run.txt", {"q": [Hit("a", 0.5), Hit("b", 0.25)]}, "m3")
    assert (tmp_path / "run.txt").read_text() == "q Q0 a 1 0.5 m3\nq Q0 b 2 0.25 m3\n"


def test_ir_measures_reads_our_runs(tmp_path):
    write_run(tmp_path / "run.txt", {"q": [Hit("a", 0.5), Hit("b", 0.25)]}, "m3")
    read = [(doc.query_id, doc.doc_id, doc.score) for doc in ir_measures.read_trec_run(str(tmp_path / "run.txt"))]
    assert read == [("q", "a", 0.5), ("q", "b", 0.25)]


@pytest.mark.parametrize(
    ("query", "id", "tag"), [("q 1", "a", "m3"), ("q", "a\tb", "m3"), ("q", "a", ""), ("q", "", "m3")]
)
def test_a_column_with_white_space_raises_and_writes_nothing(tmp_path, query, id, tag):
    with pytest.raises(ValueError, match="separated by white space and cannot hold"):
        write_run(tmp_path / "run.txt", {query: [Hit(id, 1.0)]}, tag)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_is_not_a_hit_raises_with_its_location(tmp_path):
    (tmp_path / "run.txt").write_text("q Q0 a 1 0.5 m3\nq a 0.25\n")
    with pytest.raises(ValueError, match=re.escape("run.txt:2 is not 'query Q0 passage rank score tag'")):
        read_run(tmp_path / "run.txt")


@pytest.mark.parametrize("grade", ["nan", "inf", "-inf"])
def test_grades_that_are_not_finite_are_refused(tmp_path: Path, grade: str) -> None:
    (tmp_path / "queries.tsv").write_text("q1\twhy\n")
    (tmp_path / "qrels.txt").write_text(f"q1 0 d1 {grade}\n")
    with pytest.raises(ValueError, match=r"qrels.txt:1 has the grade"):
        read_qrels(tmp_path / "queries.tsv", tmp_path / "qrels.txt")


def test_a_corpus_in_latin_1_is_refused_by_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes('{"_id": "d1", "text": "café"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"corpus.jsonl:1 is not UTF-8 at byte 27 \(0xe9\)"):
        list(read_passages(tmp_path / "corpus.jsonl"))
