"""EncoderPool over two processes on the CPU, against one M3Encoder on the same tiny random checkpoint."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from m3_integrations import Encoder, EncoderPool, M3Encoder, MemoryIndex, Passage, Retriever, ingest
from m3_integrations.core.encoded import MODES
from m3_integrations.core.encoder_crew import EncoderInTurn, WorkerLost, _opened, _received, _send_error
from m3_integrations.core.encoder_pool import _parcels
from m3_integrations.core.errors import CheckpointError, MissingMode, NonFiniteVector, TextsTruncated
from tests.checkpoints import WORDS

CPUS = ["cpu", "cpu"]
MAX_LENGTH = 64
CLOSE = {"rtol": 0, "atol": 2e-6}
FACTS = ("name", "modes", "weights", "dim", "width", "vocab_size", "max_length", "fingerprint")


def long_texts(number, *, words=50, seed=0):
    """So many that a call is divided: texts of 1 to `words` words that the poison is not among, and some empty ones."""
    random, harmless = np.random.default_rng(seed), [word for word in WORDS if word != "橋"]
    return [" ".join(random.choice(harmless, random.integers(words + 1))) for _ in range(number)]


TEXTS = ["", *long_texts(300), "  "]
MANY = TEXTS * 100


@pytest.fixture(scope="module")
def folder(bge_m3, tmp_path_factory):
    """A checkpoint in which one word, 橋, is NaN."""
    folder = shutil.copytree(bge_m3(), tmp_path_factory.mktemp("poisoned") / "model")
    (poison,) = AutoTokenizer.from_pretrained(folder)("橋", add_special_tokens=False)["input_ids"]
    backbone = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[poison] = torch.nan
    backbone.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return M3Encoder.from_pretrained(str(folder), device="cpu", max_length=MAX_LENGTH, query_prefix="query ")


@pytest.fixture(scope="module")
def pool(folder):
    with EncoderPool(str(folder), devices=CPUS, max_length=MAX_LENGTH, query_prefix="query ") as pool:
        yield pool


def assert_same(pooled, single):
    assert pooled.modes == single.modes
    if "dense" in single.modes:
        np.testing.assert_allclose(pooled.dense, single.dense, **CLOSE)
    if "sparse" in single.modes:
        np.testing.assert_allclose(pooled.sparse.toarray(), single.sparse.toarray(), **CLOSE)
    if "multi_vector" in single.modes:
        assert pooled.multi_vector.offsets.tolist() == single.multi_vector.offsets.tolist()
        np.testing.assert_allclose(pooled.multi_vector.values, single.multi_vector.values, **CLOSE)


def processes():
    return {each.pid for each in multiprocessing.active_children()}


# The same as one encoder


@pytest.mark.parametrize("modes", [None, *(some for n in (1, 2) for some in combinations(MODES, n))], ids=str)
def test_vectors_are_those_of_one_encoder_in_the_callers_order(pool, one, modes):
    assert len(_parcels(TEXTS, 2)) > 4  # both processes have some
    assert_same(pool.encode_passages(TEXTS, modes), one.encode_passages(TEXTS, modes))


@pytest.mark.parametrize("order", ["shortest first", "longest first", "shuffled"])
def test_vectors_follow_their_texts_in_any_order(pool, one, order):
    by_length = sorted(TEXTS, key=len)
    shuffled = [TEXTS[i] for i in np.random.default_rng(1).permutation(len(TEXTS))]
    texts = {"shortest first": by_length, "longest first": by_length[::-1], "shuffled": shuffled}[order]
    assert_same(pool.encode_passages(texts), one.encode_passages(texts))


def test_questions_have_their_prefix(pool, one):
    assert_same(pool.encode_queries(TEXTS), one.encode_queries(TEXTS))
    assert not np.allclose(pool.encode_queries(TEXTS).dense, one.encode_passages(TEXTS).dense)


@pytest.mark.parametrize("texts", [[], ["the bridge"], ["the bridge", "", "мост"]], ids=len)
def test_few_texts_are_one_parcel_and_come_as_from_one_encoder(pool, one, texts):
    assert len(_parcels(texts, 2)) == 1
    assert_same(pool.encode_queries(texts), one.encode_queries(texts))


@pytest.mark.parametrize("fact", FACTS)
def test_it_says_of_itself_what_its_encoders_say(pool, one, fact):
    assert getattr(pool, fact) == getattr(one, fact)


def test_it_keeps_the_protocol(pool):
    assert isinstance(pool, Encoder)


def test_it_takes_the_options_of_an_encoder():
    taken = dict(inspect.signature(EncoderPool).parameters)
    expected = dict(inspect.signature(M3Encoder.from_pretrained).parameters)
    assert taken.pop("devices").default is expected.pop("device").default is None
    assert {name: (each.default, each.kind, each.annotation) for name, each in taken.items()} == {
        name: (each.default, each.kind, each.annotation) for name, each in expected.items()
    }


def test_every_text_is_in_one_parcel_and_the_longest_are_in_the_first():
    parcels = _parcels(TEXTS, 2)
    assert sorted(np.concatenate(parcels).tolist()) == list(range(len(TEXTS)))
    lengths = [[len(TEXTS[i].encode()) for i in rows] for rows in parcels]
    assert all(min(first) >= max(then) for first, then in pairwise(lengths))
    assert max(map(sum, lengths)) < 2 * min(map(sum, lengths[:-1]))


def test_an_index_is_filled_through_it(pool, one):
    passages = [Passage(f"p{i:03d}", text) for i, text in enumerate(long_texts(200, seed=2))]
    pooled, single = MemoryIndex(), MemoryIndex()
    assert ingest(pool, pooled, passages).added == ingest(one, single, passages).added == 200
    ids = [passage.id for passage in passages]
    assert_same(pooled.vectors(ids, MODES), single.vectors(ids, MODES))
    found, expected = (Retriever(each, index).retrieve("волга мост") for each, index in ((pool, pooled), (one, single)))
    assert [match.passage.id for match in found] == [match.passage.id for match in expected]


def test_threads_have_each_their_own_answer(pool, one):
    asked = [long_texts(number, seed=number) for number in (1, 150, 2, 200, 3, 0, 120, 1)]
    expected = [one.encode_passages(texts) for texts in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        for _ in range(3):
            for pooled, single in zip(threads.map(pool.encode_passages, asked), expected, strict=True):
                assert_same(pooled, single)


def test_progress_is_shown_when_it_is_asked_for(pool, capsys):
    pool.encode_passages(TEXTS, show_progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err
    pool.encode_passages(TEXTS)
    assert capsys.readouterr().err == ""


# Errors and warnings across the border


def test_a_text_that_gives_nan_is_named_by_its_position_in_the_callers_list(pool):
    texts = long_texts(200)
    for position in (3, 170):
        with pytest.raises(NonFiniteVector, match=rf"the text at position {position}, in float32 too; remove") as found:
            pool.encode_passages([*texts[:position], "the 橋", *texts[position:]])
        assert "_forward" in found.value.__notes__[0]  # where in the process it was
    assert len(pool.encode_passages(texts)) == 200


def test_texts_that_are_cut_are_counted_once_over_all_parcels(pool, one):
    texts = [*long_texts(100), *["the " * 80] * 30, *long_texts(100), "мост " * 70]
    with pytest.warns(TextsTruncated) as expected:
        single = one.encode_passages(texts)
    with pytest.warns(TextsTruncated, match=r"^31 of 231 texts are longer than 64 tokens") as said:
        pooled = pool.encode_passages(texts)
    assert [str(each.message) for each in said] == [str(each.message) for each in expected]
    assert said[0].filename == __file__
    assert_same(pooled, single)


def test_texts_that_fit_are_not_spoken_of(pool):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.encode_passages(TEXTS)


@pytest.mark.parametrize(
    ("texts", "modes"),
    [
        ("the bridge", None),
        ([*TEXTS, None], None),
        (["a", "b", "half \ud800 a pair"], None),
        (TEXTS, ("colour",)),
        (TEXTS, "dense"),
        (TEXTS, ()),
    ],
    ids=["one text", "no text", "half a pair", "no mode", "one mode", "none"],
)
def test_what_cannot_be_encoded_is_refused_as_one_encoder_refuses_it(pool, one, texts, modes):
    with pytest.raises((TypeError, ValueError, MissingMode)) as expected:
        one.encode_passages(texts, modes)
    with pytest.raises(expected.type) as found:
        pool.encode_passages(texts, modes)
    assert str(found.value) == str(expected.value)


def test_a_model_that_is_not_there_is_the_same_error_and_leaves_no_process(tmp_path):
    before = processes()
    with pytest.raises(CheckpointError) as expected:
        M3Encoder.from_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError) as found:
        EncoderPool(str(tmp_path), devices=["cpu"])
    assert str(found.value) == str(expected.value)
    assert processes() == before


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        ("cuda:0", TypeError, r"write devices=\['cuda:0'\]"),
        ([], ValueError, "name at least one, such as 'cuda:0'"),
    ],
)
def test_devices_that_are_none_are_refused_before_a_process_is_made(devices, error, message):
    with pytest.raises(error, match=message):
        EncoderPool("nowhere", devices=devices)


def test_it_does_not_travel(pool):
    with pytest.raises(TypeError, match="give the other process the model's name"):
        pickle.dumps(pool)


# Ends


def test_a_process_that_is_killed_is_said_with_its_device_and_the_pool_ends(folder):
    before = processes()
    with EncoderPool(str(folder), devices=CPUS, max_length=MAX_LENGTH) as pool, ThreadPoolExecutor(2) as threads:
        made = processes() - before
        assert len(made) == 2
        calls = [threads.submit(pool.encode_passages, MANY) for _ in range(2)]
        time.sleep(0.5)
        os.kill(min(made), signal.SIGKILL)
        for call in calls:
            with pytest.raises(WorkerLost, match=r"on 'cpu' ended by signal 9.* pass a smaller batch_tokens"):
                call.result(timeout=60)
        with pytest.raises(WorkerLost, match="on 'cpu' ended by signal 9"):
            pool.encode_queries(["the bridge"])
    assert processes() == before


def test_a_keyboard_interrupt_leaves_no_process_and_the_pool_is_closed(folder):
    before = processes()
    pool = EncoderPool(str(folder), devices=["cpu"])
    assert len(processes() - before) == 1
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), pool:
        pool.encode_passages(MANY)
    assert processes() == before
    pool.close()
    with pytest.raises(ValueError, match="this EncoderPool is closed; make another"):
        pool.encode_queries(["the bridge"])


SCRIPT = """
import os, signal, sys
from multiprocessing import active_children
from m3_integrations import EncoderPool

