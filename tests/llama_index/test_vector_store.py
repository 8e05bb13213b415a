"""M3VectorStore over every index."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime

import fsspec
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
    NotPicklable,
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


def bare(nodes):
    return [each.model_copy(update={"embedding": None}) for each in nodes]


def question(encoder, text, **options):
    embedding = encoder.encode_queries([text], ["dense"]).dense[0].tolist()
    return VectorStoreQuery(**{"query_embedding": embedding, "query_str": text, "similarity_top_k": 5, **options})


def exact(encoder, text, weights):
    """Return ids and exact scores by these weights, best first."""
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


def test_the_store_keeps_text_and_takes_query_embeddings(store, index):
    assert store.stores_text
    assert store.is_embedding_query
    assert store.client is index
    assert store.class_name() == "M3VectorStore"


def test_a_query_returns_whole_nodes_with_scores(store, hash_encoder):
    answer = store.query(question(hash_encoder, "a red cat", similarity_top_k=1))
    assert answer.ids == ["cat"]
    assert bare(answer.nodes) == [NODES[0]]
    assert answer.similarities == [pytest.approx(1.0)]


def test_nodes_without_embeddings_are_encoded(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    store.add(NODES)
    expected = hash_encoder.encode_passages(["a red cat", "a red fish"])
    assert np.allclose(index.vectors(["cat", "fish"]).dense, expected.dense)
    assert index.modes == frozenset(MODES)


def test_adding_an_existing_id_replaces_the_node(store, hash_encoder):
    store.add(embedded(hash_encoder, [node("cat", "a yellow lion", "zoo")]))
    assert len(store.get_nodes()) == len(NODES)
    assert found(store, hash_encoder, "yellow lion", similarity_top_k=1) == ["cat"]


def test_adding_no_nodes_adds_nothing(index, hash_encoder):
    assert M3VectorStore(index, hash_encoder).add([]) == []
    assert len(index) == 0


def test_more_nodes_than_one_batch_are_all_added(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    store.add([TextNode(id_=f"{i:04d}", text=f"number {i}") for i in range(1100)])
    assert len(store.index) == 1100


def test_metadata_of_every_type_round_trips(store, hash_encoder):
    when = {"day": date(2024, 5, 1), "at": [datetime(2024, 5, 1, 12, 30, tzinfo=UTC), None]}
    rich = node("rich", "rich", "d", when=when, author={"name": "Zoë", "名": ["橋", 1, 2.5, True, None]})
    store.add(embedded(hash_encoder, [rich]))
    (back,) = store.get_nodes(["rich"])
    assert back.metadata == rich.metadata
    assert bare([back]) == [rich.model_copy(update={"embedding": None})]
    since = group("and", ask("when.day", ">=", "2024-01-01"), ask("author.name", "==", "Zoë"))
    assert [each.node_id for each in store.get_nodes(filters=since)] == ["rich"]


@pytest.mark.parametrize(
    "other", [IndexNode(id_="i", text="about pets", index_id="pets"), ImageNode(id_="i", text="a photo", image_url="u")]
)
def test_other_node_types_round_trip(store, hash_encoder, other):
    store.add(embedded(hash_encoder, [other]))
    assert bare(store.get_nodes(["i"])) == [other]


def test_metadata_that_is_not_json_is_rejected_and_nothing_is_added(store, hash_encoder):
    with pytest.raises(ValueError, match=r"node 'odd', 'odd': metadata 'note' is .* which is not JSON"):
        store.add(embedded(hash_encoder, [node("odd", "odd", "d", note=object())]))
    assert store.get_nodes(["odd"]) == []


# Query modes


def test_default_mode_uses_only_the_embedding(store, hash_encoder):
    other = hash_encoder.encode_queries(["a blue dog"]).dense[0].tolist()
    assert found(store, hash_encoder, "a red cat", query_embedding=other)[0] == "dog"
    assert found(store, hash_encoder, "", query_str=None, query_embedding=other)[0] == "dog"


def test_a_query_without_embedding_is_encoded(store, hash_encoder):
    assert found(store, hash_encoder, "a blue dog", query_embedding=None)[0] == "dog"


@pytest.mark.parametrize("mode", ["sparse", "text_search"])
def test_sparse_modes_find_nodes_that_share_a_token(store, hash_encoder, mode):
    answer = store.query(question(hash_encoder, "red dog", mode=VectorStoreQueryMode(mode)))
    expected = [
        (id, pytest.approx(total)) for id, total in exact(hash_encoder, "red dog", {"sparse": 1.0}) if total > 0
    ]
    assert list(zip(answer.ids, answer.similarities, strict=True)) == expected
    assert {"bird", "ant"}.isdisjoint(answer.ids)


def test_sparse_top_k_limits_a_sparse_query(store, hash_encoder):
    assert len(found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1, sparse_top_k=3)) == 3
    assert len(found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1)) == 1


@pytest.mark.parametrize(
    ("mode", "modes"), [("hybrid", ["dense", "sparse"]), ("semantic_hybrid", ["dense", "sparse", "multi_vector"])]
)
def test_a_hybrid_score_is_the_weighted_sum_of_its_modes(index, mode, modes):
    weights = {"dense": 1.0, "sparse": 0.3, "multi_vector": 0.7}
    encoder = HashEncoder(weights=weights)
    store = M3VectorStore(MemoryIndex(), encoder)
    store.add(NODES)
    answer = store.query(question(encoder, "a red dog", mode=mode))
    expected = exact(encoder, "a red dog", {each: weights[each] for each in modes})
    assert list(zip(answer.ids, answer.similarities, strict=True)) == [
        (id, pytest.approx(total)) for id, total in expected
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
def test_alpha_scales_the_weights_of_a_hybrid_query(store, hash_encoder, alpha, weights):
    store = M3VectorStore(store.index, hash_encoder, weights={"dense": 2.0, "sparse": 0.4})
    answer = store.query(question(hash_encoder, "red dog", mode="hybrid", alpha=alpha))
    expected = [pair for pair in exact(hash_encoder, "red dog", weights) if alpha > 0 or pair[1] > 0]
    assert list(zip(answer.ids, answer.similarities, strict=True)) == [
        (id, pytest.approx(total)) for id, total in expected
    ]


def test_hybrid_top_k_and_sparse_top_k_limit_the_candidates(store, hash_encoder):
    dense = found(store, hash_encoder, "a red", similarity_top_k=1)
    sparse = found(store, hash_encoder, "a red", mode="sparse", similarity_top_k=1)
    numbers = {"similarity_top_k": 1, "sparse_top_k": 1, "hybrid_top_k": 5}
    assert set(found(store, hash_encoder, "a red", mode="hybrid", **numbers)) == {*dense, *sparse}
    assert len(found(store, hash_encoder, "a red", mode="hybrid", similarity_top_k=5, hybrid_top_k=2)) == 2
    assert len(found(store, hash_encoder, "a red", mode="hybrid", similarity_top_k=2)) == 2


def test_mmr_prefers_diverse_nodes(hash_encoder):
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
    query = question(hash_encoder, "cat", mode="mmr", similarity_top_k=3, mmr_threshold=0.25)
    assert store.query(query) == answer
    assert found(store, hash_encoder, "cat", mode="mmr", similarity_top_k=2, mmr_threshold=1.0) == ["a", "b"]


def test_mmr_selects_from_four_times_as_many_nodes_as_it_returns_or_from_as_many_as_asked(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    store.add([TextNode(id_=f"{i}", text="red cat") for i in range(5)] + [TextNode(id_="other", text="red dog")])
    options = {"mode": "mmr", "similarity_top_k": 2, "mmr_threshold": 0.0}
    query = question(hash_encoder, "cat", **options)
    assert store.query(query).ids == ["0", "other"]
    for few in ({"mmr_prefetch_k": 5}, {"mmr_prefetch_factor": 2.5}, {"mmr_prefetch_k": 1}):
        assert store.query(query, **few).ids == ["0", "1"]
    for enough in ({"mmr_prefetch_k": 6}, {"mmr_prefetch_factor": 3}):
        assert store.query(query, **enough).ids == ["0", "other"]
    assert store.query(query, mmr_threshold=1.0).ids == ["0", "1"]
    with pytest.raises(ValueError, match="both given; leave one of them out"):
        store.query(query, mmr_prefetch_k=6, mmr_prefetch_factor=3)


def test_a_hybrid_query_of_a_dense_only_model_warns_of_dropped_modes():
    encoder = HashEncoder(modes=["dense"])
    store = M3VectorStore(encoder=encoder)
    store.add(NODES)
    with pytest.warns(ModeDropped, match="'sparse'"):
        assert found(store, encoder, mode="hybrid")[0] == "cat"
    with pytest.warns(ModeDropped), pytest.raises(MissingMode, match=r"\['sparse'\]"):
        found(store, encoder, mode="sparse")


def test_an_empty_index_stores_the_modes_of_the_store(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder, modes=("dense", "sparse"))
    store.add(embedded(hash_encoder))
    assert index.modes == {"dense", "sparse"}
    assert found(store, hash_encoder, mode="hybrid")[0] == "cat"


# Filters


@pytest.mark.parametrize(
    ("filters", "matching"),
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
def test_filters_select_the_matching_nodes(store, hash_encoder, filters, matching):
    assert set(found(store, hash_encoder, filters=filters)) == matching
    assert {each.node_id for each in store.get_nodes(filters=filters)} == matching
    for mode in ("sparse", "hybrid", "semantic_hybrid", "mmr"):
        assert set(found(store, hash_encoder, "a red small", mode=mode, filters=filters)) == matching


@pytest.mark.parametrize(
    ("value", "matching"), [("DIE see", {"fish"}), ("ÜBER", {"fish"}), ("", {"fish"}), ("lake", set())]
)
def test_text_match_insensitive_ignores_case(store, hash_encoder, value, matching):
    filters = group("and", ask("note", "text_match_insensitive", value))
    for mode in ("default", "sparse", "hybrid", "mmr"):
        assert set(found(store, hash_encoder, "a red small", mode=mode, filters=filters)) == matching
    assert {each.node_id for each in store.get_nodes(filters=filters)} == matching


@pytest.mark.parametrize("operator", ["text_match", "text_match_insensitive"])
def test_a_text_match_takes_a_string_only(store, hash_encoder, operator):
    with pytest.raises(UnsupportedFilter, match=f"'{operator}' on 'year' takes a string, got 20"):
        found(store, hash_encoder, filters=group("and", ask("year", operator, 20)))
    assert found(store, hash_encoder, filters=group("and", ask("year", operator, "20"))) == []


def test_doc_ids_and_node_ids_restrict_a_search(store, hash_encoder):
    assert set(found(store, hash_encoder, doc_ids=["wild"])) == {"bird", "fish", "ant"}
    assert set(found(store, hash_encoder, node_ids=["cat", "bird", "unknown"])) == {"cat", "bird"}
    assert found(store, hash_encoder, doc_ids=["wild"], node_ids=["cat", "bird"]) == ["bird"]
    german = group("and", ask("lang", "==", "de"))
    assert found(store, hash_encoder, doc_ids=["pets"], filters=german) == ["dog"]
    assert found(store, hash_encoder, doc_ids=["unknown"]) == []


@pytest.mark.parametrize("restriction", [{"doc_ids": []}, {"node_ids": []}, {"doc_ids": ["pets"], "node_ids": []}])
def test_an_empty_list_of_allowed_nodes_or_documents_selects_nothing(store, hash_encoder, restriction):
    for mode in ("default", "sparse", "text_search", "hybrid", "semantic_hybrid", "mmr"):
        assert found(store, hash_encoder, "a red", mode=mode, **restriction) == []


async def test_a_retriever_of_llama_index_searches_every_node_unless_documents_are_listed(store, hash_encoder):
    model = M3Embedding(encoder=hash_encoder)
    built = VectorStoreIndex.from_vector_store(store, embed_model=model)
    assert {each.node_id for each in built.as_retriever(similarity_top_k=9).retrieve("a red")} == set(IDS)
    assert {each.node_id for each in await built.as_retriever(similarity_top_k=9).aretrieve("a red")} == set(IDS)
    assert built.as_retriever(doc_ids=[]).retrieve("a red") == []
    assert await built.as_retriever(doc_ids=[]).aretrieve("a red") == []


def test_a_query_by_filters_alone_returns_the_matching_nodes(store):
    german = group("and", ask("lang", "==", "de"))
    answer = store.query(VectorStoreQuery(filters=german, similarity_top_k=5))
    assert (answer.ids, answer.similarities) == (["bird", "dog"], None)
    assert [each.node_id for each in answer.nodes] == answer.ids
    assert store.query(VectorStoreQuery(filters=german, similarity_top_k=1)).ids == ["bird"]
    assert store.query(VectorStoreQuery(doc_ids=["pets"], similarity_top_k=5)).ids == ["cat", "dog"]


def test_nodes_come_back_with_their_embeddings(store, hash_encoder):
    expected = {each.node_id: pytest.approx(each.embedding, abs=1e-6) for each in embedded(hash_encoder)}
    assert {each.node_id: each.embedding for each in store.get_nodes()} == expected
    for mode in ("default", "hybrid", "mmr"):
        nodes = store.query(question(hash_encoder, "a red", mode=mode)).nodes
        assert nodes
        assert all(each.embedding == expected[each.node_id] for each in nodes)


def test_a_metadata_field_named_ref_doc_id_is_not_the_document(store, hash_encoder):
    store.add(embedded(hash_encoder, [node("own", "own", "wild", ref_doc_id="pets")]))
    assert "own" not in found(store, hash_encoder, doc_ids=["pets"], similarity_top_k=9)
    assert found(store, hash_encoder, filters=group("and", ask("ref_doc_id", "==", "pets")), doc_ids=["wild"]) == [
        "own"
    ]


# Deleting and getting


def test_a_document_is_deleted_with_all_its_nodes(store, hash_encoder):
    store.delete("pets")
    store.delete("unknown")
    assert set(found(store, hash_encoder)) == {"bird", "fish", "ant"}
    assert store.get_nodes(["cat"]) == []


def test_nodes_are_deleted_by_id_by_filter_and_by_both(store):
    store.delete_nodes(["cat", "unknown"])
    assert {each.node_id for each in store.get_nodes()} == {"dog", "bird", "fish", "ant"}
    store.delete_nodes(["dog", "fish"], group("and", ask("lang", "==", "de")))
    assert {each.node_id for each in store.get_nodes()} == {"bird", "fish", "ant"}
    store.delete_nodes(filters=group("and", ask("year", ">", 2020)))
    assert {each.node_id for each in store.get_nodes()} == {"ant"}
    store.delete_nodes([])
    store.delete_nodes()
    assert len(store.get_nodes()) == 1


def test_deleted_nodes_are_purged_from_every_file(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index") as index:
        store = M3VectorStore(index, hash_encoder)
        store.add(embedded(hash_encoder))
        store.delete("pets", purge=True)
        store.delete_nodes(["ant"], purge=True)
        contents = [path.read_bytes() for path in index.folder.iterdir()]
        assert {text for text in (b"blue dog", b"small", b"green bird") if any(text in each for each in contents)} == {
            b"green bird"
        }
        with pytest.raises(TypeError, match="delete takes no hard"):
            store.delete("wild", hard=True)


def test_get_nodes_keeps_the_order_of_the_ids(store):
    assert bare(store.get_nodes(["fish", "unknown", "cat"])) == [NODES[3], NODES[0]]
    assert [each.node_id for each in store.get_nodes()] == sorted(IDS)
    assert [each.node_id for each in store.get_nodes(["fish", "dog"], group("and", ask("year", ">", 2020)))] == ["fish"]


def test_a_cleared_store_is_empty_and_can_be_filled_again(store, hash_encoder):
    store.clear()
    assert store.get_nodes() == []
    assert found(store, hash_encoder) == []
    store.add(embedded(hash_encoder, NODES[:1]))
    assert found(store, hash_encoder) == ["cat"]


async def test_async_methods_match_sync_methods(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    assert await store.async_add(embedded(hash_encoder)) == IDS
    for mode in VectorStoreQueryMode:
        if mode.value in ("svm", "logistic_regression", "linear_regression"):
            continue
        query = question(hash_encoder, "a red cat", mode=mode)
        assert await store.aquery(query) == store.query(query)
    assert bare(await store.aget_nodes(["cat"])) == [NODES[0]]
    await store.adelete("pets")
    await store.adelete_nodes(["bird"])
    assert {each.node_id for each in await store.aget_nodes()} == {"fish", "ant"}
    await store.aclear()
    assert await store.aget_nodes() == []


# Mistakes


def test_an_empty_store_returns_nothing_without_encoding(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    for mode in ("default", "sparse", "hybrid", "mmr"):
        answer = store.query(VectorStoreQuery(query_str="red", similarity_top_k=3, mode=VectorStoreQueryMode(mode)))
        assert (answer.nodes, answer.similarities, answer.ids) == ([], [], [])


def test_a_query_without_the_text_it_needs_is_rejected_by_an_empty_store_too(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    with pytest.raises(ValueError, match="give query_str"):
        store.query(question(hash_encoder, "red", mode="hybrid", query_str=None))
    assert store.query(question(hash_encoder, "red", query_str=None)).ids == []


def test_a_large_k_returns_all_nodes_and_k_below_one_is_rejected(store, hash_encoder):
    assert len(found(store, hash_encoder, similarity_top_k=1000)) == len(NODES)
    with pytest.raises(ValueError, match="similarity_top_k must be an integer of at least 1, got 0"):
        found(store, hash_encoder, similarity_top_k=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "svm"}, ValueError, "support the query mode 'svm'; set vector_store_query_mode to one of"),
        ({"mode": "sparse", "query_str": None}, ValueError, "give query_str"),
        ({"mode": "hybrid", "query_str": None}, ValueError, "give query_str"),
        ({"query_embedding": None, "query_str": None}, ValueError, "give query_str"),
        ({"mode": "hybrid", "alpha": 1.5}, ValueError, "alpha must be between 0"),
        ({"mode": "mmr", "mmr_threshold": 2.0}, ValueError, "mmr_threshold must be between 0 .* and 1 .*, got 2.0"),
        ({"query_embedding": [1.0, 2.0]}, WrongDimension, "width 32, got 2"),
    ],
)
def test_an_invalid_query_is_rejected_with_a_fix(store, hash_encoder, options, error, message):
    with pytest.raises(error, match=message):
        found(store, hash_encoder, **options)


def test_an_embedding_of_another_dimension_is_rejected_and_nothing_is_added(index, hash_encoder):
    store = M3VectorStore(index, hash_encoder)
    with pytest.raises(WrongDimension, match=r"'a red cat' has the shape \(2,\).*embed with the model"):
        store.add([NODES[0].model_copy(update={"embedding": [1.0, 2.0]})])
    assert len(index) == 0


def test_unknown_settings_are_rejected(store, hash_encoder):
    with pytest.raises(TypeError, match="query takes no fusion; leave it out"):
        store.query(question(hash_encoder, "red"), fusion="rrf")
    with pytest.raises(TypeError, match="add takes no batch"):
        store.add([], batch=3)
    with pytest.raises(ValidationError, match="topk"):
        M3VectorStore(encoder=hash_encoder, topk=3)


def test_a_folder_of_another_encoder_is_rejected(tmp_path, hash_encoder):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as local:
        ingest(hash_encoder, local, [Passage("a", "red")])
    with pytest.raises(WrongEncoder, match="was filled by HashEncoder"):
        M3VectorStore(folder=str(tmp_path / "index"), encoder=HashEncoder(seed=9))
    with LocalIndex.open(tmp_path / "index") as unsaid, pytest.raises(WrongEncoder, match="was filled by HashEncoder"):
        M3VectorStore(unsaid, HashEncoder(seed=9))


def test_index_and_folder_together_are_rejected(hash_encoder):
    with pytest.raises(ValueError, match="leave one of them out"):
        M3VectorStore(MemoryIndex(), hash_encoder, folder="somewhere")


def test_passages_not_made_from_nodes_become_text_nodes(index, hash_encoder):
    ingest(hash_encoder, index, [Passage("a", "a red cat", {"year": 1})])
    store = M3VectorStore(index, hash_encoder)
    assert bare(store.query(question(hash_encoder, "red")).nodes) == [
        TextNode(id_="a", text="a red cat", metadata={"year": 1})
    ]


# Persisting


@persisted
def test_persist_and_load_restore_nodes_and_settings(store, index, hash_encoder, tmp_path):
    store.weights, store.candidates = {"dense": 1.0, "sparse": 0.2}, 7
    path = str(tmp_path / "storage" / "store.json")
    for _ in range(2):
        store.persist(path)
    again = M3VectorStore.from_persist_path(path, encoder=hash_encoder)
    assert type(again.index) is type(index)
    assert (again.weights, again.candidates) == ({"dense": 1.0, "sparse": 0.2}, 7)
    for mode in ("default", "sparse", "hybrid", "semantic_hybrid"):
        query = question(hash_encoder, "a red cat", mode=mode)
        assert again.query(query) == store.query(query)
    names = sorted(each.name for each in (tmp_path / "storage").iterdir())
    assert names[0] == "store.json"
    assert len(names) == (2 if isinstance(index, MemoryIndex) else 1)


@persisted
def test_a_loaded_memory_index_is_a_copy_and_a_loaded_local_index_the_same_folder(store, hash_encoder, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    again.delete("pets")
    assert len(store.get_nodes()) == (len(NODES) if isinstance(store.index, MemoryIndex) else 3)


@persisted
def test_a_storage_context_persists_and_loads_the_store(store, hash_encoder, tmp_path):
    StorageContext.from_defaults(vector_store=store).persist(str(tmp_path / "storage"))
    again = M3VectorStore.from_persist_dir(str(tmp_path / "storage"), encoder=hash_encoder)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=again)
    engine = VectorStoreIndex.from_vector_store(context.vector_store, embed_model=M3Embedding(encoder=hash_encoder))
    assert bare([engine.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].node]) == [NODES[1]]


def test_a_storage_context_that_reads_the_folder_by_itself_says_how_to_load_the_store(hash_encoder, tmp_path):
    StorageContext.from_defaults(vector_store=M3VectorStore(encoder=hash_encoder)).persist(str(tmp_path))
    with pytest.raises(ValueError, match=r"vector_store=M3VectorStore\.from_persist_dir\(persist_dir\)"):
        StorageContext.from_defaults(persist_dir=str(tmp_path))


@persisted
def test_a_store_can_be_persisted_to_other_file_systems(store, hash_encoder):
    memory = fsspec.filesystem("memory")
    for _ in range(2):
        store.persist("bucket/store.json", fs=memory)
    again = M3VectorStore.from_persist_path("memory://bucket/store.json", fs=memory, encoder=hash_encoder)
    assert {each.node_id for each in again.get_nodes()} == set(IDS)
    assert len(memory.ls("bucket")) == (2 if isinstance(store.index, MemoryIndex) else 1)
    memory.rm("bucket", recursive=True)


@pytest.mark.parametrize("index", ["qdrant", "qdrant-in-memory"], indirect=True)
def test_a_qdrant_index_must_be_passed_to_load(store, index, hash_encoder, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    with pytest.raises(IndexFolderError, match="pass index= to load it"):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder, index=index)
    assert len(again.get_nodes()) == len(NODES)


def test_an_index_of_another_kind_must_be_passed_to_load(hash_encoder, tmp_path):
    class OnAServer:
        """An Index of a type unknown to the package."""

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
def test_a_persisted_store_can_be_moved(hash_encoder, tmp_path, folder):
    store = M3VectorStore(encoder=hash_encoder, folder=folder and str(tmp_path / folder))
    store.add(NODES)
    store.persist(str(tmp_path / "before" / "store.json"))
    store.index.close()
    (tmp_path / "before").rename(tmp_path / "after")
    again = M3VectorStore.from_persist_path(str(tmp_path / "after" / "store.json"), encoder=hash_encoder)
    assert len(again.get_nodes()) == len(NODES)


def test_a_missing_folder_is_rejected(hash_encoder, tmp_path):
    M3VectorStore(encoder=hash_encoder, folder=str(tmp_path / "vectors")).persist(str(tmp_path / "store.json"))
    (tmp_path / "vectors").rename(tmp_path / "elsewhere")
    with pytest.raises(IndexFolderError, match="holds no index; put it back, or pass index="):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)
    with LocalIndex.open(tmp_path / "elsewhere", hash_encoder) as moved:
        again = M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder, index=moved)
        assert again.folder == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "there is no M3VectorStore at"),
        ("{}", "is no M3VectorStore"),
        ("[]", "is no M3VectorStore"),
        ("not json", "is no M3VectorStore"),
        ('{"format": "M3VectorStore", "settings": {}, "folder": null, "beside": "../store.json.00000000"}', "nodes at"),
    ],
)
def test_a_file_of_another_kind_is_rejected(hash_encoder, tmp_path, content, match):
    if content is not None:
        (tmp_path / "store.json").write_text(content)
    with pytest.raises(IndexFolderError, match=match):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=hash_encoder)


@persisted
def test_loading_a_store_with_another_encoder_is_rejected(store, tmp_path):
    store.persist(str(tmp_path / "store.json"))
    with pytest.raises(WrongEncoder):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"), encoder=HashEncoder(seed=9))
    with pytest.raises(CheckpointError, match="encoder:"):
        M3VectorStore.from_persist_path(str(tmp_path / "store.json"))


def test_a_store_in_a_folder_can_be_copied_by_dict_and_pickle(bge_m3, tmp_path):
    folder = str(tmp_path / "index")
    store = M3VectorStore(folder=folder, model_name=str(bge_m3()), max_length=64, candidates=9)
    store.add(NODES)
    query = question(store.encoder, "a red cat", mode="hybrid")
    for made in (M3VectorStore.from_dict(store.to_dict()), pickle.loads(pickle.dumps(store))):
        assert made.to_dict() == store.to_dict()
        assert made.query(query) == store.query(query)


def test_a_store_in_memory_rejects_a_dict(hash_encoder):
    store = M3VectorStore(encoder=hash_encoder)
    with pytest.raises(ValueError, match=r"call persist\(path\) and M3VectorStore.from_persist_path"):
        store.to_dict()
    with pytest.raises(NotPicklable, match=r"this M3VectorStore.*folder='my-index'"):
        pickle.dumps(store)


@pytest.mark.parametrize("folder", [None, "index"])
def test_deep_copies_of_a_used_store_have_an_index_of_their_own(bge_m3, tmp_path, folder):
    store = M3VectorStore(folder=folder and str(tmp_path / folder), model_name=str(bge_m3()))
    store.add(NODES)
    query = question(store.encoder, "a red cat", mode="hybrid")
    made = copy.deepcopy(store)
    assert made.index is not store.index
    assert made.query(query) == store.query(query)
