"""M3Index: an index of its own, and the place of BGEM3Index."""

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
from m3_integrations.index.where import Field
from m3_integrations.llama_index import M3Embedding, M3Index, M3Rerank, M3VectorStore
from m3_integrations.testing import HashEncoder
from tests.llama_index.conftest import persisted

TEXTS = {"cat": "a red cat", "dog": "a blue dog", "bird": "a green bird"}
DOCUMENTS = [Document(id_=id, text=text, metadata={"kind": id}) for id, text in TEXTS.items()]
SPLITTER = SentenceSplitter()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No language model and no embedding model of anyone else's."""
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", None)


def nodes(*ids):
    return [TextNode(id_=id, text=TEXTS[id], metadata={"year": len(id)}) for id in ids or TEXTS]


def found(scored):
    return [each.node.node_id for each in scored]


def documents_found(index, question="a"):
    return {each.node.ref_doc_id for each in index.as_retriever(similarity_top_k=9).retrieve(question)}


@pytest.fixture
def made(index, hash_encoder):
    return M3Index.from_documents(DOCUMENTS, encoder=hash_encoder, index=index, transformations=[SPLITTER])


def test_all_three_modes_answer(index, hash_encoder):
    made = M3Index(nodes(), encoder=hash_encoder, index=index)
    answer = made.as_retriever(similarity_top_k=3).retrieve("a red dog")
    passages = hash_encoder.encode_passages([each.get_content("embed") for each in nodes()])
    judge = score(hash_encoder.encode_queries(["a red dog"]), passages, hash_encoder.weights)[0].tolist()
    ranked = sorted(zip(TEXTS, judge, strict=True), key=lambda pair: -pair[1])
    assert [(each.node.node_id, each.score) for each in answer] == [(id, pytest.approx(total)) for id, total in ranked]
    assert index.modes == frozenset(MODES)
    assert found(made.query("a red dog", top_k=1)) == [ranked[0][0]]
    assert answer[0].node in nodes()


def test_nodes_are_inserted_and_deleted(index, hash_encoder):
    made = M3Index(nodes("cat"), encoder=hash_encoder, index=index)
    made.insert_nodes(nodes("dog", "bird"))
    assert found(made.query("a blue dog"))[0] == "dog"
    made.delete_nodes(["dog", "stranger"])
    assert set(found(made.query("a blue dog"))) == {"cat", "bird"}
    assert made.docstore.document_exists("dog")
    made.delete_nodes(["cat"], delete_from_docstore=True)
    assert not made.docstore.document_exists("cat")
    assert set(made.index_struct.nodes_dict) == set(index.ids()) == {"bird"}


def test_documents_are_inserted_updated_refreshed_and_deleted(made):
    made.insert(Document(id_="fish", text="a grey fish"))
    assert set(made.ref_doc_info) == {"cat", "dog", "bird", "fish"}
    made.update_ref_doc(Document(id_="cat", text="a yellow lion"))
    assert made.query("a yellow lion")[0].node.get_content() == "a yellow lion"
    assert "a red cat" not in {each.node.get_content() for each in made.query("a red cat")}
    again = [Document(id_="cat", text="a yellow lion"), *DOCUMENTS[1:], Document(id_="ant", text="small")]
    assert made.refresh_ref_docs(again) == [False, False, False, True]
    assert made.refresh_ref_docs([Document(id_="dog", text="a brown wolf")]) == [True]
    assert made.query("a brown wolf")[0].node.ref_doc_id == "dog"
    made.delete_ref_doc("bird", delete_from_docstore=True)
    assert documents_found(made) == {"cat", "dog", "fish", "ant"} == set(made.ref_doc_info)


def test_the_older_names_of_these_do_the_same(made, caplog):
    with caplog.at_level(logging.ERROR):
        made.update(Document(id_="cat", text="a yellow lion"))
        assert made.refresh([Document(id_="cat", text="a yellow lion")]) == [False]
        made.delete("dog")
    assert documents_found(made) == {"cat", "bird"}


async def test_async_does_what_sync_does(index, hash_encoder):
    made = M3Index(nodes("cat"), encoder=hash_encoder, index=index, transformations=[SPLITTER])
    await made.ainsert(Document(id_="fish", text="a grey fish"))
    await made.ainsert_nodes(nodes("dog"))
    retriever = made.as_retriever(similarity_top_k=9)
    assert await retriever.aretrieve("a blue dog") == retriever.retrieve("a blue dog")
    await made.adelete_nodes(["dog"])
    await made.adelete_ref_doc("fish", delete_from_docstore=True)
    assert await made.arefresh_ref_docs([Document(id_="ant", text="small")]) == [True]
    assert {each.get_content() for each in made.store.get_nodes()} >= {"a red cat", "small"}
    assert len(index) == 2


