"""M3VectorStore over every index; LangChain's own suite is in test_standard."""

from __future__ import annotations

import hashlib
import warnings
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import MissingMode, UnsupportedFilter, WrongDimension, WrongEncoder
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.filters import Field
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain import M3Embeddings, M3VectorStore
from m3_integrations.langchain.dense_only_encoder import DenseOnlyEncoder
from m3_integrations.retrieval.calibration import calibrate
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", "a green bird", "the red cat and the blue dog", "a red fish", "nothing of the kind"]
METADATAS = [{"n": i, "kind": "pet" if i % 2 else "wild"} for i in range(len(TEXTS))]
IDS = [f"d{i}" for i in range(len(TEXTS))]


@pytest.fixture
def index(any_index):
    return any_index


@pytest.fixture
def empty(index, hash_encoder):
    return M3VectorStore(M3Embeddings(encoder=hash_encoder), index)


@pytest.fixture
def store(empty):
    empty.add_texts(TEXTS, METADATAS, ids=IDS)
    return empty


def ids(documents):
    return [document.id for document in documents]


# Searching


def test_a_search_is_hybrid_and_matches_retriever(store, hash_encoder):
    matches = Retriever(hash_encoder, store.index).retrieve("a red cat", 6)
    assert set(matches[0].by_mode) == set(MODES)
    found = store.similarity_search_with_score("a red cat", k=6)
    assert [(document.id, score) for document, score in found] == [(each.passage.id, each.score) for each in matches]
    assert store.similarity_search("a red cat", k=6) == [document for document, _ in found]


@pytest.mark.parametrize("mode", MODES)
def test_a_single_mode_searches_by_that_mode(store, hash_encoder, mode):
    hits = store.index.search(mode, hash_encoder.encode_queries(["red dog"]), 3)[0]
    found = store.similarity_search_with_score("red dog", k=3, mode=mode)
    assert [(document.id, score) for document, score in found] == hits


def test_a_plan_sets_the_weights_of_a_hybrid_search(index, hash_encoder):
    plan = SearchPlan(weights={"sparse": 1.0})
    store = M3VectorStore.from_texts(TEXTS, M3Embeddings(encoder=hash_encoder), index=index, plan=plan)
    lexical = store.similarity_search_with_score("red dog", mode="sparse", k=4)
    assert store.similarity_search_with_score("red dog", k=4)[:4] == lexical


def test_a_search_by_vector_is_a_dense_search(store, hash_encoder):
    vector = store.embedding.embed_query("red dog")
    assert store.similarity_search_by_vector(vector, 3) == store.similarity_search("red dog", 3, mode="dense")
    scored = store.similarity_search_with_score_by_vector(vector, 3)
    assert scored == store.similarity_search_with_score("red dog", 3, mode="dense")


@pytest.mark.parametrize("filter", [{"kind": "pet"}, Field("kind", "==", "pet")])
def test_every_search_applies_the_filter(store, filter):
    vector = store.embedding.embed_query("red")
    found = [
        store.similarity_search("red", k=6, filter=filter),
        store.similarity_search("red", 6, filter),
        [document for document, _ in store.similarity_search_with_score("red", k=6, filter=filter)],
        [document for document, _ in store.similarity_search_with_relevance_scores("red", k=6, filter=filter)],
        store.similarity_search_by_vector(vector, k=6, filter=filter),
        store.max_marginal_relevance_search("red", k=6, filter=filter),
        store.max_marginal_relevance_search_by_vector(vector, k=6, filter=filter),
    ]
    assert [sorted(ids(each)) for each in found] == [["d1", "d3", "d5"]] * len(found)


async def test_async_matches_sync(store):
    vector, options = store.embedding.embed_query("red dog"), {"k": 3, "filter": {"n": {"$lt": 5}}}
    assert await store.asimilarity_search("red dog", **options) == store.similarity_search("red dog", **options)
    assert await store.asimilarity_search_with_score("red dog", mode="sparse", **options) == (
        store.similarity_search_with_score("red dog", mode="sparse", **options)
    )
    assert await store.asimilarity_search_with_relevance_scores("red dog", **options) == (
        store.similarity_search_with_relevance_scores("red dog", **options)
    )
    assert await store.amax_marginal_relevance_search("red dog", **options) == (
        store.max_marginal_relevance_search("red dog", **options)
    )
    assert await store.asimilarity_search_by_vector(vector, **options) == (
        store.similarity_search_by_vector(vector, **options)
    )
    assert await store.aget_by_ids(["d1", "d0"]) == store.get_by_ids(["d1", "d0"])


