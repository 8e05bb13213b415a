"""A folder with one damaged file is read, or refused by an error of ours, in bounded memory."""

from __future__ import annotations

import json
import random
from contextlib import suppress

import pytest

from m3_integrations.core.errors import CheckpointError, M3Error
from tests.fuzz.limits import bounded
from tests.fuzz.mutation import damage, draw_edits
from tests.fuzz.readers import FOLDERS, read_folder
from tests.fuzz.samples import folders

CASES = 22  # of each kind


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    found = folders(tmp_path_factory.mktemp("samples") / "all")
    for name in FOLDERS:  # what is loaded at first use is not counted as memory of a case
        read_folder(name, found, lambda content: content, tmp_path_factory.mktemp("whole"))
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_a_damaged_file_is_used_or_refused(name, samples, tmp_path):
    choice = random.Random(name)
    for _ in range(CASES):
        changes = draw_edits(choice)
        with suppress(M3Error), bounded():
            read_folder(name, samples, lambda content, changes=changes: damage(content, changes), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sentence-transformers settings", json.dumps({"max_seq_length": "long"}).encode()),
        ("sentence-transformers modules", b"[1]"),
        ("sentence-transformers pooling", b"[" * 100_000),
        ("checkpoint config", b"{}"),
        ("checkpoint config", json.dumps({"model_type": "bert", "num_hidden_layers": 10**9}).encode()),
        ("checkpoint tokenizer", b'{"model": {"type": "Unigram"}}'),
        ("checkpoint weights", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("checkpoint sparse head", b"version https://git-lfs.github.com/spec/v1"),
    ],
)
def test_what_once_crashed_a_reader_of_checkpoints_is_refused_with_its_folder(name, content, samples, tmp_path):
    with pytest.raises(CheckpointError, match=tmp_path.name), bounded():
        read_folder(name, samples, lambda _: content, tmp_path)
