"""Candidates by some modes, exact scores in every weighted one."""

from __future__ import annotations

import warnings

import pytest

from m3_integrations import LocalIndex, MemoryIndex, Passage, Retriever, SearchPlan, ingest, score
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import MissingMode, ModeDropped
from m3_integrations.index.filters import Field
from m3_integrations.testing import HashEncoder

TEXTS = ["red bridge", "red red house", "blue bridge over water", "green", "bridge", "old blue house", "water", ""]
PASSAGES = [Passage(f"p{i}", text, {"even": i % 2 == 0}) for i, text in enumerate(TEXTS)]
WEIGHTS = {"dense": 0.5, "sparse": 0.25, "multi_vector": 2.0}
QUERY = "blue bridge"


@pytest.fixture
def filled(index, hash_encoder):
    ingest(hash_encoder, index, PASSAGES)
    return index


def ids(matches):
    return [match.passage.id for match in matches]


def exact(encoder, query, passages=PASSAGES, weights=WEIGHTS):
    """Every passage's score, best first, ties by id: what an unbounded plan must find."""
    found = encoder.encode_passages([passage.text for passage in passages])
    scores = score(encoder.encode_queries([query]), found, weights)[0]
    pairs = zip(passages, scores.tolist(), strict=True)
    return sorted(((passage.id, total) for passage, total in pairs), key=lambda pair: (-pair[1], pair[0]))


def test_enough_candidates_give_the_exact_ranking(filled, hash_encoder):
    matches = Retriever(hash_encoder, filled, SearchPlan(weights=WEIGHTS)).retrieve(QUERY, len(PASSAGES))
    expected = exact(hash_encoder, QUERY)
    assert ids(matches) == [id for id, _ in expected]
    assert [match.score for match in matches] == pytest.approx([total for _, total in expected], abs=1e-6)


def test_by_mode_adds_up_to_the_score(filled, hash_encoder):
    for match in Retriever(hash_encoder, filled, SearchPlan(weights=WEIGHTS)).retrieve(QUERY):
        assert match.by_mode.keys() == WEIGHTS.keys()
        assert sum(match.by_mode.values()) == match.score


def test_a_candidate_of_one_mode_is_scored_in_every_weighted_mode(filled, hash_encoder):
    encoded = hash_encoder.encode_queries([QUERY])
    plan = SearchPlan(propose=("sparse", "dense"), candidates=2, weights=WEIGHTS)
    proposed = {hit.id for mode in plan.propose for hit in filled.search(mode, encoded, 2)[0]}
    matches = Retriever(hash_encoder, filled, plan).retrieve(QUERY, 2)
    among = [passage for passage in PASSAGES if passage.id in proposed]
    assert [(match.passage.id, match.score) for match in matches] == [
        (id, pytest.approx(total, abs=1e-6)) for id, total in exact(hash_encoder, QUERY, among)[:2]
    ]


def test_only_candidates_are_returned(filled, hash_encoder):
    plan = SearchPlan(propose=("sparse",), weights=WEIGHTS)
    assert set(ids(Retriever(hash_encoder, filled, plan).retrieve("green", 10))) == {"p3"}


def test_a_mode_can_generate_candidates_without_a_weight(filled, hash_encoder):
    plan = SearchPlan(propose=("sparse",), weights={"dense": 1.0})
    matches = Retriever(hash_encoder, filled, plan).retrieve("bridge")
    assert set(ids(matches)) == {"p0", "p2", "p4"}
    assert all(match.by_mode.keys() == {"dense"} for match in matches)


def test_ties_break_by_id(index, hash_encoder):
    ingest(hash_encoder, index, [Passage(id, "the same") for id in "dbca"])
    assert ids(Retriever(hash_encoder, index).retrieve("the same", 3)) == ["a", "b", "c"]


def test_several_queries_give_the_same_results_as_one_by_one(filled, hash_encoder):
    retriever = Retriever(hash_encoder, filled)
    queries = [QUERY, "green", "", "water house"]
    assert retriever.retrieve_many(queries, 3) == [retriever.retrieve(query, 3) for query in queries]
    assert retriever.retrieve_many([]) == []