if __name__ == "__main__":
    pool = EncoderPool(sys.argv[1], devices=["cpu"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.killpg(0, signal.SIGINT)  # as a terminal's Ctrl-C, to all
    print(len(pool.encode_queries(["the bridge"])), *(each.pid for each in active_children()), flush=True)
    pool.encode_passages(["the bridge where мост " * 20] * 200_000)
"""


def test_a_ctrl_c_is_not_for_the_processes_and_they_end_with_a_parent_that_is_killed(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    started = [sys.executable, script, folder]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        encoded, process = map(int, parent.stdout.readline().split())
        assert (encoded, is_there(process)) == (1, True)
        time.sleep(0.5)
        parent.kill()
    until = time.monotonic() + 10
    while is_there(process):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_there(process):
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status  # one that nobody waits for has ended too


# What runs in a process


class OfTwo(Exception):
    """Is pickled, and cannot be made again."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class OfALock(Exception):
    """Cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (NonFiniteVector("first in row 3"), NonFiniteVector, "^first in row 3$"),
        (FileNotFoundError(2, "no file"), FileNotFoundError, "no file"),
        (OfTwo("this", "that"), RuntimeError, "^OfTwo: this and that$"),
        (OfALock("not me"), RuntimeError, "^OfALock: not me$"),
    ],
    ids=repr,
)
def test_an_error_that_does_not_travel_is_told_and_others_come_as_they_are(error, expected, message):
    here, there = multiprocessing.Pipe()
    with here, there:
        _send_error(there, error, [])
        with pytest.raises(expected, match=message):
            _opened(_received(here))


class Watched(EncoderInTurn):
    """Says how many batches were computed at once, and computes none before two calls were tokenised."""

    def __init__(self, *options, **named):
        super().__init__(*options, **named)
        self.change = threading.Condition()
        self.tokenised = self.computing = self.most = 0

    def _forward_all(self, sequences, modes):
        with self.change:
            self.tokenised += 1
            self.change.notify_all()
        return super()._forward_all(sequences, modes)

    def _run(self, model, batch, modes):
        with self.change:
            assert self.change.wait_for(lambda: self.tokenised == 2, timeout=10)
            self.computing += 1
            self.most = max(self.most, self.computing)
        time.sleep(0.01)
        states = super()._run(model, batch, modes)
        with self.change:
            self.computing -= 1
        return states


def test_one_parcel_is_computed_at_a_time_while_the_next_is_tokenised(folder, one):
    encoder = Watched.from_pretrained(str(folder), device="cpu", max_length=MAX_LENGTH)
    with ThreadPoolExecutor(2) as lanes:
        for encoded in lanes.map(encoder.encode_passages, [TEXTS, TEXTS]):
            assert_same(encoded, one.encode_passages(TEXTS))
    assert (encoder.tokenised, encoder.most) == (2, 1)
