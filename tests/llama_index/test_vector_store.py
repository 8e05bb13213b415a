"""M3VectorStore over both of our indexes: what LlamaIndex's own stores are tested for, and what they are not."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from m3_integrations import LocalIndex, MemoryIndex, Passage, ingest, score
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import (
    CheckpointError,
    IndexFolderError,
    MissingMode,
    ModeDropped,
    UnsupportedFilter,
    WrongDimension,
    WrongEncoder,
)
from m3_integrations.llama_index import M3Embedding, M3VectorStore
from m3_integrations.testing import HashEncoder
from tests.llama_index.conftest import persisted


def node(id, text, document, **metadata):
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(id_=id, text=text, metadata=metadata, relationships=source, excluded_embed_metadata_keys=KEYS)


KEYS = ["year", "lang", "tags", "author", "when", "note"]
NODES = [
    node("cat", "a red cat", "pets", year=2019, lang="en", tags=["pet", "red"], author={"name": "Ada"}),
    node("dog", "a blue dog", "pets", year=2020, lang="de", tags=["pet"], author={"name": "Bob"}),
    node("bird", "a green bird", "wild", year=2021, lang="de", tags=[]),
    node("fish", "a red fish", "wild", year=2022, lang=None, tags=["sea"], note="Über die See"),
    node("ant", "small", "wild", lang=""),
]
IDS = [each.node_id for each in NODES]


def ask(key, operator, value):
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def group(condition, *filters):
    return MetadataFilters(filters=list(filters), condition=condition)


def embedded(encoder, nodes=NODES):
    texts = [each.get_content("embed") for each in nodes]
    vectors = encoder.encode_passages(texts, ["dense"]).dense.tolist()
    return [each.model_copy(update={"embedding": vector}) for each, vector in zip(nodes, vectors, strict=True)]


def question(encoder, text, **options):
    embedding = encoder.encode_queries([text], ["dense"]).dense[0].tolist()
    return VectorStoreQuery(**{"query_embedding": embedding, "query_str": text, "similarity_top_k": 5, **options})


def exact(encoder, text, weights):
    """Every node's score by these weights, best first."""
    passages = encoder.encode_passages([each.get_content("embed") for each in NODES])
    scores = score(encoder.encode_queries([text]), passages, weights)[0].tolist()
    return sorted(zip(IDS, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture
def store(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    assert store.add(embedded(hash_encoder)) == IDS
    return store


def found(store, encoder, text="a red cat", **options):
    return store.query(question(encoder, text, **options)).ids


# Adding and finding


def test_it_keeps_text_and_is_asked_with_embeddings(store, index):
    assert store.stores_text
    assert store.is_embedding_query
    assert store.client is index
    assert store.class_name() == "M3VectorStore"


def test_a_node_comes_back_whole_with_its_score(store, hash_encoder):
    answer = store.query(question(hash_encoder, "a red cat", similarity_top_k=1))
    assert answer.ids == ["cat"]
    assert answer.nodes == [NODES[0]]
    assert answer.similarities == [pytest.approx(1.0)]


def test_nodes_without_embeddings_are_encoded(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    store.add(NODES)
    judge = hash_encoder.encode_passages(["a red cat", "a red fish"])
    assert np.allclose(index.vectors(["cat", "fish"]).dense, judge.dense)
    assert index.modes == frozenset(MODES)


def test_an_id_that_is_there_is_replaced(store, hash_encoder):
    store.add(embedded(hash_encoder, [node("cat", "a yellow lion", "zoo")]))
    assert len(store.get_nodes()) == len(NODES)
    assert found(store, hash_encoder, "yellow lion", similarity_top_k=1) == ["cat"]


def test_nothing_is_added_of_nothing(index, hash_encoder):
    assert M3VectorStore(index, hash_encoder).add([]) == []
    assert len(index) == 0


def test_more_nodes_than_are_added_at_once_all_arrive(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    store.add([TextNode(id_=f"{i:04d}", text=f"number {i}") for i in range(1100)])
    assert len(store.index) == 1100


def test_metadata_of_every_kind_comes_back(store, hash_encoder):
    when = {"day": date(2024, 5, 1), "at": [datetime(2024, 5, 1, 12, 30, tzinfo=UTC), None]}
    rich = node("rich", "rich", "d", when=when, author={"name": "Zoë", "名": ["橋", 1, 2.5, True, None]})
    store.add(embedded(hash_encoder, [rich]))
    (back,) = store.get_nodes(["rich"])
    assert back.metadata == rich.metadata
    assert back == rich
    since = group("and", ask("when.day", ">=", "2024-01-01"), ask("author.name", "==", "Zoë"))
    assert [each.node_id for each in store.get_nodes(filters=since)] == ["rich"]


@pytest.mark.parametrize(
    "given", [IndexNode(id_="i", text="about pets", index_id="pets"), ImageNode(id_="i", text="a photo", image_url="u")]
)
def test_other_nodes_come_back_as_what_they_were(store, hash_encoder, given):
    store.add(embedded(hash_encoder, [given]))
    assert store.get_nodes(["i"]) == [given]


def test_metadata_that_json_cannot_say_is_refused_and_nothing_is_kept(store, hash_encoder):
    with pytest.raises(ValueError, match="Unable to serialize unknown type"):
        store.add(embedded(hash_encoder, [node("odd", "odd", "d", note=object())]))
    assert store.get_nodes(["odd"]) == []


# Query modes


def test_default_asks_by_the_embedding_alone(store, hash_encoder):
    other = hash_encoder.encode_queries(["a blue dog"]).dense[0].tolist()
    assert found(store, hash_encoder, "a red cat", query_embedding=other)[0] == "dog"
    assert found(store, hash_encoder, "", query_str=None, query_embedding=other)[0] == "dog"


def test_a_question_without_embedding_is_encoded(store, hash_encoder):
    assert found(store, hash_encoder, "a blue dog", query_embedding=None)[0] == "dog"


@pytest.mark.parametrize("mode", ["sparse", "text_search"])
def test_lexical_modes_find_what_shares_a_token(store, hash_encoder, mode):
    answer = store.query(question(hash_encoder, "red dog", mode=VectorStoreQueryMode(mode)))
    judge = [(id, pytest.approx(total)) for id, total in exact(hash_encoder, "red dog", {"sparse": 1.0}) if total > 0]
    assert list(zip(answer.ids, answer.similarities, strict=True)) == judge
    assert {"bird", "ant"}.isdisjoint(answer.ids)


def test_sparse_top_k_is_how_many_a_sparse_query_answers(store, hash_encoder):
    assert len(found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1, sparse_top_k=3)) == 3
    assert len(found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1)) == 1


@pytest.mark.parametrize(
    ("mode", "modes"), [("hybrid", ["dense", "sparse"]), ("semantic_hybrid", ["dense", "sparse", "multi_vector"])]
)
def test_a_hybrid_is_the_weighted_sum_of_its_modes(index, mode, modes):
    weights = {"dense": 1.0, "sparse": 0.3, "multi_vector": 0.7}
    encoder = HashEncoder(weights=weights)
    store = M3VectorStore(MemoryIndex(), encoder)
    store.add(NODES)
    answer = store.query(question(encoder, "a red dog", mode=mode))
    judge = exact(encoder, "a red dog", {each: weights[each] for each in modes})
    assert list(zip(answer.ids, answer.similarities, strict=True)) == [
        (id, pytest.approx(total)) for id, total in judge
    ]
    own = M3VectorStore(store.index, encoder, weights={"dense": 0.0, "sparse": 2.0})
    assert own.query(question(encoder, "a red dog", mode="hybrid")).similarities[0] == pytest.approx(
        exact(encoder, "a red dog", {"sparse": 2.0})[0][1]
    )


@pytest.mark.parametrize(
    ("alpha", "weights"),
    [
        (0.0, {"sparse": 0.4}),
        (0.25, {"dense": 0.25 * 2.0, "sparse": 0.75 * 0.4}),
        (0.5, {"dense": 0.5 * 2.0, "sparse": 0.5 * 0.4}),
        (1.0, {"dense": 2.0}),
    ],
)
def test_alpha_shares_a_hybrid_out(store, hash_encoder, alpha, weights):
    store = M3VectorStore(store.index, hash_encoder, weights={"dense": 2.0, "sparse": 0.4})
    answer = store.query(question(hash_encoder, "red dog", mode="hybrid", alpha=alpha))
    judge = [pair for pair in exact(hash_encoder, "red dog", weights) if alpha > 0 or pair[1] > 0]
    assert list(zip(answer.ids, answer.similarities, strict=True)) == [
        (id, pytest.approx(total)) for id, total in judge
    ]


def test_hybrid_top_k_and_sparse_top_k_bound_what_each_mode_puts_forward(store, hash_encoder):
    dense = found(store, hash_encoder, "a red", similarity_top_k=1)
    sparse = found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1)
    numbers = {"similarity_top_k": 1, "sparse_top_k": 1, "hybrid_top_k": 5}
    assert set(found(store, hash_encoder, "a red", mode="hybrid", **numbers)) == {*dense, *sparse}
    assert len(found(store, hash_encoder, "a red", mode="hybrid", similarity_top_k=5, hybrid_top_k=2)) == 2
    assert len(found(store, hash_encoder, "a red", mode="hybrid", similarity_top_k=2)) == 2


def test_mmr_prefers_what_has_not_been_said(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    store.add([TextNode(id_=id, text=text) for id, text in [("a", "red cat"), ("b", "red cat"), ("c", "red dog")]])
    texts = hash_encoder.encode_passages(["red cat", "red dog", "cat"]).dense
    near, far, alike = float(texts[0] @ texts[2]), float(texts[1] @ texts[2]), float(texts[0] @ texts[1])
    assert found(store, hash_encoder, "cat", similarity_top_k=2) == ["a", "b"]
    answer = store.query(question(hash_encoder, "cat", mode="mmr", similarity_top_k=3), mmr_threshold=0.25)
    assert answer.ids == ["a", "c", "b"]
    assert answer.similarities == pytest.approx(
        [0.25 * near, 0.25 * far - 0.75 * alike, 0.25 * near - 0.75 * 1.0], abs=1e-6
    )
    asked = question(hash_encoder, "cat", mode="mmr", similarity_top_k=3, mmr_threshold=0.25)
    assert store.query(asked) == answer
    assert found(store, hash_encoder, "cat", mode="mmr", similarity_top_k=2, mmr_threshold=1.0) == ["a", "b"]


def test_mmr_looks_beyond_the_nodes_it_answers(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder, candidates=3)
    store.add([TextNode(id_=f"{i}", text="red cat") for i in range(5)] + [TextNode(id_="other", text="red dog")])
    variety = {"mode": "mmr", "similarity_top_k": 2, "mmr_threshold": 0.0}
    assert found(store, hash_encoder, "cat", **variety) == ["0", "1"]
    store.candidates = 6
    assert found(store, hash_encoder, "cat", **variety) == ["0", "other"]


def test_a_hybrid_over_a_dense_only_model_says_what_it_leaves_out():
    encoder = HashEncoder(modes=["dense"])
    store = M3VectorStore(encoder=encoder)
    store.add(NODES)
    with pytest.warns(ModeDropped, match="'sparse'"):
        assert found(store, encoder, mode="hybrid")[0] == "cat"
    with pytest.warns(ModeDropped), pytest.raises(MissingMode, match=r"\['sparse'\]"):
        found(store, encoder, mode="sparse")


def test_an_index_keeps_the_modes_that_the_store_is_made_with(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder, modes=("dense", "sparse"))
    store.add(embedded(hash_encoder))
    assert index.modes == {"dense", "sparse"}
    assert found(store, hash_encoder, mode="hybrid")[0] == "cat"


# Filters


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        (group("and", ask("year", "==", 2020)), {"dog"}),
        (group("and", ask("year", "!=", 2020)), {"cat", "bird", "fish", "ant"}),
        (group("and", ask("year", "<", 2020)), {"cat"}),
        (group("and", ask("year", "<=", 2020)), {"cat", "dog"}),
        (group("and", ask("year", ">", 2020)), {"bird", "fish"}),
        (group("and", ask("year", ">=", 2020), ask("lang", "==", "de")), {"dog", "bird"}),
        (group("and", ask("lang", "in", ["en", "fr"])), {"cat"}),
        (group("and", ask("lang", "nin", ["en", "fr"])), {"dog", "bird", "fish", "ant"}),
        (group("and", ask("tags", "contains", "pet")), {"cat", "dog"}),
        (group("and", ask("tags", "any", ["red", "sea"])), {"cat", "fish"}),
        (group("and", ask("tags", "all", ["red", "pet"])), {"cat"}),
        (group("and", ask("note", "text_match", "die See")), {"fish"}),
        (group("and", ask("tags", "is_empty", None)), {"bird", "ant"}),
        (group("and", ask("lang", "is_empty", None)), {"fish", "ant"}),
        (group("and", ask("author.name", "==", "Ada")), {"cat"}),
        (group("or", ask("lang", "==", "en"), ask("year", "==", 2022)), {"cat", "fish"}),
        (group("not", ask("lang", "==", "en"), ask("year", "==", 2022)), {"dog", "bird", "ant"}),
        (
            group("or", ask("lang", "==", "en"), group("and", ask("lang", "==", "de"), ask("year", ">", 2020))),
            {"cat", "bird"},
        ),
        (group("and", ask("lang", "==", "de"), group("not", group("or", ask("year", "==", 2020)))), {"bird"}),
        (group("and", ask("year", "==", 1066)), set()),
        (group("or"), set(IDS)),
        (None, set(IDS)),
    ],
)
def test_filters_let_through_what_they_say(store, hash_encoder, filters, passing):
    assert set(found(store, hash_encoder, filters=filters)) == passing
    assert {each.node_id for each in store.get_nodes(filters=filters)} == passing
    for mode in ("sparse", "hybrid", "semantic_hybrid", "mmr"):
        assert set(found(store, hash_encoder, "a red small", mode=mode, filters=filters)) == passing


def test_an_operator_that_cannot_be_said_names_those_that_can(store, hash_encoder):
    filters = group("and", ask("note", "text_match_insensitive", "SEE"))
    with pytest.raises(UnsupportedFilter, match=r"'text_match_insensitive' on 'note' is not supported; use one of .*"):
        found(store, hash_encoder, filters=filters)


def test_documents_and_nodes_bound_a_search(store, hash_encoder):
    assert set(found(store, hash_encoder, doc_ids=["wild"])) == {"bird", "fish", "ant"}
    assert set(found(store, hash_encoder, node_ids=["cat", "bird", "stranger"])) == {"cat", "bird"}
    assert found(store, hash_encoder, doc_ids=["wild"], node_ids=["cat", "bird"]) == ["bird"]
    german = group("and", ask("lang", "==", "de"))
    assert found(store, hash_encoder, doc_ids=["pets"], filters=german) == ["dog"]
    assert set(found(store, hash_encoder, doc_ids=[], node_ids=[])) == set(IDS)
    assert found(store, hash_encoder, doc_ids=["stranger"]) == []


def test_a_users_own_ref_doc_id_is_a_field_and_no_document(store, hash_encoder):
    store.add(embedded(hash_encoder, [node("own", "own", "wild", ref_doc_id="pets")]))
    assert "own" not in found(store, hash_encoder, doc_ids=["pets"], similarity_top_k=9)
    assert found(store, hash_encoder, filters=group("and", ask("ref_doc_id", "==", "pets")), doc_ids=["wild"]) == [
        "own"
    ]


# Deleting and getting


def test_a_document_is_deleted_with_all_its_nodes(store, hash_encoder):
    store.delete("pets")
    store.delete("stranger")
    assert set(found(store, hash_encoder)) == {"bird", "fish", "ant"}
    assert store.get_nodes(["cat"]) == []


def test_nodes_are_deleted_by_id_by_filter_and_by_both(store):
    store.delete_nodes(["cat", "stranger"])
    assert {each.node_id for each in store.get_nodes()} == {"dog", "bird", "fish", "ant"}
    store.delete_nodes(["dog", "fish"], group("and", ask("lang", "==", "de")))
    assert {each.node_id for each in store.get_nodes()} == {"bird", "fish", "ant"}
    store.delete_nodes(filters=group("and", ask("year", ">", 2020)))
    assert {each.node_id for each in store.get_nodes()} == {"ant"}
    store.delete_nodes([])
    with pytest.raises(ValueError, match="call clear"):
        store.delete_nodes()
    assert len(store.get_nodes()) == 1


def test_nodes_are_got_in_the_order_asked(store):
    assert store.get_nodes(["fish", "stranger", "cat"]) == [NODES[3], NODES[0]]
    assert [each.node_id for each in store.get_nodes()] == sorted(IDS)
    assert [each.node_id for each in store.get_nodes(["fish", "dog"], group("and", ask("year", ">", 2020)))] == ["fish"]


def test_clear_empties_it_and_it_can_be_filled_again(store, hash_encoder):
    store.clear()
    assert store.get_nodes() == []
    assert found(store, hash_encoder) == []
    store.add(embedded(hash_encoder, NODES[:1]))
    assert found(store, hash_encoder) == ["cat"]


async def test_async_does_what_sync_does(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    assert await store.async_add(embedded(hash_encoder)) == IDS
    for mode in VectorStoreQueryMode:
        if mode.value in ("svm", "logistic_regression", "linear_regression"):
            continue
        asked = question(hash_encoder, "a red cat", mode=mode)
        assert await store.aquery(asked) == store.query(asked)
    assert await store.aget_nodes(["cat"]) == [NODES[0]]
    await store.adelete("pets")
    await store.adelete_nodes(["bird"])
    assert {each.node_id for each in await store.aget_nodes()} == {"fish", "ant"}
    await store.aclear()
    assert await store.aget_nodes() == []


# Mistakes


def test_an_empty_store_answers_nothing_without_a_pass(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    for mode in ("default", "sparse", "hybrid", "mmr"):
        answer = store.query(VectorStoreQuery(query_str="red", similarity_top_k=3, mode=VectorStoreQueryMode(mode)))
        assert (answer.nodes, answer.similarities, answer.ids) == ([], [], [])


def test_k_above_the_corpus_answers_all_and_below_one_is_an_error(store, hash_encoder):
    assert len(found(store, hash_encoder, similarity_top_k=1000)) == len(NODES)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        found(store, hash_encoder, similarity_top_k=0)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mode": "svm"}, ValueError, "no query mode 'svm'; set vector_store_query_mode to one of"),
        ({"mode": "sparse", "query_str": None}, ValueError, "give query_str"),
        ({"mode": "hybrid", "query_str": None}, ValueError, "give query_str"),
        ({"query_embedding": None, "query_str": None}, ValueError, "give query_str"),
        ({"mode": "hybrid", "alpha": 1.5}, ValueError, "alpha is between 0"),
        ({"mode": "mmr", "mmr_threshold": 2.0}, ValueError, "between 0 and 1"),
        ({"query_embedding": [1.0, 2.0]}, WrongDimension, "width 32, got 2"),
    ],
)
def test_a_query_that_means_nothing_says_what_to_type(store, hash_encoder, options, error, said):
    with pytest.raises(error, match=said):
        found(store, hash_encoder, **options)


def test_an_embedding_of_another_width_is_refused_and_nothing_is_kept(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    with pytest.raises(WrongDimension, match=r"'a red cat' has the shape \(2,\).*embed with the model"):
        store.add([NODES[0].model_copy(update={"embedding": [1.0, 2.0]})])
    assert len(index) == 0


def test_settings_that_it_does_not_know_are_refused(store, hash_encoder):
    with pytest.raises(TypeError, match="query takes no fusion; leave it out"):
        store.query(question(hash_encoder, "red"), fusion="rrf")
    with pytest.raises(TypeError, match="add takes no batch"):
        store.add([], batch=3)
    with pytest.raises(ValidationError, match="topk"):
        M3VectorStore(encoder=hash_encoder, topk=3)


def test_two_models_in_one_folder_are_refused(tmp_path, hash_encoder):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as local:
        ingest(hash_encoder, local, [Passage("a", "red")])
    with pytest.raises(WrongEncoder, match="was filled by HashEncoder"):
        M3VectorStore(folder=str(tmp_path / "index"), encoder=HashEncoder(seed=9))
    with LocalIndex.open(tmp_path / "index") as unsaid, pytest.raises(WrongEncoder, match="was filled by HashEncoder"):
        M3VectorStore(unsaid, HashEncoder(seed=9))


def test_an_index_and_a_folder_are_one_too_many(hash_encoder):
    with pytest.raises(ValueError, match="leave one of them out"):
        M3VectorStore(MemoryIndex(), hash_encoder, folder="somewhere")


def test_passages_that_were_no_nodes_are_found_as_nodes(index, hash_encoder):
    ingest(hash_encoder, index, [Passage("a", "a red cat", {"year": 1})])
    store = M3VectorStore(index, hash_encoder)
    assert store.query(question(hash_encoder, "red")).nodes == [
        TextNode(id_="a", text="a red cat", metadata={"year": 1})
    ]


# Persisting


@persisted
def test_what_is_persisted_comes_back_with_all_settings(store, index, hash_encoder, tmp_path):
    store.weights, store.candidates = {"dense": 1.0, "sparse": 0.2}, 7
    path = str(tmp_path / "kept" / "store.json")
    for _ in range(2):
        store.persist(path)
    again = M3VectorStore.from_persist_path(path, encoder=hash_encoder)
    assert type(again.index) is type(index)
    assert (again.weights, again.candidates) == ({"dense": 1.0, "sparse": 0.2}, 7)
    for mode in ("default", "sparse", "hybrid", "semantic_hybrid"):
        asked = question(hash_encoder, "a red cat", mode=mode)
        assert again.query(asked) == store.query(asked)
    names = sorted(each.name for each in (tmp_path / "kept").iterdir())
    assert names[0] == "store.json"
    assert len(names) == (2 if isinstance(index, MemoryIndex) else 1)


@persisted
def test_memory_is_a_copy_and_a_folder_is_the_folder(store, hash_encoder, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    again.delete("pets")
    assert len(store.get_nodes()) == (len(NODES) if isinstance(store.index, MemoryIndex) else 3)


@persisted
def test_a_storage_context_persists_and_finds_it(store, hash_encoder, tmp_path):
    StorageContext.from_defaults(vector_store=store).persist(str(tmp_path / "storage"))
    again = M3VectorStore.from_persist_dir(str(tmp_path / "storage"), encoder=hash_encoder)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=again)
    engine = VectorStoreIndex.from_vector_store(context.vector_store, embed_model=M3Embedding(encoder=hash_encoder))
    assert engine.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].node == NODES[1]


def test_a_storage_context_that_is_not_told_of_it_fails_rather_than_be_empty(hash_encoder, tmp_path):
    StorageContext.from_defaults(vector_store=M3VectorStore(encoder=hash_encoder)).persist(str(tmp_path / "storage"))
    with pytest.raises(AttributeError):
        StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))


