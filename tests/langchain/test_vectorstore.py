"""M3VectorStore, at LangChain's door, over every index; LangChain's own suite is in test_standard."""

from __future__ import annotations

import warnings
from datetime import UTC, date, datetime, time, timedelta, timezone

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from m3_integrations.core.encoded import MODES
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import MissingMode, UnsupportedFilter, WrongDimension, WrongEncoder
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Query
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field
from m3_integrations.langchain import M3Embeddings, M3VectorStore
from m3_integrations.langchain.foreign import EmbeddingsEncoder
from m3_integrations.retrieval.calibration import calibrate
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", "a green bird", "the red cat and the blue dog", "a red fish", "nothing of the kind"]
METADATAS = [{"n": i, "kind": "pet" if i % 2 else "wild"} for i in range(len(TEXTS))]
IDS = [f"d{i}" for i in range(len(TEXTS))]


@pytest.fixture
def index(kept):
    return kept


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


def test_a_search_is_hybrid_and_finds_what_our_retriever_finds(store, hash_encoder):
    matches = Retriever(hash_encoder, store.index).retrieve("a red cat", 6)
    assert set(matches[0].by_mode) == set(MODES)
    found = store.similarity_search_with_score("a red cat", k=6)
    assert [(document.id, score) for document, score in found] == [(each.passage.id, each.score) for each in matches]
    assert store.similarity_search("a red cat", k=6) == [document for document, _ in found]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_alone_is_that_modes_search(store, hash_encoder, mode):
    hits = store.index.search(mode, hash_encoder.encode_queries(["red dog"]), 3)[0]
    found = store.similarity_search_with_score("red dog", k=3, mode=mode)
    assert [(document.id, score) for document, score in found] == hits


def test_a_plan_weighs_the_hybrid(index, hash_encoder):
    plan = SearchPlan(weights={"sparse": 1.0})
    store = M3VectorStore.from_texts(TEXTS, M3Embeddings(encoder=hash_encoder), index=index, plan=plan)
    lexical = store.similarity_search_with_score("red dog", mode="sparse", k=4)
    assert store.similarity_search_with_score("red dog", k=4)[:4] == lexical


def test_a_search_by_vector_is_the_dense_one(store, hash_encoder):
    vector = store.embedding.embed_query("red dog")
    assert store.similarity_search_by_vector(vector, 3) == store.similarity_search("red dog", 3, mode="dense")
    scored = store.similarity_search_with_score_by_vector(vector, 3)
    assert scored == store.similarity_search_with_score("red dog", 3, mode="dense")


@pytest.mark.parametrize("filter", [{"kind": "pet"}, Field("kind", "==", "pet")])
def test_every_search_keeps_to_the_filter(store, filter):
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


async def test_async_gives_what_sync_gives(store):
    vector, asked = store.embedding.embed_query("red dog"), {"k": 3, "filter": {"n": {"$lt": 5}}}
    assert await store.asimilarity_search("red dog", **asked) == store.similarity_search("red dog", **asked)
    assert await store.asimilarity_search_with_score("red dog", mode="sparse", **asked) == (
        store.similarity_search_with_score("red dog", mode="sparse", **asked)
    )
    assert await store.asimilarity_search_with_relevance_scores("red dog", **asked) == (
        store.similarity_search_with_relevance_scores("red dog", **asked)
    )
    assert await store.amax_marginal_relevance_search("red dog", **asked) == (
        store.max_marginal_relevance_search("red dog", **asked)
    )
    assert await store.asimilarity_search_by_vector(vector, **asked) == (
        store.similarity_search_by_vector(vector, **asked)
    )
    assert await store.aget_by_ids(["d1", "d0"]) == store.get_by_ids(["d1", "d0"])


async def test_async_writing_gives_what_sync_writing_gives(empty, hash_encoder):
    assert await empty.aadd_texts(TEXTS, METADATAS, ids=IDS) == IDS
    assert await empty.adelete(["d0"])
    other = await M3VectorStore.afrom_texts(TEXTS[1:], empty.embedding, METADATAS[1:], ids=IDS[1:])
    assert empty.similarity_search("red", k=9) == other.similarity_search("red", k=9)


# Relevance, and variety


