"""Nudger: it learns, it remembers, it goes back to the bit, and a death on the way leaves the old or the new."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import DamagedFolder, MissingMode, PassagesChanged, UnknownId, WrongEncoder
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.ledger import FILE_NAME
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import same_vectors
from tests.nudging.help_desk import ENCODER, asked, everything, filled, nothing_differs, score

TRAIN, VALIDATION, TEST = asked(200, "t", 1), asked(40, "v", 2), asked(60, "x", 3)
TRAJECTORIES = [("dense",), ("sparse",), ("multi_vector",), MODES]


@pytest.fixture(params=["memory", "local"])
def index(request, tmp_path):
    if request.param == "memory":
        yield filled(MemoryIndex())
    else:
        with LocalIndex.open(tmp_path / "index", ENCODER) as opened:
            yield filled(opened)


@pytest.mark.parametrize("modes", TRAJECTORIES)
def test_questions_unseen_find_more_and_the_report_promised_what_the_index_does(index, modes):
    report = Nudger(ENCODER, index).fit(TRAIN, VALIDATION, test=TEST, modes=modes)
    assert set(report.moves) == set(modes)
    assert report.test.after > report.test.before + 0.05
    assert report.test.interval[0] > 0
    assert report.test.after == pytest.approx(score(index, TEST, report.plan), abs=1e-6)
    assert report.validation.after == pytest.approx(score(index, VALIDATION, report.plan), abs=1e-6)


@pytest.mark.parametrize("modes", TRAJECTORIES)
def test_revert_restores_every_bit(index, modes):
    before = everything(index)
    nudger = Nudger(ENCODER, index)
    nudger.fit(TRAIN, VALIDATION, modes=modes)
    assert not nothing_differs(everything(index), before)
    nudger.add_queries(asked(30, "nudge-n", 4))
    nudger.refit()
    nudger.revert()
    assert nothing_differs(everything(index), before)
    assert nudger.version == 0


@pytest.mark.parametrize("modes", TRAJECTORIES)
def test_an_incremental_fit_equals_one_from_scratch(index, modes):
    more = asked(40, "nudge-n", 4)
    nudger = Nudger(ENCODER, index)
    nudger.fit(TRAIN[:120], VALIDATION, modes=modes)
    nudger.add_queries([*TRAIN[120:], *more])
    nudger.remove_queries([query.id for query in more])
    index.delete(["p59"])
    late = Passage("p60", "a passage that came later w1 w2")
    index.add([late], ENCODER.encode_passages([late.text]))
    report = nudger.refit()

    other = filled(MemoryIndex())
    other.delete(["p59"])
    other.add([late], ENCODER.encode_passages([late.text]))
    scratch = Nudger(ENCODER, other).fit(TRAIN, VALIDATION, modes=modes)
    assert report.plan == scratch.plan
    ours, theirs = everything(index), everything(other)
    np.testing.assert_allclose(ours.dense, theirs.dense, atol=1e-6)
    np.testing.assert_allclose(ours.sparse.toarray(), theirs.sparse.toarray(), atol=1e-6)
    np.testing.assert_allclose(ours.multi_vector.values, theirs.multi_vector.values, atol=1e-6)


def test_a_version_can_be_gone_back_to(index):
    nudger = Nudger(ENCODER, index)
    nudger.fit(TRAIN[:100], VALIDATION, modes=MODES)
    first, plan = everything(index), nudger.plan
    nudger.fit(TRAIN, VALIDATION, modes=("dense", "sparse"))
    assert not nothing_differs(everything(index), first)
    assert [version.number for version in nudger.versions()] == [1, 2]
    nudger.revert(1)
    assert nothing_differs(everything(index), first)
    assert (nudger.version, nudger.plan) == (1, plan)
    with pytest.raises(ValueError, match=r"there are \[1, 2\]"):
        nudger.revert(7)


def test_a_version_that_left_answers_out_is_gone_back_to_as_well(index):
    train, validation = (
        [replace(query, relevant={**query.relevant, "p00": 1.0}) for query in queries]
        for queries in (TRAIN, VALIDATION)
    )
    nudger = Nudger(ENCODER, index)
    report = nudger.fit(train, validation, modes=MODES)
    assert report.coverage.indiscriminate == 1  # every question names the passage
    nudged = everything(index)
    nudger.revert()
    nudger.revert(1)
    assert nothing_differs(everything(index), nudged)


def test_a_version_from_before_sparse_scores_were_divided_keeps_its_sums_and_vectors(tmp_path):
    means = HashEncoder(sparse_score="mean")
    with LocalIndex.open(tmp_path, ENCODER) as index:
        nudger = Nudger(ENCODER, filled(index))
        report = nudger.fit(TRAIN, VALIDATION, modes=MODES)
        nudged = everything(index)
        nudger.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as ledger, ledger:
        ledger.execute("DROP TABLE checks")  # there were no checksums of rows either
        ledger.execute("UPDATE versions SET figures = json_remove(figures, '$.sparse_score')")
    with LocalIndex.open(tmp_path, means) as index:
        nudger = Nudger(means, index)
        assert nudger.plan == replace(report.plan, sparse_score="sum")
        nudger.revert()
        nudger.revert(1)
        assert nothing_differs(everything(index), nudged)
        assert score(index, TEST, index.plan) == score(index, TEST, nudger.plan)
        assert Retriever(means, index).retrieve("s1 w2") == Retriever(ENCODER, index, report.plan).retrieve("s1 w2")
        assert nudger.refit().plan.sparse_score is None


@pytest.mark.parametrize("modes", [("sparse",), MODES])
def test_where_sparse_scores_are_means_the_report_promises_what_the_index_does(modes):
    means = HashEncoder(sparse_score="mean")
    index = filled(MemoryIndex())
    report = Nudger(means, index).fit(TRAIN, VALIDATION, test=TEST, modes=modes)
    assert report.test.after > report.test.before + 0.05
    assert report.test.after == pytest.approx(score(index, TEST, report.plan, means), abs=1e-6)


def test_the_ledger_is_found_again_with_the_folder(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index:
        before = everything(filled(index))
        Nudger(ENCODER, index).fit(TRAIN, VALIDATION)
    with LocalIndex.open(tmp_path, ENCODER) as index:
        nudger = Nudger(ENCODER, index)
        assert nudger.version == 1
        assert nudger.queries() == TRAIN
        assert nudger.versions()[0].after > nudger.versions()[0].before
        nudger.revert()
        assert nothing_differs(everything(index), before)
    with LocalIndex.open(tmp_path) as index, pytest.raises(WrongEncoder, match="the encoder that filled the index"):
        Nudger(HashEncoder(dense_dim=16), index)


def test_a_second_nudger_of_an_index_in_memory_knows_the_first():
    index = filled(MemoryIndex())
    before = everything(index)
    Nudger(ENCODER, index).fit(TRAIN, VALIDATION)
    Nudger(ENCODER, index).revert()
    assert nothing_differs(everything(index), before)


def test_a_passage_that_was_written_anew_is_nudged_from_where_it_is_now(index):
    nudger = Nudger(ENCODER, index)
    nudger.fit(TRAIN, VALIDATION)
    index.add([Passage("p03", "quite another text")], ENCODER.encode_passages(["quite another text"]))
    now = index.vectors(["p03"])
    nudger.revert()
    assert nothing_differs(index.vectors(["p03"]), now)


def test_where_nothing_is_to_be_gained_nothing_moves(index):
    before = everything(index)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"z{i}" for i in range(50)], 4)) for _ in range(80)]
    noise = [Query(f"n{i}", text, {f"p{rng.integers(0, 60):02}": 1.0}) for i, text in enumerate(texts)]
    report = Nudger(ENCODER, index).fit(noise[:60], noise[60:], modes=MODES)
    assert not report.moved
    assert report.warnings[-1].startswith("nothing was moved")
    assert nothing_differs(everything(index), before)


def test_without_validation_folds_of_the_training_questions_choose(index):
    report = Nudger(ENCODER, index).fit(TRAIN, modes=("sparse",))
    assert report.moves["sparse"].moved > 0
    assert report.validation is None
    assert report.after > report.before


def test_a_plan_with_weights_is_judged_by_and_kept(index):
    plan = SearchPlan(weights={"dense": 0.5, "sparse": 0.5})
    nudger = Nudger(ENCODER, index, plan)
    report = nudger.fit(TRAIN, VALIDATION, test=TEST, modes=("dense",))
    assert set(report.moves) == {"dense"}
    assert report.plan == nudger.plan == plan
    assert report.test.after == pytest.approx(score(index, TEST, plan), abs=1e-6)


def test_what_cannot_be_done_is_said(index):
    nudger = Nudger(ENCODER, index)
    with pytest.raises(ValueError, match=r"call fit\(train, validation\) first"):
        nudger.refit()
    with pytest.raises(ValueError, match="such as 'nobody', and the index holds passages such as 'p00'"):
        nudger.fit([Query("q", "text", {"nobody": 1.0})])
    with pytest.raises(ValueError, match="training questions has an answer; fill in"):
        nudger.fit([Query("q", "text")])
    with pytest.raises(ValueError, match="there are no training questions"):
        nudger.fit([])
    with pytest.raises(MissingMode, match="modes is empty"):
        nudger.fit(TRAIN, VALIDATION, modes=())
    with pytest.raises(ValueError, match="use ndcg@10"):
        nudger.fit(TRAIN, VALIDATION, metric="bleu")
    with pytest.raises(ValueError, match="'auto' or 'nudge-n' or 'nudge-m', got 'x'"):
        nudger.fit(TRAIN, VALIDATION, modes=("sparse",), method="x")
    nudger.fit(TRAIN, VALIDATION)
    with pytest.raises(UnknownId, match=r"nudger\.queries\(\)"):
        nudger.remove_queries(["t1", "nobody"])
    assert len(nudger.queries()) == len(TRAIN)
    with pytest.raises(ValueError, match="'train' or 'validation'"):
        nudger.add_queries(TRAIN, role="test")


def test_a_fit_that_fails_leaves_questions_and_vectors_as_they_were(index):
    nudger = Nudger(ENCODER, index)
    nudger.fit(TRAIN, VALIDATION)
    before = everything(index)
    with pytest.raises(ValueError, match="has an answer"):
        nudger.fit([Query("q", "text", {"nobody": 1.0})])
    assert (nudger.version, nudger.queries()) == (1, TRAIN)
    assert nothing_differs(everything(index), before)


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index:
        filled(index)
        (tmp_path / FILE_NAME).write_bytes(b"not a database" * 100)
        with pytest.raises(DamagedFolder, match="put back a copy of the whole folder, and keep this file"):
            Nudger(ENCODER, index)


@pytest.mark.parametrize("seed", range(8))
def test_a_process_killed_while_it_fits_or_reverts_leaves_the_old_or_the_new(tmp_path, seed):
    train, validation, modes = asked(80, "t", 1), asked(20, "v", 2), ("sparse", "multi_vector")
    with LocalIndex.open(tmp_path, ENCODER) as index:
        old = everything(filled(index))
    eval_query = filled(MemoryIndex())
    Nudger(ENCODER, eval_query).fit(train, validation, modes=modes)
    new = everything(eval_query)
    script = Path(__file__).with_name("help_desk.py")
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"fitted\n"
        time.sleep(np.random.default_rng(seed).uniform(0, 0.6))
        child.send_signal(signal.SIGKILL)
    with LocalIndex.open(tmp_path, ENCODER) as index:
        found = everything(index)
        assert nothing_differs(found, old) or _near(found, new)
        nudger = Nudger(ENCODER, index)
        assert (nudger.version == 0) == nothing_differs(found, old)
        assert nudger.version in (0, len(nudger.versions()))
        assert nudger.queries() == train
        nudger.revert()
        assert nothing_differs(everything(index), old)
        assert nudger.refit().moved


def _near(a, b):
    return (
        np.allclose(a.dense, b.dense, atol=1e-6)
        and np.allclose(a.sparse.toarray(), b.sparse.toarray(), atol=1e-6)
        and np.allclose(a.multi_vector.values, b.multi_vector.values, atol=1e-6)
    )


class ReplacingIndex(MemoryIndex):
    """An index in which another process replaces or deletes a passage just before vectors are written."""

    change = None

    def set_vectors_many(self, *arguments, **options):
        if self.change is not None:
            self.change()
        super().set_vectors_many(*arguments, **options)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_vectors_are_never_stored_with_a_text_that_they_were_not_computed_for(is_deleted):
    index, encoder = ReplacingIndex(), HashEncoder(16, 8, 512)
    texts = [f"topic{i} word{i}" for i in range(8)]
    index.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
    queries = [Query(f"q{i}", f"ask{i % 8}", {f"p{i % 8}": 1.0}) for i in range(24)]
    nudger = Nudger(encoder, index)

    def change():
        if is_deleted:
            index.delete(["p1"])
        else:
            index.add([Passage("p1", "another")], encoder.encode_passages(["another"]))

    index.change = change
    with pytest.raises(PassagesChanged, match=r"replaced or deleted.*such as 'p1'; nothing was written: repeat"):
        nudger.fit(queries[:16], queries[16:], method="nudge-n")
    index.change = None
    assert (nudger.version, nudger.versions(), index.plan) == (0, [], None)
    assert same_vectors(index.vectors(["p2"]), encoder.encode_passages(texts[2:3]))
    nudger.fit(queries[:16], queries[16:], method="nudge-n")
    nudger.revert()
    expected = [passage.text for passage in index.passages()]
    assert same_vectors(index.vectors(index.ids()), encoder.encode_passages(expected))
