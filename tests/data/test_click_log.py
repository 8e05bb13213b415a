"""Click logs, and splits that let no question stand on both sides."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.types import Query
from m3_integrations.data.click_log import Click, clicks_to_queries, read_clicks
from m3_integrations.data.splits import normalize_question, split_by_text
from m3_integrations.data.text_files import LONGEST_LINE

JSONL = """{"query": "Opening hours?", "passage": "doc-1", "time": "1970-01-03T00:00:00Z"}

{"query": "opening  hours", "passage": "doc-1", "weight": 2, "time": 0}
{"query": "parking", "passage": "doc-2"}
"""
CSV = """query,passage,weight,time
Opening hours?,doc-1,,1970-01-03T00:00:00
opening  hours,doc-1,2,0
parking,doc-2,,
"""
DAY = 86_400.0
CLICKS = [
    Click("Opening hours?", "doc-1", 1.0, 2 * DAY),
    Click("opening  hours", "doc-1", 2.0, 0.0),
    Click("parking", "doc-2"),
]
CUT_GZIP = gzip.compress(b"query,passage\nwhy,a\n", mtime=0)[:-10]


@pytest.mark.parametrize(("name", "text"), [("log.jsonl", JSONL), ("log.csv", CSV)])
def test_a_log_is_read_from_json_lines_and_from_csv(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as packed:
        packed.write(text)
    assert read_clicks(tmp_path / name) == CLICKS
    assert read_clicks(tmp_path / f"{name}.gz") == CLICKS


def test_clicks_on_one_question_add_up_across_spellings():
    assert clicks_to_queries(CLICKS) == [
        Query("click-1", "Opening hours?", {"doc-1": 1 + 2}),
        Query("click-2", "parking", {"doc-2": 1}),
    ]


def test_the_weight_of_a_click_halves_after_the_half_life():
    assert clicks_to_queries(CLICKS, half_life=1.0)[0].relevant == {"doc-1": 1 + 2 * 0.5**2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", ":1 is not JSON"),
        ('{"query": "a"}', "has no query or passage"),
        ('{"query": "a", "passage": "b", "weight": -1}', "a weight is a number above 0"),
        ('{"query": "a", "passage": "b", "weight": "much"}', "a weight is a number above 0"),
        ('{"query": "a", "passage": "b", "time": "noon"}', "write 2024-05-31T12:00:00Z"),
    ],
)
def test_a_line_that_is_not_a_click_raises_with_its_location(tmp_path, line, message):
    (tmp_path / "log.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_clicks(tmp_path / "log.jsonl")


def test_a_csv_log_without_a_header_raises(tmp_path):
    (tmp_path / "log.csv").write_text("parking,doc-2\n")
    with pytest.raises(ValueError, match="its first line is query,passage"):
        read_clicks(tmp_path / "log.csv")


@given(
    st.lists(st.sampled_from(["Who?", "who", "WHO ?", "where", "when", "why", "Ｗｈｙ"]), max_size=40),
    st.integers(0, 9),
)
def test_no_question_is_in_two_parts(texts, seed):
    queries = [Query(str(i), text) for i, text in enumerate(texts)]
    parts = split_by_text(queries, (0.5, 0.2, 0.3), np.random.default_rng(seed))
    questions = [{normalize_question(query.text) for query in part} for part in parts]
    assert sum(map(len, questions)) == len(set.union(*questions))
    assert sorted(query.id for part in parts for query in part) == sorted(query.id for query in queries)


def test_a_split_has_the_requested_shares_and_is_reproducible():
    queries = [Query(str(i), f"question {i}") for i in range(100)]
    parts = split_by_text(queries, (8, 2), np.random.default_rng(0))
    assert [len(part) for part in parts] == [80, 20]
    assert parts == split_by_text(queries, (8, 2), np.random.default_rng(0))
    with pytest.raises(ValueError, match="shares must be above 0"):
        split_by_text(queries, (1.0, 0.0), np.random.default_rng(0))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_are_read_as_spreadsheets_save_them(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [("query", "passage", "weight"), ("café?", "a", "2")]
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join(map(separator.join, rows)) + "\n", encoding=encoding)
    assert read_clicks(path) == [Click("café?", "a", 2.0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.csv",
            "query,passage\nwhy,a\ncafé,a\n".encode("latin-1"),
            r"latin.csv:3 is not UTF-8 at byte 4 \(0xe9\)",
        ),
        ("latin.jsonl", '{"query": "café"}\n'.encode("latin-1"), r"latin.jsonl:1 is not UTF-8 at byte 15 \(0xe9\)"),
        ("wide.csv", "query,passage\n".encode("utf-16-le"), "wide.csv:1 holds a zero byte"),
        ("odd.csv", "query,passage\n".encode("utf-16")[:-1], "odd.csv:1 is not UTF-16"),
        ("pipes.csv", b"query|passage\nwhy|a\n", "pipes.csv begins with 'query|passage'"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl:1 is not JSON"),
        ("plain.jsonl.gz", b'{"query": "why", "passage": "a"}\n', "plain.jsonl.gz is not a whole gzip file"),
        (
            "short.csv.gz",
            CUT_GZIP,
            "short.csv.gz is not a whole gzip file",
        ),
        ("long.jsonl.gz", gzip.compress(b"a" * (LONGEST_LINE + 9), 1), "long.jsonl.gz:1 has more than 16,777,216"),
    ],
)
def test_files_that_are_not_text_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        read_clicks(tmp_path / name)