@persisted
def test_other_file_systems_hold_it_as_well(store, hash_encoder):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for _ in range(2):
        store.persist("bucket/store.json", fs=memory)
    again = M3VectorStore.from_persist_path("memory://bucket/store.json", fs=memory, encoder=hash_encoder)
    assert {each.node_id for each in again.get_nodes()} == set(IDS)
    assert len(memory.ls("bucket")) == (2 if isinstance(store.index, MemoryIndex) else 1)
    memory.rm("bucket", recursive=True)


@pytest.mark.parametrize("index", ["qdrant", "qdrant-stand-in"], indirect=True)
def test_a_qdrant_collection_keeps_itself_and_is_passed_in_again(store, index, hash_encoder, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    with pytest.raises(IndexFolderError, match="pass index= to load it"):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder, index=index)
    assert len(again.get_nodes()) == len(NODES)


def test_an_index_that_keeps_itself_is_passed_in_again(hash_encoder, tmp_path):
    class OnAServer:
        """An index of which this package knows the protocol alone."""

        def __init__(self):
            self._index = MemoryIndex()

        def __getattr__(self, name):
            return getattr(self._index, name)

        def __len__(self):
            return len(self._index)

    index = OnAServer()
    store = M3VectorStore(index, hash_encoder, candidates=9)
    store.add(NODES)
    store.persist(str(tmp_path / "store.json"))
    with pytest.raises(IndexFolderError, match="pass index= to load it"):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder, index=index)
    assert (again.candidates, len(again.get_nodes())) == (9, len(NODES))


