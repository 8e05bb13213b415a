"""Another model for an index: resumable, compared, atomic, undoable."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import closing
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import LocalIndex, MemoryIndex, Nudger, Passage, QdrantIndex, Query, SearchPlan
from m3_integrations.core.errors import WrongCollection, WrongEncoder
from m3_integrations.nudging import Feedback, reencode, reencode_collection, undo_reencode
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import same_vectors

OLD, NEW = HashEncoder(seed=0), HashEncoder(dense_dim=48, multi_vector_dim=8, seed=1)
WORSE = HashEncoder(dense_dim=2, modes=("dense",), seed=2)
TOPICS = 30
PASSAGES = [Passage(f"p{i:02d}", f"alpha{i} beta{i} gamma", {"n": i}) for i in range(TOPICS)]
QUERIES = [
    Query(f"q{i}", f"alpha{i % TOPICS} nick{i % TOPICS}", {f"p{i % TOPICS:02d}": 1.0}) for i in range(2 * TOPICS)
]
TRAIN, VALIDATION = QUERIES[:TOPICS], QUERIES[TOPICS:]


def fill(index, encoder=OLD):
    index.add(PASSAGES, encoder.encode_passages([each.text for each in PASSAGES]))


@pytest.fixture
def folder(tmp_path):
    """A nudged index with a plan."""
    with LocalIndex.open(tmp_path / "index", OLD) as index:
        fill(index)
        with closing(Nudger(OLD, index)) as nudger:
            nudger.fit(TRAIN, VALIDATION, modes=("dense", "sparse"), method="nudge-n")
    return tmp_path / "index"


def state_of(folder, encoder):
    """What an index holds, but for the time of its nudges."""
    with LocalIndex.open(folder, encoder) as index, closing(Nudger(encoder, index)) as nudger:
        versions = [version._replace(made="") for version in nudger.versions()]
        queries = [nudger.queries(role) for role in ("train", "validation")]
        contents = index.ids(), index.passages(), index.plan, index.encoder
        index.verify()
        return (*contents, versions, queries, nudger.version), index.vectors(index.ids())


def assert_same(state, other):
    assert state[0] == other[0]
    assert same_vectors(state[1], other[1])


def test_feedback_moves_to_the_ledger_of_the_new_model(folder):
    with LocalIndex.open(folder, OLD) as index:
        Feedback(OLD, index).add("alpha1 nick1", "p01", True)
        judged = Feedback(OLD, index).judgements()
    assert reencode(folder, OLD, NEW, force=True).is_switched
    with LocalIndex.open(folder, NEW) as index:
        assert Feedback(NEW, index).judgements() == judged


def test_an_index_gets_the_embeddings_of_the_new_encoder_and_its_nudge_is_fitted_again(folder, tmp_path):
    result = reencode(folder, OLD, NEW)
    assert (result.passages, result.queries, result.is_fitted, result.is_switched) == (TOPICS, TOPICS, True, True)
    assert result.after >= result.before
    with LocalIndex.open(tmp_path / "fresh", NEW) as fresh:
        fill(fresh, NEW)
        with closing(Nudger(NEW, fresh)) as nudger:
            nudger.fit(TRAIN, VALIDATION, modes=("dense", "sparse"), method="nudge-n")
    expected, found = state_of(tmp_path / "fresh", NEW), state_of(folder, NEW)
    assert_same(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "index", "index.previous"]


def test_undoing_restores_every_vector_the_plan_and_the_nudge(folder, tmp_path):
    before = state_of(folder, OLD)
    reencode(folder, OLD, NEW, force=True)
    undo_reencode(folder)
    assert_same(state_of(folder, OLD), before)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with pytest.raises(FileNotFoundError, match=r"there is no .*index\.previous"):
        undo_reencode(folder)


def test_undoing_encodes_what_was_added_since_and_forgets_what_was_deleted(folder):
    reencode(folder, OLD, NEW, force=True)
    with LocalIndex.open(folder, NEW) as index:
        index.add([Passage("new", "delta")], NEW.encode_passages(["delta"]))
        index.delete(["p00"])
    with pytest.raises(ValueError, match="were changed since; give the former encoder"):
        undo_reencode(folder)
    undo_reencode(folder, OLD)
    with LocalIndex.open(folder, OLD) as index:
        assert index.ids() == ["new", *(each.id for each in PASSAGES[1:])]
        assert same_vectors(index.vectors(["new"]), OLD.encode_passages(["delta"]))


def test_a_model_with_which_judged_queries_lose_is_refused_unless_forced(folder):
    with LocalIndex.open(folder, OLD) as index, closing(Nudger(OLD, index)) as nudger:
        nudger.revert()
    before = state_of(folder, OLD)
    refused = reencode(folder, OLD, WORSE)
    assert (refused.is_fitted, refused.is_switched) == (False, False)
    assert refused.after < refused.before
    assert_same(state_of(folder, OLD), before)
    assert reencode(folder, OLD, WORSE, force=True).is_switched
    with LocalIndex.open(folder, WORSE) as index:
        assert index.modes == {"dense"}
    again = reencode(folder, WORSE, OLD)
    assert (again.is_switched, again.after > again.before) == (True, True)


def test_an_index_without_a_ledger_is_compared_on_the_queries_given(tmp_path):
    with LocalIndex.open(tmp_path / "index", OLD) as index:
        fill(index)
        index.plan = SearchPlan(candidates=7, weights={"dense": 5.0})
    assert not reencode(tmp_path / "index", OLD, WORSE, queries=QUERIES).is_switched
    result = reencode(tmp_path / "index", OLD, WORSE)
    assert (result.queries, result.before, result.is_fitted, result.is_switched) == (0, None, False, True)
    with LocalIndex.open(tmp_path / "index", WORSE) as index, closing(Nudger(WORSE, index)) as nudger:
        assert index.plan == SearchPlan(candidates=7)
        assert nudger.queries() == []


def test_without_the_former_encoder_nothing_is_compared_and_the_nudge_is_fitted_again(folder):
    result = reencode(folder, None, NEW)
    assert (result.queries, result.before, result.is_fitted, result.is_switched) == (TOPICS, None, True, True)
    assert result.after is not None
    with LocalIndex.open(folder, NEW) as index, closing(Nudger(NEW, index)) as nudger:
        assert nudger.queries("train") == TRAIN
        assert nudger.version == 1
    undo_reencode(folder)
    LocalIndex.open(folder, OLD).close()


def test_passages_added_meanwhile_are_encoded_before_the_switch(folder):
    class Slow(HashEncoder):
        def encode_passages(self, texts, modes=None, *, show_progress=False):
            if not added:
                added.append(True)
                with LocalIndex.open(folder, OLD) as other:
                    other.add([Passage("late", "omega")], OLD.encode_passages(["omega"]))
                    other.delete(["p03"])
            return super().encode_passages(texts, modes)

        def __repr__(self):
            return repr(NEW)

    added: list[bool] = []
    assert reencode(folder, OLD, Slow(48, 8, seed=1), force=True).is_switched
    with LocalIndex.open(folder, NEW) as index:
        assert "late" in index.ids()
        assert "p03" not in index.ids()


def test_an_index_that_was_open_refuses_to_mix_encoders(folder):
    opened, unchecked = LocalIndex.open(folder, OLD), LocalIndex.open(folder)
    queries = OLD.encode_queries(["alpha1"])
    opened.search("dense", queries, 3)
    reencode(folder, OLD, NEW, force=True)
    for index in (opened, unchecked):
        with pytest.raises(WrongEncoder, match=r"was re-encoded with .* after it was opened; open it again"):
            index.search("dense", queries, 3)
        with pytest.raises(WrongEncoder, match="was re-encoded"):
            index.add(PASSAGES[:1], OLD.encode_passages(["x"]))
        index.close()


def test_a_purge_reaches_the_former_embeddings_and_every_ledger(folder, tmp_path):
    reencode(folder, OLD, NEW, force=True)
    with LocalIndex.open(folder, NEW) as index:
        index.delete(["p07"], purge=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("previous" in str(path) for path in files)
    assert [path.name for path in files if b"alpha7 " in path.read_bytes()] == []


def test_an_encoder_that_did_not_fill_the_index_is_refused(folder):
    with pytest.raises(WrongEncoder, match="was filled by"):
        reencode(folder, NEW, WORSE)


# Killed


def run_killed(root, folder, after):
    """Re-encode in a child process that dies before its file operation number `after`; return whether it died."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        child = os.fork()
    if not child:
        left = [after]

        def hook(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect") and str(
                arguments[0]
            ).startswith(str(root)):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)

        try:
            sys.addaudithook(hook)
            reencode(folder, OLD, NEW, force=True)
            (root / "operations").write_text(str(after - left[0]))
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def check_kills(folder, tmp_path, kills):
    reference = copytree(folder, tmp_path / "reference" / "index")
    assert not run_killed(reference.parent, reference, 1 << 30)
    total, random = int((reference.parent / "operations").read_text()), np.random.default_rng(0)
    for number, after in enumerate(random.integers(1, total, kills).tolist()):
        copy = copytree(folder, tmp_path / f"killed-{number}" / "index")
        assert run_killed(copy.parent, copy, after)
        check_answers(copy)
        reencode(copy, OLD, NEW, force=True)
        assert_same(state_of(copy, NEW), state_of(reference, NEW))
        assert sorted(path.name for path in copy.parent.iterdir()) == ["index", "index.previous"]


