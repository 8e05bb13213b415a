"""Calibrations that are stored with the plan of an index."""

from __future__ import annotations

import json

import pytest
from langchain_core.documents import Document
from llama_index.core.postprocessor import SimilarityPostprocessor

from m3_integrations import LocalIndex, MemoryIndex, Nudger, Passage, Query, Retriever, SearchPlan
from m3_integrations.core.types import ScoreCalibration
from m3_integrations.index.copying import copy_index
from m3_integrations.langchain import M3Embeddings, M3VectorStore
from m3_integrations.llama_index import M3Retriever
from m3_integrations.retrieval import calibrate_plan, match_probabilities
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder()
TOPICS = 20
QUERIES = [Query(f"q{i}", f"alpha{i} beta{i}", {f"p{i:02d}": 1.0}) for i in range(TOPICS)]


def fill(index):
    passages = [Passage(f"p{i:02d}", f"alpha{i} beta{i} gamma{i}") for i in range(TOPICS)]
    index.add(passages, ENCODER.encode_passages([each.text for each in passages]))
    return index


def test_answers_are_probable_and_other_matches_are_not():
    index = fill(MemoryIndex())
    fitted = calibrate_plan(ENCODER, index, QUERIES)
    assert (fitted.queries, fitted.threshold.precision, fitted.threshold.recall) == (TOPICS, 1.0, 1.0)
    retriever = Retriever(ENCODER, index)
    answer, *others = match_probabilities(retriever.calibration, retriever.retrieve("alpha3 beta3", 5))
    assert answer > retriever.calibration.threshold > max(others)
    unknown = match_probabilities(retriever.calibration, retriever.retrieve("omega psi", 5))
    assert max(unknown) < retriever.calibration.threshold


def test_a_calibration_stays_with_the_folder_and_its_copies(tmp_path):
    with LocalIndex.open(tmp_path / "index", ENCODER) as index:
        plan = calibrate_plan(ENCODER, fill(index), QUERIES).plan
    with LocalIndex.open(tmp_path / "index", ENCODER) as index, MemoryIndex() as copy:
        assert index.plan == plan
        copy_index(index, copy)
        assert copy.plan == plan


def test_a_plan_without_a_calibration_is_stored_as_before():
    plan = SearchPlan(weights={"dense": 1.0})
    assert "calibration" not in plan.to_json()
    calibrated = SearchPlan(weights={"dense": 1.0}, calibration=ScoreCalibration((0.0, 1.0), (0.1, 0.9), 0.5))
    assert SearchPlan.from_json(json.loads(json.dumps(calibrated.to_json()))) == calibrated
    assert repr(calibrated.calibration) == "ScoreCalibration(2 points, threshold=0.5)"


def test_a_nudge_and_other_weights_end_a_calibration_and_a_revert_restores_it():
    index = fill(MemoryIndex())
    calibrated = calibrate_plan(ENCODER, index, QUERIES).plan
    nudger = Nudger(ENCODER, index)
    nudger.fit(QUERIES, modes=ENCODER.modes, method="nudge-n")
    assert index.plan.calibration is None
    nudger.revert()
    assert index.plan == calibrated
    assert Retriever(ENCODER, index, SearchPlan(weights={"dense": 1.0})).calibration is None
    partial = HashEncoder(modes=("dense",))
    with pytest.warns(UserWarning, match="searching without it"):
        assert Retriever(partial, index).calibration is None


def test_langchain_gives_probabilities_and_finds_nothing_below_a_threshold():
    index = fill(MemoryIndex())
    store = M3VectorStore(M3Embeddings(encoder=ENCODER), index)
    threshold = calibrate_plan(ENCODER, index, QUERIES).plan.calibration.threshold
    search = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold})
    assert [document.page_content for document in search.invoke("alpha3 beta3")] == ["alpha3 beta3 gamma3"]
    assert search.invoke("omega psi") == []
    found = store.similarity_search_with_relevance_scores("alpha3 beta3", k=2)
    assert all(isinstance(document, Document) and 0 <= score <= 1 for document, score in found)


def test_a_similarity_cutoff_of_llama_index_can_leave_nothing():
    index = fill(MemoryIndex())
    threshold = calibrate_plan(ENCODER, index, QUERIES).plan.calibration.threshold
    retriever, cutoff = M3Retriever(index, ENCODER), SimilarityPostprocessor(similarity_cutoff=threshold)
    kept = cutoff.postprocess_nodes(retriever.retrieve("alpha3 beta3"))
    assert [each.node.node_id for each in kept] == ["p03"]
    assert cutoff.postprocess_nodes(retriever.retrieve("omega psi")) == []


@pytest.mark.parametrize(
    ("scores", "probabilities", "threshold"),
    [
        ((), (), 0.5),
        ((1.0, 0.0), (0.1, 0.2), 0.5),
        ((0.0, 1.0), (0.2, 0.1), 0.5),
        ((0.0,), (1.5,), 0.5),
        ((0.0,), (0.5,), 2),
    ],
)
def test_an_impossible_calibration_is_refused(scores, probabilities, threshold):
    with pytest.raises(ValueError, match="a calibration has ascending scores"):
        ScoreCalibration(scores, probabilities, threshold)


def test_a_calibration_needs_weights():
    with pytest.raises(ValueError, match="give weights too"):
        SearchPlan(calibration=ScoreCalibration((0.0,), (0.5,), 0.5))
