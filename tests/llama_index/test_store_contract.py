"""The contract of LlamaIndex's vector stores, in blocking and async form, over every index."""

from __future__ import annotations

from itertools import product

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import VectorMemory
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode as Mode,
)

from m3_integrations.llama_index import M3Embedding, M3Index, M3VectorStore
from m3_integrations.testing import HashEncoder


def instrument(id, text, embedding, document=None, /, **metadata):
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)} if document else {}
    return TextNode(
        id_=id,
        text=text,
        embedding=embedding,
        metadata=metadata,
        relationships=source,
        excluded_embed_metadata_keys=list(metadata),
    )


INSTRUMENTS = [
    instrument("lute", "a quiet plucked instrument", [1.0, 0.0], "strings", price=900, era="baroque"),
    instrument("harp", "a large plucked instrument", [0.0, 1.0], "strings", price=2500.5, era="ancient"),
    instrument("horn", "a loud brass instrument", [0.6, 0.8], "brass", price=300, woods=["boxwood"]),
    instrument("bell", "rings in the tower", [0.8, 0.6]),
]
ALL = {"lute", "harp", "horn", "bell"}
TOWARDS_HORN = [0.6, 0.8]
LEARNERS = (Mode.SVM, Mode.LINEAR_REGRESSION, Mode.LOGISTIC_REGRESSION)
MODES = [mode for mode in Mode if mode not in LEARNERS]


def where(key, value, operator="=="):
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def ask(k=4, embedding=TOWARDS_HORN, **options):
    return VectorStoreQuery(query_embedding=embedding, similarity_top_k=k, **options)


def ids(nodes):
    return [each.node_id for each in nodes]


@pytest.fixture(scope="module")
def hash_encoder():
    return HashEncoder(dense_dim=2)


@pytest.fixture
def store(index, hash_encoder):
    return M3VectorStore(index, hash_encoder)


@pytest.fixture(params=["blocking", "async"])
def call(request, store):
    """A function that calls a method of an empty store by the name of its blocking form."""

    async def call_method(name, *args, **kwargs):
        if request.param == "blocking":
            return getattr(store, name)(*args, **kwargs)
        return await getattr(store, "async_add" if name == "add" else f"a{name}")(*args, **kwargs)

    return call_method


@pytest.fixture
async def filled(call):
    """The function `call`, of a store with the instruments."""
    assert await call("add", INSTRUMENTS) == ids(INSTRUMENTS)
    return call


# Ranking


async def test_similarities_are_inner_products_best_first(filled):
    found = await filled("query", ask())
    assert found.ids == ids(found.nodes) == ["horn", "bell", "harp", "lute"]
    assert found.similarities == pytest.approx([0.36 + 0.64, 0.48 + 0.48, 0.8, 0.6])
    assert (await filled("query", ask(2))).ids == ["horn", "bell"]
    assert (await filled("query", VectorStoreQuery(query_embedding=TOWARDS_HORN))).ids == ["horn"]


async def test_embeddings_of_any_length_are_stored_and_scored_as_they_are(filled):
    await filled("add", [instrument("gong", "a gong", [3.0, 4.0]), instrument("silence", "none", [0.0, 0.0])])
    found = await filled("query", ask(9))
    assert (found.ids[0], found.ids[-1]) == ("gong", "silence")
    assert (found.similarities[0], found.similarities[-1]) == (pytest.approx(0.6 * 3 + 0.8 * 4), 0.0)
    assert [each.embedding for each in await filled("get_nodes", ["gong", "silence"])] == [[3.0, 4.0], [0.0, 0.0]]


async def test_a_zero_query_vector_finds_every_node_with_similarity_0(filled):
    found = await filled("query", ask(embedding=[0.0, 0.0]))
    assert found.ids == sorted(ALL)
    assert found.similarities == [0.0] * 4


async def test_a_number_of_nodes_below_1_is_rejected_in_every_mode_and_by_an_empty_store(call):
    for _ in range(2):
        for mode, k in product(MODES, (0, -1, 2.5, "3", None)):
            for embedding, text in ((TOWARDS_HORN, "plucked"), (None, None)):
                query = ask(k, embedding, query_str=text, mode=mode, filters=where("price", 900))
                with pytest.raises(ValueError, match=f"similarity_top_k must be an integer of at least 1, got {k!r}"):
                    await call("query", query)
        await call("add", INSTRUMENTS)


