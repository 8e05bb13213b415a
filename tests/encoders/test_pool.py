"""EncoderPool over two processes on the CPU, against one M3Encoder on the same tiny random checkpoint."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from m3_integrations import Encoder, EncoderPool, M3Encoder, MemoryIndex, Passage, Retriever, ingest
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError, MissingMode, NonFiniteVector, TextsTruncated, WorkerLost
from m3_integrations.encoders.base import EncoderConfig
from m3_integrations.encoders.pool import _split_into_chunks
from m3_integrations.encoders.pool_workers import SerialEncoder, _portable_errors
from m3_integrations.models.checkpoint import OWN_FILE
from tests.checkpoints import WORDS

CPUS = ["cpu", "cpu"]
MAX_LENGTH = 64
CLOSE = {"rtol": 0, "atol": 2e-6}
PROPERTIES = (
    *("name", "modes", "weights", "sparse_score", "dense_dim", "multi_vector_dim", "vocab_size", "max_length"),
    "fingerprint",
)


def long_texts(number, *, words=50, seed=0):
    """Enough texts for several chunks, of up to `words` words without the poisoned one; some are empty."""
    random, harmless = np.random.default_rng(seed), [word for word in WORDS if word != "橋"]
    return [" ".join(random.choice(harmless, random.integers(words + 1))) for _ in range(number)]


TEXTS = ["", *long_texts(300), "  "]
MANY = TEXTS * 100


@pytest.fixture(scope="module")
def folder(bge_m3, tmp_path_factory):
    """A checkpoint in which the embedding of one word, 橋, is NaN."""
    folder = shutil.copytree(bge_m3(), tmp_path_factory.mktemp("poisoned") / "model")
    (poison,) = AutoTokenizer.from_pretrained(folder)("橋", add_special_tokens=False)["input_ids"]
    backbone = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[poison] = torch.nan
    backbone.save_pretrained(folder)
    (folder / OWN_FILE).write_text(json.dumps({"pooling": "cls", "sparse_score": "mean"}))
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


# Equal to one encoder


@pytest.mark.parametrize("modes", [None, *(some for n in (1, 2) for some in combinations(MODES, n))], ids=str)
def test_vectors_equal_those_of_one_encoder_in_the_order_of_the_texts(pool, one, modes):
    assert len(_split_into_chunks(TEXTS, 2)) > 4  # both processes have some
    assert_same(pool.encode_passages(TEXTS, modes), one.encode_passages(TEXTS, modes))


@pytest.mark.parametrize("order", ["shortest first", "longest first", "shuffled"])
def test_vectors_follow_their_texts_in_any_order(pool, one, order):
    by_length = sorted(TEXTS, key=len)
    shuffled = [TEXTS[i] for i in np.random.default_rng(1).permutation(len(TEXTS))]
    texts = {"shortest first": by_length, "longest first": by_length[::-1], "shuffled": shuffled}[order]
    assert_same(pool.encode_passages(texts), one.encode_passages(texts))


def test_sparse_weights_of_queries_are_divided_as_the_checkpoint_says(pool, one):
    pooled, single = pool.encode_queries(TEXTS), one.encode_queries(TEXTS)
    assert pooled.sparse_score == single.sparse_score == "mean"
    assert_same(pooled.with_sparse_score("sum"), single.with_sparse_score("sum"))


def test_queries_have_their_prefix(pool, one):
    assert_same(pool.encode_queries(TEXTS), one.encode_queries(TEXTS))
    assert not np.allclose(pool.encode_queries(TEXTS).dense, one.encode_passages(TEXTS).dense)


@pytest.mark.parametrize("texts", [[], ["the bridge"], ["the bridge", "", "мост"]], ids=len)
def test_few_texts_are_one_chunk_and_equal_those_of_one_encoder(pool, one, texts):
    assert len(_split_into_chunks(texts, 2)) == 1
    assert_same(pool.encode_queries(texts), one.encode_queries(texts))


def test_a_chunk_of_all_texts_keeps_their_order(pool, one):
    texts = ["мост", "the bridge" + " " * 5000]
    assert [rows.tolist() for rows in _split_into_chunks(texts, 2)] == [[1, 0]]
    assert_same(pool.encode_queries(texts), one.encode_queries(texts))


@pytest.mark.parametrize("name", PROPERTIES)
def test_its_properties_are_those_of_one_encoder(pool, one, name):
    assert getattr(pool, name) == getattr(one, name)


def test_it_keeps_the_protocol(pool):
    assert isinstance(pool, Encoder)


def test_it_takes_the_options_of_an_encoder():
    taken = dict(inspect.signature(EncoderPool).parameters)
    expected = dict(inspect.signature(M3Encoder.from_pretrained).parameters)
    assert taken.pop("devices").default is expected.pop("device").default is None
    assert {name: (each.default, each.kind, each.annotation) for name, each in taken.items()} == {
        name: (each.default, each.kind, each.annotation) for name, each in expected.items()
    }


def test_every_option_reaches_the_processes(bge_m3, tmp_path):
    options = {
        "dtype": "bfloat16",
        "max_length": 48,
        "batch_tokens": 512,
        "query_prefix": "query ",
        "passage_prefix": "passage ",
        "revision": "main",
        "pooling": "cls",
        "window_overlap": 4,
        "mcls_interval": 16,
        "token_pooling": 2,
        "truncate_dim": 16,
    }
    expected = M3Encoder.from_pretrained(str(bge_m3()), device="cpu", **options)
    with EncoderPool(str(bge_m3()), devices=["cpu"], **options) as pool:
        assert pool.config == EncoderConfig(str(bge_m3()), **options)
        assert (pool.fingerprint, pool.batch_tokens) == (expected.fingerprint, expected.batch_tokens)
    (tmp_path / "other").touch()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        EncoderPool(str(bge_m3()), devices=["cpu"], backend="onnx", export_dir=str(tmp_path))
    others = {"model", "device", "backend", "export_dir", "server_url"}
    assert {field.name for field in fields(EncoderConfig)} == {*options, *others}


def test_every_text_is_in_one_chunk_and_the_longest_are_in_the_first():
    chunks = _split_into_chunks(TEXTS, 2)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(TEXTS)))
    lengths = [[len(TEXTS[i].encode()) for i in rows] for rows in chunks]
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


def test_each_thread_gets_its_own_result(pool, one):
    calls = [long_texts(number, seed=number) for number in (1, 150, 2, 200, 3, 0, 120, 1)]
    expected = [one.encode_passages(texts) for texts in calls]
    with ThreadPoolExecutor(len(calls)) as threads:
        for _ in range(3):
            for pooled, single in zip(threads.map(pool.encode_passages, calls), expected, strict=True):
                assert_same(pooled, single)


def test_progress_is_shown_on_request(pool, capsys):
    pool.encode_passages(TEXTS, show_progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err
    pool.encode_passages(TEXTS)
    assert capsys.readouterr().err == ""


# Errors and warnings of the processes


def test_a_text_that_gives_nan_is_named_by_its_position_in_the_callers_list(pool):
    texts = long_texts(200)
    for position in (3, 170):
        with pytest.raises(NonFiniteVector, match=rf"the text at position {position}, in float32 too; remove") as found:
            pool.encode_passages([*texts[:position], "the 橋", *texts[position:]])
        assert "_finish" in found.value.__notes__[0]  # where in the process it was
    assert len(pool.encode_passages(texts)) == 200


def test_texts_that_are_cut_are_counted_once_over_all_chunks(pool, one):
    texts = [*long_texts(100), *["the " * 80] * 30, *long_texts(100), "мост " * 70]
    with pytest.warns(TextsTruncated) as expected:
        single = one.encode_passages(texts)
    with pytest.warns(TextsTruncated, match=r"^31 of 231 texts are longer than 64 tokens") as recorded:
        pooled = pool.encode_passages(texts)
    assert [str(each.message) for each in recorded] == [str(each.message) for each in expected]
    assert recorded[0].filename == __file__
    assert_same(pooled, single)


def test_texts_that_fit_give_no_warning(pool):
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
def test_invalid_texts_and_modes_raise_the_errors_of_one_encoder(pool, one, texts, modes):
    with pytest.raises((TypeError, ValueError, MissingMode)) as expected:
        one.encode_passages(texts, modes)
    with pytest.raises(expected.type) as found:
        pool.encode_passages(texts, modes)
    assert str(found.value) == str(expected.value)


def test_a_missing_model_raises_the_same_error_and_leaves_no_process(tmp_path):
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
def test_invalid_devices_are_rejected_before_a_process_starts(devices, error, message):
    with pytest.raises(error, match=message):
        EncoderPool("nowhere", devices=devices)


def test_it_cannot_be_pickled(pool):
    with pytest.raises(TypeError, match="give the other process the model's name"):
        pickle.dumps(pool)


# Closing


def test_a_killed_process_is_reported_with_its_device_and_ends_the_pool(folder):
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
    os.killpg(0, signal.SIGINT)  # to the whole group, as Ctrl-C in a terminal
    print(len(pool.encode_queries(["the bridge"])), *(each.pid for each in active_children()), flush=True)
    pool.encode_passages(["the bridge where мост " * 20] * 200_000)
"""


