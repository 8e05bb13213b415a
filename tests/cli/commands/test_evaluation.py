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
    assert len(result["plans"]) == 7
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
        (("-k", "0"), "-k must be at least 1"),
        (("--fail-under", "ndcg@10"), "--fail-under is a metric and a number"),
        (("--fail-under", "best=1"), "'best' is not a metric"),
        (("--plan", "mine"), "--plan is NAME=FILE or NAME={...}"),
        (("--plan", 'mine={"candidates": 0}'), "candidates must be at least 1"),
    ],
)
def test_invalid_arguments_are_errors_of_usage(words, advice, run, beir, tmp_path):
    result = run("eval", beir, *words, "--model", tmp_path / "no-model")
    assert (result.exit_code, advice in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["eval", "nudge", "tune", "calibrate", "reencode"])
def test_a_file_without_judged_questions_is_an_error_before_the_model_is_loaded(command, run, filled, tmp_path):
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("query,passage\n", encoding="utf-8")
    words = (clicks, "--index", filled) if command == "eval" else (filled, clicks)
    result = run(command, *words, "--model", tmp_path / "no-model")
    assert (result.exit_code, result.stderr) == (1, f"error: {clicks}: there are no judged questions\n")


def test_files_need_an_index(run, beir, tmp_path):
    files = (beir / "queries.jsonl", beir / "qrels" / "test.tsv")
    result = run("eval", *files, "--model", tmp_path / "no-model")
    assert (result.exit_code, "name an index with --index" in result.stderr) == (2, True)


def test_bm25_is_the_floor_and_any_plan_can_be_compared(run_json, bge_m3, beir, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"propose": ["sparse"], "weights": {"sparse": 1.0}}', encoding="utf-8")
    named = ("--plan", f"mine={plan}", "--plan", 'lean={"candidates": 3}')
    result = run_json("eval", beir, "--bm25", *named, "--model", bge_m3())
    assert (result["baseline"], result["default"]) == ("BM25", "all")
    assert result["plans"]["mine"]["metrics"] == result["plans"]["sparse"]["metrics"]
    assert result["plans"]["BM25"]["metrics"]["mrr@10"] == 1.0  # each question has the number of its answer
    assert "lean" in result["plans"]


def test_another_index_and_another_model_are_compared(run, run_json, bge_m3, beir, tmp_path):
    run("index", tmp_path / "other", beir, "--model", bge_m3(seed=1))
    own = run_json("eval", beir, "--model", bge_m3(seed=1))["plans"]
    options = ("--versus", tmp_path / "other", "--versus", bge_m3(seed=1), "--model", bge_m3())
    plans = run_json("eval", beir, *options)["plans"]
    for name in own:
        assert plans[f"{tmp_path / 'other'}: {name}"]["metrics"] == own[name]["metrics"]
        assert plans[f"{bge_m3(seed=1)}: {name}"]["metrics"] == own[name]["metrics"]


def test_languages_have_a_table_and_a_matrix(run, run_json, bge_m3, tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = [("en", "the bridge"), ("ru", "мост волга")]
    passages = ({"_id": f"{lang}{i}", "text": f"{text} {i}", "lang": lang} for lang, text in texts for i in range(3))
    write_lines(folder / "corpus.jsonl", *passages)
    write_lines(folder / "queries.jsonl", *({"_id": f"q-{lang}", "text": text, "lang": lang} for lang, text in texts))
    judged = "".join(f"q-{a}\t{b}{i}\t1\n" for a, _ in texts for b, _ in texts for i in range(3))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    result = run_json("eval", folder, "--languages", "--model", bge_m3())
    assert result["cross_lingual"] == {source: {"en": 1.0, "ru": 1.0} for source in ("en", "ru")}
    assert result["languages"].keys() == {"en", "ru"}
    mean = sum(row["dense"] for row in result["languages"].values()) / 2
    assert mean == pytest.approx(result["plans"]["dense"]["metrics"]["ndcg@10"])
    assert "questions in passages" in run("eval", folder, "--languages", "--model", bge_m3()).stdout


def test_questions_without_a_language_have_no_table(run, bge_m3, beir):
    result = run("eval", beir, "--languages", "--model", bge_m3())
    assert (result.exit_code, "state no language" in result.stderr) == (1, True)


def test_the_page_names_the_questions_that_gain_and_lose(run_json, bge_m3, beir, tmp_path):
    perfect = tmp_path / "perfect.trec"
    lines = (f"q{i} Q0 p{(i + 1) % 12} 1 2.0 x\nq{i} Q0 p{i} 2 1.0 x\n" for i in range(12))
    perfect.write_text("".join(lines), encoding="utf-8")
    page = tmp_path / "pages" / "eval.html"
    options = ("--run", perfect, "--baseline", "perfect", "--metrics", "ndcg@1", "--out", page, "--model", bge_m3())
    result = run_json("eval", beir, *options)
    html = page.read_text(encoding="utf-8")
    assert result["out"] == str(page)
    assert "0 questions gain with all over perfect" in html
    assert html.count("→ <") + html.count("→ ") >= 1
    assert "bridge 3" in html
    assert "http" not in html.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
