"""What every index must do, as tests: a backend subclasses IndexContract and says how to make one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings

from m3_integrations.core.encoded import MODES, Encoded, Mode, MultiVectors, rows_of
from m3_integrations.core.errors import MissingMode, UnknownId, UnsupportedFilter, WrongDimension
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import Hit, Index, Where, content_hash
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field, all_of, any_of, equals, none_of
from m3_integrations.testing.hashing import HashEncoder

ENCODER = HashEncoder(dim=8, width=4, vocab_size=64)
WORDS = ("red", "blue", "green", "cat", "dog")
# Few words and few ids: equal texts tie, and an id is often replaced.
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
    return ENCODER.encode_passages(texts)


def add(index: Index, *added: Passage) -> None:
    index.add(added, encode([passage.text for passage in added]))


def fill(index: Index, texts: Sequence[str]) -> None:
    add(index, *(Passage(f"p{i}", text, {"i": i}) for i, text in enumerate(texts)))


def found(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def same_vectors(one: Encoded, other: Encoded) -> bool:
    """Equal to the bit, in the same modes."""
    return one.modes == other.modes and all(_same_part(getattr(one, m), getattr(other, m)) for m in one.modes)


def _same_part(one: Any, other: Any) -> bool:
    if isinstance(one, MultiVectors):
        return np.array_equal(one.values, other.values) and np.array_equal(one.offsets, other.offsets)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return rows_of(one) == rows_of(other) and one.shape == other.shape and (one != other).nnz == 0


def assert_alike(index: Index, judge: Index, where: Where | None = None) -> None:
    """The index answers every question as the judge does."""
    queries = encode(["red cat", "blue", "dog dog green", "unheard", ""])
    assert len(index) == len(judge)
    assert index.ids() == judge.ids()
    assert index.ids(where) == judge.ids(where)
    assert index.passages() == judge.passages()
    assert index.content_hashes() == judge.content_hashes()
    for mode in judge.modes:
        for k in (1, 3, 100):
            assert index.search(mode, queries, k) == judge.search(mode, queries, k)
            assert index.search(mode, queries, k, where) == judge.search(mode, queries, k, where)
        everyone = [judge.ids()] * len(queries)
        assert np.array_equal(index.score(mode, queries, everyone), judge.score(mode, queries, everyone))
    if judge.modes:
        assert same_vectors(index.vectors(judge.ids()), judge.vectors(judge.ids()))


class IndexContract:
    """Every promise of `Index`. A subclass gives the fixture `index`: an empty one.

    class TestMine(IndexContract):
        @pytest.fixture
        def index(self):
            with MyIndex() as index:
                yield index
    """

    @pytest.fixture
    def index(self) -> Index:
        raise NotImplementedError("give the fixture `index`, which answers an empty index of your kind")

    def reopen(self, index: Index) -> Index:
        """The same index after a restart; one that keeps nothing answers itself."""
        return index

    def test_is_an_index(self, index: Index) -> None:
        assert isinstance(index, Index)

    # A sequence of writes leaves what it leaves in memory

    def test_after_any_writes_it_answers_as_the_exact_index_does(self, index: Index) -> None:
        latest = self.reopen(index)

        # A function of its own for each backend: hypothesis keeps its examples by the function.
        @settings(max_examples=60, deadline=None)
        @given(st.lists(writes, max_size=8), wheres)
        def holds(written: list[tuple[Any, ...]], where: Where) -> None:
            nonlocal latest
            latest.delete(latest.ids())
            judge = MemoryIndex()
            for write in written:
                latest = self._write(latest, judge, write)
            assert_alike(latest, judge, where)

        holds()

    def _write(self, index: Index, judge: Index, write: tuple[Any, ...]) -> Index:
        match write:
            case ("add", list(added)):
                for each in (index, judge):
                    add(each, *added)
            case ("delete", gone):
                for each in (index, judge):
                    each.delete(gone)
            case ("set_vectors", modes, list(texts)):
                chosen = judge.ids()[: len(texts)]
                for each in (index, judge):
                    each.set_vectors(chosen, encode(texts[: len(chosen)]).only(modes))
            case ("reopen",):
                return self.reopen(index)
        return index

    # Adding

    def test_an_empty_index_answers_empty_lists(self, index: Index) -> None:
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
        assert found(index.search("sparse", encode(["red"]), 5)[0]) == []
        assert found(index.search("sparse", encode(["green"]), 5)[0]) == ["a"]
        assert index.search("dense", encode(["red"]), 5, Field("old", "exists"))[0] == []

    def test_of_an_id_that_comes_twice_the_last_is_kept(self, index: Index) -> None:
        add(index, Passage("a", "red"), Passage("b", "dog"), Passage("a", "green"))
        assert index.passages() == [Passage("a", "green"), Passage("b", "dog")]
        assert same_vectors(index.vectors(["a"]), encode(["green"]))

    @pytest.mark.parametrize("modes", [["dense"], ["sparse"], ["multi_vector"], ["dense", "multi_vector"]])
    def test_it_keeps_the_modes_of_the_first_passages(self, index: Index, modes: list[Mode]) -> None:
        index.add([Passage("a", "red")], encode(["red"]).only(modes))
        index.add([Passage("b", "blue")], encode(["blue"]))
        assert index.modes == frozenset(modes)
        assert index.vectors(["a", "b"]).modes == frozenset(modes)
        for mode in set(MODES) - set(modes):
            with pytest.raises(MissingMode, match=mode):
                index.search(mode, encode(["red"]), 1)

    def test_a_passage_that_lacks_a_kept_mode_is_refused(self, index: Index) -> None:
        add(index, Passage("a", "red"))
        with pytest.raises(MissingMode, match="modes="):
            index.add([Passage("b", "blue")], encode(["blue"]).only(["dense"]))
        assert index.ids() == ["a"]

    def test_vectors_of_another_width_are_refused(self, index: Index) -> None:
        add(index, Passage("a", "red"))
        wider = HashEncoder(dim=16, width=4, vocab_size=64).encode_passages(["blue"])
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.add([Passage("b", "blue")], wider)
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.search("dense", wider, 1)
        with pytest.raises(WrongDimension, match="width 8, got 16"):
            index.set_vectors(["a"], wider)
        assert index.ids() == ["a"]

    def test_as_many_rows_as_passages_are_needed(self, index: Index) -> None:
        with pytest.raises(ValueError, match="1 passages but 2 encoded rows"):
            index.add([Passage("a", "red")], encode(["red", "blue"]))

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            (date(2020, 1, 1), r"isoformat\(\)"),
            (float("nan"), "None"),
            ({1, 2}, "sorted"),
            (np.arange(2), "tolist"),
            ({1: "one"}, "strings"),
            ([{"deep": b"bytes"}], "a string, a number"),
        ],
    )
    def test_metadata_that_json_cannot_say_is_refused_before_anything_is_kept(
        self, index: Index, value: Any, remedy: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"(?s)'bad'.*when.*{remedy}"):
            add(index, Passage("good", "red"), Passage("bad", "blue", {"when": value}))
        assert (index.ids(), index.modes) == ([], frozenset())

    def test_text_and_metadata_come_back_as_they_went_in(self, index: Index) -> None:
        odd = "nul \x00, lone \ud83d and \ude00, joined \ud83d\ude00, real 😀, crlf \r\n, \u2028, e\u0301"
        nested = {"": None, "a.b": [1, 2.5, True, {"ключ": [[]]}], "c": {"d": odd}, odd: 2**70, "f": 1e-320}
        passage = Passage(odd, odd, nested)
        add(index, passage, Passage("empty", ""))
        assert self.reopen(index).passages([odd, "empty"]) == [passage, Passage("empty", "")]

    def test_what_came_in_or_went_out_can_change_without_changing_the_index(self, index: Index) -> None:
        said: dict[str, Any] = {"tags": ["x"]}
        dense = np.ones((1, 8), np.float32)
        index.add([Passage("a", "red", said)], Encoded(dense=dense))
        said["tags"].append("y")
        dense[:] = 7
        index.passages()[0].metadata["tags"].append("z")
        assert index.passages() == [Passage("a", "red", {"tags": ["x"]})]
        assert index.vectors(["a"]).dense.tolist() == [[1] * 8]

    # Deleting

    def test_deleting_forgets_and_passes_over_strangers(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        index.delete(["p1", "stranger", "p1"])
        index.delete([])
        assert index.ids() == ["p0", "p2"]
        assert found(index.search("dense", encode(["blue"]), 5)[0]) == found(
            index.search("dense", encode(["blue"]), 5, none_of())[0]
        )

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

    def test_it_keeps_its_modes_when_everything_is_deleted(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        index.delete(["p0", "p1"])
        assert len(index) == 0
        assert index.modes == frozenset(MODES)
        assert index.search("dense", encode(["red"]), 3) == [[]]
        assert len(index.vectors([])) == 0
        fill(index, ["green"])
        assert found(index.search("sparse", encode(["green red"]), 3)[0]) == ["p0"]

    # Searching

    @pytest.mark.parametrize("mode", MODES)
    def test_hits_are_the_exact_scores_best_first(self, index: Index, mode: Mode) -> None:
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
        assert found(index.search(mode, encode(["red cat"]), 400)[0]) == [f"t{i:03d}" for i in range(400)]

    def test_a_sparse_hit_shares_a_token(self, index: Index) -> None:
        fill(index, ["red", "blue", ""])
        assert [found(hits) for hits in index.search("sparse", encode(["red", "unheard", ""]), 9)] == [["p0"], [], []]

    def test_k_may_exceed_what_is_held_but_not_fall_under_1(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        assert len(index.search("dense", encode(["red"]), 10**6)[0]) == 2
        for k in (0, -1):
            with pytest.raises(ValueError, match="k must be at least 1"):
                index.search("dense", encode(["red"]), k)

    def test_no_queries_get_no_lists(self, index: Index) -> None:
        fill(index, ["red"])
        assert index.search("dense", encode([]), 3) == []
        assert index.score("dense", encode([]), []) == []

    def test_a_word_that_is_no_mode_is_refused(self, index: Index) -> None:
        with pytest.raises(MissingMode, match="'colour' is no mode"):
            index.search("colour", encode(["red"]), 1)  # type: ignore[arg-type]  # the mistake that is tested

    def test_queries_without_the_mode_are_refused(self, index: Index) -> None:
        fill(index, ["red"])
        with pytest.raises(MissingMode, match="sparse"):
            index.search("sparse", encode(["red"]).only(["dense"]), 1)

    def test_a_query_without_vectors_scores_0_in_late_interaction(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        nothing = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
        assert index.search("multi_vector", nothing, 2) == [[Hit("p0", 0.0), Hit("p1", 0.0)]]

    def test_vectors_longer_than_1_are_searched_by_inner_product(self, index: Index) -> None:
        dense = np.eye(8, dtype=np.float32)[:2] * [[1], [3]]
        index.add([Passage("unit", ""), Passage("long", "")], Encoded(dense=dense))
        query = Encoded(dense=np.ones((1, 8), np.float32))
        assert index.search("dense", query, 2) == [[Hit("long", 3.0), Hit("unit", 1.0)]]

    @pytest.mark.parametrize("seed", range(3))
    def test_random_vectors_are_ranked_as_the_exact_index_ranks_them(self, index: Index, seed: int) -> None:
        random = np.random.default_rng(seed)
        judge = MemoryIndex()
        for start in range(0, 700, 100):
            encoded = _random_encoded(random, 100)
            for each in (index, judge):
                each.add([Passage(f"{start + i}", "", {"i": start + i}) for i in range(100)], encoded)
        queries = _random_encoded(random, 12)
        for mode in MODES:
            for where in (None, Field("i", "<", 350), Field("i", "in", [3, 33, 333])):
                assert index.search(mode, queries, 10, where) == judge.search(mode, queries, 10, where)

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
    def test_a_filter_answers_those_that_pass(self, index: Index, mode: Mode, where: Where, ids: list[str]) -> None:
        add(
            index,
            Passage("a", "red", {"year": 2020, "lang": "de", "tags": ["x", "y"], "author": {"name": "Ada"}}),
            Passage("b", "red", {"year": 2021, "lang": "en", "tags": ["x"], "author.name": "dotted"}),
            Passage("c", "red", {"year": "2022", "lang": "fr", "tags": "y", "draft": True}),
            Passage("d", "red", {"draft": 1}),
        )
        assert found(index.search(mode, encode(["red"]), 10, where)[0]) == ids
        assert index.ids(where) == ids

    @pytest.mark.parametrize("mode", MODES)
    def test_k_results_come_back_whenever_k_passages_match(self, index: Index, mode: Mode) -> None:
        add(index, *(Passage(f"{i:03d}", "red cat", {"rare": i % 50 == 49}) for i in range(300)))
        add(index, *(Passage(f"far{i}", "red dog dog blue green", {"rare": True}) for i in range(4)))
        hits = index.search(mode, encode(["red cat"]), 10, Field("rare", "==", True))[0]
        assert len(hits) == 10
        assert found(hits)[:6] == ["049", "099", "149", "199", "249", "299"]

    def test_a_filter_that_nothing_passes_answers_empty_lists(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        for mode in MODES:
            assert index.search(mode, encode(["red", "blue"]), 3, Field("i", ">", 99)) == [[], []]

    def test_an_operator_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(UnsupportedFilter, match="the operators are"):
            Field("year", "like", 1)  # type: ignore[arg-type]  # the mistake that is tested

    # Asking for what is held

    def test_scores_come_in_the_order_asked(self, index: Index) -> None:
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

    def test_strangers_are_named(self, index: Index) -> None:
        fill(index, ["red"])
        calls: list[Callable[[], object]] = [
            lambda: index.passages(["p0", "nobody"]),
            lambda: index.vectors(["p0", "nobody"]),
            lambda: index.set_vectors(["p0", "nobody"], encode(["red", "red"])),
            lambda: index.score("dense", encode(["red"]), [["p0", "nobody"]]),
        ]
        for call in calls:
            with pytest.raises(UnknownId, match="nobody"):
                call()

    def test_passages_and_vectors_come_in_the_order_asked(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        assert [passage.text for passage in index.passages(["p2", "p0", "p2"])] == ["green", "red", "green"]
        assert same_vectors(index.vectors(["p2", "p0", "p2"]), encode(["green", "red", "green"]))
        assert same_vectors(index.vectors(["p1"], ["sparse"]), encode(["blue"]).only(["sparse"]))
        assert (index.passages([]), len(index.vectors([]))) == ([], 0)

    def test_a_content_hash_is_of_text_and_metadata(self, index: Index) -> None:
        passage = Passage("a", "red", {"x": 1, "y": [2, {"z": None}]})
        add(index, passage, Passage("b", "red"))
        assert index.content_hashes(["a", "stranger"]) == {"a": content_hash(passage)}
        assert index.content_hashes().keys() == {"a", "b"}
        assert content_hash(passage) == content_hash(Passage("other", "red", {"y": (2, {"z": None}), "x": 1}))
        assert len({content_hash(Passage("a", *said)) for said in (("red", {}), ("red", {"x": 1}), ("blue", {}))}) == 3

    # Replacing vectors

    @pytest.mark.parametrize("mode", MODES)
    def test_set_vectors_replaces_one_mode_and_leaves_the_others(self, index: Index, mode: Mode) -> None:
        fill(index, ["red", "blue", "green"])
        index.set_vectors(["p2", "p0"], encode(["dog", "cat cat"]).only([mode]))
        index = self.reopen(index)
        others = [each for each in MODES if each != mode]
        assert same_vectors(index.vectors(["p0", "p1", "p2"], [mode]), encode(["cat cat", "blue", "dog"]).only([mode]))
        assert same_vectors(index.vectors(["p0", "p1", "p2"], others), encode(["red", "blue", "green"]).only(others))
        assert index.passages(["p0"])[0].text == "red"
        assert found(index.search(mode, encode(["dog"]), 1)[0]) == ["p2"]

    def test_set_vectors_is_all_or_nothing(self, index: Index) -> None:
        fill(index, ["red", "blue"])
        before = index.vectors(["p0", "p1"])
        with pytest.raises(UnknownId, match="nobody"):
            index.set_vectors(["p0", "nobody"], encode(["dog", "dog"]))
        with pytest.raises(ValueError, match="2 ids but 1 encoded rows"):
            index.set_vectors(["p0", "p1"], encode(["dog"]))
        index.set_vectors([], encode([]))
        assert same_vectors(index.vectors(["p0", "p1"]), before)

    def test_several_replacements_are_one(self, index: Index) -> None:
        fill(index, ["red", "blue", "green"])
        dense, sparse = encode(["dog", "cat"]).only(["dense"]), encode(["cat", "dog"]).only(["sparse"])
        index.set_many([(["p2", "p0"], dense), (["p1", "p2"], sparse)])
        index = self.reopen(index)
        assert same_vectors(
            index.vectors(["p0", "p1", "p2"], ["dense"]), encode(["cat", "blue", "dog"]).only(["dense"])
        )
        assert same_vectors(
            index.vectors(["p0", "p1", "p2"], ["sparse"]), encode(["red", "cat", "dog"]).only(["sparse"])
        )
        kept = index.vectors(["p0", "p1", "p2"])
        with pytest.raises(UnknownId, match="nobody"):
            index.set_many([(["p0"], dense.take([0])), (["nobody"], sparse.take([0]))])
        with pytest.raises(ValueError, match="say in one of them"):
            index.set_many([(["p0"], dense.take([0])), (["p1", "p0"], dense)])
        assert same_vectors(index.vectors(["p0", "p1", "p2"]), kept)

    def test_set_vectors_takes_the_last_of_an_id_that_comes_twice(self, index: Index) -> None:
        fill(index, ["red"])
        index.set_vectors(["p0", "p0"], encode(["dog", "cat"]))
        assert same_vectors(index.vectors(["p0"]), encode(["cat"]))

    def test_set_vectors_refuses_a_mode_that_is_not_kept(self, index: Index) -> None:
        index.add([Passage("a", "red")], encode(["red"]).only(["dense"]))
        with pytest.raises(MissingMode, match=r"no sparse or multi_vector; leave it out with encoded\.only"):
            index.set_vectors(["a"], encode(["blue"]))
        assert same_vectors(index.vectors(["a"]), encode(["red"]).only(["dense"]))

    # Threads

    def test_a_search_sees_all_of_a_write_or_nothing(self, index: Index) -> None:
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


def _random_encoded(random: np.random.Generator, count: int) -> Encoded:
    sparse = scipy.sparse.random(count, 64, density=0.1, format="csr", dtype=np.float32, random_state=random)
    return Encoded(
        dense=random.standard_normal((count, 8), np.float32),
        sparse=scipy.sparse.csr_array(sparse),
        multi_vector=MultiVectors.of([random.standard_normal((int(n), 4)) for n in random.integers(0, 6, count)]),
    )
