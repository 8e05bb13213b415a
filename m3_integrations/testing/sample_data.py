"""Sample passages, embeddings and filters for tests of an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Encoded, MultiVectors, row_count
from m3_integrations.core.types import Passage
from m3_integrations.index.base import Hit, Index, LexicalIndex, Where
from m3_integrations.index.filters import Field, all_of, any_of, none_of
from m3_integrations.testing.hash_encoder import HashEncoder

ENCODER = HashEncoder(dense_dim=8, multi_vector_dim=4, vocab_size=64)
WORDS = ("red", "blue", "green", "cat", "dog")
# Few words and few ids, so that scores tie and ids are replaced.
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
ids = st.sampled_from([*(f"p{i}" for i in range(8)), "é", "e\u0301", "\U0001f600", "日本", "p\x00", "\ud800"])
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0]) | st.sampled_from(WORDS)
values = scalars | st.lists(scalars, max_size=3)
names = st.sampled_from(["a", "b", "c.d", "c"])
metadata = st.dictionaries(names, values | st.dictionaries(st.sampled_from("de"), values, max_size=2), max_size=3)
passages = st.builds(Passage, id=ids, text=texts, metadata=metadata)
fields = st.one_of(
    st.builds(Field, names, st.sampled_from(["==", "!=", "contains"]), values),
    st.builds(Field, names, st.sampled_from(["in", "not in"]), st.lists(values, max_size=3)),
    st.builds(Field, names, st.sampled_from(["<", "<=", ">", ">="]), scalars.filter(lambda value: value is not None)),
    st.builds(Field, names, st.just("exists"), st.booleans()),
)
wheres = st.recursive(
    fields,
    lambda parts: st.builds(
        lambda combine, chosen: combine(*chosen),
        st.sampled_from([all_of, any_of, none_of]),
        st.lists(parts, max_size=3),
    ),
    max_leaves=5,
)
writes = st.one_of(
    st.tuples(st.just("add"), st.lists(passages, max_size=5)),
    st.tuples(st.just("delete"), st.lists(ids, max_size=3)),
    st.tuples(st.just("set_vectors"), st.sets(st.sampled_from(MODES), min_size=1), st.lists(texts, max_size=4)),
    st.tuples(st.just("reopen")),
)


def encode(texts: Sequence[str]) -> Encoded:
    """Encode passages or queries by `ENCODER`."""
    return ENCODER.encode_passages(texts)


def add(index: Index, *added: Passage) -> None:
    """Add passages with their embeddings."""
    index.add(added, encode([passage.text for passage in added]))


def fill(index: Index, texts: Sequence[str]) -> None:
    """Add texts with the ids p0, p1, .. and their number `i` as metadata."""
    add(index, *(Passage(f"p{i}", text, {"i": i}) for i, text in enumerate(texts)))


def hit_ids(hits: Sequence[Hit]) -> list[str]:
    """Return the ids of hits."""
    return [hit.id for hit in hits]


def same_vectors(one: Encoded, other: Encoded) -> bool:
    """Return whether embeddings have the same modes and are bit-for-bit identical."""
    return one.modes == other.modes and all(_same_part(getattr(one, m), getattr(other, m)) for m in one.modes)


def _same_part(one: Any, other: Any) -> bool:
    if isinstance(one, MultiVectors):
        return np.array_equal(one.values, other.values) and np.array_equal(one.offsets, other.offsets)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return row_count(one) == row_count(other) and one.shape == other.shape and (one != other).nnz == 0


def assert_same_results(index: Index, reference: Index, where: Where | None = None) -> None:
    """Compare an index with a reference index in every call."""
    queries = encode(["red cat", "blue", "dog dog green", "unheard", ""])
    assert len(index) == len(reference)
    assert index.ids() == reference.ids()
    assert index.ids(where) == reference.ids(where)
    assert index.passages() == reference.passages()
    assert index.content_hashes() == reference.content_hashes()
    for mode in reference.modes:
        for k in (1, 3, 100):
            assert index.search(mode, queries, k) == reference.search(mode, queries, k)
            assert index.search(mode, queries, k, where) == reference.search(mode, queries, k, where)
        all_ids = [reference.ids()] * len(queries)
        assert np.array_equal(index.score(mode, queries, all_ids), reference.score(mode, queries, all_ids))
    if isinstance(index, LexicalIndex) and "sparse" in reference.modes:
        with_idf = queries.with_sparse_score("idf")
        assert index.search("sparse", with_idf, 3) == reference.search("sparse", with_idf, 3)
    if reference.modes:
        assert same_vectors(index.vectors(reference.ids()), reference.vectors(reference.ids()))


def random_encoded(random: np.random.Generator, count: int) -> Encoded:
    """Draw embeddings in all modes."""
    sparse = scipy.sparse.random(count, 64, density=0.1, format="csr", dtype=np.float32, random_state=random)
    return Encoded(
        dense=random.standard_normal((count, 8), np.float32),
        sparse=scipy.sparse.csr_array(sparse),
        multi_vector=MultiVectors.of([random.standard_normal((int(n), 4)) for n in random.integers(0, 6, count)]),
    )
