"""UpdateContract: tests of changes to stored vectors and search plans, for every index."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from m3_integrations.core.encoded import MODES, Mode, SparseScore
from m3_integrations.core.errors import MissingMode, UnknownId
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.base import Index
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing.hash_encoder import HashEncoder
from m3_integrations.testing.sample_data import (
    ENCODER,
    encode,
    fill,
    hit_ids,
    same_vectors,
)

MEAN_AND_SUM: tuple[SparseScore, ...] = ("mean", "sum")
PLAN = SearchPlan(("sparse",), 7, {"dense": 0.5, "sparse": 2.0})


class UpdateContract:
    """Tests of `set_vectors`, `plan` and of searches during writes; part of `IndexContract`."""

    @pytest.fixture
    def index(self) -> Index:
        raise NotImplementedError("define the fixture `index`, which returns an empty index")

    def reopen(self, index: Index) -> Index:
        """Close and reopen the index; one without storage returns itself."""
        return index

    @pytest.mark.parametrize("mode", MODES)
    def test_set_vectors_replaces_one_mode_and_leaves_the_others(self, index: Index, mode: Mode) -> None:
        fill(index, ["red", "blue", "green"])
        index.set_vectors(["p2", "p0"], encode(["dog", "cat cat"]).only([mode]))
        index = self.reopen(index)
        others = [each for each in MODES if each != mode]
        assert same_vectors(index.vectors(["p0", "p1", "p2"], [mode]), encode(["cat cat", "blue", "dog"]).only([mode]))
        assert same_vectors(index.vectors(["p0", "p1", "p2"], others), encode(["red", "blue", "green"]).only(others))
        assert index.passages(["p0"])[0].text == "red"
        assert hit_ids(index.search(mode, encode(["dog"]), 1)[0]) == ["p2"]

    def test_set_vectors_is_all_or_nothing(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        before = index.vectors(["p0", "p1"])
        with pytest.raises(UnknownId, match="unknown"):
            index.set_vectors(["p0", "unknown"], encode(["dog", "dog"]))
        with pytest.raises(ValueError, match="2 ids but 1 encoded rows"):
            index.set_vectors(["p0", "p1"], encode(["dog"]))
        index.set_vectors([], encode([]))
        assert same_vectors(index.vectors(["p0", "p1"]), before)

    def test_it_keeps_its_search_plan(self, index: Index) -> None:
        assert index.plan is None
        index.plan = PLAN
        fill(index, ["red", "blue"])
        index = self.reopen(index)
        assert index.plan == PLAN
        assert repr(PLAN) in repr(index)
        index.delete(["p0"])
        index.set_vectors(["p1"], encode(["dog"]))
        assert self.reopen(index).plan == PLAN

    def test_a_search_plan_is_set_with_vectors_or_not_at_all(self, index: Index) -> None:
        fill(index, ["red"])
        with pytest.raises(UnknownId, match="unknown"):
            index.set_vectors_many([(["unknown"], encode(["dog"]))], PLAN)
        assert index.plan is None
        index.set_vectors_many([(["p0"], encode(["dog"]))], PLAN)
        index = self.reopen(index)
        assert index.plan == PLAN
        assert np.array_equal(index.vectors(["p0"], ("dense",)).dense, encode(["dog"]).dense)

    def test_a_search_plan_from_before_sparse_scores_were_divided_keeps_its_sums(self, index: Index) -> None:
        fill(index, ["red cat", "blue cat", "green"])
        stored = {name: value for name, value in PLAN.to_json().items() if name != "sparse_score"}
        index.plan = SearchPlan.from_json(stored)
        index = self.reopen(index)
        assert index.plan == replace(PLAN, sparse_score="sum")
        means = HashEncoder(dense_dim=8, multi_vector_dim=4, vocab_size=64, sparse_score="mean")
        before, after = (Retriever(each, index).retrieve("red cat dog", 3) for each in (ENCODER, means))
        assert after == before

    @pytest.mark.parametrize("plan", [SearchPlan(weights={"sparse": 1.0}), SearchPlan(("sparse",), 1, PLAN.weights)])
    def test_means_of_sparse_weights_divide_the_score_by_the_query_s_sum(self, index: Index, plan: SearchPlan) -> None:
        fill(index, ["red cat", "blue cat dog", "green", "red"])
        for query in ("red cat", "dog dog blue"):
            total = encode([query]).sparse.sum()
            sums = Retriever(ENCODER, index, plan).retrieve(query, 4)
            means = Retriever(ENCODER, index, replace(plan, sparse_score="mean")).retrieve(query, 4)
            parts = {match.passage.id: match.by_mode["sparse"] for match in sums}
            for match in means:
                assert match.by_mode["sparse"] == pytest.approx(parts[match.passage.id] / total, rel=1e-5)
                assert match.score == sum(match.by_mode.values())
            (hits,), (undivided,) = (
                index.search("sparse", encode([query]).with_sparse_score(each), 4) for each in MEAN_AND_SUM
            )
            assert hit_ids(hits) == hit_ids(undivided)
            assert [hit.score for hit in hits] == pytest.approx([hit.score / total for hit in undivided], rel=1e-5)

    def test_rank_fusion_sums_the_reciprocal_ranks_of_each_mode_with_ties_by_id(self, index: Index) -> None:
        fill(index, ["red cat", "red cat", "blue cat dog", "green", "red"])
        index.plan = SearchPlan(fusion="rrf", weights={"dense": 2.0, "sparse": 1.0, "multi_vector": 0.5})
        index = self.reopen(index)
        weights: dict[Mode, float] = {"dense": 2.0, "sparse": 1.0, "multi_vector": 0.5}
        assert index.plan == SearchPlan(fusion="rrf", weights=weights)
        matches = Retriever(ENCODER, index).retrieve("red cat", 5)
        query, everything = encode(["red cat"]), index.ids()
        expected = dict.fromkeys(everything, 0.0)
        for mode in MODES:
            (scores,) = index.score(mode, query, [everything])
            found = [i for i in range(len(everything)) if mode != "sparse" or scores[i] > 0]
            for rank, i in enumerate(sorted(found, key=lambda i: (-scores[i], everything[i])), start=1):
                expected[everything[i]] += weights[mode] / (60 + rank)
        assert [match.passage.id for match in matches] == sorted(expected, key=lambda id: (-expected[id], id))
        for match in matches:
            assert match.score == pytest.approx(expected[match.passage.id], rel=1e-12)
            assert match.score == sum(match.by_mode.values())
        assert Retriever(ENCODER, index, SearchPlan(modes=("dense", "sparse"), fusion="rrf")).weights == {
            "dense": 1.0,
            "sparse": 1.0,
        }

    def test_the_default_plan_removes_the_stored_one(self, index: Index) -> None:
        fill(index, ["red"])
        index.plan = PLAN
        index.set_vectors_many([], SearchPlan())
        assert self.reopen(index).plan is None

    def test_several_updates_are_one_commit(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        dense, sparse = encode(["dog", "cat"]).only(["dense"]), encode(["cat", "dog"]).only(["sparse"])
        index.set_vectors_many([(["p2", "p0"], dense), (["p1", "p2"], sparse)])
        index = self.reopen(index)
        stored = index.vectors(["p0", "p1", "p2"])
        assert same_vectors(stored.only(["dense"]), encode(["cat", "blue", "dog"]).only(["dense"]))
        assert same_vectors(stored.only(["sparse"]), encode(["red", "cat", "dog"]).only(["sparse"]))
        with pytest.raises(UnknownId, match="unknown"):
            index.set_vectors_many([(["p0"], dense.take([0])), (["unknown"], sparse.take([0]))])
        with pytest.raises(ValueError, match="remove it from one of them"):
            index.set_vectors_many([(["p0"], dense.take([0])), (["p1", "p0"], dense)])
        assert same_vectors(index.vectors(["p0", "p1", "p2"]), stored)

    def test_set_vectors_stores_the_last_row_if_an_id_occurs_twice(self, index: Index) -> None:
        fill(index, ["red"])
        index.set_vectors(["p0", "p0"], encode(["dog", "cat"]))
        assert same_vectors(index.vectors(["p0"]), encode(["cat"]))

    def test_set_vectors_in_a_mode_that_is_not_stored_is_an_error(self, index: Index) -> None:
        index.add([Passage("a", "red")], encode(["red"]).only(["dense"]))
        with pytest.raises(MissingMode, match=r"not sparse or multi_vector; use encoded\.only"):
            index.set_vectors(["a"], encode(["blue"]))
        assert same_vectors(index.vectors(["a"]), encode(["red"]).only(["dense"]))

    # Threads

    def test_a_search_sees_a_write_completely_or_not_at_all(self, index: Index) -> None:
        ids = [f"p{i}" for i in range(50)]
        states = [encode([word] * len(ids)) for word in ("red", "blue")]
        index.add([Passage(id, "") for id in ids], states[0])
        query = encode(["red"])
        whole = {float(index.search("dense", query, 1)[0][0].score)}
        index.set_vectors(ids, states[1])
        whole.add(float(index.search("dense", query, 1)[0][0].score))
        torn: list[object] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                scores = {float(hit.score) for hit in index.search("dense", query, 50)[0]}
                if len(scores) != 1 or not scores <= whole:
                    torn.append(scores)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for i in range(20):
            index.set_vectors(ids, states[i % 2])
        done.set()
        for reader in readers:
            reader.join()
        assert torn == []