async def test_a_number_of_sparse_or_hybrid_results_below_1_is_rejected(filled):
    for mode, option in [(Mode.SPARSE, "sparse_top_k"), (Mode.HYBRID, "sparse_top_k"), (Mode.HYBRID, "hybrid_top_k")]:
        with pytest.raises(ValueError, match=f"{option} must be an integer of at least 1, got 0"):
            await filled("query", ask(query_str="plucked", mode=mode, **{option: 0}))


# Adding


async def test_adding_a_node_again_replaces_its_text_metadata_embedding_and_document(filled):
    await filled("add", [instrument("lute", "a bell in the tower", [-1.0, 0.0], "others", era="modern")])
    (lute,) = await filled("get_nodes", ["lute"])
    assert (lute.text, lute.metadata, lute.embedding) == ("a bell in the tower", {"era": "modern"}, [-1.0, 0.0])
    assert (await filled("query", ask())).ids == ["horn", "bell", "harp", "lute"]
    assert (await filled("query", ask(doc_ids=["strings"]))).ids == ["harp"]
    assert (await filled("query", ask(filters=where("price", 900)))).ids == []
    plucked = ask(query_str="quiet plucked", mode=Mode.SPARSE)
    assert (await filled("query", plucked)).ids == ["harp"]


async def test_the_last_of_several_nodes_with_one_id_counts(call):
    first, last = (instrument("lute", text, [1.0, 0.0]) for text in ("first", "last"))
    assert await call("add", [first, last]) == ["lute", "lute"]
    (lute,) = await call("get_nodes")
    assert lute.text == "last"


# Documents


async def test_deleting_a_document_deletes_its_nodes_and_no_node_without_a_document(filled):
    await filled("delete", "None")
    await filled("delete", "")
    assert set((await filled("query", ask())).ids) == ALL
    await filled("delete", "strings")
    assert (await filled("query", ask())).ids == ["horn", "bell"]
    await filled("add", INSTRUMENTS[:1])
    assert (await filled("query", ask(doc_ids=["strings"]))).ids == ["lute"]


DOCUMENTS = [
    (None, ALL),
    ([], set()),
    (["unknown"], set()),
    (["None"], set()),
    (["strings"], {"lute", "harp"}),
    (["strings", "brass", "unknown"], {"lute", "harp", "horn"}),
]


async def test_doc_ids_restrict_a_query_to_documents_in_every_mode(filled):
    for (doc_ids, expected), mode in product(DOCUMENTS, MODES):
        query = ask(query_str="a the instrument", doc_ids=doc_ids, mode=mode)
        assert set((await filled("query", query)).ids) == expected


async def test_doc_ids_node_ids_and_filters_of_a_query_all_apply(filled):
    restricted = ask(doc_ids=["strings"], node_ids=["lute", "horn", "bell"], filters=where("price", 100, ">"))
    assert (await filled("query", restricted)).ids == ["lute"]
    restricted.filters = where("price", 1000, ">")
    assert (await filled("query", restricted)).ids == []
    assert (await filled("query", ask(1, node_ids=["harp", "lute"]))).ids == ["harp"]


# Nodes by id and filters

SELECTIONS = [
    (["lute", "bell"], None, ["lute", "bell"]),
    (["bell", "lute"], None, ["bell", "lute"]),
    (["lute", "unknown"], None, ["lute"]),
    (["unknown"], None, []),
    ([], None, []),
    (None, where("era", "baroque"), ["lute"]),
    (None, where("era", ["baroque", "ancient"], "in"), ["harp", "lute"]),
    (["lute", "bell"], where("era", ["baroque", "ancient"], "in"), ["lute"]),
    (["lute"], where("price", 900), ["lute"]),
    (["bell"], where("price", 900), []),
    (["lute", "harp"], where("price", 999), []),
    ([], where("price", 900), []),
    (None, where("unknown", 1), []),
]


async def test_nodes_are_returned_by_ids_filters_or_both_with_their_embeddings(filled):
    by_id = {each.node_id: each for each in INSTRUMENTS}
    for node_ids, filters, expected in SELECTIONS:
        nodes = await filled("get_nodes", node_ids, filters)
        assert ids(nodes) == expected
        assert all(each.embedding == pytest.approx(by_id[each.node_id].embedding) for each in nodes)


async def test_nodes_are_deleted_by_ids_filters_or_both(filled):
    for node_ids, filters, expected in SELECTIONS:
        await filled("delete_nodes", node_ids, filters)
        assert set((await filled("query", ask())).ids) == ALL - set(expected)
        await filled("add", INSTRUMENTS)


