from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.texts import Passage
from m3_integrations.index import graph as graphs
from m3_integrations.index.arrays import write_arrays
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field

COUNT, DIM, K = 2000, 17, 10


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


def vectors(seed, count=COUNT):
    """Clustered, as texts are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    return Encoded(dense=centres[random.integers(0, 40, count)] + 0.5 * random.standard_normal((count, DIM)))


def filled(index, first=0, seed=0, count=COUNT):
    index.add([Passage(f"p{first + i}", "", {"n": (first + i) % 100}) for i in range(count)], vectors(seed, count))
    return index


def opened(folder):
    return LocalIndex.open(folder, exact_below=100)


def recall(index, judge, where=None):
    """The share of the exact hits that were found; each found one has its exact score."""
    queries = vectors(7, 30)
    exact = [dict(hits) for hits in judge.search("dense", queries, K, where)]
    everyone = [dict(hits) for hits in judge.search("dense", queries, COUNT * 4)]
    hits = index.search("dense", queries, K, where)
    for each, all_scores, best in zip(hits, everyone, exact, strict=True):
        assert [hit.score for hit in each] == [all_scores[hit.id] for hit in each]
        assert len(each) == len(best)
        assert each == sorted(each, key=lambda hit: (-hit.score, hit.id))
    return np.mean([hit.id in best for each, best in zip(hits, exact, strict=True) for hit in each])


def saved(folder):
    return list(folder.glob("*.graph"))


def test_a_graph_finds_nearly_all_and_scores_exactly(folder):
    judge = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        assert recall(index, judge) > 0.95
        assert recall(index, judge, Field("n", "<", 20)) > 0.95
        assert recall(index, judge, Field("n", "==", 3)) == 1  # so few pass that all are scanned
        assert len(saved(folder)) == 1


def test_what_was_written_after_the_graph_was_built_is_found(folder):
    judge = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, judge)
        (before,) = saved(folder)
        for each in (index, judge):
            filled(each, first=COUNT, seed=1, count=150)
            each.delete([f"p{i}" for i in range(0, COUNT, 20)])
            each.set_vectors([f"p{i}" for i in range(1, COUNT, 20)], vectors(2, COUNT // 20))
        assert recall(index, judge) > 0.95
        assert saved(folder) == [before]


def test_a_graph_far_behind_is_built_again(folder):
    judge = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, judge)
        (before,) = saved(folder)
        for each in (index, judge):
            filled(each, first=COUNT, seed=1)
        assert recall(index, judge) > 0.95
        (after,) = saved(folder)
        assert after != before


def test_a_graph_is_loaded_again_and_proposes_the_same(folder):
    with opened(folder) as index:
        hits = filled(index).search("dense", vectors(7, 30), K)
    (before,) = saved(folder)
    with opened(folder) as index:
        assert index.search("dense", vectors(7, 30), K) == hits
    assert saved(folder) == [before]


@pytest.mark.parametrize("harm", ["cut", "changed", "removed", "renamed"])
def test_a_damaged_graph_is_built_again(folder, harm):
    judge = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, judge)
    (path,) = saved(folder)
    whole = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "changed":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "removed":
            path.unlink()
        case "renamed":
            path.rename(folder / path.name.replace("dense-0", "dense-9"))
    with opened(folder) as index:
        assert recall(index, judge) > 0.95
        index.verify()


@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_graph_is_passed_over_or_harmless(tmp_path, seed):
    random = np.random.default_rng(seed)
    graph = graphs.build(1, np.arange(300), [vectors(0, 300).dense], DIM)
    arrays = graphs._arrays(graph)
    name = ["slots", "levels", "neighbours", "entry", "codes"][seed % 5]
    hostile = arrays[name].copy()
    hostile[random.integers(0, len(hostile), 3)] = random.integers(-5, 120 if seed % 2 else 2**31 - 1, 3).astype(
        hostile.dtype
    )
    stamp = write_arrays(tmp_path / "graph", {**arrays, name: hostile})
    (tmp_path / "graph").rename(tmp_path / f"dense-{1:08d}-{stamp.checksum}.graph")
    loaded = graphs.load(tmp_path, 1, DIM)
    if loaded is not None:
        assert loaded.nearest(vectors(7, 30).dense, K, np.ones(300, bool)).max() < 300
