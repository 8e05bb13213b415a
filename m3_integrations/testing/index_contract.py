"""IndexContract: the test suite for every index."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from m3_integrations.core.encoded import MODES, Encoded, Mode, MultiVectors
from m3_integrations.core.errors import MissingMode, UnknownId, UnsupportedFilter, WrongDimension
from m3_integrations.core.types import Passage
from m3_integrations.index.base import Hit, Index, Where, content_hash
from m3_integrations.index.filters import Field, all_of, any_of, equals, none_of
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.testing.hash_encoder import HashEncoder
from m3_integrations.testing.sample_data import (
    add,
    assert_same_results,
    encode,
    fill,
    hit_ids,
    random_encoded,
    same_vectors,
    wheres,
    writes,
)
from m3_integrations.testing.update_contract import UpdateContract


class IndexContract(UpdateContract):
    """Tests of the `Index` protocol. A subclass defines the fixture `index`, an empty index:

    class TestMine(IndexContract):
        @pytest.fixture
        def index(self):
            with MyIndex() as index:
                yield index
    """

    def test_it_implements_the_index_protocol(self, index: Index) -> None:
        assert isinstance(index, Index)

    # Sequences of writes

    def test_after_any_writes_it_returns_the_same_as_the_exact_index(self, index: Index) -> None:
        latest = self.reopen(index)

        # A separate function for each index, because hypothesis stores its examples per function.
        @settings(max_examples=60, deadline=None)
        @given(st.lists(writes, max_size=8), wheres)
        def check(written: list[tuple[Any, ...]], where: Where) -> None:
            nonlocal latest
            latest.delete(latest.ids())
            reference = MemoryIndex()
            for write in written:
                latest = self._write(latest, reference, write)
            assert_same_results(latest, reference, where)

        check()

    def _write(self, index: Index, reference: Index, write: tuple[Any, ...]) -> Index:
        match write:
            case ("add", list(added)):
                for each in (index, reference):
                    add(each, *added)
            case ("delete", deleted):
                for each in (index, reference):
                    each.delete(deleted)
            case ("set_vectors", modes, list(texts)):
                chosen = reference.ids()[: len(texts)]
                for each in (index, reference):
                    each.set_vectors(chosen, encode(texts[: len(chosen)]).only(modes))
            case ("reopen",):
                return self.reopen(index)
        return index

    # Adding

    def test_an_empty_index_returns_empty_lists(self, index: Index) -> None:
        for mode in MODES:
            assert index.search(mode, encode(["red", "cat"]), 3) == [[], []]
        assert (len(index), index.ids(), index.passages(), index.content_hashes()) == (0, [], [], {})
        assert index.modes == frozenset()

    def test_adding_nothing_does_nothing(self, index: Index) -> None:
        index.add([], encode([]))
        assert index.modes == frozenset()

    def test_adding_an_id_again_replaces_it(self, index: Index) -> None:
        add(index, Passage("a", "red", {"old": 1}), Passage("b", "blue"))
        add(index, Passage("a", "green", {"new": 2}))
        assert index.passages() == [Passage("a", "green", {"new": 2}), Passage("b", "blue")]
        assert hit_ids(index.search("sparse", encode(["red"]), 5)[0]) == []
        assert hit_ids(index.search("sparse", encode(["green"]), 5)[0]) == ["a"]
        assert index.search("dense", encode(["red"]), 5, Field("old", "exists"))[0] == []

    def test_if_an_id_occurs_twice_the_last_passage_is_stored(self, index: Index) -> None:
        add(index, Passage("a", "red"), Passage("b", "dog"), Passage("a", "green"))
        assert index.passages() == [Passage("a", "green"), Passage("b", "dog")]
        assert same_vectors(index.vectors(["a"]), encode(["green"]))

    @pytest.mark.parametrize("modes", [["dense"], ["sparse"], ["multi_vector"], ["dense", "multi_vector"]])
    def test_it_stores_the_modes_of_the_first_passages(self, index: Index, modes: list[Mode]) -> None:
        index.add([Passage("a", "red")], encode(["red"]).only(modes))
        index.add([Passage("b", "blue")], encode(["blue"]))
        assert index.modes == frozenset(modes)
        assert index.vectors(["a", "b"]).modes == frozenset(modes)
        for mode in set(MODES) - set(modes):
            with pytest.raises(MissingMode, match=mode):
                index.search(mode, encode(["red"]), 1)

    def test_a_passage_without_a_stored_mode_is_an_error(self, index: Index) -> None:
        add(index, Passage("a", "red"))
        with pytest.raises(MissingMode, match="modes="):
            index.add([Passage("b", "blue")], encode(["blue"]).only(["dense"]))
        assert index.ids() == ["a"]

    def test_vectors_of_another_width_are_an_error(self, index: Index) -> None:
        add(index, Passage("a", "red"))
        wider = HashEncoder(dense_dim=16, multi_vector_dim=4, vocab_size=64).encode_passages(["blue"])
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.add([Passage("b", "blue")], wider)
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.search("dense", wider, 1)
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.set_vectors(["a"], wider)
        assert index.ids() == ["a"]

    def test_another_number_of_rows_than_of_passages_is_an_error(self, index: Index) -> None:
        with pytest.raises(ValueError, match="1 passages but 2 encoded rows"):
            index.add([Passage("a", "red")], encode(["red", "blue"]))

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            (date(2020, 1, 1), r"isoformat\(\)"),
            (float("nan"), "None"),
            ({1, 2}, "sorted"),
            (np.arange(2), "tolist"),
            ({1: "one"}, "strings"),
            ([{"deep": b"bytes"}], "a string, a number"),
        ],
    )
    def test_metadata_that_is_not_json_is_an_error_and_nothing_is_stored(
        self, index: Index, value: Any, hint: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"(?s)'bad'.*when.*{hint}"):
            add(index, Passage("good", "red"), Passage("bad", "blue", {"when": value}))
        assert (index.ids(), index.modes) == ([], frozenset())

    @pytest.mark.parametrize("depth", [101, 330, 100_000])
    def test_metadata_nested_deeply_is_an_error_and_nothing_is_stored(self, index: Index, depth: int) -> None:
        nested: Any = 1
        for _ in range(depth):
            nested = {"in": nested}
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            add(index, Passage("p", "red", {"key": nested}))
        assert index.ids() == []

    def test_metadata_nested_100_deep_is_read_from_any_depth_of_calls(self, index: Index) -> None:
        nested: Any = 1
        for _ in range(98):
            nested = [nested]
        passage = Passage("p", "red", {"key": nested})
        add(index, passage)
        assert index.passages() == [passage]

    def test_k_may_be_any_integer_from_1(self, index: Index) -> None:
        fill(index, ["red", "red cat", "red dog"])
        valid: list[Any] = [3, np.int8(100), np.uint64(2**63), 2**31, 10**30]
        invalid: list[Any] = [0, -1, 2.5, 2.0, "3", None, True, float("nan")]
        for k in valid:
            assert all(len(index.search(mode, encode(["red"]), k)[0]) == 3 for mode in MODES)
        for k in invalid:
            with pytest.raises(ValueError, match="k must be"):
                index.search("dense", encode(["red"]), k)

    def test_a_filter_nested_deeply_is_evaluated_or_refused(self, index: Index) -> None:
        fill(index, ["red", "red cat"])
        where: Where = Field("n", "exists", False)
        for _ in range(20):
            where = none_of(none_of(where))
        assert index.ids(where) == ["p0", "p1"]
        for _ in range(500):
            where = any_of(where, Field("n", "==", 1))
        for call in (lambda: index.ids(where), lambda: index.search("dense", encode(["red"]), 3, where)):
            with pytest.raises(UnsupportedFilter, match="nested more than 50 deep"):
                call()

    def test_text_and_metadata_are_returned_unchanged(self, index: Index) -> None:
        odd = "nul \x00, lone \ud83d and \ude00, joined \ud83d\ude00, real 😀, crlf \r\n, \u2028, e\u0301"
        nested = {"": None, "a.b": [1, 2.5, True, {"ключ": [[]]}], "c": {"d": odd}, odd: 2**70, "f": 1e-320}
        passage = Passage(odd, odd, nested)
        add(index, passage, Passage("empty", ""))
        assert self.reopen(index).passages([odd, "empty"]) == [passage, Passage("empty", "")]

    def test_changing_an_argument_or_a_result_does_not_change_the_index(self, index: Index) -> None:
        metadata: dict[str, Any] = {"tags": ["x"]}
        dense = np.ones((1, 8), np.float32)
        index.add([Passage("a", "red", metadata)], Encoded(dense=dense))
        metadata["tags"].append("y")
        dense[:] = 7
        index.passages()[0].metadata["tags"].append("z")
        assert index.passages() == [Passage("a", "red", {"tags": ["x"]})]
        assert index.vectors(["a"]).dense.tolist() == [[1] * 8]

    # Deleting

    def test_deleting_removes_passages_and_ignores_unknown_ids(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        index.delete(["p1", "unknown", "p1"])
        index.delete([])
        assert index.ids() == ["p0", "p2"]
        hits = [index.search("dense", encode(["blue"]), 5, where)[0] for where in (None, none_of())]
        assert hit_ids(hits[0]) == hit_ids(hits[1])

    def test_a_bare_string_is_not_a_list_of_ids(self, index: Index) -> None:
        fill(index, ["red"])
        with pytest.raises(ValueError, match=r"delete\(\['p0'\]\)"):
            index.delete("p0")
        with pytest.raises(ValueError, match=r"passages\(\['p0'\]\)"):
            index.passages("p0")
        with pytest.raises(ValueError, match=r"vectors\(\['p0'\]\)"):
            index.vectors("p0")
        with pytest.raises(ValueError, match=r"content_hashes\(\['p0'\]\)"):
            index.content_hashes("p0")
        assert index.ids() == ["p0"]

    def test_it_keeps_its_modes_if_all_passages_are_deleted(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        index.delete(["p0", "p1"])
        assert len(index) == 0
        assert index.modes == frozenset(MODES)
        assert index.search("dense", encode(["red"]), 3) == [[]]
        assert len(index.vectors([])) == 0
        fill(index, ["green"])
        assert hit_ids(index.search("sparse", encode(["green red"]), 3)[0]) == ["p0"]

    # Searching

    @pytest.mark.parametrize("mode", MODES)
    def test_hits_have_exact_scores_and_are_sorted_best_first(self, index: Index, mode: Mode) -> None:
        texts = ["red cat", "blue", "green dog cat", "red"]
        fill(index, texts)
        queries = encode(["red", "cat dog"])
        ids = [f"p{i}" for i in range(len(texts))]
        for hits, scores in zip(index.search(mode, queries, 4), index.score(mode, queries, [ids, ids]), strict=True):
            pairs = [(id, float(score)) for id, score in zip(ids, scores, strict=True) if mode != "sparse" or score > 0]
            assert hits == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    @pytest.mark.parametrize("mode", MODES)
    def test_ties_break_by_id(self, index: Index, mode: Mode) -> None:
        for start in (600, 0, 300):
            add(index, *(Passage(f"t{start + i:03d}", "red cat") for i in range(300)))
        add(index, Passage("z", "red"), Passage("a", "unlike"))
        assert hit_ids(index.search(mode, encode(["red cat"]), 400)[0]) == [f"t{i:03d}" for i in range(400)]

    def test_a_sparse_hit_shares_a_token(self, index: Index) -> None:
        fill(index, ["red", "blue", ""])
        assert [hit_ids(hits) for hits in index.search("sparse", encode(["red", "unheard", ""]), 9)] == [["p0"], [], []]

    def test_k_may_exceed_the_number_of_passages_but_must_be_at_least_1(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        assert len(index.search("dense", encode(["red"]), 10**6)[0]) == 2
        for k in (0, -1):
            with pytest.raises(ValueError, match="k must be at least 1"):
                index.search("dense", encode(["red"]), k)

    def test_no_queries_give_no_lists(self, index: Index) -> None:
        fill(index, ["red"])
        assert index.search("dense", encode([]), 3) == []
        assert index.score("dense", encode([]), []) == []

    def test_an_unknown_mode_is_an_error(self, index: Index) -> None:
        with pytest.raises(MissingMode, match="'colour' is not a mode"):
            index.search("colour", encode(["red"]), 1)  # type: ignore[arg-type]  # the mistake that is tested

    def test_queries_without_the_mode_are_an_error(self, index: Index) -> None:
        fill(index, ["red"])
        with pytest.raises(MissingMode, match="sparse"):
            index.search("sparse", encode(["red"]).only(["dense"]), 1)

    def test_a_query_without_vectors_scores_0_in_late_interaction(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        empty = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
        assert index.search("multi_vector", empty, 2) == [[Hit("p0", 0.0), Hit("p1", 0.0)]]

    def test_vectors_longer_than_1_are_searched_by_inner_product(self, index: Index) -> None:
        dense = np.eye(8, dtype=np.float32)[:2] * [[1], [3]]
        index.add([Passage("unit", ""), Passage("long", "")], Encoded(dense=dense))
        query = Encoded(dense=np.ones((1, 8), np.float32))
        assert index.search("dense", query, 2) == [[Hit("long", 3.0), Hit("unit", 1.0)]]

    @pytest.mark.parametrize("seed", range(3))
    def test_random_vectors_are_ranked_as_the_exact_index_ranks_them(self, index: Index, seed: int) -> None:
        random = np.random.default_rng(seed)
        reference = MemoryIndex()
        for start in range(0, 700, 100):
            encoded = random_encoded(random, 100)
            for each in (index, reference):
                each.add([Passage(f"{start + i}", "", {"i": start + i}) for i in range(100)], encoded)
        queries = random_encoded(random, 12)
        for mode in MODES:
            for where in (None, Field("i", "<", 350), Field("i", "in", [3, 33, 333])):
                assert index.search(mode, queries, 10, where) == reference.search(mode, queries, 10, where)

    # Filters

    @pytest.mark.parametrize(
        ("where", "ids"),
        [
            (Field("year", "==", 2020), ["a"]),
            (Field("year", "!=", 2020), ["b", "c", "d"]),
            (Field("year", "<", 2022), ["a", "b"]),
            (Field("year", "<=", 2021), ["a", "b"]),
            (Field("year", ">", 2020), ["b"]),
            (Field("year", ">=", 2020), ["a", "b"]),
            (Field("year", ">", "2"), ["c"]),
            (Field("year", "in", [2020, "2022"]), ["a", "c"]),
            (Field("year", "not in", [2020, "2022"]), ["b", "d"]),
            (Field("tags", "contains", "x"), ["a", "b"]),
            (Field("lang", "contains", "e"), ["a", "b"]),
            (Field("year", "exists"), ["a", "b", "c"]),
            (Field("year", "exists", False), ["d"]),
            (Field("tags", "==", ["x", "y"]), ["a"]),
            (Field("author.name", "==", "Ada"), ["a"]),
            (Field("author.name", "==", "dotted"), ["b"]),
            (Field("draft", "==", True), ["c"]),
            (Field("draft", "==", 1), ["d"]),
            (Field("draft", "!=", None), ["a", "b", "c", "d"]),
            (equals(lang="de", year=2020), ["a"]),
            (all_of(Field("year", ">", 2019), none_of(Field("lang", "==", "de"))), ["b"]),
            (any_of(Field("lang", "==", "fr"), Field("author.name", "exists")), ["a", "b", "c"]),
            (none_of(Field("lang", "==", "fr"), Field("lang", "==", "de")), ["b", "d"]),
            (all_of(), ["a", "b", "c", "d"]),
            (any_of(), []),
            (none_of(), ["a", "b", "c", "d"]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("mode", MODES)
    def test_a_filter_selects_the_matching_passages(
        self, index: Index, mode: Mode, where: Where, ids: list[str]
    ) -> None:
        add(
            index,
            Passage("a", "red", {"year": 2020, "lang": "de", "tags": ["x", "y"], "author": {"name": "Ada"}}),
            Passage("b", "red", {"year": 2021, "lang": "en", "tags": ["x"], "author.name": "dotted"}),
            Passage("c", "red", {"year": "2022", "lang": "fr", "tags": "y", "draft": True}),
            Passage("d", "red", {"draft": 1}),
        )
        assert hit_ids(index.search(mode, encode(["red"]), 10, where)[0]) == ids
        assert index.ids(where) == ids

    @pytest.mark.parametrize("mode", MODES)
    def test_k_hits_are_returned_if_k_passages_match(self, index: Index, mode: Mode) -> None:
        add(index, *(Passage(f"{i:03d}", "red cat", {"rare": i % 50 == 49}) for i in range(300)))
        add(index, *(Passage(f"far{i}", "red dog dog blue green", {"rare": True}) for i in range(4)))
        hits = index.search(mode, encode(["red cat"]), 10, Field("rare", "==", True))[0]
        assert len(hits) == 10
        assert hit_ids(hits)[:6] == ["049", "099", "149", "199", "249", "299"]

    def test_a_filter_without_matches_returns_empty_lists(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        for mode in MODES:
            assert index.search(mode, encode(["red", "blue"]), 3, Field("i", ">", 99)) == [[], []]

    def test_an_unknown_operator_is_an_error(self) -> None:
        with pytest.raises(UnsupportedFilter, match="the operators are"):
            Field("year", "like", 1)  # type: ignore[arg-type]  # the mistake that is tested

    # Scores, passages and vectors by id

    def test_scores_are_in_the_order_of_the_ids(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        scores = index.score("dense", encode(["red", "blue"]), [["p2", "p0", "p2"], []])
        assert [len(each) for each in scores] == [3, 0]
        assert scores[0][0] == scores[0][2] < scores[0][1]

    def test_scoring_takes_one_list_of_ids_for_each_query(self, index: Index) -> None:
        fill(index, ["red"])
        with pytest.raises(ValueError, match="one list of ids for each of 2 queries, got 1"):
            index.score("dense", encode(["red", "blue"]), [["p0"]])
        with pytest.raises(ValueError, match="takes a list of ids"):
            index.score("dense", encode(["red"]), ["p0"])

    def test_an_unknown_id_is_an_error_that_names_it(self, index: Index) -> None:
        fill(index, ["red"])
        calls: list[Callable[[], object]] = [
            lambda: index.passages(["p0", "unknown"]),
            lambda: index.vectors(["p0", "unknown"]),
            lambda: index.set_vectors(["p0", "unknown"], encode(["red", "red"])),
            lambda: index.score("dense", encode(["red"]), [["p0", "unknown"]]),
        ]
        for call in calls:
            with pytest.raises(UnknownId, match="unknown"):
                call()

    def test_passages_and_vectors_are_in_the_order_of_the_ids(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        assert [passage.text for passage in index.passages(["p2", "p0", "p2"])] == ["green", "red", "green"]
        assert same_vectors(index.vectors(["p2", "p0", "p2"]), encode(["green", "red", "green"]))
        assert same_vectors(index.vectors(["p1"], ["sparse"]), encode(["blue"]).only(["sparse"]))
        assert (index.passages([]), len(index.vectors([]))) == ([], 0)

    def test_a_content_hash_depends_on_text_and_metadata_only(self, index: Index) -> None:
        passage = Passage("a", "red", {"x": 1, "y": [2, {"z": None}]})
        add(index, passage, Passage("b", "red"))
        assert index.content_hashes(["a", "unknown"]) == {"a": content_hash(passage)}
        assert index.content_hashes().keys() == {"a", "b"}
        assert content_hash(passage) == content_hash(Passage("other", "red", {"y": (2, {"z": None}), "x": 1}))
        assert (
            len({content_hash(Passage("a", *content)) for content in (("red", {}), ("red", {"x": 1}), ("blue", {}))})
            == 3
        )