async def test_deleting_without_arguments_or_twice_deletes_nothing_more(filled):
    await filled("delete_nodes")
    assert set((await filled("query", ask())).ids) == ALL
    await filled("delete_nodes", ["lute", "lute"])
    await filled("delete_nodes", ["lute"])
    assert set((await filled("query", ask())).ids) == ALL - {"lute"}


async def test_a_cleared_store_finds_nothing_and_takes_nodes_again(filled):
    for _ in range(2):
        await filled("clear")
        assert await filled("get_nodes") == await filled("get_nodes", ["lute"]) == []
        for options in ({}, {"mode": Mode.MMR}, {"filters": where("price", 900)}):
            found = await filled("query", ask(**options))
            assert (found.ids, found.nodes, found.similarities) == ([], [], [])
    await filled("add", INSTRUMENTS)
    assert (await filled("query", ask(1))).ids == ["horn"]


# Queries without an embedding


async def test_filters_alone_select_nodes(filled):
    found = await filled("query", VectorStoreQuery(filters=where("era", "ancient"), similarity_top_k=2))
    assert (found.ids, found.similarities) == (["harp"], None)
    assert [each.text for each in found.nodes] == ["a large plucked instrument"]
    assert (await filled("query", VectorStoreQuery(filters=where("era", "future")))).ids == []


# Sparse and hybrid queries


async def test_a_sentence_finds_the_nodes_that_share_a_word_with_it(filled):
    for mode in (Mode.SPARSE, Mode.TEXT_SEARCH):
        sentence = ask(query_str="who makes a plucked instrument ?", mode=mode)
        found = await filled("query", sentence)
        assert set(found.ids) == {"lute", "harp", "horn"}
        assert found.ids[-1] == "horn"
        sentence.filters = where("era", "baroque")
        assert (await filled("query", sentence)).ids == ["lute"]
        assert (await filled("query", ask(query_str="unrelated", mode=mode))).ids == []


async def test_special_characters_of_a_query_are_text(filled):
    for mode in (Mode.SPARSE, Mode.TEXT_SEARCH, Mode.HYBRID):
        special = ask(2, query_str="   who' &..s |  (the): <-> plucked ** ?!!! \\ \" %_ \0 ", mode=mode, alpha=0.0)
        assert set((await filled("query", special)).ids) == {"lute", "harp"}


async def test_a_hybrid_query_unites_dense_and_sparse_candidates(filled):
    hybrid = ask(1, query_str="tower", mode=Mode.HYBRID, sparse_top_k=1, hybrid_top_k=2)
    assert set((await filled("query", hybrid)).ids) == {"horn", "bell"}
    hybrid.filters = where("era", ["baroque", "ancient"], "in")
    assert (await filled("query", hybrid)).ids == ["harp"]
    zero = ask(1, [0.0, 0.0], query_str="quiet", mode=Mode.HYBRID, sparse_top_k=1, hybrid_top_k=2)
    assert (await filled("query", zero)).ids[0] == "lute"


async def test_a_mode_that_reads_the_text_rejects_a_query_without_one(filled):
    for mode in (Mode.SPARSE, Mode.TEXT_SEARCH, Mode.HYBRID, Mode.SEMANTIC_HYBRID):
        with pytest.raises(ValueError, match="give query_str"):
            await filled("query", ask(mode=mode))


async def test_the_modes_of_learners_are_rejected_by_name(filled):
    for mode in LEARNERS:
        with pytest.raises(ValueError, match=f"does not support the query mode '{mode.value}'"):
            await filled("query", ask(mode=mode))


# Maximal marginal relevance


THRESHOLDS = [
    (0.0, {}, ["a", "c"]),
    (0.25, {}, ["a", "c"]),
    (1.0, {}, ["a", "b"]),
    (None, {}, ["a", "b"]),
    (None, {"mmr_threshold": 0.0}, ["a", "c"]),
    (None, {"mmr_threshold": 1.0}, ["a", "b"]),
    (1.0, {"mmr_threshold": 0.0}, ["a", "c"]),
    (0.0, {"mmr_threshold": 1.0}, ["a", "b"]),
    (0.0, {"mmr_threshold": None}, ["a", "b"]),
]


async def test_the_threshold_of_mmr_is_the_options_then_the_querys_then_one_half(call):
    # b repeats a, and c is orthogonal to both: 0.5 is a tie of b and c, which the first id wins.
    vectors = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}
    await call("add", [instrument(id, id, vector) for id, vector in vectors.items()])
    for of_query, options, expected in THRESHOLDS:
        query = ask(2, [1.0, 0.0], mode=Mode.MMR, mmr_threshold=of_query)
        assert (await call("query", query, **options)).ids == expected


