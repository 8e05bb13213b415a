"""Search plans chosen on judged queries."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations import LocalIndex, MemoryIndex, Passage, Query, SearchPlan
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import MissingMode
from m3_integrations.evaluation import evaluate_plans
from m3_integrations.nudging import choose_plan, revert_tuning, tune
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(modes=("dense", "sparse"))
TOPICS = 40


def filled(index, *, noise: float):
    """An index whose dense vectors answer; its sparse rows are those of other passages where there is noise."""
    passages = [Passage(f"p{i:02d}", f"alpha{i} beta{i} gamma{i}") for i in range(TOPICS)]
    encoded = ENCODER.encode_passages([each.text for each in passages])
    order = np.roll(np.arange(TOPICS), 1) if noise else np.arange(TOPICS)
    index.add(passages, Encoded(dense=encoded.dense, sparse=encoded.sparse[order] * (noise or 1.0)))
    return index


def queries():
    return [
        Query(f"q{i}-{word}", f"{word}{i}", {f"p{i:02d}": 1.0}) for i in range(TOPICS) for word in ("alpha", "beta")
    ]


def test_a_misleading_mode_loses_weight_and_the_plan_is_stored():
    index = filled(MemoryIndex(), noise=3.0)
    tuned = tune(ENCODER, index, queries())
    assert tuned.is_changed
    assert index.plan == tuned.plan
    assert tuned.plan.weights["sparse"] < tuned.plan.weights["dense"]
    assert tuned.gain > 0.2
    assert tuned.queries == 2 * TOPICS


@pytest.mark.parametrize("fusion", ["sum", "rrf"])
def test_the_figures_are_those_of_searches_with_the_plans(fusion):
    index = filled(MemoryIndex(), noise=3.0)
    present = None if fusion == "sum" else SearchPlan(fusion=fusion)
    index.plan = present
    tuned = choose_plan(ENCODER, index, queries())
    plans = {"before": present or SearchPlan(), "after": tuned.plan}
    found = evaluate_plans(ENCODER, index, queries(), plans, ("ndcg@10",))
    assert found["before"]["ndcg@10"] == pytest.approx(tuned.before, abs=1e-9)
    assert found["after"]["ndcg@10"] == pytest.approx(tuned.after, abs=1e-9)
    assert tuned.plan.fusion == fusion
    assert index.plan == present


def test_nothing_changes_without_a_significant_gain():
    index = filled(MemoryIndex(), noise=0.0)
    answered = [Query(f"q{i}", f"alpha{i} beta{i} gamma{i}", {f"p{i:02d}": 1.0}) for i in range(TOPICS)]
    tuned = tune(ENCODER, index, answered)
    assert not tuned.is_changed
    assert (tuned.before, tuned.gain) == (1.0, 0.0)
    assert index.plan is None
    index.plan = plan = SearchPlan(candidates=17, weights={"dense": 1.0, "sparse": 2.0})
    assert tune(ENCODER, index, answered).plan == plan
    assert index.plan == plan


def test_more_candidates_are_generated_if_that_gains():
    index = filled(MemoryIndex(), noise=0.0)
    vectors = index.vectors(index.ids(), ("dense",)).dense
    index.set_vectors(index.ids(), Encoded(dense=np.roll(vectors, 7, axis=0)))  # dense search is no better than chance
    index.plan = SearchPlan(propose=("dense",), candidates=10, weights={"dense": 0.01, "sparse": 1.0})
    tuned = choose_plan(ENCODER, index, queries(), metric="recall@5")
    assert (tuned.plan.propose, tuned.plan.candidates) == (("dense",), 20)
    assert tuned.before < tuned.after


def test_reverting_restores_the_plan_from_before_also_after_reopening(tmp_path):
    before = SearchPlan(weights={"dense": 1.0, "sparse": 9.0})
    with LocalIndex.open(tmp_path, ENCODER) as index:
        filled(index, noise=3.0).plan = before
        assert tune(ENCODER, index, queries()).is_changed
    with LocalIndex.open(tmp_path, ENCODER) as index:
        assert index.plan != before
        assert revert_tuning(ENCODER, index) == before
        assert index.plan == before
        with pytest.raises(ValueError, match="never tuned"):
            revert_tuning(ENCODER, index)


def test_a_plan_that_was_changed_since_is_not_reverted():
    index = filled(MemoryIndex(), noise=3.0)
    tune(ENCODER, index, queries())
    index.plan = other = SearchPlan(candidates=3)
    with pytest.raises(ValueError, match="was changed after it was tuned"):
        revert_tuning(ENCODER, index)
    assert index.plan == other


def test_queries_without_an_answer_are_an_error():
    with pytest.raises(ValueError, match="none of 1 queries has an answer in the index"):
        tune(ENCODER, filled(MemoryIndex(), noise=0.0), [Query("q", "alpha1", {"other": 1.0})])
    with pytest.raises(MissingMode, match="holds no passages"):
        tune(ENCODER, MemoryIndex(), queries())