async def test_async_writes_match_sync_writes(empty, hash_encoder):
    assert await empty.aadd_texts(TEXTS, METADATAS, ids=IDS) == IDS
    assert await empty.adelete(["d0"])
    other = await M3VectorStore.afrom_texts(TEXTS[1:], empty.embedding, METADATAS[1:], ids=IDS[1:])
    assert empty.similarity_search("red", k=9) == other.similarity_search("red", k=9)


# Relevance and diversity


@pytest.mark.parametrize("mode", ["hybrid", *MODES])
@pytest.mark.parametrize("query", ["a red cat", "zebra", ""])
def test_relevance_is_between_0_and_1_and_keeps_the_order(store, mode, query):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LangChain warns of relevance that is not
        found = store.similarity_search_with_relevance_scores(query, k=6, mode=mode)
    assert [document for document, _ in found] == store.similarity_search(query, k=6, mode=mode)
    relevances = [relevance for _, relevance in found]
    assert relevances == sorted(relevances, reverse=True)


def test_relevance_of_a_dense_search_is_the_cosine(store, hash_encoder):
    found = dict(zip(ids(store.get_by_ids(IDS)), hash_encoder.encode_passages(TEXTS).dense, strict=True))
    query_vector = hash_encoder.encode_queries(["a red cat"]).dense[0]
    for document, relevance in store.similarity_search_with_relevance_scores("a red cat", k=6, mode="dense"):
        assert relevance == pytest.approx(max(0.0, float(query_vector @ found[document.id])), abs=1e-6)


def test_a_calibration_converts_hybrid_scores_to_probabilities(store, hash_encoder):
    queries = [Query("q0", "a red cat", {"d0": 1}), Query("q1", "a blue dog", {"d1": 1, "d3": 1})]
    found = Retriever(hash_encoder, store.index).retrieve_many([query.text for query in queries], 6)
    calibration = calibrate(queries, found)
    calibrated = M3VectorStore(store.embedding, store.index, calibration=calibration)
    expected = [(each.passage.id, calibration.of(each)) for each in found[0]]
    scored = calibrated.similarity_search_with_relevance_scores("a red cat", k=6)
    assert [(document.id, relevance) for document, relevance in scored] == expected
    plain = store.similarity_search_with_relevance_scores("a red cat", k=6, mode="dense")
    assert calibrated.similarity_search_with_relevance_scores("a red cat", k=6, mode="dense") == plain


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_in_dense_mode_matches_in_memory_vector_store(hash_encoder, balance):
    embeddings = M3Embeddings(encoder=hash_encoder)
    ours, theirs = M3VectorStore(embeddings), InMemoryVectorStore(embeddings)
    for store in (ours, theirs):
        store.add_texts(TEXTS, ids=IDS)
    options = {"k": 4, "fetch_k": 5, "lambda_mult": balance}
    expected = ids(theirs.max_marginal_relevance_search("the red cat", **options))
    assert ids(ours.max_marginal_relevance_search("the red cat", mode="dense", **options)) == expected
    vector = embeddings.embed_query("the red cat")
    assert ids(ours.max_marginal_relevance_search_by_vector(vector, **options)) == expected


def test_mmr_with_lambda_one_keeps_the_hybrid_order(store):
    found = store.max_marginal_relevance_search("red dog", k=4, lambda_mult=1.0)
    assert found == store.similarity_search("red dog", k=4)


def test_mmr_skips_duplicates_while_other_documents_remain(empty):
    empty.add_texts(["red cat", "red cat", "green bird"], ids=["a", "b", "c"])
    assert ids(empty.max_marginal_relevance_search("red cat", k=2, lambda_mult=0.3)) == ["a", "c"]
    assert ids(empty.similarity_search("red cat", k=2)) == ["a", "b"]


@pytest.mark.parametrize(
    "options",
    [
        {"search_type": "similarity", "search_kwargs": {"k": 2, "mode": "sparse"}},
        {"search_type": "mmr", "search_kwargs": {"k": 2, "fetch_k": 4, "lambda_mult": 0.2}},
        {"search_type": "similarity_score_threshold", "search_kwargs": {"k": 6, "score_threshold": 0.5}},
    ],
    ids=lambda options: options["search_type"],
)
async def test_as_retriever_supports_each_search_type(store, options):
    retriever = store.as_retriever(**options)
    found = retriever.invoke("a red cat")
    assert found == store.search("a red cat", options["search_type"], **options["search_kwargs"])
    assert found[0].id == "d0"
    assert await retriever.ainvoke("a red cat") == found
    assert retriever.batch(["a red cat"]) == [found]
    assert retriever.tags == ["M3VectorStore", "M3Embeddings"]