@pytest.mark.parametrize("mode", ["hybrid", *MODES])
@pytest.mark.parametrize("query", ["a red cat", "zebra", ""])
def test_relevance_is_between_0_and_1_and_sorts_as_scores_do(store, mode, query):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LangChain warns of relevance that is not
        found = store.similarity_search_with_relevance_scores(query, k=6, mode=mode)
    assert [document for document, _ in found] == store.similarity_search(query, k=6, mode=mode)
    relevances = [relevance for _, relevance in found]
    assert relevances == sorted(relevances, reverse=True)


def test_relevance_of_a_dense_search_is_the_cosine(store, hash_encoder):
    found = dict(zip(ids(store.get_by_ids(IDS)), hash_encoder.encode_passages(TEXTS).dense, strict=True))
    asked = hash_encoder.encode_queries(["a red cat"]).dense[0]
    for document, relevance in store.similarity_search_with_relevance_scores("a red cat", k=6, mode="dense"):
        assert relevance == pytest.approx(max(0.0, float(asked @ found[document.id])), abs=1e-6)


def test_a_calibration_makes_probabilities_of_the_hybrids_scores(store, hash_encoder):
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
def test_variety_in_the_dense_mode_is_that_of_langchains_own_store(hash_encoder, balance):
    embeddings = M3Embeddings(encoder=hash_encoder)
    ours, theirs = M3VectorStore(embeddings), InMemoryVectorStore(embeddings)
    for store in (ours, theirs):
        store.add_texts(TEXTS, ids=IDS)
    asked = {"k": 4, "fetch_k": 5, "lambda_mult": balance}
    expected = ids(theirs.max_marginal_relevance_search("the red cat", **asked))
    assert ids(ours.max_marginal_relevance_search("the red cat", mode="dense", **asked)) == expected
    vector = embeddings.embed_query("the red cat")
    assert ids(ours.max_marginal_relevance_search_by_vector(vector, **asked)) == expected


def test_without_variety_the_hybrids_order_is_kept(store):
    found = store.max_marginal_relevance_search("red dog", k=4, lambda_mult=1.0)
    assert found == store.similarity_search("red dog", k=4)


def test_variety_takes_a_text_and_its_double_only_once_while_others_are_there(empty):
    empty.add_texts(["red cat", "red cat", "green bird"], ids=["a", "b", "c"])
    assert ids(empty.max_marginal_relevance_search("red cat", k=2, lambda_mult=0.3)) == ["a", "c"]
    assert ids(empty.similarity_search("red cat", k=2)) == ["a", "b"]


@pytest.mark.parametrize(
    "asked",
    [
        {"search_type": "similarity", "search_kwargs": {"k": 2, "mode": "sparse"}},
        {"search_type": "mmr", "search_kwargs": {"k": 2, "fetch_k": 4, "lambda_mult": 0.2}},
        {"search_type": "similarity_score_threshold", "search_kwargs": {"k": 6, "score_threshold": 0.5}},
    ],
    ids=lambda asked: asked["search_type"],
)
async def test_it_is_a_retriever_of_each_search_type(store, asked):
    retriever = store.as_retriever(**asked)
    found = retriever.invoke("a red cat")
    assert found == store.search("a red cat", asked["search_type"], **asked["search_kwargs"])
    assert found[0].id == "d0"
    assert await retriever.ainvoke("a red cat") == found
    assert retriever.batch(["a red cat"]) == [found]
    assert retriever.tags == ["M3VectorStore", "M3Embeddings"]


def test_a_relevance_threshold_leaves_out_those_below(store):
    scored = store.similarity_search_with_relevance_scores("a red cat", k=6)
    middle = scored[2][1]
    kept = store.similarity_search_with_relevance_scores("a red cat", k=6, score_threshold=middle)
    assert kept == [each for each in scored if each[1] >= middle]
    assert 0 < len(kept) < len(scored)


# Keeping


def test_documents_come_back_as_they_were_given(store):
    assert store.get_by_ids(["d1", "stranger", "d0", "d1"]) == [
        Document(id="d1", page_content=TEXTS[1], metadata=METADATAS[1]),
        Document(id="d0", page_content=TEXTS[0], metadata=METADATAS[0]),
    ]


def test_a_text_without_id_is_kept_once_however_often_it_comes(empty):
    first, second, other = empty.add_texts(["red", "red", "red"], [{}, {}, {"page": 2}])
    assert first == second != other
    assert empty.add_texts(["red"]) == [first]
    assert len(empty.index) == 2


def test_ids_may_be_given_for_some(empty):
    named, unnamed = empty.add_documents([Document("red", id="a"), Document("blue")])
    assert named == "a"
    assert empty.get_by_ids([unnamed])[0].page_content == "blue"