def test_filters_nodes_and_documents_bound_a_retriever(made, hash_encoder):
    kind = MetadataFilters(filters=[MetadataFilter(key="kind", value="dog")])
    assert {each.node.ref_doc_id for each in made.as_retriever(filters=kind).retrieve("a")} == {"dog"}
    where = Field("kind", "in", ["cat", "dog"])
    both = made.as_retriever(filters=where, doc_ids=["dog", "bird"]).retrieve("a")
    assert {each.node.ref_doc_id for each in both} == {"dog"}
    one = made.store.get_nodes(filters=kind)[0].node_id
    assert found(made.as_retriever(node_ids=[one]).retrieve("a red cat")) == [one]


def test_an_engine_answers_and_takes_an_engines_settings(made, hash_encoder):
    rerank = M3Rerank(encoder=hash_encoder, top_n=1)
    engine = made.as_query_engine(similarity_top_k=3, node_postprocessors=[rerank], response_mode="compact")
    answer = engine.query("a blue dog")
    assert [each.node.get_content() for each in answer.source_nodes] == ["a blue dog"]
    assert "a blue dog" in str(answer)
    assert "a blue dog" in str(made.as_chat_engine(chat_mode="context", similarity_top_k=1).chat("a blue dog"))


def test_objects_lead_on(index, hash_encoder):
    inner = M3Index(nodes(), encoder=hash_encoder).as_retriever(similarity_top_k=3)
    outer = M3Index(
        objects=[IndexNode(id_="i", text="about animals", index_id="animals", obj=inner)],
        encoder=hash_encoder,
        index=index,
    )
    assert set(found(outer.as_retriever(similarity_top_k=1).retrieve("animals"))) == set(TEXTS)
    outer.insert_nodes([IndexNode(id_="j", text="about stones", index_id="stones", obj=inner)])
    assert set(found(outer.as_retriever(similarity_top_k=1).retrieve("stones"))) == set(TEXTS)


@persisted
def test_everything_is_loaded_again(made, index, hash_encoder, tmp_path):
    made.set_index_id("animals")
    made.store.weights, made.store.candidates = {"dense": 0.5, "sparse": 0.5}, 7
    folder = str(tmp_path / "storage")
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mine.txt").write_text("not yours")
    made.persist(folder)
    made.persist(folder)
    again = M3Index.load_from_disk(folder, encoder=hash_encoder)
    assert again.query("a red dog") == made.query("a red dog")
    assert (again.index_name, again.store.weights, again.store.candidates) == ("animals", made.store.weights, 7)
    assert type(again.store.index) is type(index)
    assert again.ref_doc_info == made.ref_doc_info
    assert again.refresh_ref_docs(DOCUMENTS) == [False, False, False]
    again.delete_ref_doc("cat", delete_from_docstore=True)
    assert documents_found(again) == {"dog", "bird"}
    assert (tmp_path / "storage" / "mine.txt").read_text() == "not yours"


@persisted
def test_weights_and_name_can_be_changed_in_loading(made, hash_encoder, tmp_path):
    made.persist(str(tmp_path))
    again = M3Index.load_from_disk(str(tmp_path), weights_for_different_modes=[0, 1, 0], encoder=hash_encoder)
    assert again.store.weights == {"dense": 0, "sparse": 1, "multi_vector": 0}
    with pytest.raises(IndexFolderError, match="pass index_name"):
        M3Index.load_from_disk(str(tmp_path), index_name="other", encoder=hash_encoder)
    with pytest.raises(WrongEncoder):
        M3Index.load_from_disk(str(tmp_path), encoder=HashEncoder(seed=9))


def test_model_and_length_are_loaded_again(bge_m3, tmp_path):
    made = M3Index(nodes(), model_name=str(bge_m3()), doc_maxlen=64, query_maxlen=64, index_name="tiny")
    made.persist(str(tmp_path))
    again = M3Index.load_from_disk(str(tmp_path))
    assert (again.store.model_name, again.encoder.max_length, again.index_name) == (str(bge_m3()), 64, "tiny")
    assert again.query("a red cat") == made.query("a red cat")
    with pytest.raises(WrongEncoder):
        M3Index.load_from_disk(str(tmp_path), model_name=str(bge_m3(seed=5)))


@persisted
def test_a_vector_store_index_reads_the_same_storage(made, hash_encoder, tmp_path):
    made.persist(str(tmp_path))
    store = M3VectorStore.from_persist_dir(str(tmp_path), encoder=hash_encoder)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path), vector_store=store)
    plain = load_index_from_storage(context, embed_model=M3Embedding(encoder=hash_encoder))
    assert isinstance(plain, VectorStoreIndex)
    assert plain.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].node.ref_doc_id == "dog"


# In the place of BGEM3Index


