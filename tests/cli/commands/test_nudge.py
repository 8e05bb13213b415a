"""`m3 nudge` with a tiny checkpoint."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex, M3Encoder, SearchPlan
from m3_integrations.nudging import Feedback
from m3_integrations.testing.sample_data import same_vectors
from tests.cli.conftest import write_lines

NUDGE = ("--modes", "dense,sparse,multi_vector", "--method", "nudge-n")  # a named method moves without evidence


@pytest.fixture
def office(run, bge_m3, tmp_path):
    """An index of twelve passages, and a BEIR folder of questions that use nicknames."""
    world = tmp_path / "world"
    (world / "qrels").mkdir(parents=True)
    passages = [{"_id": f"passage-{i}", "text": f"the bridge {i} волга"} for i in range(12)]
    write_lines(world / "corpus.jsonl", *passages)
    asked = [
        (f"{part}-{i}", f"{part} nick {i}", f"passage-{i}") for part in ("train", "dev", "test") for i in range(12)
    ]
    write_lines(world / "queries.jsonl", *({"_id": id, "text": text} for id, text, _ in asked))
    for part in ("train", "dev", "test"):
        judged = [f"{id}\t{passage}\t1\n" for id, _, passage in asked if id.startswith(part)]
        (world / "qrels" / f"{part}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    assert run("index", tmp_path / "index", world / "corpus.jsonl", "--model", bge_m3()).exit_code == 0
    return tmp_path / "index", world


def vectors_of(folder):
    with LocalIndex.open(folder) as index:
        return index.vectors(index.ids())


def plan_of(folder):
    with LocalIndex.open(folder) as index:
        return index.plan


def test_a_nudge_by_a_beir_folder_moves_vectors_and_writes_a_report(run, bge_m3, office, tmp_path):
    folder, world = office
    before = vectors_of(folder)
    result = run("nudge", folder, world, *NUDGE, "--out", tmp_path / "report.html", "--model", bge_m3())
    assert result.exit_code == 0, result.exception
    assert "12 training questions name 12 of 12 passages" in " ".join(result.output.split())
    assert "The index holds version 1." in result.output
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not same_vectors(vectors_of(folder), before)


def test_revert_restores_the_vectors_bit_for_bit_and_to_restores_the_nudge(run, bge_m3, office):
    folder, world = office
    before = vectors_of(folder)
    run("nudge", folder, world, *NUDGE, "--model", bge_m3())
    nudged = vectors_of(folder)
    back = run("nudge", folder, "--revert", "--model", bge_m3())
    assert "the original vectors" in back.output
    assert same_vectors(vectors_of(folder), before)
    assert run("nudge", folder, "--to", 1, "--model", bge_m3()).exit_code == 0
    assert same_vectors(vectors_of(folder), nudged)
    listed = run("nudge", folder, "--versions", "--model", bge_m3())
    assert "The index holds version 1." in listed.output


def test_a_dry_run_reports_the_nudge_and_changes_no_file(run, bge_m3, office):
    folder, world = office
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run("nudge", folder, world, *NUDGE, "--dry-run", "--model", bge_m3())
    assert "the index itself is unchanged" in " ".join(result.output.split())
    assert "multi_vector" in result.output
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_nudged_index_is_searched_with_the_weights_of_the_nudge(run, run_json, bge_m3, office):
    folder, world = office
    search = ("search", folder, "train nick 3", "--model", bge_m3())
    plain = run_json(*search)["weights"]
    assert not (folder / "nudges.sqlite").exists()
    (version,) = run_json("nudge", folder, world, *NUDGE, "--model", bge_m3())["versions"]
    chosen = {mode: weight for mode, weight in version["weights"].items() if weight}
    assert run_json(*search)["weights"] == chosen != plain
    run("nudge", folder, "--revert", "--model", bge_m3())
    assert run_json(*search)["weights"] == plain


def test_a_nudge_by_clicks_splits_them_by_text(run, bge_m3, office, tmp_path):
    folder, _ = office
    clicks = write_lines(
        tmp_path / "log.jsonl", *({"query": f"nick {i}", "passage": f"passage-{i % 12}"} for i in range(40))
    )
    result = run("nudge", folder, clicks, "--modes", "dense", "--seed", 3, "--model", bge_m3())
    assert result.exit_code == 0, result.exception
    assert "28 training questions" in " ".join(result.output.split())  # 0.7 of 40


def test_a_nudge_by_queries_and_qrels_of_trec(run, bge_m3, office, tmp_path):
    folder, world = office
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"train-{i} 0 passage-{i} 1\n" for i in range(12)), encoding="utf-8")
    result = run("nudge", folder, world / "queries.jsonl", qrels, *NUDGE, "--model", bge_m3())
    assert result.exit_code == 0, result.exception
    assert "8 training questions" in " ".join(result.output.split())  # 0.7 of 12


@pytest.mark.parametrize(
    ("words", "status", "advice"),
    [
        ((), 2, "give exactly one task, got 0: m3 nudge INDEX JUDGED"),
        (("--revert", "--versions"), 2, "give exactly one task, got 2"),
        (("{world}", "--modes", "dense,warm"), 2, "'warm' is not a mode"),
        (("{world}", "--metric", "map"), 2, "is not a known metric; use ndcg@10"),
        (("{world}", "--method", "x"), 2, "--method is auto, nudge-n or nudge-m, got 'x'"),
        (("--forget-before", "soon"), 2, "--forget-before 'soon' is no date; write it as 2026-01-31"),
        (("nowhere",), 1, "there is no nowhere; name a BEIR folder"),
        (("{index}",), 1, "has no qrels/train.tsv to train with"),
        (("--to", "7"), 1, "there is no version 7; there are [], and 0, the original vectors"),
        (("{world}/queries.tsv.gz",), 1, "there is no"),
        (("{world}/qrels/train.tsv",), 1, "its first line is query,passage,weight,time"),
    ],
)
def test_an_invalid_nudge_command_is_one_line_of_advice(words, status, advice, run, bge_m3, office):
    folder, world = office
    arguments = [word.format(index=folder, world=world) for word in words]
    result = run("nudge", folder, *arguments, "--model", bge_m3())
    assert result.exit_code == status
    assert advice in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_nudge_is_printed_as_json(run_json, bge_m3, office):
    folder, world = office
    done = run_json("nudge", folder, world, *NUDGE, "--model", bge_m3())
    assert done["version"] == 1
    assert [each["version"] for each in done["versions"]] == [1]
    assert done["report"]["metric"] == "ndcg@10"
    assert done["report"]["moved"]["dense"] > 0
    assert [row["questions"] for row in done["report"]["outcomes"]]


def test_old_questions_are_forgotten_and_their_version_is_refused(run, run_json, bge_m3, office):
    folder, world = office
    run("nudge", folder, world, *NUDGE, "--model", bge_m3())
    assert run_json("nudge", folder, "--forget-before", "2020-01-01")["forgotten"] == 0
    assert run_json("nudge", folder, "--forget-before", "2999-01-31T12:00")["forgotten"] == 24
    assert not any(b"nick 3" in path.read_bytes() for path in folder.iterdir())
    result = run("nudge", folder, "--to", "1")
    assert result.exit_code == 1
    assert "some of its questions were forgotten" in result.stderr
    assert run("nudge", folder, "--revert").exit_code == 0


def test_a_nudge_from_feedback_needs_evidence(run, run_json, bge_m3, office):
    folder, _ = office
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    before = vectors_of(folder)
    with LocalIndex.open(folder, encoder) as index:
        feedback = Feedback(encoder, index)
        feedback.add("nick 1", "passage-1", True)
        few = run_json("nudge", folder, "--from-feedback", "--model", bge_m3())
        assert few["message"].startswith("Not enough evidence yet, nothing moved: 1 question has a useful passage.")
        assert few["report"] is None
        for i in range(36):
            feedback.add(f"nick {i % 12} {i}", f"passage-{i % 12}", True)
    assert same_vectors(vectors_of(folder), before)
    done = run_json("nudge", folder, "--from-feedback", *NUDGE, "--model", bge_m3())
    assert done["version"] == 1
    assert done["report"]["moved"]
    assert run("nudge", folder, "--from-feedback", "--revert", "--model", bge_m3()).exit_code == 2


def test_too_few_questions_move_nothing(run_json, bge_m3, office, tmp_path):
    folder, _ = office
    before = vectors_of(folder)
    lines = [f"nick {i},passage-{i % 12}\n" for i in range(29)]
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("query,passage\n" + "".join(lines), encoding="utf-8")
    told = run_json("nudge", folder, clicks, "--model", bge_m3(), "--out", tmp_path / "report.html")
    assert told["versions"] == []
    few = "29 judged questions are too few to learn from, and nothing was moved; give at least 30, better 100 or more"
    assert (told["report"], told["message"]) == (None, few)
    assert not (tmp_path / "report.html").exists()
    assert same_vectors(vectors_of(folder), before)


def test_a_nudge_keeps_the_weights_that_were_tuned_or_set_by_hand(run, run_json, bge_m3, office):
    folder, world = office
    own = SearchPlan(propose=("dense", "sparse"), candidates=7, weights={"dense": 1.0, "sparse": 0.25})
    nudge = ("nudge", folder, world, "--method", "nudge-n", "--model", bge_m3())
    run_json(*nudge)  # version 1, which chooses its own weights
    (first,) = run_json("nudge", folder, "--versions")["versions"]
    assert first["modes"] == ["dense", "sparse", "multi_vector"]
    with LocalIndex.open(folder) as index:
        nudged, index.plan = index.plan, own
    second = run_json(*nudge)["versions"][-1]
    assert (second["weights"], second["modes"]) == (own.weights, ["dense", "sparse"])
    assert plan_of(folder) == own
    run_json("nudge", folder, "--to", 1)
    assert plan_of(folder) == nudged
    run_json("nudge", folder, "--to", 2)
    assert plan_of(folder) == own


def test_modes_that_the_plan_leaves_out_are_nudged_alone(run_json, bge_m3, office):
    folder, world = office
    with LocalIndex.open(folder) as index:
        index.plan = SearchPlan(propose=("dense",), weights={"dense": 1.0})
    options = ("--method", "nudge-n", "--model", bge_m3())
    (version,) = run_json("nudge", folder, world, "--modes", "sparse", *options)["versions"]
    assert version["weights"] == {"sparse": 1.0}