def test_from_documents_keeps_their_ids(hash_encoder):
    documents = [Document(id="x", page_content="red", metadata={"n": 1}), Document(id="y", page_content="blue")]
    store = M3VectorStore.from_documents(documents, M3Embeddings(encoder=hash_encoder))
    assert store.get_by_ids(["x", "y"]) == documents


def test_delete_without_ids_forgets_everything_and_with_none_nothing(store):
    assert store.delete([])
    assert len(store.index) == 6
    assert store.delete()
    assert len(store.index) == 0
    assert store.similarity_search("red") == []


def test_a_folder_is_found_again(hash_encoder, tmp_path):
    embeddings = M3Embeddings(encoder=hash_encoder)
    with M3VectorStore.from_folder(tmp_path / "kept", embeddings).index as index:
        before = M3VectorStore(embeddings, index)
        before.add_texts(TEXTS, METADATAS, ids=IDS)
        found = before.similarity_search("red dog")
    again = M3VectorStore.from_folder(tmp_path / "kept", embeddings)
    assert again.similarity_search("red dog") == found
    again.index.close()


def test_the_model_is_read_when_it_is_first_needed():
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
def test_metadata_comes_back_as_it_went(empty, metadata):
    document = Document(id="x", page_content="red", metadata=metadata)
    empty.add_documents([document])
    assert empty.similarity_search("red") == [document]
    assert empty.get_by_ids(["x"]) == [document]
    assert empty.add_documents([document]) == ["x"]


def test_what_is_given_stays_as_it_was(empty):
    document = Document("red", metadata={"on": date(2024, 1, 1), "in": {"at": [datetime(2020, 1, 1)]}})
    before = document.model_copy(deep=True)
    empty.add_documents([document])
    assert document == before


def test_dates_are_filtered_by_dates_and_by_text(empty):
    days = [date(2024, 1, 31), date(2024, 2, 1), date(2024, 3, 1)]
    empty.add_texts(["red", "blue", "green"], [{"on": day} for day in days], ids=["jan", "feb", "mar"])
    for day in (date(2024, 2, 1), "2024-02-01"):
        assert set(ids(empty.similarity_search("red", filter={"on": {"$gte": day}}))) == {"feb", "mar"}
        assert ids(empty.similarity_search("red", filter={"on": day})) == ["feb"]
    assert set(ids(empty.similarity_search("red", filter={"on": {"$in": {*days[:2]}}}))) == {"jan", "feb"}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tags": {"a"}}, r"metadata 'tags' is \{'a'\}, which JSON cannot say; write sorted\(value\)"),
        ({"x": float("nan")}, "write None, or leave the key out"),
        ({"by": {1: "a"}}, "keys of metadata 'by' are strings, got 1"),
        ({"_times": []}, "'_times' is kept for what its dates and times were"),
    ],
)
def test_metadata_that_cannot_be_kept_is_an_error_that_names_it(empty, metadata, said):
    with pytest.raises(ValueError, match=said):
        empty.add_texts(["red"], [metadata], ids=["x"])
    assert len(empty.index) == 0


def test_metadata_that_holds_itself_is_an_error(empty):
    circle: dict[str, object] = {}
    circle["self"] = circle
    with pytest.raises(ValueError, match="holds itself"):
        empty.add_texts(["red"], [circle], ids=["x"])


# Other embeddings


@pytest.fixture
def fake():
    return DeterministicFakeEmbedding(size=8)


def test_other_embeddings_serve_by_cosine_as_in_langchains_own_store(index, fake):
    ours, theirs = M3VectorStore(fake, index), InMemoryVectorStore(fake)
    for store in (ours, theirs):
        store.add_texts(TEXTS, ids=IDS)
    found = ours.similarity_search_with_score("a red cat", k=6)
    expected = theirs.similarity_search_with_score("a red cat", k=6)
    assert ids(document for document, _ in found) == ids(document for document, _ in expected)
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)
    vector = fake.embed_query("a red cat")
    assert ours.similarity_search_with_score_by_vector(vector, k=6) == found


async def test_other_embeddings_are_awaited_in_their_own_way(fake):
    class Remote(DeterministicFakeEmbedding):
        async def aembed_query(self, text: str) -> list[float]:
            return self.embed_query(f"{text} cat")

    store = M3VectorStore.from_texts(TEXTS, Remote(size=8), ids=IDS)
    found = await store.asimilarity_search_with_score("a red", k=1)
    assert found[0][0].id == "d0"
    assert found[0][1] == pytest.approx(1.0)