def test_a_score_threshold_drops_documents_below_it(store):
    scored = store.similarity_search_with_relevance_scores("a red cat", k=6)
    middle = scored[2][1]
    above = store.similarity_search_with_relevance_scores("a red cat", k=6, score_threshold=middle)
    assert above == [each for each in scored if each[1] >= middle]
    assert 0 < len(above) < len(scored)


# Keeping


def test_documents_round_trip_through_the_store(store):
    assert store.get_by_ids(["d1", "unknown", "d0", "d1"]) == [
        Document(id="d1", page_content=TEXTS[1], metadata=METADATAS[1]),
        Document(id="d0", page_content=TEXTS[0], metadata=METADATAS[0]),
    ]


def test_a_text_without_id_is_added_only_once(empty):
    first, second, other = empty.add_texts(["red", "red", "red"], [{}, {}, {"page": 2}])
    assert first == second != other
    assert empty.add_texts(["red"]) == [first]
    assert len(empty.index) == 2


def test_some_ids_may_be_none(empty):
    named, unnamed = empty.add_documents([Document("red", id="a"), Document("blue")])
    assert named == "a"
    assert empty.get_by_ids([unnamed])[0].page_content == "blue"


def test_from_documents_keeps_their_ids(hash_encoder):
    documents = [Document(id="x", page_content="red", metadata={"n": 1}), Document(id="y", page_content="blue")]
    store = M3VectorStore.from_documents(documents, M3Embeddings(encoder=hash_encoder))
    assert store.get_by_ids(["x", "y"]) == documents


def test_delete_without_ids_deletes_everything_and_with_an_empty_list_nothing(store):
    assert store.delete([])
    assert len(store.index) == 6
    assert store.delete()
    assert len(store.index) == 0
    assert store.similarity_search("red") == []


