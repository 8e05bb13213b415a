"""Click logs, and splits that let no question stand on both sides."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_integrations.core.texts import Query
from m3_integrations.nudging.clicks import Click, queries_of, read_clicks
from m3_integrations.nudging.splits import normalised, split

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


@pytest.mark.parametrize(("name", "text"), [("log.jsonl", JSONL), ("log.csv", CSV)])
def test_a_log_is_read_from_json_lines_and_from_csv(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as packed:
        packed.write(text)
    assert read_clicks(tmp_path / name) == CLICKS
    assert read_clicks(tmp_path / f"{name}.gz") == CLICKS


def test_clicks_on_one_question_add_up_however_it_was_typed():
    assert queries_of(CLICKS) == [
        Query("click-1", "Opening hours?", {"doc-1": 1 + 2}),
        Query("click-2", "parking", {"doc-2": 1}),
    ]


def test_a_click_counts_half_after_its_half_life():
    assert queries_of(CLICKS, half_life=1.0)[0].relevant == {"doc-1": 1 + 2 * 0.5**2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", ":1 is no JSON"),
        ('{"query": "a"}', "names no query and passage"),
        ('{"query": "a", "passage": "b", "weight": -1}', "a weight is a number above 0"),
        ('{"query": "a", "passage": "b", "weight": "much"}', "a weight is a number above 0"),
        ('{"query": "a", "passage": "b", "time": "noon"}', "write 2024-05-31T12:00:00Z"),
    ],
)
def test_a_line_that_is_no_click_is_named(tmp_path, line, message):
    (tmp_path / "log.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_clicks(tmp_path / "log.jsonl")


def test_a_csv_log_without_its_first_line_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("parking,doc-2\n")
    with pytest.raises(ValueError, match="its first line is: query,passage"):
        read_clicks(tmp_path / "log.csv")


@given(
    st.lists(st.sampled_from(["Who?", "who", "WHO ?", "where", "when", "why", "Ｗｈｙ"]), max_size=40),
    st.integers(0, 9),
)
def test_no_question_stands_on_both_sides(texts, seed):
    queries = [Query(str(i), text) for i, text in enumerate(texts)]
    parts = split(queries, (0.5, 0.2, 0.3), np.random.default_rng(seed))
    asked = [{normalised(query.text) for query in part} for part in parts]
    assert sum(map(len, asked)) == len(set.union(*asked))
    assert sorted(query.id for part in parts for query in part) == sorted(query.id for query in queries)


def test_a_split_gives_each_part_its_share_and_repeats_by_seed():
    queries = [Query(str(i), f"question {i}") for i in range(100)]
    parts = split(queries, (8, 2), np.random.default_rng(0))
    assert [len(part) for part in parts] == [80, 20]
    assert parts == split(queries, (8, 2), np.random.default_rng(0))
    with pytest.raises(ValueError, match="shares are above 0"):
        split(queries, (1.0, 0.0), np.random.default_rng(0))