def test_its_constructor_and_its_weights_are_understood(bge_m3):
    made = M3Index(
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
    assert made.index_id == "animals"
    encoder = made.encoder
    passages = encoder.encode_passages([each.get_content("embed") for each in nodes()])
    weights = {"dense": 0.4 / 1.2, "sparse": 0.2 / 1.2, "multi_vector": 0.6 / 1.2}
    judge = score(encoder.encode_queries(["a red dog"]), passages, weights)[0].tolist()
    answer = {each.node.node_id: each.score for each in made.query("a red dog", top_k=10)}
    assert answer == pytest.approx(dict(zip(TEXTS, judge, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights_for_different_modes": [1.0, 0.3]}, "one for each of"),
        ({"weights_for_different_modes": [0.0, 0.0, 0.0]}, "one is above it"),
        ({"query_maxlen": 64, "doc_maxlen": 128}, "leave query_maxlen out"),
        ({"query_maxlen": 64}, "leave query_maxlen out"),
    ],
)
def test_what_cannot_be_done_says_what_to_type(hash_encoder, settings, said):
    with pytest.raises(ValueError, match=said):
        M3Index(nodes(), encoder=hash_encoder, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling_method": "mean"}, "pools by 'cls', not 'mean'; leave pooling_method out"),
        ({"normalize_embeddings": False}, "has normalize_embeddings=True; leave it out"),
    ],
)
def test_a_reading_that_is_not_the_checkpoints_is_refused(bge_m3, settings, said):
    with pytest.raises(ValueError, match=said):
        M3Index(nodes(), model_name=str(bge_m3()), **settings)


def test_an_unknown_setting_is_refused(hash_encoder):
    with pytest.raises(TypeError, match="M3Index takes no similarity; leave it out"):
        M3Index(nodes(), encoder=hash_encoder, similarity="cosine")


def test_a_storage_context_with_another_store_says_what_to_give(hash_encoder):
    filled = SimpleVectorStore()
    filled.add([nodes("cat")[0].model_copy(update={"embedding": [1.0]})])
    with pytest.raises(ValueError, match=r"has a SimpleVectorStore; write StorageContext.from_defaults"):
        M3Index(nodes(), encoder=hash_encoder, storage_context=StorageContext.from_defaults(vector_store=filled))
    ours = StorageContext.from_defaults(vector_store=M3VectorStore(encoder=hash_encoder))
    with pytest.raises(ValueError, match=r"its own \['encoder'\]; set them there"):
        M3Index(nodes(), encoder=hash_encoder, storage_context=ours)
    assert found(M3Index(nodes(), storage_context=ours).query("a red cat"))[0] == "cat"


class Boom:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def written_by_bge_m3_index(folder):
    """What its persist() leaves: a storage context of JSON, and a pickle."""
    import pickle

    context = StorageContext.from_defaults()
    struct = VectorStoreIndex.index_struct_cls()
    for position, node in enumerate(nodes()):
        struct.add_node(node, text_id=str(position))
    context.docstore.add_documents(nodes())
    context.index_store.add_index_struct(struct)
    context.persist(folder)
    (Path(folder) / "multi_embed_store.pkl").write_bytes(pickle.dumps(Boom()))


def test_a_folder_of_bge_m3_index_is_read_without_unpickling(hash_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written_by_bge_m3_index("old")
    with pytest.raises(IndexFolderError, match="pass model_name='BAAI/bge-m3'"):
        M3Index.load_from_disk("old")
    with pytest.warns(M3Warning, match="its 3 texts are encoded once more; call persist"):
        made = M3Index.load_from_disk("old", encoder=hash_encoder)
    assert found(made.query("a blue dog"))[0] == "dog"
    made.persist("old")
    assert M3Index.load_from_disk("old", encoder=hash_encoder).query("a blue dog") == made.query("a blue dog")
    assert not Path("unpickled").exists()


def test_a_folder_of_no_index_is_refused(hash_encoder, tmp_path):
    with pytest.raises(IndexFolderError, match="holds no index"):
        M3Index.load_from_disk(str(tmp_path / "nowhere"), encoder=hash_encoder)


def test_what_is_persisted_is_json_and_arrays(made, tmp_path):
    made.persist(str(tmp_path / "storage"))
    for file in (tmp_path / "storage").glob("*.json"):
        json.loads(file.read_text())
    assert not list((tmp_path / "storage").rglob("*.pkl"))


def test_a_folder_index_keeps_its_vectors_where_it_is(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "vectors", hash_encoder) as local:
        M3Index(nodes(), encoder=hash_encoder, index=local).persist(str(tmp_path / "storage"))
    again = M3Index.load_from_disk(str(tmp_path / "storage"), encoder=hash_encoder)
    assert again.store.folder == str(tmp_path / "vectors")
    assert found(again.query("a red cat"))[0] == "cat"
    assert isinstance(M3Index(nodes(), encoder=hash_encoder).store.index, MemoryIndex)
