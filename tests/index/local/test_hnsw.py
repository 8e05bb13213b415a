from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.types import Passage
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import write_arrays
from m3_integrations.index.local.candidates import hnsw as graphs
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex

COUNT, DIM, K = 2000, 17, 10


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


def vectors(seed, count=COUNT):
    """Clustered vectors, like those of texts."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((40, DIM))
    return Encoded(dense=centers[random.integers(0, 40, count)] + 0.5 * random.standard_normal((count, DIM)))


def filled(index, first=0, seed=0, count=COUNT):
    index.add([Passage(f"p{first + i}", "", {"n": (first + i) % 100}) for i in range(count)], vectors(seed, count))
    return index


def opened(folder):
    return LocalIndex.open(folder, exact_below=100)


def recall(index, reference, where=None):
    """Return the recall of the exact hits; every hit must have its exact score."""
    queries = vectors(7, 30)
    exact = [dict(hits) for hits in reference.search("dense", queries, K, where)]
    all_exact = [dict(hits) for hits in reference.search("dense", queries, COUNT * 4)]
    hits = index.search("dense", queries, K, where)
    for each, all_scores, best in zip(hits, all_exact, exact, strict=True):
        assert [hit.score for hit in each] == [all_scores[hit.id] for hit in each]
        assert len(each) == len(best)
        assert each == sorted(each, key=lambda hit: (-hit.score, hit.id))
    return np.mean([hit.id in best for each, best in zip(hits, exact, strict=True) for hit in each])


def saved(folder):
    return list(folder.glob("*.graph"))


def test_a_graph_finds_nearly_all_hits_and_scores_them_exactly(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        assert recall(index, reference) > 0.95
        assert recall(index, reference, Field("n", "<", 20)) > 0.95
        assert recall(index, reference, Field("n", "==", 3)) == 1  # so few match that all are scanned
        assert len(saved(folder)) == 1


def test_passages_written_after_the_graph_was_built_are_found(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        (before,) = saved(folder)
        for each in (index, reference):
            filled(each, first=COUNT, seed=1, count=150)
            each.delete([f"p{i}" for i in range(0, COUNT, 20)])
            each.set_vectors([f"p{i}" for i in range(1, COUNT, 20)], vectors(2, COUNT // 20))
        assert recall(index, reference) > 0.95
        assert saved(folder) == [before]


def test_an_outdated_graph_is_built_again(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        (before,) = saved(folder)
        for each in (index, reference):
            filled(each, first=COUNT, seed=1)
        assert recall(index, reference) > 0.95
        (after,) = saved(folder)
        assert after != before


def test_a_loaded_graph_gives_the_same_hits(folder):
    with opened(folder) as index:
        hits = filled(index).search("dense", vectors(7, 30), K)
    (before,) = saved(folder)
    with opened(folder) as index:
        assert index.search("dense", vectors(7, 30), K) == hits
    assert saved(folder) == [before]


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "renamed"])
def test_a_damaged_graph_is_built_again(folder, damage):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
    (path,) = saved(folder)
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "changed":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "removed":
            path.unlink()
        case "renamed":
            path.rename(folder / path.name.replace("dense-0", "dense-9"))
    with opened(folder) as index:
        assert recall(index, reference) > 0.95
        index.verify()


@pytest.mark.parametrize("seed", range(40))
def test_a_corrupt_graph_is_ignored_or_harmless(tmp_path, seed):
    random = np.random.default_rng(seed)
    graph = graphs.build(1, np.arange(300), [vectors(0, 300).dense], DIM)
    arrays = graphs._to_arrays(graph)
    name = ["slots", "levels", "neighbours", "entry", "codes"][seed % 5]
    corrupt = arrays[name].copy()
    corrupt[random.integers(0, len(corrupt), 3)] = random.integers(-5, 120 if seed % 2 else 2**31 - 1, 3).astype(
        corrupt.dtype
    )
    written = write_arrays(tmp_path / "graph", {**arrays, name: corrupt})
    (tmp_path / "graph").rename(tmp_path / f"dense-{1:08d}-{written.checksum}.graph")
    loaded = graphs.load(tmp_path, 1, DIM)
    if loaded is not None:
        assert loaded.search(vectors(7, 30).dense, K, np.ones(300, bool)).max() < 300
