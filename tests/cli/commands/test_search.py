"""`m3 search` with a tiny checkpoint."""

from __future__ import annotations

import json

import pytest

from m3_integrations import LocalIndex, SearchPlan
from tests.cli.conftest import write_lines


def test_search_finds_passages(run, bge_m3, filled):
    found = run("search", filled, "the bridge", "-k", 1, "--model", bge_m3())
    assert found.exit_code == 0
    assert found.stdout.count("\n") == 1
    score, id, text = found.stdout.rstrip("\n").split("\t")
    assert (float(score) > 0, id, text) == (True, "a", "the bridge")


def test_json_holds_the_passages_with_their_scores(run_json, bge_m3, filled):
    found = run_json("search", filled, "the bridge", "--model", bge_m3())
    assert [match["id"] for match in found["matches"]] == ["a", "b"]
    best = found["matches"][0]
    assert best["text"] == "the bridge"
    assert best["score"] == pytest.approx(sum(best["by_mode"].values()))


def test_each_line_of_stdin_is_a_question(run, bge_m3, filled):
    found = run("search", filled, "-", "-k", 1, "--json", "--model", bge_m3(), given="the bridge\n\nволга\n")
    documents = [json.loads(line) for line in found.stdout.splitlines()]
    best = [(each["question"], each["matches"][0]["id"]) for each in documents]
    assert best == [("the bridge", "a"), ("волга", "b")]


def test_mode_searches_by_one_mode(run_json, bge_m3, filled):
    found = run_json("search", filled, "the bridge", "--mode", "dense", "--model", bge_m3())
    assert found["weights"].keys() == {"dense"}
    assert all(match["by_mode"].keys() == {"dense"} for match in found["matches"])


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        (("", "-k", 2), 2, "the question '' is empty"),
        (("why?", "-k", 0), 2, "-k must be at least 1, got 0"),
        (("why?", "--mode", "lexical"), 2, "'lexical' is not a mode"),
    ],
)
def test_invalid_arguments_are_refused_before_the_model_is_loaded(words, status, advice, run, filled, tmp_path):
    result = run("search", filled, *words, "--model", tmp_path / "no-model")
    assert result.exit_code == status
    assert result.stderr.startswith(f"error: {advice}")
    assert result.stderr.count("\n") == 1


def test_a_missing_index_is_named(run, tmp_path):
    result = run("search", tmp_path / "none", "why?", "--model", tmp_path / "no-model")
    assert result.exit_code == 1
    assert "there is no index at" in result.stderr


def test_where_selects_by_metadata(run, run_json, bge_m3, tmp_path):
    file = write_lines(tmp_path / "t.jsonl", *({"_id": f"y{y}", "text": "the bridge", "year": y} for y in (1990, 2020)))
    run("index", tmp_path / "index", file, "--model", bge_m3())
    found = run_json("search", tmp_path / "index", "the bridge", "--where", "year >= 2000 and not exists(draft)")
    assert [match["id"] for match in found["matches"]] == ["y2020"]
    wrong = run("search", tmp_path / "index", "the bridge", "--where", "year = 2000")
    assert (wrong.exit_code, "--where: the filter" in wrong.stderr) == (2, True)


def test_explain_shows_the_words_that_matched_with_their_places(run, run_json, filled):
    (best, _) = run_json("search", filled, "where is the bridge", "--explain")["matches"]
    assert {word["passage"] for word in best["words"]} & {"the", "bridge"}
    explained = run_json("explain", filled, "where is the bridge", "a")
    assert explained["words"] == best["words"]
    assert explained["score"] == pytest.approx(best["score"], rel=1e-4)
    for word in explained["words"]:
        start, stop = word["passage_span"]
        assert explained["text"][start:stop] == word["passage"]
    assert run_json("explain", filled, "where is the bridge")["id"] == "a"
    assert "the bridge" in run("explain", filled, "where is the bridge").stdout


def test_explain_shows_the_score_of_rank_fusion(run_json, bge_m3, filled):
    with LocalIndex.open(filled) as index:
        index.plan = SearchPlan(fusion="rrf")
    best = run_json("search", filled, "the bridge", "--model", bge_m3())["matches"][0]
    found = run_json("explain", filled, "the bridge", best["id"], "--model", bge_m3())
    assert found["score"] == best["score"] == pytest.approx(3 / 61)
    assert found["by_mode"] == best["by_mode"]


def test_an_unknown_passage_is_not_explained(run, filled, tmp_path):
    result = run("explain", filled, "the bridge", "other", "--model", tmp_path / "no-model")
    assert (result.exit_code, "other" in result.stderr) == (1, True)


def test_an_explanation_has_the_spans_of_each_mode_and_an_html_page(run, run_json, filled, tmp_path):
    page = tmp_path / "pages" / "why.html"
    found = run_json("explain", filled, "the bridge", "a", "--out", page)
    assert found["spans"].keys() == {"sparse", "multi_vector"}
    for side, text in (("question", "the bridge"), ("passage", found["text"])):
        for start, stop, strength in found["spans"]["sparse"][side]:
            assert text[start:stop] in ("the", "bridge")
            assert 0 < strength <= 1
    html = page.read_text(encoding="utf-8")
    assert html.count("<mark") == sum(len(spans) for mode in found["spans"].values() for spans in mode.values())
    assert "sparse words: the · bridge" in run("explain", filled, "the bridge", "a").stdout


@pytest.mark.parametrize(
    ("words", "given", "status", "advice"),
    [
        (("search", "{index}", "caf\udce9"), None, 2, "is not utf-8; set your terminal to it"),
        (("search", "{index}", "-"), b"caf\xe9\n", 1, "-:1 is not UTF-8 at byte 4 (0xe9)"),
        (("delete", "{index}", "-"), b"caf\xe9\n", 1, "-:1 is not UTF-8 at byte 4 (0xe9)"),
        (("explain", "{index}", "the bridge", "z"), None, 1, "the index has no passage 'z'; m3 search prints ids"),
        (("index", "{index}", "-", "-"), b"", 2, "stdin can be read once"),
    ],
)
def test_invalid_text_is_an_error_that_says_where(words, given, status, advice, run, filled):
    result = run(*(word.format(index=filled) for word in words), given=given)
    assert (result.exit_code, advice in result.stderr, result.stderr.count("\n")) == (status, True, 1), result.stderr