def test_the_processes_ignore_ctrl_c_and_end_when_their_parent_is_killed(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    started = [sys.executable, script, folder]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        encoded, process = map(int, parent.stdout.readline().split())
        assert (encoded, is_there(process)) == (1, True)
        time.sleep(0.5)
        parent.kill()
    until = time.monotonic() + 60
    while is_there(process):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_there(process):
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status  # a zombie has ended too


# Inside a process


class OfTwo(Exception):
    """Can be pickled, but not unpickled."""

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
def test_an_error_that_cannot_be_sent_is_described_and_others_are_sent_unchanged(error, expected, message):
    with pytest.raises(expected) as raised, _portable_errors():
        raise error
    received = pickle.loads(pickle.dumps(raised.value))
    assert type(received) is expected
    assert re.search(message, str(received))


class Watched:
    """A backend that counts the batches computed at once, and computes none before two calls are tokenized."""

    def __init__(self, backend):
        self.backend, self.is_padded, self.batches_ahead = backend, backend.is_padded, backend.batches_ahead
        self.change = threading.Condition()
        self.tokenized = self.computing = self.most = 0

    def start(self, batch, modes):
        with self.change:
            assert self.change.wait_for(lambda: self.tokenized == 2, timeout=60)
            self.computing += 1
            self.most = max(self.most, self.computing)
        time.sleep(0.01)
        states = self.backend.start(batch, modes)
        with self.change:
            self.computing -= 1
        return states


class Counting(SerialEncoder):
    """Tells its watched backend of every call that is tokenized."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.watched = self._runner.backend.backend = Watched(self._runner.backend.backend)
        run = self._runner.run

        def counted(sequences, modes):
            with self.watched.change:
                self.watched.tokenized += 1
                self.watched.change.notify_all()
            return run(sequences, modes)

        self._runner.run = counted


def test_one_batch_is_computed_at_a_time_while_the_next_is_tokenized(folder, one):
    encoder = Counting.from_pretrained(str(folder), device="cpu", max_length=MAX_LENGTH)
    with ThreadPoolExecutor(2) as threads:
        for encoded in threads.map(encoder.encode_passages, [TEXTS, TEXTS]):
            assert_same(encoded, one.encode_passages(TEXTS))
    assert (encoder.watched.tokenized, encoder.watched.most) == (2, 1)