def test_deleted_documents_are_purged_from_every_file(hash_encoder, tmp_path):
    with M3VectorStore.from_folder(tmp_path, M3Embeddings(encoder=hash_encoder)).index as index:
        store = M3VectorStore(M3Embeddings(encoder=hash_encoder), index)
        store.add_texts(TEXTS, METADATAS, ids=IDS)
        assert store.delete(["d5"], purge=True)
        assert not any(b"nothing of the kind" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_folder_can_be_reopened(hash_encoder, tmp_path):
    embeddings = M3Embeddings(encoder=hash_encoder)
    with M3VectorStore.from_folder(tmp_path / "index", embeddings).index as index:
        before = M3VectorStore(embeddings, index)
        before.add_texts(TEXTS, METADATAS, ids=IDS)
        found = before.similarity_search("red dog")
    again = M3VectorStore.from_folder(tmp_path / "index", embeddings)
    assert again.similarity_search("red dog") == found
    again.index.close()


def test_the_model_is_loaded_at_the_first_use():
    store = M3VectorStore(M3Embeddings("no/such/folder"))
    assert store.get_by_ids(["a"]) == []
    with pytest.raises(Exception, match="no/such/folder"):
        store.add_texts(["red"])


# Metadata

EASTERN = timezone(timedelta(hours=-5))
KINDS = {
    "nested": {"a": [1, {"b": None}], "c": {"d": {"e": 0.5}}},
    "unicode": {"ключ": "значение", "日本": "茶 ☕", "emoji": "👩‍🔬"},
    "datetime": {"at": datetime(2024, 2, 29, 12, 30, 15, 123456)},
    "zoned": {"at": datetime(2024, 2, 29, 12, tzinfo=UTC), "there": datetime(2024, 1, 1, tzinfo=EASTERN)},
    "date": {"on": date(2024, 2, 29), "from": time(9, 30)},
    "dates within": {"seen": [{"on": date(2024, 1, 1)}, date(2023, 1, 1), "2022-01-01"], "by": {"at": [time(9, 30)]}},
    "empty": {"list": [], "dict": {}, "text": "", "none": None, "false": False},
}  # fmt: skip


@pytest.mark.parametrize("metadata", KINDS.values(), ids=KINDS)
def test_metadata_round_trips(empty, metadata):
    document = Document(id="x", page_content="red", metadata=metadata)
    empty.add_documents([document])
    assert empty.similarity_search("red") == [document]
    assert empty.get_by_ids(["x"]) == [document]
    assert empty.add_documents([document]) == ["x"]


def test_arguments_are_not_changed(empty):
    document = Document("red", metadata={"on": date(2024, 1, 1), "in": {"at": [datetime(2020, 1, 1)]}})
    before = document.model_copy(deep=True)
    empty.add_documents([document])
    assert document == before


def test_dates_can_be_filtered_by_dates_and_by_iso_text(empty):
    days = [date(2024, 1, 31), date(2024, 2, 1), date(2024, 3, 1)]
    empty.add_texts(["red", "blue", "green"], [{"on": day} for day in days], ids=["jan", "feb", "mar"])
    for day in (date(2024, 2, 1), "2024-02-01"):
        assert set(ids(empty.similarity_search("red", filter={"on": {"$gte": day}}))) == {"feb", "mar"}
        assert ids(empty.similarity_search("red", filter={"on": day})) == ["feb"]
    assert set(ids(empty.similarity_search("red", filter={"on": {"$in": {*days[:2]}}}))) == {"jan", "feb"}


NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("zone", [UTC, EASTERN, timezone(timedelta(hours=9, minutes=30))])
def test_datetimes_of_all_time_zones_are_compared_as_instants(empty, zone):
    before, after = NOON - timedelta(hours=1), NOON + timedelta(microseconds=1)
    zones = (EASTERN, timezone(timedelta(hours=2)), UTC)
    times = [each.astimezone(of) for each, of in zip((before, NOON, after), zones, strict=True)]
    empty.add_texts(["red"] * 3, [{"at": each} for each in times], ids=["before", "noon", "after"])
    operand = NOON.astimezone(zone)
    expected = {
        "$eq": {"noon"},
        "$ne": {"before", "after"},
        "$lt": {"before"},
        "$lte": {"before", "noon"},
        "$gt": {"after"},
        "$gte": {"noon", "after"},
    }
    for operator, found in expected.items():
        assert set(ids(empty.similarity_search("red", filter={"at": {operator: operand}}))) == found
    assert ids(empty.similarity_search("red", filter=Field("at", "in", [operand]))) == ["noon"]
    assert [each.metadata["at"].isoformat() for each in empty.get_by_ids(["before", "noon", "after"])] == [
        each.isoformat() for each in times
    ]


class NotATime(datetime):
    """Stands for pandas' NaT, which is a datetime too."""

    def isoformat(self, *_, **__):
        return "NaT"


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (NotATime(1, 1, 1), "use None"),
        (float("nan"), "use None, or omit the key"),
        (Decimal("1.10"), r"use float\(value\), or str\(value\) to keep every digit"),
        (Path("a"), r"use str\(value\)"),
        (UUID(int=1), r"use str\(value\)"),
        ({1, 2}, r"use sorted\(value\)"),
        (np.datetime64("2024-01-01"), r"use str\(value\)"),
        (np.ones(2), r"use value.tolist\(\)"),
    ],
)
def test_a_value_that_is_not_json_is_refused_naming_document_key_and_value(empty, value, fix):
    metadatas = [None, {"price": [1, value]}]
    with pytest.raises(ValueError, match=rf"(?s)document 1, 'blue': metadata 'price\[1\]'.*{fix}"):
        empty.add_texts(["red", "blue"], metadatas)
    with pytest.raises(ValueError, match=rf"(?s)document 'b', 'blue': metadata 'price\[1\]'.*{fix}"):
        empty.add_documents([Document("red"), Document(id="b", page_content="blue", metadata=metadatas[1])])
    assert len(empty.index) == 0


def test_an_integer_too_long_to_be_written_is_refused_by_its_key(empty):
    with pytest.raises(ValueError, match=r"document 0, 'red': metadata 'n' is an integer of 16610 bits; use a float"):
        empty.add_texts(["red"], [{"n": 10**5000}])
    assert len(empty.index) == 0


def test_numpy_scalars_are_stored_as_python_numbers(empty):
    empty.add_texts(["red"], [{"i": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True)}], ids=["x"])
    (document,) = empty.get_by_ids(["x"])
    assert document.metadata == {"i": 3, "x": 0.5, "b": True}
    assert [type(each) for each in document.metadata.values()] == [int, float, bool]
    for condition in ({"$gte": np.int64(3)}, {"$in": [np.int64(3)]}, {"$in": set(np.arange(5))}):
        assert ids(empty.similarity_search("red", filter={"i": condition})) == ["x"]


