"""Damaged files are read, or refused by an error of ours, in bounded memory; `python -m tests.fuzz` tries more."""

from __future__ import annotations

import json
import random
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings

from m3_integrations.core.errors import M3Error
from tests.fuzz.limits import bounded
from tests.fuzz.mutation import damage, draw_edits, edits
from tests.fuzz.readers import MANIFEST, READERS, read_file, read_manifest
from tests.fuzz.samples import CLICKS, DATASET, EXAMPLES, FILES, PAIRS, lines, parquet_file, weight_file

CONTENTS = {**FILES, "weights.bin": weight_file(), "passages.parquet": parquet_file(), "manifest": MANIFEST}
RANDOM_CASES = 430  # of each kind, beside those of hypothesis: more than 10,000 in all
WHOLE = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def use(name, content, place):
    with bounded():
        if name == "manifest":
            read_manifest(content, place)
        else:
            read_file(name, content, place)


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name, tmp_path):
    use(name, CONTENTS[name], tmp_path)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    @WHOLE
    @given(edits)
    def check(changes):
        with suppress(M3Error):
            use(name, damage(CONTENTS[name], changes), tmp_path)

    check()
    choice = random.Random(name)
    for _ in range(RANDOM_CASES):
        with suppress(M3Error):
            use(name, damage(CONTENTS[name], draw_edits(choice)), tmp_path)


def bomb(size):
    """Return gzip of so many zeros without a line end, made in pieces."""
    packer, piece = zlib.compressobj(9, zlib.DEFLATED, 31), b" " * (1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(size >> 20)), packer.flush()])


def patched(at, layout, value):
    """Return the weight file with another number at a place."""
    content = bytearray(weight_file())
    struct.pack_into(f"<{layout}", content, at, value)
    return bytes(content)


def first_tensor(field, layout, value):
    """Return the weight file with another number in the first entry of its directory."""
    content = weight_file()
    at = content.index(b"emb.word") + len(b"emb.word") + {"kind": 0, "count": 1, "offset": 5}[field]
    return patched(at, layout, value)


# What readers once crashed on, hung on, took gigabytes for, or took for data.
CRASHES = {
    "a time of 400 digits": ("clicks.jsonl", lines({**CLICKS[0], "time": 10**400})),
    "a time that is no number": ("clicks.csv", b"query,passage,time\na,b,nan\n"),
    "an infinite time": ("clicks.jsonl", lines({**CLICKS[0], "time": float("inf")})),
    "a weight of 400 digits": ("clicks.jsonl", lines({**CLICKS[0], "weight": 10**400})),
    "answers that are a number": ("dataset.json", json.dumps({**DATASET, "relevant_docs": {"q": 5}}).encode()),
    "a grade that is a word": ("dataset.json", json.dumps({**DATASET, "relevant_docs": {"q": {"d": "x"}}}).encode()),
    "a question that is a number": ("dataset.json", json.dumps({**DATASET, "queries": {"q": 5}}).encode()),
    "a pair without a passage": ("pairs.jsonl", lines({**PAIRS[0], "passage": ""})),
    "a pair whose weight is no number": ("pairs.jsonl", lines({**PAIRS[0], "weight": float("nan")})),
    "a score of 400 digits": ("examples.jsonl", lines({**EXAMPLES[0], "pos_scores": [10**400, 0]})),
    "brackets 100,000 deep": ("passages.jsonl", b"[" * 100_000),
    "a number of 5,000 digits": ("passages.jsonl", b'{"_id": "a", "text": "b", "n": ' + b"9" * 5000 + b"}\n"),
    "a bomb of one line": ("passages.jsonl.gz", bomb(1 << 30)),
    "a cut gzip file": ("passages.jsonl.gz", FILES["passages.jsonl.gz"][:-9]),
    "UTF-16 cut in a character": ("clicks.tsv", FILES["clicks.tsv"][:-1]),
    "a grade that is no number": ("qrels.trec", b"q1 0 d1 nan\n"),
    "a tensor of 16 GB": ("weights.bin", first_tensor("count", "I", (1 << 32) - 1)),
    "a tensor beyond the file": ("weights.bin", first_tensor("offset", "Q", 1 << 62)),
    "a tensor of an unknown kind": ("weights.bin", first_tensor("kind", "B", 9)),
    "a billion layers": ("weights.bin", patched(12, "i", 10**9)),
    "no attention heads": ("weights.bin", patched(16, "i", 0)),
    "an end token outside the vocabulary": ("weights.bin", patched(52, "i", 99)),
    "a manifest with a list of files": ("manifest", MANIFEST.replace(b'{"model.onnx": "def"}', b'["model.onnx"]')),
    "a manifest of a file with a long name": ("manifest", MANIFEST.replace(b"model.onnx", b"m" * 400)),
    "a manifest of files elsewhere": ("manifest", MANIFEST.replace(b"model.onnx", b"../model.onnx")),
}


@pytest.mark.parametrize("case", CRASHES)
def test_what_once_crashed_a_reader_is_refused_with_its_file(case, tmp_path):
    name, content = CRASHES[case]
    with pytest.raises(M3Error, match=tmp_path.name):
        use(name, content, tmp_path)


def test_a_number_too_large_for_a_float_is_read(tmp_path):
    use("passages.csv", b"id,text,n\na,b," + b"1" * 400 + b"\n", tmp_path)