async def test_aretrieve_equals_retrieve(filled, hash_encoder):
    retriever = Retriever(hash_encoder, filled)
    assert await retriever.aretrieve(QUERY, 3) == retriever.retrieve(QUERY, 3)


def test_a_filtered_search_returns_k_matching_passages(filled, hash_encoder):
    matches = Retriever(hash_encoder, filled, SearchPlan(candidates=1)).retrieve(QUERY, 4, Field("even", "==", True))
    assert sorted(ids(matches)) == ["p0", "p2", "p4", "p6"]
    assert all(match.passage.metadata["even"] for match in matches)


def test_an_empty_index_returns_empty_lists(index, hash_encoder):
    retriever = Retriever(hash_encoder, index)
    assert retriever.retrieve("anything") == []
    assert retriever.retrieve_many(["a", "b"]) == [[], []]
    assert retriever.retrieve_encoded(retriever.encode(["a"])) == [[]]


def test_an_index_with_all_passages_deleted_returns_empty_lists(filled, hash_encoder):
    filled.delete(filled.ids())
    assert Retriever(hash_encoder, filled).retrieve(QUERY) == []


def test_k_above_the_number_of_passages_returns_all(filled, hash_encoder):
    assert sorted(ids(Retriever(hash_encoder, filled).retrieve(QUERY, 1000))) == [f"p{i}" for i in range(len(TEXTS))]


def test_k_above_the_number_of_candidates_returns_k_passages(filled, hash_encoder):
    plan = SearchPlan(propose=("dense",), candidates=2)
    assert len(Retriever(hash_encoder, filled, plan).retrieve(QUERY, 5)) == 5


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_raises_even_for_an_empty_index(index, hash_encoder, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        Retriever(hash_encoder, index).retrieve("a", k)


def test_an_empty_query_finds_nothing(filled, hash_encoder):
    assert Retriever(hash_encoder, filled).retrieve("", 3) == []


# Modes that are not there


def test_a_mode_missing_from_the_index_is_left_out_with_one_warning(index, hash_encoder):
    ingest(hash_encoder, index, PASSAGES, modes=("dense", "multi_vector"))
    retriever = Retriever(hash_encoder, index, SearchPlan(weights=WEIGHTS))
    with pytest.warns(ModeDropped, match=r"uses 'sparse', which the index \(\['dense', 'multi_vector'\]\)") as caught:
        matches = retriever.retrieve(QUERY, len(PASSAGES))
    assert len(caught) == 1
    expected = exact(hash_encoder, QUERY, weights={"dense": 0.5, "multi_vector": 2.0})
    assert ids(matches) == [id for id, _ in expected]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retriever.retrieve(QUERY)


def test_the_default_plan_of_a_dense_only_encoder_does_not_warn(index):
    encoder = HashEncoder(modes=("dense",))
    ingest(encoder, index, PASSAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Retriever(encoder, index).retrieve(QUERY, 3)) == 3


def test_a_plan_without_available_modes_raises(index):
    encoder = HashEncoder(modes=("dense",))
    ingest(encoder, index, PASSAGES)
    with (
        pytest.warns(ModeDropped),
        pytest.raises(MissingMode, match=r"choose others with SearchPlan\(propose=\.\.\., weights=\.\.\.\)"),
    ):
        Retriever(encoder, index, SearchPlan(propose=("sparse",), weights={"sparse": 1.0})).retrieve(QUERY)


def test_queries_encoded_in_fewer_modes_are_searched_in_those(filled, hash_encoder):
    retriever = Retriever(hash_encoder, filled, SearchPlan(weights=WEIGHTS))
    with pytest.warns(ModeDropped):
        (matches,) = retriever.retrieve_encoded(hash_encoder.encode_queries([QUERY], ("dense",)), 3)
    assert ids(matches) == [id for id, _ in exact(hash_encoder, QUERY, weights={"dense": 0.5})[:3]]


def test_queries_are_encoded_only_in_the_modes_of_the_plan(filled, hash_encoder):
    plan = SearchPlan(propose=("sparse",), weights={"dense": 1.0})
    assert Retriever(hash_encoder, filled, plan).encode([QUERY]).modes == {"dense", "sparse"}


# Plans


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": 0}, ValueError, "candidates must be at least 1, got 0"),
        ({"propose": ()}, MissingMode, "modes is empty; pass at least one of"),
        ({"propose": ("bm25",)}, MissingMode, "'bm25' is not a mode"),
        ({"propose": "dense"}, MissingMode, r"write modes=\('dense',\)"),
        ({"fusion": "max"}, ValueError, r"fusion is one of \['sum', 'rrf'\], got 'max'"),
        ({"weights": {"dense": 0.0}}, ValueError, "weights must be at least 0 and one of them positive"),
        ({"weights": {"dense": -1.0}}, ValueError, "weights must be at least 0"),
        ({"weights": {"dense": float("nan")}}, ValueError, "weights must be at least 0"),
    ],
)
def test_an_invalid_plan_raises(options, error, message):
    with pytest.raises(error, match=message):
        SearchPlan(**options)


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_of_one_mode_equals_the_search_of_that_mode(hash_encoder, mode):
    index = MemoryIndex()
    ingest(hash_encoder, index, PASSAGES)
    plan = SearchPlan(propose=(mode,), weights={mode: 1.0})
    hits = index.search(mode, hash_encoder.encode_queries([QUERY]), 5)[0]
    matches = Retriever(hash_encoder, index, plan).retrieve(QUERY, 5)
    assert [(match.passage.id, match.score) for match in matches] == [(hit.id, hit.score) for hit in hits]


