"""`m3 reencode` with two tiny checkpoints."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex
from m3_integrations.testing.sample_data import same_vectors


def vectors_of(folder):
    with LocalIndex.open(folder) as index:
        return index.vectors(index.ids())


def test_an_index_changes_its_model_and_goes_back(run, run_json, bge_m3, filled, tmp_path):
    before = vectors_of(filled)
    done = run_json("reencode", filled, "--model", bge_m3(seed=1))
    assert (done["passages"], done["questions"], done["switched"]) == (2, 0, True)
    assert not same_vectors(vectors_of(filled), before)
    assert run_json("search", filled, "the bridge")["matches"]
    assert run_json("info", filled)["model"] == str(bge_m3(seed=1))
    run("add", filled, "--id", "c", "--text", "мост")
    back = run_json("reencode", filled, "--undo")
    assert (back["undone"], back["model"], back["passages"]) == (True, str(bge_m3()), 3)
    with LocalIndex.open(filled) as index:
        assert same_vectors(index.vectors(["a", "b"]), before)


def test_judged_questions_that_lose_keep_the_model(run, run_json, bge_m3, filled, tmp_path):
    perfect = tmp_path / "perfect.csv"
    ranked = run_json("search", filled, "мост", "-k", 2)["matches"]
    with LocalIndex.open(filled) as index:
        before = index.encoder
    outcomes = {}
    for seed in (1, 2, 3):
        perfect.write_text(f"query,passage\nмост,{ranked[0]['id']}\n", encoding="utf-8")
        result = run("reencode", filled, perfect, "--model", bge_m3(seed=seed), "--metric", "accuracy@1", "--json")
        outcomes[seed] = result.exit_code
        if result.exit_code:
            assert (
                "unchanged"
                in run("reencode", filled, perfect, "--model", bge_m3(seed=seed), "--metric", "accuracy@1").stderr
            )
            with LocalIndex.open(filled) as index:
                assert index.encoder == before
            assert run("reencode", filled, perfect, "--model", bge_m3(seed=seed), "--force").exit_code == 0
        run("reencode", filled, "--undo")
    assert set(outcomes.values()) <= {0, 1}


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        ((), 2, "give either a new model"),
        (("--undo", "--model", "x"), 2, "give either a new model"),
        (("--undo", "--force"), 2, "give either a new model"),
        (("--undo",), 1, "which holds the former embeddings"),
        (("--model", "no-model"), 1, "no-model"),
    ],
)
def test_an_invalid_command_is_one_line_of_advice(words, status, advice, run, filled):
    result = run("reencode", filled, *words)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert advice in result.stderr
