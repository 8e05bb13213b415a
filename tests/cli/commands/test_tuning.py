"""`m3 tune` with a tiny checkpoint."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex, SearchPlan
from tests.cli.conftest import write_lines


@pytest.fixture
def judged(tmp_path):
    """Judged questions about the two passages of `filled`, which sparse search answers."""
    answers = [("the bridge", "a"), ("волга", "b"), ("the", "a"), ("bridge", "a")] * 3
    lines = ({"query": f"{text} {'and ' * i}", "passage": id} for i, (text, id) in enumerate(answers))
    return write_lines(tmp_path / "judged.jsonl", *lines)


def plan_of(folder):
    with LocalIndex.open(folder) as index:
        return index.plan


def test_a_tuned_plan_is_stored_and_reverted(run_json, bge_m3, filled, judged):
    wrong = SearchPlan(weights={"dense": 1000.0, "sparse": 0.001, "multi_vector": 0.001})
    with LocalIndex.open(filled) as index:
        index.plan = wrong
    options = ("--metric", "accuracy@1", "--model", bge_m3())
    tried = run_json("tune", filled, judged, "--dry-run", *options)
    assert plan_of(filled) == wrong
    done = run_json("tune", filled, judged, *options)
    assert (tried["gain"], tried["plan"]) == (done["gain"], done["plan"])
    assert (plan_of(filled) != wrong) == done["changed"]
    if done["changed"]:
        assert run_json("tune", filled, "--revert", "--model", bge_m3())["plan"] == wrong.to_json()
        assert plan_of(filled) == wrong


def test_a_plan_without_a_gain_stays(run, filled, judged):
    shown = run("tune", filled, judged)
    assert shown.exit_code == 0, shown.output
    assert "questions" in shown.stdout


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        ((), 2, "give either judged questions"),
        (("{judged}", "--revert"), 2, "give either judged questions"),
        (("{judged}", "--metric", "map"), 2, "is not a known metric"),
        (("nowhere",), 1, "there is no nowhere"),
        (("--revert",), 1, "was never tuned"),
    ],
)
def test_an_invalid_command_is_one_line_of_advice(words, status, advice, run, filled, judged):
    result = run("tune", filled, *(word.format(judged=judged) for word in words))
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert advice in result.stderr


def test_calibrated_scores_leave_out_what_is_not_relevant(run, run_json, filled, judged):
    assert "relevance" not in run_json("search", filled, "the bridge")["matches"][0]
    uncalibrated = run("search", filled, "the bridge", "--min-relevance", "auto")
    assert (uncalibrated.exit_code, "m3 calibrate" in uncalibrated.stderr) == (1, True)
    fitted = run_json("calibrate", filled, judged)
    assert (fitted["questions"], 0 <= fitted["threshold"] <= 1) == (12, True)
    every = run_json("search", filled, "the bridge", "-k", 2)["matches"]
    limit = every[0]["relevance"]
    kept = run_json("search", filled, "the bridge", "-k", 2, "--min-relevance", limit)["matches"]
    assert [match["id"] for match in kept] == [match["id"] for match in every if match["relevance"] >= limit]
    nothing = run("search", filled, "the bridge", "--min-relevance", "1")
    assert (nothing.exit_code, nothing.stdout, "nothing found" in nothing.stderr) == (0, "", True)
    run_json("calibrate", filled, "--remove")
    assert "relevance" not in run_json("search", filled, "the bridge")["matches"][0]


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        ((), 2, "give either judged questions"),
        (("{judged}", "--precision", "2"), 2, "--precision is above 0"),
        (("{judged}", "--method", "best"), 2, "--method is logistic or isotonic"),
        (("--remove",), 1, "is not calibrated"),
    ],
)
def test_an_invalid_calibration_is_one_line_of_advice(words, status, advice, run, filled, judged):
    result = run("calibrate", filled, *(word.format(judged=judged) for word in words))
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert advice in result.stderr


def test_min_relevance_is_a_probability(run, filled):
    assert run("search", filled, "why?", "--min-relevance", "2").exit_code == 2