def check_answers(folder):
    """Search as somebody who opens the index now; the answer is that of one complete index."""
    with LocalIndex.open(folder) as index:
        encoder = {each.fingerprint: each for each in (OLD, NEW)}[index.encoder[0]]
    with LocalIndex.open(folder, encoder) as index:
        assert len(index) == TOPICS
        ((best,),) = index.search("sparse", encoder.encode_queries(["alpha7 beta7"]), 1)
    assert best.id == "p07"


def test_a_killed_re_encoding_that_is_resumed_ends_where_an_uninterrupted_one_does(folder, tmp_path):
    check_kills(folder, tmp_path, 3)


@pytest.mark.soak
def test_twenty_killed_re_encodings_end_where_an_uninterrupted_one_does(folder, tmp_path):
    check_kills(folder, tmp_path, 20)


def test_searches_during_a_re_encoding_are_answered_by_one_complete_index(folder):
    expected = {}
    for encoder in (OLD, NEW):
        with MemoryIndex() as memory:
            fill(memory, encoder)
            expected[encoder.fingerprint] = memory.search("multi_vector", encoder.encode_queries(["alpha7 nick7"]), 3)
    child, answers = os.fork(), set()
    if not child:
        try:
            reencode(folder, OLD, NEW, force=True)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = None
    while status is None or len(answers) < 2:
        encoder = OLD if not answers or status is None else NEW
        try:
            with LocalIndex.open(folder, encoder) as index:
                found = index.search("multi_vector", encoder.encode_queries(["alpha7 nick7"]), 3)
            assert found == expected[encoder.fingerprint]
            answers.add(encoder.fingerprint)
        except WrongEncoder:
            answers.add(OLD.fingerprint)
        if status is None:
            finished, raw = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(raw) if finished else None
            assert status in (None, 0)