def test_other_embeddings_are_an_encoder_with_the_dense_mode_alone(fake):
    encoder = EmbeddingsEncoder(fake)
    assert isinstance(encoder, Encoder)
    assert (encoder.modes, encoder.dim, dict(encoder.weights)) == ({"dense"}, 8, {"dense": 1.0})
    assert encoder.encode_queries([]).dense.shape == (0, 8)
    assert encoder.fingerprint == EmbeddingsEncoder(DeterministicFakeEmbedding(size=8)).fingerprint
    assert encoder.fingerprint != EmbeddingsEncoder(DeterministicFakeEmbedding(size=9)).fingerprint
    with pytest.raises(MissingMode, match="'sparse' was asked for"):
        encoder.encode_passages(["a"], ("sparse",))


# Users' mistakes


def test_an_unknown_operator_is_an_error_that_names_those_there_are(store):
    with pytest.raises(UnsupportedFilter, match=r"'\$near' on 'n' is not supported; use one of .*'\$gte'"):
        store.similarity_search("red", filter={"n": {"$near": 3}})


def test_a_vector_of_another_dimension_is_an_error(store):
    with pytest.raises(WrongDimension, match=r"dense vectors of width 32, got 3"):
        store.similarity_search_by_vector([1.0, 2.0, 3.0])


def test_embeddings_of_another_dimension_are_an_error(fake):
    index = MemoryIndex()
    M3VectorStore(fake, index).add_texts(["red"])
    with pytest.raises(WrongDimension, match=r"width 8, got 9; use the encoder that filled it, or a new index"):
        M3VectorStore(DeterministicFakeEmbedding(size=9), index).add_texts(["blue"])


@pytest.mark.parametrize("other", [M3Embeddings(encoder=HashEncoder(seed=7)), DeterministicFakeEmbedding(size=32)])
@pytest.mark.parametrize("use", ["search", "add", "by vector"])
def test_two_models_in_one_folder_are_an_error_that_names_both(hash_encoder, tmp_path, other, use):
    with M3VectorStore.from_folder(tmp_path / "kept", M3Embeddings(encoder=hash_encoder)).index as index:
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


def test_k_above_the_corpus_answers_all_of_it(store):
    assert sorted(ids(store.similarity_search("red", k=1000))) == IDS
    assert sorted(ids(store.max_marginal_relevance_search("red", k=1000))) == IDS


@pytest.mark.parametrize("k", [0, -1])
async def test_k_is_at_least_1(store, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        store.similarity_search("red", k=k)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        await store.asimilarity_search("red", k=k)


def test_a_text_that_is_none_is_an_error_and_nothing_is_kept(empty):
    with pytest.raises(ValueError, match="needs a text, got None; an empty text is ''"):
        empty.add_texts(["red", None])
    assert len(empty.index) == 0


async def test_a_question_that_is_none_is_an_error(bge_m3):
    store = M3VectorStore.from_texts(["red"], M3Embeddings(str(bge_m3())))
    with pytest.raises(TypeError, match="the text at position 0 is None, not a string"):
        store.similarity_search(None)
    with pytest.raises(TypeError, match="the text at position 0 is None, not a string"):
        await store.asimilarity_search(None)


def test_a_mode_that_is_not_there_is_an_error(fake):
    store = M3VectorStore.from_texts(["red"], fake)
    with pytest.raises(MissingMode, match=r"mode='sparse' .*DeterministicFakeEmbedding.* has \['dense'\]"):
        store.similarity_search("red", mode="sparse")
    with pytest.raises(MissingMode, match="mode='colbert'"):
        store.similarity_search("red", mode="colbert")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda store: store.add_texts(["a", "b"], [{}]), "got 2 texts and 1 metadatas; give one for each"),
        (lambda store: store.add_texts(["a", "b"], ids=["x"]), "got 2 texts and 1 ids; give one for each"),
        (lambda store: store.add_texts(["a"], ids=[3]), "ids are non-empty strings, got 3"),
        (lambda store: store.delete("d1"), r"write delete\(\['d1'\]\)"),
    ],
)
def test_counts_and_ids_that_do_not_fit_are_errors(store, wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong(store)


@pytest.mark.parametrize(
    ("wrong", "said"),
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
def test_an_argument_that_means_nothing_here_is_refused_by_name(store, wrong, said):
    with pytest.raises(TypeError, match=said):
        wrong(store)
