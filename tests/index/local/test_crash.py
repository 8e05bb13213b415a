"""A process is killed at any time: the folder opens again with all committed writes, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from m3_integrations.core.types import Passage
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.testing.sample_data import add, assert_same_results, encode, same_vectors

_WRITER = """
import sys
from m3_integrations.index.local import LocalIndex
sys.path.insert(0, sys.argv[3])
from test_crash import write
with LocalIndex.open(sys.argv[1]) as index:
    for number in range(int(sys.argv[2]), 10_000):
        write(index, number)
        print(number, flush=True)
"""


def write(index, number):
    """Apply the write of this number, which is the same for every index with the same writes before it."""
    random = np.random.default_rng(number)
    texts = [" ".join(random.choice(["red", "blue", "cat", "dog"], 3)) for _ in range(6)]
    ids = [f"p{i}" for i in random.integers(0, 60, 6)]
    match number % 5:
        case 0 | 1 | 2:
            add(index, *(Passage(id, text, {"n": number}) for id, text in zip(ids, texts, strict=True)))
        case 3:
            known = sorted(set(ids) & set(index.ids()))
            index.set_vectors(known, encode(texts[: len(known)]))
        case 4:
            index.delete(ids[:3])


@pytest.mark.parametrize("seed", range(3))
def test_a_folder_of_a_killed_process_has_all_committed_writes(tmp_path, seed):
    random = np.random.default_rng(seed)
    reference, done = MemoryIndex(), 0
    for _ in range(3):
        acknowledged = _killed(tmp_path / "index", done, random.uniform(0.02, 0.6))
        for number in range(done, acknowledged):
            write(reference, number)
        with LocalIndex.open(tmp_path / "index") as index:
            done = acknowledged
            if not _is_same(index, reference):  # the last write was committed, but not acknowledged
                write(reference, done)
                done += 1
            assert_same_results(index, reference)
            index.verify()
    assert done > 0


def _killed(folder, first, seconds):
    """Write from a process that is killed some seconds after its first write; return the number acknowledged."""
    command = [sys.executable, "-c", _WRITER, str(folder), str(first), __file__.rpartition("/")[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        lines = [writer.stdout.readline()]
        time.sleep(seconds)
        writer.kill()
        lines += writer.stdout.readlines()
    return 1 + max(int(line) for line in lines if line.endswith("\n"))


def _is_same(index, reference):
    ids = reference.ids()
    return index.content_hashes() == reference.content_hashes() and (
        not ids or same_vectors(index.vectors(ids), reference.vectors(ids))
    )
