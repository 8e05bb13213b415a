"""`m3 eval` with a tiny checkpoint; ir-measures is the judge of its metrics."""

from __future__ import annotations

import ir_measures
import pytest

from m3_integrations.data import load_queries
from tests.cli.conftest import write_lines


@pytest.fixture
def beir(tmp_path):
    """A BEIR folder of twelve passages and twelve test questions."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", *({"_id": f"p{i}", "text": f"the bridge {i} волга"} for i in range(12)))
    write_lines(folder / "queries.jsonl", *({"_id": f"q{i}", "text": f"bridge {i}"} for i in range(12)))
    judged = "".join(f"q{i}\tp{i}\t1\nq{i}\tp{(i + 1) % 12}\t2\n" for i in range(12))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return folder


def test_the_figures_are_those_of_ir_measures_on_the_saved_runs(run_json, bge_m3, beir, tmp_path):
    options = ("--metrics", "ndcg@10,recall@5,mrr@10,ap@10", "--save-runs", tmp_path / "runs", "--model", bge_m3())
    result = run_json("eval", beir, *options)
    qrels = [
        ir_measures.Qrel(query.id, id, int(grade))
        for query in load_queries([beir])
        for id, grade in query.relevant.items()
    ]
    names = {"ndcg@10": "nDCG@10", "recall@5": "R@5", "mrr@10": "RR@10", "ap@10": "AP@10"}
    assert len(result["plans"]) == 5
    for plan, figures in result["plans"].items():
        run = list(ir_measures.read_trec_run(str(tmp_path / "runs" / f"{plan.replace(' ', '')}.trec")))
        judged = ir_measures.calc_aggregate([ir_measures.parse_measure(each) for each in names.values()], qrels, run)
        expected = {str(measure): value for measure, value in judged.items()}
        for ours, theirs in names.items():
            assert figures["metrics"][ours] == pytest.approx(expected[theirs], abs=1e-6)


def test_an_index_and_the_run_of_another_system_are_compared(run, run_json, bge_m3, beir, tmp_path):
    run("index", tmp_path / "index", beir, "--model", bge_m3())
    perfect = tmp_path / "perfect.trec"
    lines = (f"q{i} Q0 p{(i + 1) % 12} 1 2.0 x\nq{i} Q0 p{i} 2 1.0 x\n" for i in range(12))
    perfect.write_text("".join(lines), encoding="utf-8")
    options = ("--index", tmp_path / "index", "--run", perfect, "--baseline", "perfect")
    result = run_json("eval", beir / "queries.jsonl", beir / "qrels" / "test.tsv", *options)
    assert result["plans"]["perfect"]["metrics"]["ndcg@10"] == 1.0
    dense = result["plans"]["dense"]
    assert dense["gain"] == pytest.approx(dense["metrics"]["ndcg@10"] - 1)
    assert dense["low"] <= dense["gain"] <= dense["high"]
    assert dense["latency_ms"] > 0
    shown = run("eval", beir, *options).stdout
    assert "ndcg@10 over perfect [95 %]" in shown


def test_a_value_below_fail_under_fails(run, run_json, bge_m3, beir, tmp_path):
    run("index", tmp_path / "index", beir, "--model", bge_m3())
    options = ("eval", beir, "--index", tmp_path / "index")
    assert run_json(*options, "--fail-under", "ndcg@10=0")["shortfalls"] == []
    failed = run(*options, "--fail-under", "ndcg@10=1.01")
    assert failed.exit_code == 1
    assert "below 1.01" in failed.stderr


def test_judged_passages_that_the_index_lacks_are_counted(run, run_json, filled, beir):
    assert run_json("eval", beir, "--index", filled)["missing"] == 12
    assert "lacks 12 of the judged passages" in run("eval", beir, "--index", filled).stderr


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--metrics", "map"), "'map' is not a metric"),
        (("--fail-under", "ndcg@10"), "--fail-under is a metric and a number"),
        (("--fail-under", "best=1"), "'best' is not a metric"),
    ],
)
def test_invalid_arguments_are_errors_of_usage(words, advice, run, beir, tmp_path):
    result = run("eval", beir, *words, "--model", tmp_path / "no-model")
    assert (result.exit_code, advice in result.stderr) == (2, True)


def test_files_need_an_index(run, beir, tmp_path):
    files = (beir / "queries.jsonl", beir / "qrels" / "test.tsv")
    result = run("eval", *files, "--model", tmp_path / "no-model")
    assert (result.exit_code, "name an index with --index" in result.stderr) == (2, True)