def test_stored_times_that_cannot_be_read_are_returned_as_text(empty):
    stored = {"paid": "NaT", "_times": [["datetime", ["paid"]], ["date", ["gone"]], ["era", ["paid"]], 7]}
    empty.index.add([Passage("x", "red", stored)], empty.encoder.encode_passages(["red"]))
    assert empty.get_by_ids(["x"])[0].metadata == {"paid": "NaT"}


def test_empty_id_lists_and_filters_select_nothing(store):
    count = len(store.index)
    assert store.get_by_ids([]) == []
    assert store.delete([])
    assert len(store.index) == count
    assert store.similarity_search("red", filter={"n": {"$in": []}}) == []
    assert store.similarity_search("red", filter={"$or": []}) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tags": {"a"}}, r"metadata 'tags' is \{'a'\}, which is not JSON; use sorted\(value\)"),
        ({"x": float("nan")}, "use None, or omit the key"),
        ({"by": {1: "a"}}, "keys of metadata 'by' must be strings, got 1"),
        ({"_times": []}, "'_times' is reserved for the kinds of its dates and times"),
    ],
)
def test_metadata_that_is_not_json_is_rejected_by_name(empty, metadata, message):
    with pytest.raises(ValueError, match=message):
        empty.add_texts(["red"], [metadata], ids=["x"])
    assert len(empty.index) == 0


def test_circular_metadata_is_rejected(empty):
    circle: dict[str, object] = {}
    circle["self"] = circle
    with pytest.raises(ValueError, match="contains itself"):
        empty.add_texts(["red"], [circle], ids=["x"])


# Other embeddings


@pytest.fixture
def fake():
    return DeterministicFakeEmbedding(size=8)


def test_other_embeddings_rank_by_cosine_as_in_memory_vector_store(index, fake):
    ours, theirs = M3VectorStore(fake, index), InMemoryVectorStore(fake)
    for store in (ours, theirs):
        store.add_texts(TEXTS, ids=IDS)
    found = ours.similarity_search_with_score("a red cat", k=6)
    expected = theirs.similarity_search_with_score("a red cat", k=6)
    assert ids(document for document, _ in found) == ids(document for document, _ in expected)
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)
    vector = fake.embed_query("a red cat")
    assert ours.similarity_search_with_score_by_vector(vector, k=6) == found


async def test_other_embeddings_use_their_own_async_methods(fake):
    class Remote(DeterministicFakeEmbedding):
        async def aembed_query(self, text: str) -> list[float]:
            return self.embed_query(f"{text} cat")

    store = M3VectorStore.from_texts(TEXTS, Remote(size=8), ids=IDS)
    found = await store.asimilarity_search_with_score("a red", k=1)
    assert found[0][0].id == "d0"
    assert found[0][1] == pytest.approx(1.0)


def test_other_embeddings_become_a_dense_only_encoder(fake):
    encoder = DenseOnlyEncoder(fake)
    assert isinstance(encoder, Encoder)
    assert (encoder.modes, encoder.dense_dim, dict(encoder.weights)) == ({"dense"}, 8, {"dense": 1.0})
    assert encoder.encode_queries([]).dense.shape == (0, 8)
    assert encoder.fingerprint == DenseOnlyEncoder(DeterministicFakeEmbedding(size=8)).fingerprint
    described = "EmbeddingsEncoder(langchain_core.embeddings.fake.DeterministicFakeEmbedding(size=8)) 8"
    assert encoder.fingerprint == hashlib.sha256(described.encode()).hexdigest()
    assert encoder.fingerprint != DenseOnlyEncoder(DeterministicFakeEmbedding(size=9)).fingerprint
    with pytest.raises(MissingMode, match="'sparse' is not available"):
        encoder.encode_passages(["a"], ("sparse",))


# Users' mistakes


def test_an_unknown_operator_is_rejected_with_a_list_of_operators(store):
    with pytest.raises(UnsupportedFilter, match=r"'\$near' on 'n' is not supported; use one of .*'\$gte'"):
        store.similarity_search("red", filter={"n": {"$near": 3}})


def test_a_query_vector_of_another_dimension_is_rejected(store):
    with pytest.raises(WrongDimension, match=r"dense vectors of width 32, got 3"):
        store.similarity_search_by_vector([1.0, 2.0, 3.0])