@pytest.mark.parametrize("folder", [None, "before/vectors"])
def test_what_is_persisted_can_be_moved(hash_encoder, tmp_path, folder):
    store = M3VectorStore(encoder=hash_encoder, folder=folder and str(tmp_path / folder))
    store.add(NODES)
    store.persist(str(tmp_path / "before" / "store.json"))
    store.index.close()
    (tmp_path / "before").rename(tmp_path / "after")
    again = M3VectorStore.from_persist_path(str(tmp_path / "after" / "store.json"), encoder=hash_encoder)
    assert len(again.get_nodes()) == len(NODES)


def test_a_folder_that_is_gone_is_an_error_and_no_empty_store(hash_encoder, tmp_path):
    M3VectorStore(encoder=hash_encoder, folder=str(tmp_path / "vectors")).persist(str(tmp_path / "store.json"))
    (tmp_path / "vectors").rename(tmp_path / "elsewhere")
    with pytest.raises(IndexFolderError, match="holds no index; put it back, or pass index="):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    with LocalIndex.open(tmp_path / "elsewhere", hash_encoder) as moved:
        again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder, index=moved)
        assert again.folder == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (None, "there is no M3VectorStore at"),
        ("{}", "is no M3VectorStore"),
        ("[]", "is no M3VectorStore"),
        ("not json", "is no M3VectorStore"),
        ('{"format": "M3VectorStore", "settings": {}, "folder": null, "beside": "../store.json.00000000"}', "nodes at"),
    ],
)
def test_what_is_no_store_is_refused_when_loading(hash_encoder, tmp_path, said, match):
    if said is not None:
        (tmp_path / "store.json").write_text(said)
    with pytest.raises(IndexFolderError, match=match):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)


@persisted
def test_a_persisted_store_is_refused_with_another_model(store, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    with pytest.raises(WrongEncoder):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=HashEncoder(seed=9))
    with pytest.raises(CheckpointError, match="encoder:"):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"))


def test_a_store_over_a_folder_is_copied_by_its_settings(bge_m3, tmp_path):
    folder = str(tmp_path / "index")
    store = M3VectorStore(folder=folder, model_name=str(bge_m3()), max_length=64, candidates=9)
    store.add(NODES)
    asked = question(store.encoder, "a red cat", mode="hybrid")
    for copy in (M3VectorStore.from_dict(store.to_dict()), pickle.loads(pickle.dumps(store))):
        assert copy.to_dict() == store.to_dict()
        assert copy.query(asked) == store.query(asked)


def test_a_store_in_memory_says_why_it_cannot_be_copied_so(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    with pytest.raises(ValueError, match=r"call persist\(path\) and M3VectorStore.from_persist_path"):
        store.to_dict()
    with pytest.raises(ValueError, match="folder='my-index'"):
        pickle.dumps(store)
