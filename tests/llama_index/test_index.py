"""M3Index as an index and as a replacement for BGEM3Index."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, IndexNode, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from m3_integrations import LocalIndex, MemoryIndex, score
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import IndexFolderError, M3Warning, WrongEncoder
from m3_integrations.index.filters import Field
from m3_integrations.llama_index import M3Embedding, M3Index, M3Rerank, M3VectorStore
from m3_integrations.testing import HashEncoder
from tests.llama_index.conftest import persisted

TEXTS = {"cat": "a red cat", "dog": "a blue dog", "bird": "a green bird"}
DOCUMENTS = [Document(id_=id, text=text, metadata={"kind": id}) for id, text in TEXTS.items()]
SPLITTER = SentenceSplitter()


@pytest.fixture(autouse=True)
def offline_settings(monkeypatch):
    """A mock language model and no default embedding model."""
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", None)


def nodes(*ids):
    return [TextNode(id_=id, text=TEXTS[id], metadata={"year": len(id)}) for id in ids or TEXTS]


def node_ids(scored):
    return [each.node.node_id for each in scored]


def document_ids(index, query="a"):
    return {each.node.ref_doc_id for each in index.as_retriever(similarity_top_k=9).retrieve(query)}


@pytest.fixture
def built(index, hash_encoder):
    return M3Index.from_documents(DOCUMENTS, encoder=hash_encoder, index=index, transformations=[SPLITTER])


def test_query_ranks_by_the_hybrid_score_of_all_modes(index, hash_encoder):
    built = M3Index(nodes(), encoder=hash_encoder, index=index)
    answer = built.as_retriever(similarity_top_k=3).retrieve("a red dog")
    passages = hash_encoder.encode_passages([each.get_content("embed") for each in nodes()])
    expected = score(hash_encoder.encode_queries(["a red dog"]), passages, hash_encoder.weights)[0].tolist()
    ranked = sorted(zip(TEXTS, expected, strict=True), key=lambda pair: -pair[1])
    assert [(each.node.node_id, each.score) for each in answer] == [(id, pytest.approx(total)) for id, total in ranked]
    assert index.modes == frozenset(MODES)
    assert node_ids(built.query("a red dog", top_k=1)) == [ranked[0][0]]
    assert answer[0].node in nodes()


def test_nodes_are_inserted_and_deleted(index, hash_encoder):
    built = M3Index(nodes("cat"), encoder=hash_encoder, index=index)
    built.insert_nodes(nodes("dog", "bird"))
    assert node_ids(built.query("a blue dog"))[0] == "dog"
    built.delete_nodes(["dog", "unknown"])
    assert set(node_ids(built.query("a blue dog"))) == {"cat", "bird"}
    assert built.docstore.document_exists("dog")
    built.delete_nodes(["cat"], delete_from_docstore=True)
    assert not built.docstore.document_exists("cat")
    assert set(built.index_struct.nodes_dict) == set(index.ids()) == {"bird"}


def test_documents_are_inserted_updated_refreshed_and_deleted(built):
    built.insert(Document(id_="fish", text="a grey fish"))
    assert set(built.ref_doc_info) == {"cat", "dog", "bird", "fish"}
    built.update_ref_doc(Document(id_="cat", text="a yellow lion"))
    assert built.query("a yellow lion")[0].node.get_content() == "a yellow lion"
    assert "a red cat" not in {each.node.get_content() for each in built.query("a red cat")}
    documents = [Document(id_="cat", text="a yellow lion"), *DOCUMENTS[1:], Document(id_="ant", text="small")]
    assert built.refresh_ref_docs(documents) == [False, False, False, True]
    assert built.refresh_ref_docs([Document(id_="dog", text="a brown wolf")]) == [True]
    assert built.query("a brown wolf")[0].node.ref_doc_id == "dog"
    built.delete_ref_doc("bird", delete_from_docstore=True)
    assert document_ids(built) == {"cat", "dog", "fish", "ant"} == set(built.ref_doc_info)


def test_the_deprecated_methods_still_work(built, caplog):
    with caplog.at_level(logging.ERROR):
        built.update(Document(id_="cat", text="a yellow lion"))
        assert built.refresh([Document(id_="cat", text="a yellow lion")]) == [False]
        built.delete("dog")
    assert document_ids(built) == {"cat", "bird"}


async def test_async_methods_match_sync_methods(index, hash_encoder):
    built = M3Index(nodes("cat"), encoder=hash_encoder, index=index, transformations=[SPLITTER])
    await built.ainsert(Document(id_="fish", text="a grey fish"))
    await built.ainsert_nodes(nodes("dog"))
    retriever = built.as_retriever(similarity_top_k=9)
    assert await retriever.aretrieve("a blue dog") == retriever.retrieve("a blue dog")
    await built.adelete_nodes(["dog"])
    await built.adelete_ref_doc("fish", delete_from_docstore=True)
    assert await built.arefresh_ref_docs([Document(id_="ant", text="small")]) == [True]
    assert {each.get_content() for each in built.store.get_nodes()} >= {"a red cat", "small"}
    assert len(index) == 2


def test_a_retriever_keeps_to_filters_nodes_and_documents(built, hash_encoder):
    kind = MetadataFilters(filters=[MetadataFilter(key="kind", value="dog")])
    assert {each.node.ref_doc_id for each in built.as_retriever(filters=kind).retrieve("a")} == {"dog"}
    where = Field("kind", "in", ["cat", "dog"])
    both = built.as_retriever(filters=where, doc_ids=["dog", "bird"]).retrieve("a")
    assert {each.node.ref_doc_id for each in both} == {"dog"}
    one = built.store.get_nodes(filters=kind)[0].node_id
    assert node_ids(built.as_retriever(node_ids=[one]).retrieve("a red cat")) == [one]


def test_query_and_chat_engines_answer_from_the_index(built, hash_encoder):
    rerank = M3Rerank(encoder=hash_encoder, top_n=1)
    engine = built.as_query_engine(similarity_top_k=3, node_postprocessors=[rerank], response_mode="compact")
    answer = engine.query("a blue dog")
    assert [each.node.get_content() for each in answer.source_nodes] == ["a blue dog"]
    assert "a blue dog" in str(answer)
    assert "a blue dog" in str(built.as_chat_engine(chat_mode="context", similarity_top_k=1).chat("a blue dog"))


def test_retrieval_continues_in_the_object_of_an_index_node(index, hash_encoder):
    inner = M3Index(nodes(), encoder=hash_encoder).as_retriever(similarity_top_k=3)
    outer = M3Index(
        objects=[IndexNode(id_="i", text="about animals", index_id="animals", obj=inner)],
        encoder=hash_encoder,
        index=index,
    )
    assert set(node_ids(outer.as_retriever(similarity_top_k=1).retrieve("animals"))) == set(TEXTS)
    outer.insert_nodes([IndexNode(id_="j", text="about stones", index_id="stones", obj=inner)])
    assert set(node_ids(outer.as_retriever(similarity_top_k=1).retrieve("stones"))) == set(TEXTS)


@persisted
def test_load_from_disk_restores_nodes_and_settings(built, index, hash_encoder, tmp_path):
    built.set_index_id("animals")
    built.store.weights, built.store.candidates = {"dense": 0.5, "sparse": 0.5}, 7
    folder = str(tmp_path / "storage")
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mine.txt").write_text("not yours")
    built.persist(folder)
    built.persist(folder)
    loaded = M3Index.load_from_disk(folder, encoder=hash_encoder)
    assert loaded.query("a red dog") == built.query("a red dog")
    assert (loaded.index_name, loaded.store.weights, loaded.store.candidates) == ("animals", built.store.weights, 7)
    assert type(loaded.store.index) is type(index)
    assert loaded.ref_doc_info == built.ref_doc_info
    assert loaded.refresh_ref_docs(DOCUMENTS) == [False, False, False]
    loaded.delete_ref_doc("cat", delete_from_docstore=True)
    assert document_ids(loaded) == {"dog", "bird"}
    assert (tmp_path / "storage" / "mine.txt").read_text() == "not yours"


@persisted
def test_load_from_disk_overrides_weights_and_checks_name_and_encoder(built, hash_encoder, tmp_path):
    built.persist(str(tmp_path))
    loaded = M3Index.load_from_disk(str(tmp_path), weights_for_different_modes=[0, 1, 0], encoder=hash_encoder)
    assert loaded.store.weights == {"dense": 0, "sparse": 1, "multi_vector": 0}
    with pytest.raises(IndexFolderError, match="pass index_name"):
        M3Index.load_from_disk(str(tmp_path), index_name="other", encoder=hash_encoder)
    with pytest.raises(WrongEncoder):
        M3Index.load_from_disk(str(tmp_path), encoder=HashEncoder(seed=9))


def test_load_from_disk_restores_model_and_length(bge_m3, tmp_path):
    built = M3Index(nodes(), model_name=str(bge_m3()), doc_maxlen=64, query_maxlen=64, index_name="tiny")
    built.persist(str(tmp_path))
    loaded = M3Index.load_from_disk(str(tmp_path))
    assert (loaded.store.model_name, loaded.encoder.max_length, loaded.index_name) == (str(bge_m3()), 64, "tiny")
    assert loaded.query("a red cat") == built.query("a red cat")
    with pytest.raises(WrongEncoder):
        M3Index.load_from_disk(str(tmp_path), model_name=str(bge_m3(seed=5)))


@persisted
def test_a_vector_store_index_loads_the_same_storage(built, hash_encoder, tmp_path):
    built.persist(str(tmp_path))
    store = M3VectorStore.from_persist_dir(str(tmp_path), encoder=hash_encoder)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path), vector_store=store)
    plain = load_index_from_storage(context, embed_model=M3Embedding(encoder=hash_encoder))
    assert isinstance(plain, VectorStoreIndex)
    assert plain.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].node.ref_doc_id == "dog"


# As a replacement for BGEM3Index


def test_constructor_and_weights_are_those_of_bge_m3_index(bge_m3):
    built = M3Index(
        nodes=nodes(),
        model_name=str(bge_m3()),
        index_name="animals",
        show_progress=False,
        pooling_method="cls",
        normalize_embeddings=True,
        use_fp16=False,
        batch_size=32,
        doc_maxlen=512,
        query_maxlen=512,
        weights_for_different_modes=[0.4, 0.2, 0.6],
    )
    assert built.index_id == "animals"
    encoder = built.encoder
    passages = encoder.encode_passages([each.get_content("embed") for each in nodes()])
    weights = {"dense": 0.4 / 1.2, "sparse": 0.2 / 1.2, "multi_vector": 0.6 / 1.2}
    expected = score(encoder.encode_queries(["a red dog"]), passages, weights)[0].tolist()
    answer = {each.node.node_id: each.score for each in built.query("a red dog", top_k=10)}
    assert answer == pytest.approx(dict(zip(TEXTS, expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights_for_different_modes": [1.0, 0.3]}, "must be 3 numbers, for"),
        ({"weights_for_different_modes": [0.0, 0.0, 0.0]}, "one of them positive"),
        ({"query_maxlen": 64, "doc_maxlen": 128}, "leave query_maxlen out"),
        ({"query_maxlen": 64}, "leave query_maxlen out"),
    ],
)
def test_invalid_settings_are_rejected_with_a_fix(hash_encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        M3Index(nodes(), encoder=hash_encoder, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling_method": "mean"}, "pools by 'cls', not 'mean'; leave pooling_method out"),
        ({"normalize_embeddings": False}, "has normalize_embeddings=True; leave it out"),
    ],
)
def test_pooling_and_normalization_other_than_the_checkpoints_are_rejected(bge_m3, settings, message):
    with pytest.raises(ValueError, match=message):
        M3Index(nodes(), model_name=str(bge_m3()), **settings)


def test_an_unknown_setting_is_rejected(hash_encoder):
    with pytest.raises(TypeError, match="M3Index takes no similarity; leave it out"):
        M3Index(nodes(), encoder=hash_encoder, similarity="cosine")


def test_a_storage_context_with_another_store_is_rejected(hash_encoder):
    filled = SimpleVectorStore()
    filled.add([nodes("cat")[0].model_copy(update={"embedding": [1.0]})])
    with pytest.raises(ValueError, match=r"has a SimpleVectorStore; write StorageContext.from_defaults"):
        M3Index(nodes(), encoder=hash_encoder, storage_context=StorageContext.from_defaults(vector_store=filled))
    ours = StorageContext.from_defaults(vector_store=M3VectorStore(encoder=hash_encoder))
    with pytest.raises(ValueError, match=r"its own \['encoder'\]; set them in M3VectorStore"):
        M3Index(nodes(), encoder=hash_encoder, storage_context=ours)
    assert node_ids(M3Index(nodes(), storage_context=ours).query("a red cat"))[0] == "cat"


class CreatesFile:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def write_bge_m3_index(folder):
    """Write the files of BGEM3Index.persist(): a storage context of JSON, and a pickle."""
    import pickle

    context = StorageContext.from_defaults()
    struct = VectorStoreIndex.index_struct_cls()
    for position, node in enumerate(nodes()):
        struct.add_node(node, text_id=str(position))
    context.docstore.add_documents(nodes())
    context.index_store.add_index_struct(struct)
    context.persist(folder)
    (Path(folder) / "multi_embed_store.pkl").write_bytes(pickle.dumps(CreatesFile()))


def test_a_folder_of_bge_m3_index_loads_without_unpickling(hash_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bge_m3_index("old")
    with pytest.raises(IndexFolderError, match="pass model_name='BAAI/bge-m3'"):
        M3Index.load_from_disk("old")
    with pytest.warns(M3Warning, match="its 3 texts are encoded again; call persist"):
        built = M3Index.load_from_disk("old", encoder=hash_encoder)
    assert node_ids(built.query("a blue dog"))[0] == "dog"
    built.persist("old")
    assert M3Index.load_from_disk("old", encoder=hash_encoder).query("a blue dog") == built.query("a blue dog")
    assert not Path("unpickled").exists()


def test_a_folder_without_an_index_is_rejected(hash_encoder, tmp_path):
    with pytest.raises(IndexFolderError, match="holds no index"):
        M3Index.load_from_disk(str(tmp_path / "nowhere"), encoder=hash_encoder)


def test_persisted_files_are_json_and_arrays(built, tmp_path):
    built.persist(str(tmp_path / "storage"))
    for file in (tmp_path / "storage").glob("*.json"):
        json.loads(file.read_text())
    assert not list((tmp_path / "storage").rglob("*.pkl"))


def test_a_local_index_stays_in_its_folder(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "vectors", hash_encoder) as local:
        M3Index(nodes(), encoder=hash_encoder, index=local).persist(str(tmp_path / "storage"))
    loaded = M3Index.load_from_disk(str(tmp_path / "storage"), encoder=hash_encoder)
    assert loaded.store.folder == str(tmp_path / "vectors")
    assert node_ids(loaded.query("a red cat"))[0] == "cat"
    assert isinstance(M3Index(nodes(), encoder=hash_encoder).store.index, MemoryIndex)
