"""Scores as relevance, and thresholds from judged questions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m3_integrations import MemoryIndex, Passage, Query, Retriever, SearchPlan, ingest
from m3_integrations.retrieval.calibration import calibrate, fit_threshold, relevance, similarity
from m3_integrations.retrieval.retriever import Match


def match(id, score, mode="dense"):
    return Match(Passage(id, id), score, {mode: score})


def judged(*scored):
    """One question whose matches have these scores, each relevant or not."""
    matches = [match(f"p{i}", score) for i, (score, _) in enumerate(scored)]
    relevant = {f"p{i}": 1.0 for i, (_, is_relevant) in enumerate(scored) if is_relevant}
    return [Query("q", "?", relevant)], [matches]


def drawn(count, slope=4.0, height=-2.0, seed=0):
    """Matches whose relevance is drawn with the probability 1 / (1 + exp(-(slope · score + height)))."""
    random = np.random.default_rng(seed)
    scores = random.uniform(-1, 2, count)
    chance = 1 / (1 + np.exp(-(slope * scores + height)))
    return judged(*zip(scores.tolist(), (random.uniform(size=count) < chance).tolist(), strict=True))


# Plain relevance


def test_similarity_is_the_weighted_mean_of_the_modes():
    found = Match(Passage("p", "p"), 0.8 + 0.3 * 0.02, {"dense": 0.8, "sparse": 0.3 * 0.02})
    weights = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
    assert similarity(found, weights) == pytest.approx((1.0 * 0.8 + 0.3 * 0.02) / (1.0 + 0.3))


@pytest.mark.parametrize(("score", "expected"), [(-0.2, 0.0), (0.02, 0.02), (1.0, 1.0), (1.7, 1.0)])
def test_relevance_is_the_similarity_clipped_to_0_and_1(score, expected):
    assert relevance(match("p", score), {"dense": 1.0}) == expected


def test_the_scores_by_mode_sum_to_the_score_and_the_sparse_one_can_be_small(mini):
    index = MemoryIndex()
    ingest(mini, index, [Passage("a", "Matcha is whisked."), Passage("b", "Rooibos has no caffeine.")])
    for found in Retriever(mini, index).retrieve("Is matcha whisked?"):
        assert sum(found.by_mode.values()) == found.score
        assert set(found.by_mode) == {"dense", "sparse", "multi_vector"}
    for found in Retriever(mini, index, SearchPlan(("sparse",), weights={"sparse": 1.0})).retrieve(
        "Is matcha whisked?"
    ):
        assert found.by_mode == {"sparse": found.score}
        assert found.score > 0


# Calibration


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_probabilities_are_between_0_and_1_and_rise_with_the_score(method):
    calibration = calibrate(*drawn(200), method=method)
    probabilities = [calibration.of(match("p", score)) for score in np.linspace(-5, 5, 101)]
    assert all(0 <= each <= 1 for each in probabilities)
    assert probabilities == sorted(probabilities)
    assert probabilities[0] < 0.2 < 0.8 < probabilities[-1]


@pytest.mark.parametrize(("method", "off"), [("logistic", 0.02), ("isotonic", 0.07)])
def test_the_probability_that_generated_the_judgements_is_recovered(method, off):
    calibration = calibrate(*drawn(20_000), method=method)
    for score in (-0.5, 0.0, 0.5, 1.0, 1.5):
        assert calibration.of(match("p", score)) == pytest.approx(1 / (1 + math.exp(-(4 * score - 2))), abs=off)


def test_isotonic_steps_are_the_shares_of_relevant_matches():
    queries, found = judged((0.1, False), (0.1, False), (0.1, True), (0.5, True), (0.5, False), (0.9, True))
    calibration = calibrate(queries, found, "isotonic")
    assert [calibration.of(match("p", score)) for score in (0.1, 0.5, 0.9)] == pytest.approx([1 / 3, 1 / 2, 1.0])
    assert calibration.of(match("p", 0.3)) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_separable_classes_have_a_finite_fit():
    calibration = calibrate(*judged((0.1, False), (0.2, False), (0.8, True), (0.9, True)))
    assert calibration.of(match("p", 0.1)) == pytest.approx(1 / (2 + 2), abs=0.1)
    assert calibration.of(match("p", 0.9)) == pytest.approx((2 + 1) / (2 + 2), abs=0.1)


def test_small_sparse_scores_are_calibrated_as_well():
    queries, found = drawn(2000)
    small = [[match(each.passage.id, each.score / 50) for each in found[0]]]
    large, small_scale = calibrate(queries, found), calibrate(queries, small)
    for score in (0.0, 0.5, 1.0):
        assert small_scale.of(match("p", score / 50)) == pytest.approx(large.of(match("p", score)), abs=1e-3)


def test_scores_against_relevance_give_a_flat_curve():
    calibration = calibrate(*judged((0.1, True), (0.2, True), (0.8, False), (0.9, False)))
    assert calibration.of(match("p", 0.1)) == pytest.approx(calibration.of(match("p", 0.9)), abs=1e-6)


def test_a_grade_of_0_is_not_relevant():
    queries = [Query("q", "?", {"p0": 0.0, "p1": 2.0})]
    found = [[match("p0", 0.1), match("p1", 0.9)]]
    assert fit_threshold(queries, found).recall == 1.0


@pytest.mark.parametrize("all_or_none", [True, False])
def test_judgements_of_one_class_raise(all_or_none):
    with pytest.raises(ValueError, match=r"a calibration needs both kinds; retrieve more for each query \(k=100\)"):
        calibrate(*judged((0.1, all_or_none), (0.9, all_or_none)))


# Thresholds


def test_a_threshold_has_the_best_f1():
    threshold = fit_threshold(*judged((0.9, True), (0.8, True), (0.4, False), (0.3, True), (0.2, False), (0.1, False)))
    assert (threshold.precision, threshold.recall) == (3 / 4, 1.0)
    assert threshold.f1 == pytest.approx(2 * 3 / 4 * 1.0 / (3 / 4 + 1.0))
    assert threshold.score == pytest.approx((0.3 + 0.2) / 2)


def test_a_threshold_reaches_the_precision_with_the_best_recall():
    queries, found = judged((0.9, True), (0.8, True), (0.4, False), (0.3, True), (0.2, False))
    threshold = fit_threshold(queries, found, precision=0.9)
    assert (threshold.precision, threshold.recall) == (1.0, 2 / 3)
    assert [each.score for each in threshold.filter(found[0])] == [0.9, 0.8]


@pytest.mark.parametrize("precision", [None, 0.3, 0.6, 0.8])
def test_the_precision_and_recall_of_a_threshold_are_those_of_its_filter(precision):
    queries, found = drawn(500, seed=1)
    threshold = fit_threshold(queries, found, precision=precision)
    filtered = threshold.filter(found[0])
    right = sum(each.passage.id in queries[0].relevant for each in filtered)
    assert threshold.precision == pytest.approx(right / len(filtered))
    assert threshold.recall == pytest.approx(right / len(queries[0].relevant))
    assert precision is None or threshold.precision >= precision


def test_recall_counts_relevant_passages_that_were_not_found():
    queries = [Query("q", "?", {"p0": 1.0, "lost": 1.0})]
    assert fit_threshold(queries, [[match("p0", 0.9)]]).recall == 1 / 2


def test_equal_scores_stay_together():
    threshold = fit_threshold(*judged((0.5, True), (0.5, False), (0.5, True)))
    assert (threshold.score, threshold.precision, threshold.recall) == (0.5, 2 / 3, 1.0)


def test_an_unreachable_precision_raises_and_names_the_best():
    with pytest.raises(ValueError, match=r"no score gives a precision of 0.9; the best of these queries is 0.500"):
        fit_threshold(*judged((0.9, False), (0.8, True)), precision=0.9)


# Mistakes


@pytest.mark.parametrize("fit", [calibrate, fit_threshold])
def test_judgements_that_do_not_fit_the_matches_raise(fit):
    queries, found = judged((0.1, False), (0.9, True))
    with pytest.raises(ValueError, match="got 1 queries and 2 lists of matches; give one list for each query"):
        fit(queries, found * 2)
    with pytest.raises(ValueError, match="there are no matches to learn from"):
        fit(queries, [[]])
    with pytest.raises(ValueError, match="names the ids in the index"):
        fit([Query("q", "?", {"unknown": 1.0})], found)


def test_a_match_scored_by_other_modes_raises():
    queries, found = judged((0.1, False), (0.9, True))
    lexical = match("p", 0.02, "sparse")
    message = r"fitted on scores of \['dense'\], and the match was scored by \['sparse'\]"
    with pytest.raises(ValueError, match=message):
        calibrate(queries, found).of(lexical)
    with pytest.raises(ValueError, match=message):
        fit_threshold(queries, found).filter([lexical])
    with pytest.raises(ValueError, match=message):
        calibrate(queries, [[*found[0], lexical]])


def test_an_unknown_method_raises():
    with pytest.raises(ValueError, match="the method is 'logistic' or 'isotonic', got 'platt'"):
        calibrate(*judged((0.1, False), (0.9, True)), method="platt")