async def test_a_threshold_of_mmr_outside_0_to_1_is_rejected_by_an_empty_store_too(call):
    for _ in range(2):
        for threshold in (-0.1, 1.5):
            with pytest.raises(ValueError, match=f"mmr_threshold must be between 0 .* and 1 .*, got {threshold}"):
                await call("query", ask(mode=Mode.MMR), mmr_threshold=threshold)
        await call("add", INSTRUMENTS)


async def test_the_first_two_nodes_of_mmr_and_their_scores_are_those_of_llama_index(filled):
    # From the third on, LlamaIndex compares with the last selected node alone, not with each of them.
    vectors, embedding = [each.embedding for each in INSTRUMENTS], [0.28, 0.96]
    for threshold in (0.1, 0.5, 0.8, 1.0):
        scores, expected = get_top_k_mmr_embeddings(
            embedding, vectors, similarity_top_k=2, embedding_ids=ids(INSTRUMENTS), mmr_threshold=threshold
        )
        found = await filled("query", ask(2, embedding, mode=Mode.MMR), mmr_threshold=threshold)
        assert found.ids == expected
        assert found.similarities == pytest.approx(scores)


async def test_mmr_returns_as_many_nodes_as_asked_and_applies_filters(filled):
    for k in (1, 2, 3, 4):
        assert len((await filled("query", ask(k, mode=Mode.MMR), mmr_threshold=0.5)).ids) == k
    assert set((await filled("query", ask(9, mode=Mode.MMR))).ids) == ALL
    restricted = ask(mode=Mode.MMR, filters=where("price", 0, ">"))
    assert set((await filled("query", restricted)).ids) == {"lute", "harp", "horn"}


# Nodes and metadata


OTHER_NODES = [
    IndexNode(id_="other", text="see the lutes", index_id="lutes"),
    IndexNode(id_="other", text="", index_id="lutes"),
    ImageNode(id_="other", text="", image_url="http://example.com/lute.png"),
    ImageNode(id_="other", text="", image="bHV0ZQ=="),
    Node(id_="other", text_resource=MediaResource(text="a lute")),
    TextNode(id_="other", text=""),
]


async def test_nodes_of_every_class_come_back_whole(filled):
    for node in OTHER_NODES:
        await filled("add", [node.model_copy(update={"embedding": [-0.6, -0.8]})])
        found = await filled("query", ask(5, [-0.6, -0.8]))
        assert found.ids[0] == "other"
        for back in (found.nodes[0], *await filled("get_nodes", ["other"])):
            assert type(back) is type(node)
            assert back.model_copy(update={"embedding": None}) == node


METADATA = [
    {},
    {"empty": None, "text": "", "list": [], "nested": {"deep": [{"deeper": None}]}},
    {"number": 0, "float": -0.5, "large": 2**62, "flag": False, "名前": "琵琶", "with space": "a.b", "dotted.key": 1},
    {"text": "mine", "id": "mine", "embedding": [1.0], "doc_id": "mine", "document_id": "mine", "ref_doc_id": "mine"},
]


async def test_metadata_comes_back_as_it_was(call):
    for metadata in METADATA:
        await call("add", [instrument("lute", "a lute", [1.0, 0.0], "strings", **metadata)])
        for back in ((await call("query", ask())).nodes[0], *await call("get_nodes")):
            assert (back.metadata, back.ref_doc_id) == (metadata, "strings")


# Retrievers of LlamaIndex


@pytest.fixture(params=["blocking", "async"])
def retrieve(request):
    """A function that returns the ids that a retriever finds."""

    async def found_by(retriever):
        query = "a the instrument"
        found = retriever.retrieve(query) if request.param == "blocking" else await retriever.aretrieve(query)
        return {each.node.node_id for each in found}

    return found_by


def built(store, *nodes, **options):
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(list(nodes), storage_context=context, embed_model=embedding(store), **options)


def embedding(store):
    return M3Embedding(encoder=store.encoder)


def pointer(id):
    return IndexNode(id_=id, text="see the other", index_id=f"about {id}")