def test_embeddings_of_another_dimension_are_rejected(fake):
    index = MemoryIndex()
    M3VectorStore(fake, index).add_texts(["red"])
    with pytest.raises(WrongDimension, match=r"width 8, got 9; use the encoder that filled it, or a new index"):
        M3VectorStore(DeterministicFakeEmbedding(size=9), index).add_texts(["blue"])


@pytest.mark.parametrize("other", [M3Embeddings(encoder=HashEncoder(seed=7)), DeterministicFakeEmbedding(size=32)])
@pytest.mark.parametrize("use", ["search", "add", "by vector"])
def test_a_folder_of_another_encoder_is_rejected_by_name(hash_encoder, tmp_path, other, use):
    with M3VectorStore.from_folder(tmp_path / "index", M3Embeddings(encoder=hash_encoder)).index as index:
        M3VectorStore(M3Embeddings(encoder=hash_encoder), index).add_texts(["red"])
        mixed = M3VectorStore(other, index)
        uses = {
            "search": lambda: mixed.similarity_search("red"),
            "add": lambda: mixed.add_texts(["blue"]),
            "by vector": lambda: mixed.similarity_search_by_vector([0.0] * 32),
        }
        with pytest.raises(WrongEncoder, match=r"was filled by HashEncoder.*seed=0.*this encoder is .*"):
            uses[use]()


async def test_an_empty_store_finds_nothing(empty):
    vector = [1.0] * 32
    assert empty.similarity_search("red") == []
    assert await empty.asimilarity_search("red") == []
    assert empty.similarity_search_with_relevance_scores("red") == []
    assert empty.similarity_search_by_vector(vector) == []
    assert empty.max_marginal_relevance_search("red") == []
    assert empty.max_marginal_relevance_search_by_vector(vector) == []
    assert empty.get_by_ids(["a"]) == []
    assert empty.delete(["a"])
    assert empty.add_texts([]) == []


def test_a_large_k_returns_all_documents(store):
    assert sorted(ids(store.similarity_search("red", k=1000))) == IDS
    assert sorted(ids(store.max_marginal_relevance_search("red", k=1000))) == IDS


@pytest.mark.parametrize("k", [0, -1])
async def test_k_below_one_is_rejected(store, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        store.similarity_search("red", k=k)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        await store.asimilarity_search("red", k=k)


def test_none_as_a_text_is_rejected_and_nothing_is_added(empty):
    with pytest.raises(ValueError, match="needs a text, got None; use '' for an empty text"):
        empty.add_texts(["red", None])
    assert len(empty.index) == 0


async def test_none_as_a_query_is_rejected(bge_m3):
    store = M3VectorStore.from_texts(["red"], M3Embeddings(str(bge_m3())))
    with pytest.raises(TypeError, match="the text at position 0 is None, not a string"):
        store.similarity_search(None)
    with pytest.raises(TypeError, match="the text at position 0 is None, not a string"):
        await store.asimilarity_search(None)


def test_a_missing_mode_is_rejected(fake):
    store = M3VectorStore.from_texts(["red"], fake)
    with pytest.raises(MissingMode, match=r"mode='sparse' is not available: .*FakeEmbedding.* supports \['dense'\]"):
        store.similarity_search("red", mode="sparse")
    with pytest.raises(MissingMode, match="mode='colbert'"):
        store.similarity_search("red", mode="colbert")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda store: store.add_texts(["a", "b"], [{}]), "got 2 texts and 1 metadatas; pass one for each text"),
        (lambda store: store.add_texts(["a", "b"], ids=["x"]), "got 2 texts and 1 ids; pass one for each text"),
        (lambda store: store.add_texts(["a"], ids=[3]), "ids are non-empty strings, got 3"),
        (lambda store: store.delete("d1"), r"write delete\(\['d1'\]\)"),
    ],
)
def test_mismatched_counts_and_invalid_ids_are_rejected(store, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(store)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda store: store.similarity_search("a", filters={}),
            r"takes no \['filters'\]; it takes k, filter and mode",
        ),
        (lambda store: store.similarity_search("a", score_threshold=0.5), "similarity_score_threshold"),
        (lambda store: store.add_texts(["a"], embeddings=[]), r"takes no \['embeddings'\]"),
        (lambda store: store.delete(["a"], namespace="n"), r"takes no \['namespace'\]; it takes ids"),
    ],
)
def test_an_unknown_argument_is_rejected_by_name(store, wrong, message):
    with pytest.raises(TypeError, match=message):
        wrong(store)
