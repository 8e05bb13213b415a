"""Nudge reports: warnings, outcomes with known answers, charts, the page and the tables."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from m3_integrations import Encoded, MemoryIndex, Nudger, Passage, Query, Retriever, SearchPlan, ingest
from m3_integrations.errors import StaleReport
from m3_integrations.evaluation.metrics import evaluate
from m3_integrations.index import copy_index
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.optimize.dense import Curve
from m3_integrations.nudging.optimize.hybrid import ModeUpdate, NudgeConfig
from m3_integrations.nudging.report.charts import BINS, curves_chart, gains_chart, lengths_chart, round_values
from m3_integrations.nudging.report.html import page
from m3_integrations.nudging.report.outcomes import EvaluatedQueries, FittedNudge, held_out_topics, outcome_of
from m3_integrations.nudging.report.report import NudgeReport
from m3_integrations.nudging.report.values import Change, Coverage, Evaluation, Move, Outcome, in_steps
from m3_integrations.testing import HashEncoder

SVG = "svg"
SECOND = 1 / math.log2(3)  # nDCG of a question whose only answer stands second


def outcome(gains, texts=None, best=("a",), clusters=None):
    """Questions that stood at 0.4 and gained this much."""
    texts = texts or [f"question {i}" for i in range(len(gains))]
    queries = [Query(f"q{i}", text, {"a": 1.0}) for i, text in enumerate(texts)]
    before = np.full(len(gains), 0.4)
    return Outcome(queries, before, before + gains, [best] * len(gains), [best] * len(gains), clusters)


def report(**changed):
    """One that has nothing to warn of."""
    gamma, lengths = 0.04, np.full(30, 0.2)
    parts = {
        "version": 1,
        "metric": "ndcg@10",
        "plan": SearchPlan(propose=("dense",), weights={"dense": 1.0}),
        "moves": {"dense": Move("nudge-n", gamma, None, 0.0, lengths)},
        "before": 0.4,
        "after": 0.65,
        "gain": 0.2,
        "error": 0.01,
        "curves": {"dense": Curve(np.array([0.0, 0.02, 0.09]), np.array([0.4, 0.6]))},
        "validation": outcome([0.2, 0.3, 0.2, 0.3]),
        "test": outcome([0.1, 0.3, 0.2, 0.3]),
        "held_out_topics": outcome([0.1, 0.0, 0.1, 0.1]),
        "other_curves": {},
        "coverage": Coverage(passages=100, answered=30, queries=40, unanswered=0, unknown=0, repeated=0),
        "seconds": 0.1,
    }
    parts |= changed
    evaluation = Evaluation(*(parts.pop(name) for name in Evaluation._fields))
    return NudgeReport(**parts, evaluate=lambda: evaluation)


# Warnings


def test_a_good_nudge_has_no_warnings():
    assert report().warnings == []


def test_low_coverage_is_a_warning_with_its_numbers():
    (warning,) = report(coverage=Coverage(1000, 99, 120, 0, 0, 0)).warnings
    assert "coverage is low: training questions name 99 of 1000 passages" in warning
    assert report(coverage=Coverage(1000, 100, 120, 0, 0, 0)).warnings == []


def test_a_gain_within_noise_is_a_warning():
    (warning,) = report(test=outcome([0.3, -0.3, 0.1, -0.02])).warnings
    assert "the gain is within noise: +0.020" in warning  # (0.3 - 0.3 + 0.1 - 0.02) / 4


def test_validation_replaces_a_missing_test():
    noisy = outcome([0.3, -0.3, 0.1, -0.05])
    assert report(validation=noisy, after=0.42).warnings == []
    (warning,) = report(validation=noisy, after=0.42, test=None).warnings
    assert "within noise" in warning


def test_a_significant_loss_on_held_out_topics_is_a_warning():
    (warning,) = report(held_out_topics=outcome([-0.2, -0.1, -0.2, -0.1])).warnings
    assert "questions unlike the training questions lose: 0.400 to 0.250" in warning
    assert report(held_out_topics=outcome([-0.2, 0.2, -0.1, 0.1])).warnings == []


def test_repeated_questions_and_missing_answers_are_counted():
    text = report(coverage=Coverage(100, 30, 40, unanswered=2, unknown=3, repeated=4)).warnings
    assert [sentence.split()[0] for sentence in text] == ["3", "2", "4"]


def test_a_search_that_misses_candidates_of_the_choice_is_a_warning():
    (warning,) = report(after=0.7).warnings
    assert "on validation is 0.650, and 0.700 on short lists" in warning  # 0.4 + (0.2 + 0.3 + 0.2 + 0.3) / 4
    assert "more than 100 candidates" in warning


def test_a_nudge_that_moved_nothing_has_one_warning():
    (warning,) = report(moves={}, test=outcome([0.0, 0.0, 0.0, 0.0])).warnings
    assert "nothing was moved" in warning


# Held-out topics


def on_sphere(*first):
    """Unit vectors of dimension 6 that begin with these coordinates; each has a rest of its own."""
    vectors = np.zeros((len(first), 6), np.float32)
    for i, coordinates in enumerate(first):
        vectors[i, :2] = coordinates
        vectors[i, 2 + i] = math.sqrt(1 - vectors[i] @ vectors[i])
    return vectors


def held_out(passages, a_query, b_query):
    """Four questions of one kind, answered by the first passage, and four of another, answered by the second.

    The passages are turned to where they are pulled, all the way.
    """
    index = MemoryIndex()
    names = ("of a", "of b")
    index.add([Passage(name, name) for name in names], Encoded(dense=passages))
    vectors = np.repeat(np.array([a_query, b_query], np.float32), 4, axis=0)
    queries = [Query(f"{kind}{i}", f"{kind} {i}", {f"of {kind}": 1.0}) for kind in "ab" for i in range(4)]
    judged = Judged.of(Encoded(dense=vectors), [{0: 1.0}] * 4 + [{1: 1.0}] * 4)
    config = NudgeConfig(modes=("dense",), weights={"dense": 1.0}, tune_weights=False, propose=("dense",))
    moved = {"dense": ModeUpdate(np.arange(2), passages, "nudge-n", 2.0, None, 0.0)}
    train = EvaluatedQueries(queries, judged, 0)
    fitted = FittedNudge(train, train, None, judged, config, moved, {"dense": 1.0}, {})
    return held_out_topics(IndexCorpus(index, names, {}), fitted)


A_QUERY = [1, 0, 0, 0, 0, 0]


def test_held_out_topics_lose_to_a_passage_that_other_topics_pull_towards_them():
    b_query = [0.7, math.sqrt(1 - 0.49), 0, 0, 0, 0]
    # a's questions: their answer at 0.6 against 0.5; pulled by b's questions, the other stands at 0.7.
    # b's questions: their answer at 0.5 * 0.7 + 0.8 * 0.71 = 0.92, against 0.7 at most.
    found = held_out(on_sphere([0.6, 0.0], [0.5, 0.8]), A_QUERY, b_query)
    by_kind = {change.query.id[0]: (change.before, change.after) for change in found.changes}
    assert by_kind == {"a": (1.0, pytest.approx(SECOND)), "b": (1.0, 1.0)}
    assert found.after == pytest.approx((SECOND + 1) / 2)
    assert len(set(found.clusters[:4])) == len(set(found.clusters[4:])) == 1
    (warning,) = report(held_out_topics=found).warnings
    assert "questions unlike the training questions lose" in warning


def test_held_out_topics_gain_when_other_topics_pull_a_wrong_passage_away():
    b_query = [0, 1, 0, 0, 0, 0]
    # a's questions: their answer at 0.6 against 0.7; pulled by b's questions, the other stands at 0.
    found = held_out(on_sphere([0.6, 0.0], [0.7, 0.3]), A_QUERY, b_query)
    by_kind = {change.query.id[0]: (change.before, change.after) for change in found.changes}
    assert by_kind == {"a": (pytest.approx(SECOND), 1.0), "b": (1.0, 1.0)}
    assert report(held_out_topics=found).warnings == []


def test_a_question_that_only_its_own_pull_helps_gains_nothing_when_held_out():
    # a's questions would win by turning their own answer from 0.6 to 1; the other passage stays above it, at 0.7.
    b_query = [0.7, 0.1, 0, math.sqrt(1 - 0.5), 0, 0]
    found = held_out(on_sphere([0.6, 0.0], [0.7, 0.1]), A_QUERY, b_query)
    by_kind = {change.query.id[0]: (change.before, change.after) for change in found.changes}
    assert by_kind["a"] == (pytest.approx(SECOND), pytest.approx(SECOND))


# Curves


@pytest.fixture(scope="module")
def office():
    """An office of 30 rooms in an index, and questions that call each room by a nickname."""
    encoder, index = HashEncoder(), MemoryIndex()
    rooms = [Passage(f"room {i:02}", f"room{i} on floor{i % 3} with desks") for i in range(30)]
    ingest(encoder, index, rooms)
    asked = [
        [Query(f"{part}-{i}", f"where is the nick{i} {part}", {f"room {i:02}": 1.0}) for i in range(30)]
        for part in ("please", "now", "today")
    ]
    return encoder, index, asked


@pytest.fixture(scope="module")
def fitted(office):
    """A report for each choice of modes, and the index."""
    encoder, index, (train, dev, test) = office
    choices = [("dense",), ("dense", "sparse", "multi_vector")]
    return {modes: Nudger(encoder, index).fit(train, dev, test=test, modes=modes) for modes in choices}


@pytest.mark.parametrize("modes", [("dense",), ("dense", "sparse", "multi_vector")], ids=["exact", "fused"])
def test_every_moved_mode_has_curves_of_three_metrics(fitted, modes):
    made = fitted[modes]
    assert made.moved
    for mode in made.moves:
        assert list(made.metric_curves(mode)) == ["ndcg@10", "recall@10", "mrr@10"]


@pytest.mark.parametrize("modes", [("dense",), ("dense", "sparse", "multi_vector")], ids=["exact", "fused"])
def test_other_curves_match_the_ranking_of_the_nudged_index(office, modes):
    encoder, index, (train, dev, _) = office
    by_recall = Nudger(encoder, index).fit(train, dev, modes=modes, metric="recall@10")
    ranked = ranked_ndcg(encoder, index, Nudger(encoder, index).plan, dev)
    assert by_recall.moved
    for mode, move in by_recall.moves.items():
        curves = by_recall.metric_curves(mode)
        assert list(curves) == ["recall@10", "ndcg@10", "mrr@10"]
        assert level(curves["ndcg@10"], move.gamma) == pytest.approx(ranked, abs=1e-6)


def level(curve, gamma):
    """Of steps the one that gamma is inside of, of points the one at gamma."""
    inside = in_steps(curve)
    place = np.searchsorted(curve.edges, gamma, "right" if inside else "left")
    return curve.levels[place - 1 if inside else place]


def ranked_ndcg(encoder, index, plan, queries):
    found = Retriever(encoder, index, plan).retrieve_many([query.text for query in queries], k=10)
    run = {query.id: [match.passage.id for match in matches] for query, matches in zip(queries, found, strict=True)}
    return evaluate(run, queries, ["ndcg@10"])["ndcg@10"]


@pytest.mark.parametrize("modes", [("dense",), ("sparse",), ("dense", "sparse", "multi_vector")], ids=str)
@pytest.mark.parametrize("propose", [("dense",), ("dense", "sparse"), ("multi_vector",)], ids=str)
def test_outcomes_match_a_search_of_the_index_with_few_candidates(office, modes, propose):
    encoder, index, (train, dev, test) = office
    plan = SearchPlan(propose=propose, candidates=3)
    Nudger(encoder, index).revert()
    before = ranked_ndcg(encoder, index, plan, test)
    nudger = Nudger(encoder, index, plan)
    made = nudger.fit(train, dev, test=test, modes=modes, method="nudge-n")
    assert made.test.before == pytest.approx(before, abs=1e-6)
    assert made.test.after == pytest.approx(ranked_ndcg(encoder, index, nudger.plan, test), abs=1e-6)
    nudger.revert()


def test_a_mode_adds_what_its_curve_rises_from_rest_to_where_gamma_was_chosen():
    exact = {"dense": Curve(np.array([0.0, 0.02, 0.09]), np.array([0.4, 0.65]))}  # gamma 0.04 is inside the second
    assert report(curves=exact).added("dense") == pytest.approx(0.65 - 0.4)
    points = {"dense": Curve(np.array([0.0, 0.02, 0.04, 0.09]), np.array([0.4, 0.5, 0.45, 0.6]))}
    assert report(curves=points).added("dense") == pytest.approx(0.45 - 0.4)
    assert report(moves={}).added("dense") == 0


# Charts


def test_a_histogram_counts_every_passage_that_moved():
    move = Move("nudge-n", 0.04, None, 0.0, np.array([0.05, 0.1, 0.1, 0.2]))
    bars = lengths_chart("dense", move).bars
    assert sorted(int(bar.alt.split()[0]) for bar in bars) == [1, 1, 2]
    tallest = max(bars, key=lambda bar: bar.height)
    assert tallest.alt == "2 passages by 0.1 to 0.11"  # the eleventh of 20 bins up to 0.2
    assert BINS == 20


def test_exact_curves_are_steps_and_others_join_points():
    steps = Curve(np.array([0.0, 0.01, 0.04]), np.array([0.4, 0.6]))
    points = Curve(np.array([0.0, 0.01, 0.04]), np.array([0.4, 0.6, 0.5]))
    move = Move("nudge-n", 0.02, None, 0.0, np.ones(1))
    (drawn,) = curves_chart("dense", {"ndcg@10": steps}, move).lines
    assert drawn.path.count("V") == drawn.path.count("H") == 2
    assert not drawn.dots
    (joined,) = curves_chart("dense", {"ndcg@10": points}, move).lines
    assert len(joined.dots) == 3
    assert "V" not in joined.path


def test_a_curve_without_end_ends_in_the_chart():
    endless = Curve(np.array([0.0, 1.0, np.inf]), np.array([0.4, 0.6]))
    chart = curves_chart("dense", {"ndcg@10": endless}, Move("nudge-m", 1.5, None, 0.0, np.ones(1)))
    assert "inf" not in chart.lines[0].path
    assert "nan" not in chart.lines[0].path
    half = chart.lines[0].path.split("H")[1].split("V")[0]
    assert float(half) == (46 + 348) / 2  # 1 is half the way on the scale gamma / (1 + gamma)


def test_questions_that_won_stand_before_those_that_lost_and_the_rest_is_counted():
    chart = gains_chart(outcome([0.0, -0.2, 0.3, 0.1]))
    assert [bar.kind for bar in chart.bars] == ["won", "won", "lost"]
    assert chart.x_label == "2 gained, 1 lost, 1 unchanged"


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [(0, 1, [0, 0.5, 1]), (0.33, 0.71, [0.4, 0.5, 0.6, 0.7]), (3, 3, [3]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_axes_are_labelled_with_round_values(low, high, values):
    assert round_values(low, high) == pytest.approx(values)


# The page and the table


def parsed(made, index=None):
    """The page read as XML, which it is."""
    return ET.fromstring(page(made, index))


def words(tree):
    return " ".join("".join(tree.itertext()).split())


def figures_of(tree, kind):
    return [figure for figure in tree.iter("figure") if figure.get("class") == kind]


def test_the_page_has_a_curve_of_each_mode(fitted, office):
    made = fitted["dense", "sparse", "multi_vector"]
    figures = figures_of(parsed(made, office[1]), "curves")
    assert len(figures) == len(made.moves) > 1
    assert all(figure.find(SVG) is not None for figure in figures)


@pytest.mark.parametrize(
    ("lengths", "histograms", "sentence"),
    [
        ([0.2, 0.2, 0.2], 0, "3 passages moved by 0.2"),
        ([0.05, 0.1, 0.2], 1, "3 passages moved by 0.1 (median; 0.05 to 0.2)"),
    ],
    ids=["one distance", "several"],
)
def test_distances_are_a_sentence_and_a_histogram_only_if_they_vary(lengths, histograms, sentence):
    made = report(moves={"dense": Move("nudge-n", 0.04, None, 0.0, np.array(lengths))})
    tree = parsed(made)
    assert len(figures_of(tree, "lengths")) == histograms
    assert sentence in words(tree)


def test_the_page_begins_with_one_sentence_and_its_number(fitted, office):
    made = fitted["dense",]
    (title,) = parsed(made, office[1]).iter("h1")
    first = [change.best_after[0] in change.query.relevant for change in made.test.changes]
    number = f"{sum(first) / len(first):.0%}"
    assert title.find("b").text == number
    assert words(title).startswith(f"After learning from {made.coverage.queries} questions")
    assert words(title) == str(made.headline)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"moves": {}, "held_out_topics": None}, "Nothing was moved: no gain from 40 questions was significant."),
        (
            {"validation": None, "test": None},
            "After learning from 40 questions, ndcg@10 on held-out questions is 0.650, and 0.400 before.",
        ),
    ],
    ids=["nothing moved", "no questions apart"],
)
def test_the_headline_says_what_is_known(changed, sentence):
    assert str(report(**changed).headline) == sentence


def test_ranks_are_those_of_the_first_answer():
    query = Query("q", "?", {"b": 1.0, "c": 0.0})
    change = Change(query, 0.0, 1.0, ["c", "a", "b"], ["a", "c"])
    assert (change.rank_before, change.rank_after) == (3, None)


def test_a_loss_is_explained_by_the_passage_that_came_first_and_has_a_next_step():
    query = Query("q", "where is the bridge?", {"a": 1.0})
    lost = Outcome([query], np.ones(1), np.zeros(1), [["a"]], [["b"]], taught={"b": "where is the tunnel?"})
    text = words(parsed(report(test=lost)))
    assert "▼ 1 → 11+ where is the bridge?" in text
    assert "Another passage was pulled towards this question: it learned from “where is the tunnel?”" in text
    assert "Next step: add this question and its answer to the training questions." in text


def test_passages_are_shown_by_title_in_their_language():
    index = MemoryIndex()
    passage = Passage("raw-id", "Die Brücke\n\nSie steht im Vogtland.", {"title": "Die Brücke", "language": "de"})
    index.add([passage], HashEncoder().encode_passages([""]))
    tree = parsed(report(test=outcome([0.3], best=("raw-id",))), index)
    titles = [each for each in tree.iter("span") if each.get("class") == "title"]
    assert {(each.text, each.get("lang"), each.get("dir")) for each in titles} == {("Die Brücke", "de", "auto")}
    assert "raw-id" not in words(tree)


def test_the_page_shows_questions_with_their_passages_and_each_cluster(fitted, office):
    made = fitted["dense",]
    text = words(parsed(made, office[1]))
    assert made.test.won
    assert made.test.won[0].query.text in text
    assert "desks" in text  # of a passage's text, which only the index has
    assert "desks" not in words(parsed(made))
    names = [name for each in parsed(made).iter("div") if each.get("class") == "name" and (name := words(each))]
    assert len(names) == 3 + len(
        set(made.held_out_topics.clusters.tolist())
    )  # validation, test, shifted; and its clusters


def test_warnings_are_at_the_top_of_the_page_and_below_the_table():
    made = report(coverage=Coverage(1000, 5, 6, 0, 0, 0))
    assert "coverage is low" in words(parsed(made).find("body/header"))
    assert "warning: coverage is low" in str(made).replace("\n", " ")


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror="alert(1)">', "\x00\x0b\ud800]]>&amp;"]
)
def test_hostile_text_is_escaped(hostile):
    index = MemoryIndex()
    index.add([Passage(hostile, hostile)], HashEncoder().encode_passages([""]))
    changed = outcome([0.3, -0.3], [hostile, f"lost {hostile}"], best=(hostile,), clusters=np.array([0, 1]))
    html = page(report(test=changed, held_out_topics=changed), index)
    html.encode("utf-8")
    tree = ET.fromstring(html)
    assert not {element.tag for element in tree.iter()} & {"script", "img"}
    if "script" in hostile:
        assert words(tree).count("<script>alert(1)</script>") >= 8  # shown, not run


def test_the_page_loads_nothing(fitted, office):
    html = page(fitted["dense",], office[1])
    tree = ET.fromstring(html)
    assert not [element for element in tree.iter() if {"src", "href"} & set(element.attrib)]
    assert "http" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_a_report_renders_to_a_file_in_a_new_folder(tmp_path):
    report().render(tmp_path / "new" / "nudge.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["nudge.html"]


def test_the_tables_show_moves_and_outcomes():
    text = str(report())
    assert "+0.225" in text  # of the test: (0.1 + 0.3 + 0.2 + 0.3) / 4
    assert "held-out topics" in text
    assert "30 of 100 passages (30%)" in text


def test_the_page_of_a_nudge_that_moved_nothing_says_so():
    text = words(parsed(report(moves={}, held_out_topics=None)))
    assert "nothing was moved" in text


def test_questions_without_answers_make_no_outcome(office):
    _, index, _ = office
    unanswered = EvaluatedQueries([Query("q", "?")], Judged.of(Encoded(dense=np.ones((1, 32), np.float32)), [{}]), 0)
    config = NudgeConfig(modes=("dense",), weights={"dense": 1.0}, tune_weights=False)
    fitted = FittedNudge(unanswered, unanswered, None, unanswered.judged, config, {}, {"dense": 1.0}, {})
    assert outcome_of(IndexCorpus(index, index.ids(), {}), fitted, unanswered) is None


def test_outcomes_read_after_revert_and_close_are_those_of_the_nudge(office):
    encoder, index, (train, dev, test) = office
    nudger = Nudger(encoder, index)
    read_now, read_later = (nudger.fit(train, dev, test=test, method="nudge-n") for _ in range(2))
    assert read_now.test.after > read_now.test.before
    nudger.revert()
    nudger.close()
    np.testing.assert_array_equal(read_later.test.after_each, read_now.test.after_each)
    assert read_later.warnings == read_now.warnings


def test_outcomes_cannot_be_read_first_after_the_passages_changed(office):
    encoder, unchanged, (train, dev, test) = office
    index = MemoryIndex()
    copy_index(unchanged, index)
    report = Nudger(encoder, index).fit(train, dev, test=test, method="nudge-n")
    index.delete(index.ids()[:1])
    assert report.moved
    with pytest.raises(StaleReport, match="passages of the index changed since this nudge"):
        _ = report.test