# Qdrant


def test_readers_of_a_qdrant_alias_switch_to_the_new_collection_unless_judged_queries_lose():
    client = QdrantClient(":memory:")
    index, worse, fresh = (
        QdrantIndex.from_client(client, name, encoder)
        for name, encoder in (("old", OLD), ("worse", WORSE), ("new", NEW))
    )
    fill(index)
    index.set_alias("live")
    refused = reencode_collection(index, OLD, worse, WORSE, "live", queries=QUERIES)
    assert not refused.is_switched
    assert QdrantIndex.from_client(client, "live").encoder[0] == OLD.fingerprint
    assert reencode_collection(index, OLD, fresh, NEW, "live", queries=QUERIES, force=True).is_switched
    live = QdrantIndex.from_client(client, "live", NEW)
    assert same_vectors(live.vectors(["p01"]), NEW.encode_passages([PASSAGES[1].text]))
    index.set_alias("live")
    assert QdrantIndex.from_client(client, "live").encoder[0] == OLD.fingerprint
    with pytest.raises(WrongCollection, match="give the former collection first"):
        reencode_collection(fresh, NEW, fresh, NEW, "live")


def test_no_folder_is_touched_that_is_not_of_a_re_encoding(folder):
    other = Path(f"{folder}.reencode-{NEW.fingerprint[:12]}")
    other.mkdir()
    (other / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Exception, match="it is not an index"):
        reencode(folder, OLD, NEW)
    assert (other / "mine.txt").read_text(encoding="utf-8") == "mine"
