from __future__ import annotations

import copy

import numpy as np
import pytest

from m3_integrations.core.encoded import Encoded, MultiVectors
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import map_arrays, write_arrays
from m3_integrations.index.local.candidates import late_interaction as lists
from m3_integrations.index.local.candidates.clustering import find_centroids
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.recovery.check import check_index
from m3_integrations.index.local.recovery.repair import repair_index
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing import HashEncoder

COUNT, DIM, K = 600, 16, 5


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


def vectors(seed, count=COUNT):
    """Clustered vectors, like those of tokens, four for a passage and three for a query."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((60, DIM))
    each = centers[random.integers(0, 60, 4 * count)] + 0.4 * random.standard_normal((4 * count, DIM))
    unit = each / np.linalg.norm(each, axis=1, keepdims=True)
    return Encoded(multi_vector=MultiVectors(unit.astype(np.float32), np.arange(count + 1) * 4))


def filled(index, first=0, seed=0, count=COUNT):
    index.add([Passage(f"p{first + i}", "", {"n": (first + i) % 100}) for i in range(count)], vectors(seed, count))
    return index


def opened(folder, **options):
    return LocalIndex.open(folder, exact_below={"multi_vector": 50}, **options)


def recall(index, reference, where=None):
    """Return the recall of the exact hits; every hit must have its exact score."""
    queries = vectors(7, 20)
    exact = [dict(hits) for hits in reference.search("multi_vector", queries, K, where)]
    all_exact = [dict(hits) for hits in reference.search("multi_vector", queries, len(reference))]
    hits = index.search("multi_vector", queries, K, where)
    for each, all_scores, best in zip(hits, all_exact, exact, strict=True):
        assert [hit.score for hit in each] == [all_scores[hit.id] for hit in each]
        assert len(each) == len(best)
        assert each == sorted(each, key=lambda hit: (-hit.score, hit.id))
    return np.mean([hit.id in best for each, best in zip(hits, exact, strict=True) for hit in each])


def saved(folder):
    return list(folder.glob("*.lists"))


def centroids(folder):
    (path,) = saved(folder)
    return map_arrays(path, path.stat().st_size)["centroids"].tobytes()


def test_lists_find_nearly_all_hits_and_score_them_exactly(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        assert recall(index, reference) > 0.95
        assert recall(index, reference, Field("n", "<", 20)) > 0.95
        assert recall(index, reference, Field("n", "==", 3)) == 1  # so few match that all are scanned
        assert len(saved(folder)) == 1


def test_more_candidates_than_are_scored_at_first(folder):
    reference = filled(MemoryIndex(), count=5 * COUNT)
    with opened(folder) as index:
        filled(index, count=5 * COUNT)
        assert recall(index, reference) > 0.95


def test_few_passages_are_scanned_and_no_lists_are_built(folder):
    reference = filled(MemoryIndex())
    with LocalIndex.open(folder) as index:
        filled(index)
        assert recall(index, reference) == 1
        assert saved(folder) == []


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_lists_of_coded_vectors(folder, precision):
    with opened(folder, precision={"multi_vector": precision}) as index, LocalIndex.open(folder) as exact:
        filled(index)
        assert recall(index, exact) > 0.95
        assert len(saved(folder)) == 1


def test_passages_written_after_the_lists_were_built_are_found(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        before = saved(folder)
        for each in (index, reference):
            filled(each, first=COUNT, seed=1, count=100)
            each.delete([f"p{i}" for i in range(0, COUNT, 20)])
            each.set_vectors([f"p{i}" for i in range(1, COUNT, 20)], vectors(2, COUNT // 20))
        assert recall(index, reference) > 0.95
        assert saved(folder) == before


def test_many_new_vectors_are_listed_under_the_same_centroids(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        before, chosen = saved(folder), centroids(folder)
        for each in (index, reference):
            filled(each, first=COUNT, seed=1, count=200)
            each.delete([f"p{i}" for i in range(0, COUNT, 20)])
            each.set_vectors([f"p{i}" for i in range(1, COUNT, 5)], vectors(2, COUNT // 5))
        assert recall(index, reference) > 0.95
        assert saved(folder) != before
        assert centroids(folder) == chosen
    with opened(folder) as again:
        assert recall(again, reference) > 0.95


def test_lists_of_which_most_passages_were_deleted_are_written_again(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        (before,), chosen = saved(folder), centroids(folder)
        size = before.stat().st_size
        for each in (index, reference):
            each.delete([f"p{i}" for i in range(COUNT) if i % 3])
        assert recall(index, reference) > 0.95
        assert saved(folder)[0].stat().st_size < size
        assert centroids(folder) == chosen


def test_an_index_that_has_grown_fivefold_chooses_centroids_again(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        chosen = centroids(folder)
        for each in (index, reference):
            filled(each, first=COUNT, seed=1, count=4 * COUNT)
        assert recall(index, reference) > 0.95
        assert centroids(folder) != chosen


def test_moved_vectors_are_found_where_they_are_and_again_where_they_were(folder):
    reference, ids = filled(MemoryIndex()), [f"p{i}" for i in range(0, COUNT, 2)]
    with opened(folder) as index:
        before = filled(index).search("multi_vector", vectors(7, 20), K)
        original, moved = index.vectors(ids), vectors(3, len(ids))
        for each in (index, reference):
            each.set_vectors(ids, moved)
        assert recall(index, reference) > 0.95
        for each in (index, reference):
            each.set_vectors(ids, original)
        assert recall(index, reference) > 0.95
        after = index.search("multi_vector", vectors(7, 20), K)
        assert np.mean([a == b for a, b in zip(before, after, strict=True)]) > 0.8


def test_merged_segments_keep_their_lists(folder):
    with opened(folder) as index:
        for first in range(0, 480, 60):
            filled(index, first, first, 60)
        hits, before = index.search("multi_vector", vectors(7, 20), K), saved(folder)
        index.delete(["unknown"])  # every write merges first
        assert len(list(folder.glob("multi_vector-*.segment"))) == 1
        assert index.search("multi_vector", vectors(7, 20), K) == hits
        assert saved(folder) == before


def test_loaded_lists_give_the_same_hits(folder):
    with opened(folder) as index:
        hits = filled(index).search("multi_vector", vectors(7, 20), K)
        before = saved(folder)
        with copy.copy(index) as other:
            assert other.search("multi_vector", vectors(7, 20), K) == hits
    with opened(folder) as index:
        assert index.search("multi_vector", vectors(7, 20), K) == hits
    assert saved(folder) == before


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "renamed"])
def test_damaged_lists_are_built_again(folder, damage):
    with opened(folder) as index:
        hits = filled(index).search("multi_vector", vectors(7, 20), K)
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
            path.rename(folder / path.name.replace("multi_vector-0", "multi_vector-9"))
    with opened(folder) as index:
        assert index.search("multi_vector", vectors(7, 20), K) == hits
        index.verify()


def test_check_reports_damaged_lists_as_derived_and_repair_removes_them(folder, tmp_path):
    with opened(folder) as index:
        filled(index).search("multi_vector", vectors(7, 20), K)
    (path,) = saved(folder)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    report = check_index(folder)
    assert [(each.file, each.is_derived) for each in report.files] == [(path.name, True)]
    assert report.intact == COUNT
    assert list(repair_index(folder, tmp_path / "new").removed) == [path.name]
    assert saved(folder) == []


@pytest.mark.parametrize("name", sorted(lists._TYPES))
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_corrupt_lists_are_ignored_or_harmless(folder, name, value):
    with opened(folder) as index:
        filled(index, count=100).search("multi_vector", vectors(7, 3), K)
    (path,) = saved(folder)
    arrays = dict(map_arrays(path, path.stat().st_size))
    corrupt = np.array(arrays[name])
    corrupt[len(corrupt) // 2] = value
    path.unlink()
    written = write_arrays(folder / "new", {**arrays, name: corrupt})
    (folder / "new").rename(folder / f"{path.name.split('-')[0]}-00000001-{written.checksum}.lists")
    with opened(folder) as index:
        assert all(len(hits) == K for hits in index.search("multi_vector", vectors(7, 3), K))


def test_a_purge_removes_the_lists(folder):
    reference = filled(MemoryIndex())
    with opened(folder) as index:
        filled(index)
        recall(index, reference)
        for each in (index, reference):
            each.delete(["p3"], purge=True)
        assert saved(folder) == []
        assert recall(index, reference) > 0.95


def test_texts_without_vectors_are_found_last(folder):
    with opened(folder) as index, LocalIndex.open(folder) as exact:
        filled(index)
        none = Encoded(multi_vector=MultiVectors.of([np.zeros((0, DIM))] * 2))
        index.add([Passage("a", ""), Passage("b", "")], none)
        queries = none.join(vectors(7, 2))
        hits = index.search("multi_vector", queries, K)
        assert hits[:2] == exact.search("multi_vector", queries, K)[:2]
        assert [hit.id for hit in hits[0]][:2] == ["a", "b"]
        assert {"a", "b"}.isdisjoint(hit.id for hit in hits[2])


def test_a_plan_in_which_late_interaction_proposes_scores_candidates_exactly(folder):
    encoder = HashEncoder(16, 8, 512)
    passages = [Passage(f"p{i}", f"topic{i % 30} word{i}") for i in range(300)]
    encoded = encoder.encode_passages([passage.text for passage in passages])
    plan = SearchPlan(propose=("dense", "sparse", "multi_vector"), candidates=10)
    with LocalIndex.open(folder, exact_below={"multi_vector": 50}) as index:
        for each in (index, reference := MemoryIndex()):
            each.add(passages, encoded)
        for query in ("topic3 word33", "topic7"):
            (best, *_), (exact, *_) = (Retriever(encoder, each, plan).retrieve(query, 3) for each in (index, reference))
            assert (best.passage.id, best.score, best.by_mode) == (exact.passage.id, exact.score, exact.by_mode)
    assert len(saved(folder)) == 1


@pytest.mark.parametrize("exact_below", [-1, {"dense": -1}, {"sparse": 10}])
def test_an_invalid_limit_is_refused(folder, exact_below):
    with pytest.raises(ValueError, match="is not a number of passages"):
        LocalIndex.open(folder, exact_below=exact_below)
    assert not folder.exists()


def test_each_vector_belongs_to_a_centroid_near_it():
    values = vectors(0).multi_vector.values
    centers = find_centroids(values, 60, np.random.default_rng(0))
    nearest, best = centers.assign(values)
    similarities = values @ centers.fine.T
    assert np.allclose(best, similarities[np.arange(len(values)), nearest], atol=1e-5)
    assert 30 < len(np.unique(nearest)) <= len(centers.fine) <= 80
    assert np.allclose(np.linalg.norm(centers.fine, axis=1), 1, atol=1e-5)
    assert np.mean(similarities[np.arange(len(values)), nearest] > similarities.max(axis=1) - 0.2) > 0.8


@pytest.mark.parametrize("value", [0.0, 1e30])
def test_vectors_without_direction_or_with_large_values_have_centroids(value):
    values = np.full((5, DIM), value, np.float32)
    assert np.isfinite(find_centroids(values, 3, np.random.default_rng(0)).fine).all()
