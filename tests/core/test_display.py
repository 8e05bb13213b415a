"""Short reprs, and HTML that escapes everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from m3_integrations import Encoded, Judged, LocalIndex, MemoryIndex, Nudger, Passage, Query, Retriever, nudge
from m3_integrations.core.display import FieldsDisplay, TextMark, html_table, marked_html, short_repr
from m3_integrations.evaluation import run_plans
from m3_integrations.nudging import tune
from m3_integrations.retrieval import calibrate, calibrate_plan
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder()
QUERIES = [Query(f"q{i}", f"alpha{i}", {f"p{i}": 1.0}) for i in range(20)]


class Pair(NamedTuple):
    first: np.ndarray
    second: int


@dataclass(frozen=True, repr=False)
class Holder(FieldsDisplay):
    array: np.ndarray
    text: str
    many: tuple[int, ...]
    few: dict[str, list[np.ndarray]]
    pair: Pair


def test_arrays_are_shown_by_type_and_shape_and_long_values_by_their_length():
    holder = Holder(np.zeros((3, 2)), "x" * 200, tuple(range(50)), {"a": [np.zeros(4)]}, Pair(np.ones(5), 2))
    assert repr(holder) == (
        f"Holder(array=<float64 array of shape (3, 2)>, text={'x' * 80!r}..., many=<tuple of 50>, "
        "few={'a': [<float64 array of shape (4,)>]}, pair=Pair(first=<float64 array of shape (5,)>, second=2))"
    )
    assert "<td>array</td><td>&lt;float64 array" in holder._repr_html_()
    assert short_repr((1,)) == "(1)"


def test_html_is_escaped():
    assert html_table(("<a>",), [("<b>",)]).count("&lt;") == 2
    marked = marked_html("<x> words & more", [TextMark(4, 9, 1.0), TextMark(5, 7, 0.5), TextMark(0, 3, 0.1)])
    assert marked.startswith("<mark")
    assert "&lt;x&gt;</mark> <mark" in marked
    assert ">words</mark> &amp; more" in marked


@pytest.fixture(scope="module")
def results():
    """Values that a user meets, most of which hold arrays."""
    index = MemoryIndex()
    passages = [Passage(f"p{i}", f"alpha{i} beta{i}") for i in range(20)]
    encoded = ENCODER.encode_passages([each.text for each in passages])
    index.add(passages, encoded)
    judged = Judged.of(ENCODER.encode_queries([query.text for query in QUERIES]), [{i: 1.0} for i in range(20)])
    matches = Retriever(ENCODER, index).retrieve_many([query.text for query in QUERIES])
    return {
        "encoded": encoded,
        "judged": judged,
        "nudged": nudge(encoded.dense, judged, judged),
        "nudged_modes": nudge(encoded, judged, judged),
        "runs": run_plans(ENCODER, index, QUERIES, {"default": Retriever(ENCODER, index).plan}),
        "match": matches[0][0],
        "calibration": calibrate(QUERIES, matches),
        "tuning": tune(ENCODER, index, QUERIES),
        "calibrated": calibrate_plan(ENCODER, index, QUERIES),
        "report": Nudger(ENCODER, index).fit(QUERIES, QUERIES),
    }


def test_no_repr_prints_arrays_or_is_long(results):
    for name, value in results.items():
        assert "array(" not in repr(value), name
        assert len(repr(value)) < 2000, name


def test_matches_reports_and_results_are_tables_in_notebooks(results):
    for name in ("judged", "nudged", "match", "calibration", "tuning", "calibrated", "report"):
        html = results[name]._repr_html_()
        assert html.startswith(("<table>", "<pre>")), name


def test_indexes_and_encodings_have_short_reprs(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index:
        assert len(repr(index)) < 500
    assert len(repr(Encoded(dense=np.zeros((1000, 4))))) < 200
