"""The command, on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from m3_integrations import LocalIndex, cli
from m3_integrations.testing.contract import same_vectors


@pytest.fixture
def run():
    def call(*words: object):
        return CliRunner().invoke(cli.app, [str(word) for word in words])

    return call


def lines(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_what_was_ingested_is_found(run, bge_m3, tmp_path):
    file = lines(tmp_path / "texts.jsonl", {"_id": "a", "text": "the bridge"}, {"_id": "b", "text": "волга"})
    filled = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "2 added, 0 replaced, 0 unchanged" in filled.output
    again = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "0 added, 0 replaced, 2 unchanged" in again.output
    found = run("search", tmp_path / "index", "the bridge", "--k", 1, "--model", bge_m3())
    assert found.exit_code == 0
    assert "the bridge" in found.output


def test_a_line_that_is_no_passage_is_named_with_its_file_and_number(run, bge_m3, tmp_path):
    file = lines(tmp_path / "texts.jsonl", {"_id": "a", "text": "the bridge"}, {"id": "b"})
    result = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "texts.jsonl, line 2" in str(result.exception)


def test_an_error_of_ours_is_one_line_without_a_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["m3", "search", str(tmp_path / "index"), "why?", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    written = capsys.readouterr()
    assert "no index at" in written.err
    assert "Traceback" not in written.err + written.out


def test_the_demonstration_writes_its_page(run, bge_m3, tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--model", bge_m3(positions=64))
    assert result.exit_code == 0, result.output
    assert "the same index, nudged" in result.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "26 milyon tuğladan" in page
    assert "ndcg@10" in page
    assert "<mark" in page
    assert 'href="nudge.html"' in page
    assert "<svg" in (tmp_path / "out" / "nudge.html").read_text(encoding="utf-8")


NUDGE = ("--modes", "dense,sparse,multi_vector", "--method", "n")  # which moves, whatever the evidence


@pytest.fixture
def office(run, bge_m3, tmp_path):
    """A folder of twelve rooms, and a BEIR folder of questions that call them by nicknames."""
    world = tmp_path / "world"
    (world / "qrels").mkdir(parents=True)
    rooms = [{"_id": f"room-{i}", "text": f"the bridge {i} волга"} for i in range(12)]
    lines(world / "corpus.jsonl", *rooms)
    asked = [(f"{part}-{i}", f"{part} nick {i}", f"room-{i}") for part in ("train", "dev", "test") for i in range(12)]
    lines(world / "queries.jsonl", *({"_id": id, "text": text} for id, text, _ in asked))
    for part in ("train", "dev", "test"):
        judged = [f"{id}\t{room}\t1\n" for id, _, room in asked if id.startswith(part)]
        (world / "qrels" / f"{part}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    assert run("ingest", tmp_path / "index", world / "corpus.jsonl", "--model", bge_m3()).exit_code == 0
    return tmp_path / "index", world


def vectors_of(folder):
    with LocalIndex.open(folder) as index:
        return index.vectors(index.ids())


def test_a_nudge_by_a_folder_of_questions_moves_the_index_and_writes_its_page(run, bge_m3, office, tmp_path):
    folder, world = office
    before = vectors_of(folder)
    said = run("nudge", folder, world, *NUDGE, "--out", tmp_path / "report.html", "--model", bge_m3())
    assert said.exit_code == 0, said.exception
    assert "12 training questions name 12 of 12 passages" in " ".join(said.output.split())
    assert "The index holds version 1." in said.output
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not same_vectors(vectors_of(folder), before)


def test_going_back_restores_the_bits_and_going_on_the_nudge(run, bge_m3, office):
    folder, world = office
    before = vectors_of(folder)
    run("nudge", folder, world, *NUDGE, "--model", bge_m3())
    nudged = vectors_of(folder)
    back = run("nudge", folder, "--revert", "--model", bge_m3())
    assert "as it was encoded" in back.output
    assert same_vectors(vectors_of(folder), before)
    assert run("nudge", folder, "--to", 1, "--model", bge_m3()).exit_code == 0
    assert same_vectors(vectors_of(folder), nudged)
    listed = run("nudge", folder, "--versions", "--model", bge_m3())
    assert "The index holds version 1." in listed.output


def test_a_dry_run_says_what_a_nudge_would_do_and_leaves_every_byte(run, bge_m3, office):
    folder, world = office
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = run("nudge", folder, world, *NUDGE, "--dry-run", "--model", bge_m3())
    assert "the folder is as it was" in " ".join(said.output.split())
    assert "multi_vector" in said.output
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_nudged_folder_is_searched_as_the_nudge_weighs_and_says_so(run, bge_m3, office):
    folder, world = office
    plain = run("search", folder, "train nick 3", "--model", bge_m3())
    assert "as nudge" not in plain.output
    assert not (folder / "nudges.sqlite").exists()
    run("nudge", folder, world, "--modes", "dense", "--method", "n", "--model", bge_m3())
    found = run("search", folder, "train nick 3", "--model", bge_m3())
    assert "as nudge 1 weighs: dense 1" in found.output
    assert "sparse" not in found.output
    run("nudge", folder, "--revert", "--model", bge_m3())
    assert "as nudge" not in run("search", folder, "train nick 3", "--model", bge_m3()).output


def test_a_nudge_by_clicks_splits_them_by_text(run, bge_m3, office, tmp_path):
    folder, _ = office
    clicks = lines(tmp_path / "log.jsonl", *({"query": f"nick {i}", "passage": f"room-{i % 12}"} for i in range(40)))
    said = run("nudge", folder, clicks, "--modes", "dense", "--seed", 3, "--model", bge_m3())
    assert said.exit_code == 0, said.exception
    assert "28 training questions" in " ".join(said.output.split())  # 0.7 of 40


def test_a_nudge_by_queries_and_qrels_of_trec(run, bge_m3, office, tmp_path):
    folder, world = office
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"train-{i} 0 room-{i} 1\n" for i in range(12)), encoding="utf-8")
    said = run("nudge", folder, world / "queries.jsonl", qrels, "--modes", "dense", "--model", bge_m3())
    assert said.exit_code == 0, said.exception
    assert "8 training questions" in " ".join(said.output.split())  # 0.7 of 12


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ((), "say one of: m3 nudge FOLDER JUDGED"),
        (("--revert", "--versions"), "got 2 of them"),
        (("nowhere",), "there is no nowhere; name a BEIR folder"),
        (("{index}",), "has no qrels/train.tsv to learn from"),
        (("{world}", "--modes", "dense,warm"), "warm"),
        (("{world}", "--metric", "map"), "is no metric here; write ndcg@10"),
        (("{world}", "--method", "x"), "--method is auto, n or m, got 'x'"),
        (("--to", "7"), "there is no version 7"),
        (("{world}/queries.tsv.gz",), "there is no"),
        (("{world}/qrels/train.tsv",), "judged questions come as a BEIR folder"),
    ],
)
def test_what_a_nudge_cannot_do_is_one_line_of_advice(words, advice, bge_m3, office, monkeypatch, capsys):
    folder, world = office
    said = [word.format(index=folder, world=world) for word in words]
    monkeypatch.setattr("sys.argv", ["m3", "nudge", str(folder), *said, "--model", str(bge_m3())])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    written = capsys.readouterr()
    assert advice in written.err
    assert written.err.count("\n") == 1


def test_mined_negatives_are_what_train_learns_from(run, bge_m3, tmp_path):
    examples = lines(
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
    assert "The model is in" in trained.output, trained.exception
    filled = run(
        "ingest",
        tmp_path / "index",
        lines(tmp_path / "t.jsonl", {"_id": "a", "text": "the bridge"}),
        "--model",
        tmp_path / "model",
    )
    assert "1 added" in filled.output


def test_mining_from_an_index_that_is_not_there_says_how_to_fill_one(run, bge_m3, tmp_path):
    examples = lines(tmp_path / "pairs.jsonl", {"query": "where", "positives": ["here"]})
    result = run("mine", examples, tmp_path / "mined.jsonl", "--index", tmp_path / "none", "--model", bge_m3())
    assert "m3 ingest" in str(result.exception)