async def test_a_retriever_of_an_index_searches_every_node_of_the_store(store, retrieve):
    index = built(store, *INSTRUMENTS, pointer("first"))
    retriever = index.as_retriever(similarity_top_k=9)
    assert await retrieve(retriever) == {*ALL, "first"}
    index.insert_nodes([pointer("second")])
    again = VectorStoreIndex.from_vector_store(store, embed_model=embedding(store))
    again.insert_nodes([pointer("third")])
    for each in (retriever, index.as_retriever(similarity_top_k=9), again.as_retriever(similarity_top_k=9)):
        assert await retrieve(each) == {*ALL, "first", "second", "third"}


async def test_node_ids_of_a_retriever_are_its_only_nodes_and_an_empty_list_is_none(store, retrieve):
    index = built(store, *INSTRUMENTS, pointer("first"))
    for node_ids in ([], ["unknown"], ["lute"], ["first"], ["lute", "first"], sorted(ALL)):
        for options in ({}, {"callback_manager": CallbackManager()}):
            retriever = VectorIndexRetriever(index, similarity_top_k=9, node_ids=node_ids, **options)
            assert await retrieve(retriever) == set(node_ids) - {"unknown"}
    assert await retrieve(VectorIndexRetriever(index, similarity_top_k=9)) == {*ALL, "first"}


async def test_the_options_of_a_retriever_reach_the_store(store, retrieve):
    index = built(store, *INSTRUMENTS)
    for options, expected in [
        ({"vector_store_query_mode": "mmr", "vector_store_kwargs": {"mmr_threshold": 1.0}}, 4),
        ({"vector_store_query_mode": "sparse", "sparse_top_k": 2}, 2),
        ({"vector_store_query_mode": "hybrid", "hybrid_top_k": 3, "alpha": 0.5}, 3),
    ]:
        assert len(await retrieve(index.as_retriever(similarity_top_k=4, **options))) == expected
    only = {"filters": where("price", 900), "doc_ids": ["strings"]}
    assert await retrieve(index.as_retriever(similarity_top_k=4, **only)) == {"lute"}
    for wrong in ({"mmr_threshold": 2.0}, {"mmr_prefetch_k": 8, "mmr_prefetch_factor": 2.0}):
        with pytest.raises(ValueError, match="mmr_"):
            await retrieve(index.as_retriever(vector_store_query_mode="mmr", vector_store_kwargs=wrong))


async def test_an_index_that_keeps_its_own_nodes_searches_these(store, retrieve):
    strings = built(store, *INSTRUMENTS[:2], store_nodes_override=True)
    others = built(store, *INSTRUMENTS[2:], store_nodes_override=True)
    assert await retrieve(strings.as_retriever(similarity_top_k=9)) == {"lute", "harp"}
    assert await retrieve(others.as_retriever(similarity_top_k=9)) == {"horn", "bell"}


async def test_a_retriever_over_all_modes_takes_empty_lists_and_no_number_below_1(store, retrieve):
    index = M3Index(INSTRUMENTS, storage_context=StorageContext.from_defaults(vector_store=store))
    for k in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match=f"similarity_top_k must be an integer of at least 1, got {k}"):
            await retrieve(index.as_retriever(similarity_top_k=k))
    assert await retrieve(index.as_retriever(similarity_top_k=9)) == ALL
    assert await retrieve(index.as_retriever(similarity_top_k=9, node_ids=[])) == set()
    assert await retrieve(index.as_retriever(similarity_top_k=9, doc_ids=[])) == set()


def test_a_store_keeps_the_messages_of_a_memory(store):
    memory = VectorMemory.from_defaults(store, embedding(store), retriever_kwargs={"similarity_top_k": 3})
    messages = [ChatMessage("who plays the lute", role="user"), ChatMessage("a bard", role="assistant")]
    for each in messages:
        memory.put(each)
    assert memory.get("the lute") == messages
    memory.reset()
    assert memory.get("the lute") == store.get_nodes() == []


# Persistence


def test_the_stores_of_several_namespaces_persist_in_one_folder(hash_encoder, tmp_path):
    stores = {
        "strings": M3VectorStore(encoder=hash_encoder),
        "brass": M3VectorStore(encoder=hash_encoder, folder=str(tmp_path / "brass")),
    }
    stores["strings"].add(INSTRUMENTS[:2])
    stores["brass"].add(INSTRUMENTS[2:3])
    StorageContext.from_defaults(vector_stores=dict(stores)).persist(str(tmp_path / "storage"))
    for namespace, store in stores.items():
        again = M3VectorStore.from_persist_dir(str(tmp_path / "storage"), namespace, encoder=hash_encoder)
        assert again.query(ask()) == store.query(ask())
