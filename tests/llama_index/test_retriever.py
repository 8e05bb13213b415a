"""M3Retriever as a LlamaIndex retriever."""

from __future__ import annotations

import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.core.errors import WrongDimension, WrongEncoder
from m3_integrations.core.types import SearchPlan
from m3_integrations.index.filters import Field
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.llama_index import M3Rerank, M3Retriever
from m3_integrations.llama_index.convert import to_passage
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.testing import HashEncoder

DENSE = SearchPlan(propose=("dense",), weights={"dense": 1.0})
NODES = [
    TextNode(id_="cat", text="a red cat", metadata={"year": 2019, "lang": "en", "tags": ["pet", "red"]}),
    TextNode(id_="dog", text="a blue dog", metadata={"year": 2020, "lang": "de", "tags": ["pet"]}),
    TextNode(id_="bird", text="a green bird", metadata={"year": 2021, "lang": "de", "tags": []}),
    TextNode(id_="fish", text="a red fish", metadata={"year": 2022, "lang": None}),
]


def ask(key, operator, value):
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def group(condition, *filters):
    return MetadataFilters(filters=list(filters), condition=condition)


def found(nodes):
    return [each.node.node_id for each in nodes]


@pytest.fixture
def retriever(hash_encoder):
    return M3Retriever.from_nodes(NODES, hash_encoder, similarity_top_k=4)


def test_the_best_node_comes_first_unchanged(retriever):
    best = retriever.retrieve("a red cat")
    assert best[0].node == NODES[0]
    assert [each.score for each in best] == sorted((each.score for each in best), reverse=True)


def test_similarity_top_k_limits_the_nodes(hash_encoder):
    assert len(M3Retriever.from_nodes(NODES, hash_encoder).retrieve("a")) == 2
    assert len(M3Retriever.from_nodes(NODES, hash_encoder, similarity_top_k=3).retrieve("a")) == 3
    with pytest.raises(ValueError, match="similarity_top_k must be an integer of at least 1, got 0"):
        M3Retriever.from_nodes(NODES, hash_encoder, similarity_top_k=0).retrieve("a")


def test_an_empty_index_returns_nothing(hash_encoder):
    assert M3Retriever(MemoryIndex(), hash_encoder).retrieve("a") == []


def test_a_folder_is_searched_as_memory_is(retriever, hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as index:
        ingest(hash_encoder, index, map(to_passage, NODES))
    again = M3Retriever.from_folder(tmp_path / "index", hash_encoder, similarity_top_k=4)
    assert again.retrieve("a red cat") == retriever.retrieve("a red cat")
    again.retriever.index.close()
    with pytest.raises(WrongEncoder):
        M3Retriever.from_folder(tmp_path / "index", HashEncoder(seed=7))
    with LocalIndex.open(tmp_path / "index") as unsaid, pytest.raises(WrongEncoder):
        M3Retriever(unsaid, HashEncoder(seed=7))


@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        (group("and", ask("year", "==", 2020)), {"dog"}),
        (group("and", ask("year", "!=", 2020)), {"cat", "bird", "fish"}),
        (group("and", ask("year", "<", 2020)), {"cat"}),
        (group("and", ask("year", "<=", 2020)), {"cat", "dog"}),
        (group("and", ask("year", ">", 2020)), {"bird", "fish"}),
        (group("and", ask("year", ">=", 2020), ask("lang", "==", "de")), {"dog", "bird"}),
        (group("and", ask("lang", "in", ["en", "fr"])), {"cat"}),
        (group("and", ask("lang", "nin", ["en", "fr"])), {"dog", "bird", "fish"}),
        (group("and", ask("tags", "contains", "pet")), {"cat", "dog"}),
        (group("and", ask("tags", "any", ["red", "blue"])), {"cat"}),
        (group("and", ask("tags", "all", ["red", "pet"])), {"cat"}),
        (group("and", ask("lang", "text_match", "e")), {"cat", "dog", "bird"}),
        (group("and", ask("tags", "is_empty", None)), {"bird", "fish"}),
        (group("and", ask("lang", "is_empty", None)), {"fish"}),
        (group("and", ask("lang", "==", None)), {"fish"}),
        (group("or", ask("lang", "==", "en"), ask("year", "==", 2022)), {"cat", "fish"}),
        (group("not", ask("lang", "==", "en"), ask("year", "==", 2022)), {"dog", "bird"}),
        (
            group("or", ask("lang", "==", "en"), group("and", ask("lang", "==", "de"), ask("year", ">", 2020))),
            {"cat", "bird"},
        ),
        (group("and", ask("lang", "==", "de"), group("not", group("or", ask("year", "==", 2020)))), {"bird"}),
        (group("or"), {"cat", "dog", "bird", "fish"}),
        (Field("year", "==", 2022), {"fish"}),
    ],
)
def test_filters_select_the_matching_nodes(hash_encoder, filters, matching):
    retriever = M3Retriever.from_nodes(NODES, hash_encoder, similarity_top_k=4, filters=filters)
    assert set(found(retriever.retrieve("a red cat"))) == matching


def test_the_embedding_of_a_query_bundle_replaces_the_dense_vector(hash_encoder):
    retriever = M3Retriever.from_nodes(NODES, hash_encoder, plan=DENSE)
    dog = hash_encoder.encode_passages([to_passage(NODES[1]).text]).dense[0].tolist()
    best = retriever.retrieve(QueryBundle("a red cat", embedding=dog))
    assert found(best)[0] == "dog"
    assert best[0].score == pytest.approx(1.0)
    assert found(retriever.retrieve(QueryBundle("", embedding=dog)))[0] == "dog"
    with pytest.raises(WrongDimension):
        retriever.retrieve(QueryBundle("a red cat", embedding=dog[:-1]))


def test_custom_embedding_strs_replace_the_query_text(retriever):
    bundle = QueryBundle("a red cat", custom_embedding_strs=["a blue dog"])
    assert retriever.retrieve(bundle) == retriever.retrieve("a blue dog")
    both = retriever.retrieve(QueryBundle("?", custom_embedding_strs=["green bird", "blue dog"]))
    assert set(found(both)[:2]) == {"bird", "dog"}


def test_an_empty_query_finds_nothing(retriever):
    assert retriever.retrieve("") == []


async def test_async_matches_sync(retriever):
    assert await retriever.aretrieve("a red cat") == retriever.retrieve("a red cat")


def test_a_query_engine_answers_from_reranked_nodes(retriever, hash_encoder):
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[M3Rerank(encoder=hash_encoder, top_n=1)]
    )
    answer = engine.query("a red cat")
    assert found(answer.source_nodes) == ["cat"]
    assert "a red cat" in str(answer)


def test_retrieval_continues_in_the_object_of_an_index_node(retriever, hash_encoder):
    pointers = [
        IndexNode(id_="i", text="about animals", index_id="animals", obj=retriever),
        IndexNode(id_="j", text="about stones", index_id="stones", obj=TextNode(id_="stone", text="granite")),
        IndexNode(id_="k", text="about nothing", index_id="nothing"),
    ]
    above = M3Retriever.from_nodes(pointers, hash_encoder, similarity_top_k=1)
    assert set(found(above.retrieve("animals"))) == {"cat", "dog", "bird", "fish"}
    assert found(above.retrieve("stones")) == ["stone"]
    assert above.retrieve("nothing")[0].node == pointers[2]