def test_the_number_of_candidates_can_be_set_by_mode(filled, hash_encoder):
    retriever = Retriever(hash_encoder, filled)
    encoded = retriever.encode([QUERY])
    proposed = {mode: filled.search(mode, encoded, 1)[0][0].id for mode in ("dense", "sparse")}
    matches = retriever.retrieve_encoded(encoded, 5, candidates={"dense": 1, "sparse": 1})[0]
    assert set(ids(matches)) == set(proposed.values())
    wider = retriever.retrieve_encoded(encoded, 5, candidates={"sparse": 1})[0]
    assert len(wider) == 5


def test_modes_are_those_that_the_plan_needs(filled, index, hash_encoder):
    plan = SearchPlan(propose=("sparse",), weights={"multi_vector": 1.0})
    assert Retriever(hash_encoder, filled, plan).modes == {"sparse", "multi_vector"}
    assert Retriever(hash_encoder, MemoryIndex(), plan).modes == frozenset(MODES)
    assert Retriever(hash_encoder, filled, plan).encode([QUERY]).modes == {"sparse", "multi_vector"}


class OneByOne:
    """A LocalIndex that does not support hybrid search."""

    def __init__(self, index):
        self._index = index

    def __getattr__(self, name):
        if name in ("find", "is_hybrid"):
            raise AttributeError(name)
        return getattr(self._index, name)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    "plan", [SearchPlan(), SearchPlan(("sparse",), candidates=3), SearchPlan(weights={"dense": 1})]
)
@pytest.mark.parametrize("where", [None, Field("even", "==", True)])
def test_hybrid_search_of_a_folder_equals_search_mode_by_mode(tmp_path, hash_encoder, precision, plan, where):
    words = ["red", "green", "blue", "grey"]
    texts = [f"{a} {b}" for a in words for b in words] * 3  # each text three times: ties, by id
    with LocalIndex.open(tmp_path, hash_encoder, precision={"multi_vector": precision}) as index:
        for start in range(0, len(texts), 7):
            some = enumerate(texts[start : start + 7], start)
            ingest(hash_encoder, index, [Passage(f"p{i}", text, {"even": i % 2 == 0}) for i, text in some])
        index.delete(["p3", "p20"])
        queries = hash_encoder.encode_queries(["red", "blue green", "", "unheard of", *words])
        at_once, one_by_one = (Retriever(hash_encoder, each, plan) for each in (index, OneByOne(index)))
        for k in (1, 5, 100):
            assert at_once.retrieve_encoded(queries, k, where) == one_by_one.retrieve_encoded(queries, k, where)
