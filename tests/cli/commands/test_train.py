"""`m3 mine` and `m3 train` with a tiny checkpoint."""

from __future__ import annotations

import json

from tests.cli.conftest import write_lines


def test_train_reads_mined_negatives(run, run_json, bge_m3, tmp_path):
    examples = write_lines(
        tmp_path / "pairs.jsonl",
        *(
            {"query": f"where is the {word}", "positives": [f"the {word} is here"]}
            for word in ("bridge", "query", "the")
        ),
    )
    mined = run("mine", examples, tmp_path / "mined.jsonl", "--negatives", 1, "--model", bge_m3())
    assert "3 negatives for 3 queries" in mined.output
    found = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(len(each["negatives"]) == 1 and each["negatives"] != each["positives"] for each in found)
    options = ["--model", bge_m3(), "--steps", 1, "--warm-up", 1, "--low-rank", 2, "--pairs", examples]
    trained = run("train", tmp_path / "model", tmp_path / "mined.jsonl", *options)
    assert "Model saved in" in trained.output, trained.exception
    assert run_json("mine", examples, tmp_path / "again.jsonl", "--model", bge_m3())["queries"] == 3
    again = ("train", tmp_path / "again", tmp_path / "mined.jsonl", "--steps", 1, "--model", bge_m3())
    assert len(run_json(*again)["stages"]) == 1
    filled = run(
        "index",
        tmp_path / "index",
        write_lines(tmp_path / "t.jsonl", {"_id": "a", "text": "the bridge"}),
        "--model",
        tmp_path / "model",
    )
    assert "1 added" in filled.output


def test_mining_from_a_missing_index_says_how_to_create_one(run, bge_m3, tmp_path):
    examples = write_lines(tmp_path / "pairs.jsonl", {"query": "where", "positives": ["here"]})
    result = run("mine", examples, tmp_path / "mined.jsonl", "--index", tmp_path / "none", "--model", bge_m3())
    assert result.exit_code == 1
    assert "m3 index" in result.stderr
