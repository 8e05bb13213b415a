"""Ranking metrics equal their formulas and ir-measures."""

from dataclasses import FrozenInstanceError
from math import log2

import ir_measures
import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.types import Query
from m3_integrations.evaluation.metrics import Metric, evaluate

IN_IR_MEASURES = {"ndcg": "nDCG", "recall": "R", "mrr": "RR", "precision": "P", "accuracy": "Success", "ap": "AP"}
IDS = [f"p{n}" for n in range(9)]

rankings = st.lists(st.sampled_from(IDS), unique=True)
grades = st.dictionaries(st.sampled_from(IDS), st.integers(0, 3))
cutoffs = st.integers(1, 12)


def test_ndcg_discounts_the_grade_itself():
    found = Metric.parse("ndcg@3")(["b", "x", "a"], {"a": 2, "b": 1})
    assert found == pytest.approx((1 / log2(2) + 2 / log2(4)) / (2 / log2(2) + 1 / log2(3)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recall@3", 2 / 4),
        ("precision@3", 2 / 3),
        ("precision@10", 3 / 10),
        ("mrr@3", 1 / 2),
        ("mrr@1", 0),
        ("accuracy@1", 0),
        ("accuracy@2", 1),
        ("ap@3", (1 / 2 + 2 / 3) / 4),
    ],
)
def test_a_metric_equals_its_formula(name, value):
    ranked = ["x", "a", "b", "y", "c"]
    assert Metric.parse(name)(ranked, {"a": 1, "b": 2, "c": 1, "d": 1}) == pytest.approx(value)


@pytest.mark.parametrize("name", IN_IR_MEASURES)
@given(ranked=rankings, relevant=grades, k=cutoffs)
def test_a_metric_equals_ir_measures(name, ranked, relevant, k):
    # ir-measures drops a query with an empty ranking; an unknown id keeps it, at the last rank.
    ranked = [*ranked, "unknown"]
    relevant = {**relevant, "unfound": 1}
    run = {"q": {id: float(len(ranked) - rank) for rank, id in enumerate(ranked)}}
    measure = ir_measures.parse_measure(f"{IN_IR_MEASURES[name]}@{k}")
    expected = ir_measures.calc_aggregate([measure], {"q": relevant}, run)[measure]
    assert Metric(name, k)(ranked, relevant) == pytest.approx(expected, abs=1e-9)


@given(
    rankings_of=st.lists(rankings.filter(len), min_size=1, max_size=5),
    grades_of=st.lists(grades, min_size=5, max_size=5),
)
def test_a_mean_over_queries_equals_ir_measures(rankings_of, grades_of):
    run = {f"q{n}": ranked for n, ranked in enumerate(rankings_of)}
    queries = [Query(id, "?", {**grades_of[n], "unfound": 1}) for n, id in enumerate(run)]
    scored = {id: {hit: -float(rank) for rank, hit in enumerate(ranked)} for id, ranked in run.items()}
    qrels = {query.id: dict(query.relevant) for query in queries}
    measure = ir_measures.parse_measure("nDCG@10")
    expected = ir_measures.calc_aggregate([measure], qrels, scored)[measure]
    assert evaluate(run, queries, ["ndcg@10"]) == {"ndcg@10": pytest.approx(expected, abs=1e-9)}


@pytest.mark.parametrize("name", IN_IR_MEASURES)
@given(ranked=rankings, relevant=grades, k=cutoffs)
def test_grades_of_zero_or_less_count_as_not_relevant(name, ranked, relevant, k):
    with_irrelevant = {**dict.fromkeys(IDS, -1.0), **{id: g or -2.0 for id, g in relevant.items()}}
    assert Metric(name, k)(ranked, with_irrelevant) == Metric(name, k)(ranked, relevant)


@pytest.mark.parametrize("name", IN_IR_MEASURES)
@given(ranked=st.lists(st.sampled_from(IDS)), relevant=grades, k=cutoffs)
def test_a_metric_is_between_0_and_1_even_with_repeated_ids(name, ranked, relevant, k):
    assert 0 <= Metric(name, k)(ranked, relevant) <= 1 + 1e-12


@given(relevant=grades.filter(lambda grades: any(grades.values())), k=cutoffs)
def test_the_ideal_ranking_has_an_ndcg_of_1(relevant, k):
    ideal = sorted(relevant, key=lambda id: -relevant[id])
    assert Metric("ndcg", k)(ideal, relevant) == pytest.approx(1)


def test_an_empty_ranking_scores_0():
    for name in IN_IR_MEASURES:
        assert Metric(name, 5)([], {"a": 1}) == 0
        assert Metric(name, 5)(["a"], {}) == 0


def test_a_metric_parses_from_its_name():
    assert str(Metric.parse("ndcg@10")) == "ndcg@10"
    assert Metric.parse("ndcg@10") == Metric("ndcg", 10)


def test_a_metric_is_immutable():
    with pytest.raises(FrozenInstanceError):
        Metric.parse("mrr@10").k = 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndcg", "'ndcg' is not a metric; use one of ndcg, recall, .* with a rank, such as 'ndcg@10'"),
        ("nDCG@10", "'nDCG@10' is not a metric"),
        ("hits@10", "'hits' is not a metric; use one of ndcg, recall"),
        ("mrr@0", "k must be at least 1, got 0; write 'mrr@10'"),
        ("ndcg@-1", "'ndcg@-1' is not a metric"),
    ],
)
def test_an_unknown_metric_raises(text, message):
    with pytest.raises(ValueError, match=message):
        Metric.parse(text)


def test_the_mean_is_over_queries_with_a_relevant_passage():
    queries = [Query("q1", "found", {"a": 1}), Query("q2", "missed", {"b": 1}), Query("q3", "no answer", {"c": 0})]
    run = {"q1": ["a"], "q3": ["c"], "not judged": ["a"]}
    assert evaluate(run, queries, ["mrr@10", "recall@5"]) == {"mrr@10": (1 + 0) / 2, "recall@5": (1 + 0) / 2}


def test_queries_without_relevant_passages_raise():
    with pytest.raises(ValueError, match=r"none of 1 queries has a relevant passage; give Query\(.*relevant="):
        evaluate({}, [Query("q", "?")], ["ndcg@10"])
