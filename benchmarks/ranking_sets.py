"""Judged collections for the choice of ranking rules, sampled and scored in each mode; scores are kept in a folder.

Dev: the splits that choose. Test: the splits that are only reported, with every pair of XQuAD's languages. Both have
code-like search, made from Python's standard library: the first line of a docstring finds the function, without its
docstring; modules are split by the hash of their path.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import bm25s
import numpy as np
import scipy.sparse

from m3_integrations import Encoded, M3Encoder, Passage, Query
from m3_integrations.core import score_mode
from m3_integrations.core.scoring import inverse_document_frequency
from m3_integrations.data import JudgedCollection, read_beir

Array = np.ndarray
Scores = Mapping[str, Array]  # (queries, passages) by name: dense, sum, mean, idf, multi_vector, bm25, and the grades
SPLITS = {
    "dev": (
        *("stackfaq", "afriqa_fr", "faquad_pt", "facqa_id", "scifact", "norquad_no"),
        *("medquad", "cmrc2018_zh", "jaquad_ja", "iapp_th", "long_qmsum_en"),
    ),
    "test": (
        *("stackfaq", "arcd_ar", "afriqa_fr", "scifact", "norquad_no", "medquad", "cmrc2018_zh", "jaquad_ja"),
        *("iapp_th", "long_qmsum_en", *(f"tydiqa/{language}" for language in ("ar", "bn", "en", "ko", "ru"))),
    ),
}
PAIRS = {"dev": ("ita", "tur", "kor", "swh"), "test": ("jpn", "vie", "fin", "tel")}  # of Tatoeba, with English
XQUAD = ("ar", "de", "en", "es", "hi", "zh")
WORLD = Path(__file__).parents[1] / "examples" / "world"
PASSAGES, QUERIES = 240, 200
FEW = {"long_qmsum_en": 25, "iapp_th": 120, "norquad_no": 160, "cmrc2018_zh": 160}  # collections of long passages
CODE_PASSAGES = 400


def load_sets(data: Path, split: str, encoder: M3Encoder, cache: Path) -> dict[str, Scores]:
    """Return the scores of each collection, read from the cache or computed."""
    once = EncodedOnce(encoder)
    return {name: _load(name, split, make, once, cache) for name, make in collections(data, split)}


class EncodedOnce:
    """Encodings of the queries and passages of collections; the pairs of XQuAD's languages share them."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, ...], Encoded] = {}

    def __call__(self, collection: JudgedCollection) -> tuple[Encoded, Encoded]:
        queries = tuple(query.text for query in collection.queries)
        passages = tuple(passage.text for passage in collection.passages)
        if queries not in self._known:
            self._known[queries] = self._encoder.encode_queries(queries)
        if passages not in self._known:
            self._known[passages] = self._encoder.encode_passages(passages)
        return self._known[queries], self._known[passages]


def collections(data: Path, split: str) -> Iterator[tuple[str, Callable[[], JudgedCollection]]]:
    """Yield names and readers of the sampled collections."""
    yield "world", lambda: sample(read_beir(WORLD, split))
    yield "code", lambda: sample(standard_library(split), CODE_PASSAGES, CODE_PASSAGES)
    for name in PAIRS[split]:
        yield f"tatoeba/{name}", lambda name=name: sample(read_beir(data / "tatoeba" / name, "test"))
    for name in SPLITS[split]:
        yield name, lambda name=name: sample(read_beir(data / name, split), FEW.get(name, PASSAGES))
    if split == "test":
        for asked, stored in itertools.product(XQUAD, repeat=2):
            yield f"xquad {asked}-{stored}", lambda pair=(asked, stored): sample(_xquad(data, *pair))


def _xquad(data: Path, asked: str, stored: str) -> JudgedCollection:
    questions, passages = (read_beir(data / "xquad" / language, "test") for language in (asked, stored))
    return JudgedCollection(passages.passages, questions.queries)  # the ids are the same


def sample(collection: JudgedCollection, passages: int = PASSAGES, fill: int = 0) -> JudgedCollection:
    """Return relevant passages, questions that they answer and, up to `fill` passages in all, others."""
    rng = np.random.default_rng(0)
    answers = sorted({id for query in collection.queries for id in query.relevant})
    chosen = set(rng.permutation(answers)[:passages].tolist())
    queries = [query for query in collection.queries if query.relevant.keys() & chosen]
    queries = [queries[i] for i in rng.permutation(len(queries))[:QUERIES]]
    others = sorted({passage.id for passage in collection.passages} - chosen)
    chosen |= set(rng.permutation(others)[: max(0, fill - len(chosen))].tolist())
    return JudgedCollection([passage for passage in collection.passages if passage.id in chosen], queries)


def standard_library(split: str) -> JudgedCollection:
    """Return functions of Python's standard library, found by the first line of their docstring."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Passage] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in name for part in ("test", "idlelib", "lib2to3", "site-packages", "turtledemo", "pydoc_data")):
            continue
        if (hashlib.sha256(name.encode()).digest()[0] % 2 == 0) != (split == "dev"):
            continue
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and len(function.body) > 2 and ast.get_docstring(function):
                line = (ast.get_docstring(function) or "").strip().splitlines()[0]
                function.body = function.body[1:]
                source = ast.unparse(function)
                if len(line.split()) > 3 and 80 < len(source) < 2500:
                    found.setdefault(line, Passage(f"{name}:{function.lineno}", source))
    queries = [Query(passage.id, line, {passage.id: 1.0}) for line, passage in found.items()]
    return JudgedCollection(list(found.values()), queries)


def _load(name: str, split: str, make: Callable[[], JudgedCollection], once: EncodedOnce, cache: Path) -> Scores:
    path = cache / f"{split}-{name.replace('/', '-').replace(' ', '-')}.npz"
    if path.is_file():
        return dict(np.load(path))
    collection = make()
    scores = {"grades": grades(collection), "bm25": bm25_scores(collection), **mode_scores(*once(collection))}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **scores)
    print(f"scored {split} {name}: {scores['grades'].shape}", flush=True)
    return scores


def mode_scores(queries: Encoded, passages: Encoded) -> dict[str, Array]:
    """Return the scores of each mode, and of the sparse mode with each convention."""
    rows = scipy.sparse.csr_array(passages.sparse)
    counts = np.bincount(rows.indices, minlength=rows.shape[1])
    sparse = {
        "sum": queries.with_sparse_score("sum"),
        "mean": queries.with_sparse_score("mean"),
        "idf": queries.with_sparse_score("idf").with_idf(
            lambda tokens: inverse_document_frequency(counts[tokens], len(passages))
        ),
    }
    scores = {name: score_mode("sparse", each, passages) for name, each in sparse.items()}
    return scores | {mode: score_mode(mode, queries, passages) for mode in ("dense", "multi_vector")}


def bm25_scores(collection: JudgedCollection) -> Array:
    """Return the scores of BM25 over words (bm25s without stop words)."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize([each.text for each in collection.passages], show_progress=False), show_progress=False)
    words = bm25s.tokenize([each.text for each in collection.queries], return_ids=False, show_progress=False)
    return np.array([index.get_scores(each) if each else np.zeros(len(collection.passages)) for each in words])


def grades(collection: JudgedCollection) -> Array:
    """Return the grade of each passage for each query."""
    return np.array(
        [[query.relevant.get(passage.id, 0.0) for passage in collection.passages] for query in collection.queries]
    )
