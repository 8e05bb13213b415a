"""NudgeFinetuneEngine, Nudge, and indexes with nudged vectors."""

from __future__ import annotations

import asyncio
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult

from m3_integrations import LocalIndex
from m3_integrations.core.errors import M3Warning, UnknownId
from m3_integrations.llama_index import M3Embedding, M3VectorStore, Nudge, NudgeFinetuneEngine
from m3_integrations.nudging.method.closed_form import rotate, translate
from m3_integrations.testing import HashEncoder
from tests.slang import CORPUS, PASSAGES, dataset, queries


class Closed(BaseEmbedding):
    """Embedding without query batches and with vectors of other lengths than 1; counts its calls."""

    _texts: list[int] = PrivateAttr(default_factory=list)
    _queries: list[str] = PrivateAttr(default_factory=list)
    _waiting: list[int] = PrivateAttr(default_factory=lambda: [0, 0])

    def _get_query_embedding(self, query):
        self._queries.append(query)
        return (2 * HashEncoder(64).encode_queries([query]).dense[0]).tolist()

    async def _aget_query_embedding(self, query):
        self._waiting[0] += 1
        self._waiting[1] = max(self._waiting)
        await asyncio.sleep(0)
        self._waiting[0] -= 1
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts):
        self._texts.append(len(texts))
        return (3 * HashEncoder(64).encode_passages(texts).dense).tolist()


class Given(BaseEmbedding):
    """Embedding with given vectors."""

    vectors: dict[str, list[float]]

    def _get_query_embedding(self, query):
        return self.vectors[query]

    async def _aget_query_embedding(self, query):
        return self.vectors[query]

    def _get_text_embedding(self, text):
        return self.vectors[text]


class Shelf(BasePydanticVectorStore):
    """Unknown store that keeps text and whose `add` does not replace; a mute one cannot return or delete nodes."""

    stores_text: bool = True
    mute: bool = False
    _nodes: list[TextNode] = PrivateAttr(default_factory=list)

    @property
    def client(self):
        return self._nodes

    def add(self, nodes, **kwargs):
        self._nodes += nodes
        return [f"row-{len(self._nodes) + i}" for i in range(len(nodes))]

    def get_nodes(self, node_ids=None, filters=None):
        if self.mute:
            return super().get_nodes(node_ids, filters)
        return [node for node in self._nodes if node.node_id in node_ids]

    def delete_nodes(self, node_ids=None, filters=None, **kwargs):
        if self.mute:
            super().delete_nodes(node_ids, filters)
        self._nodes[:] = [node for node in self._nodes if node.node_id not in node_ids]

    def delete(self, ref_doc_id, **kwargs):
        raise NotImplementedError

    def query(self, query, **kwargs):
        return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])


@pytest.fixture(scope="module")
def model():
    return M3Embedding(encoder=HashEncoder(64))


@pytest.fixture(scope="module")
def engine(model):
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1))
    engine.finetune()
    return engine


@pytest.fixture(scope="module")
def pushed(model):
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), method="nudge-m")
    engine.finetune()
    return engine


def found(index, part="test"):
    """Return recall@1 of new queries."""
    retriever = index.as_retriever(similarity_top_k=1)
    evaluated = queries(part, 1)
    return np.mean([retriever.retrieve(each.text)[0].node.node_id in each.relevant for each in evaluated])


def index_of(model, **settings):
    return VectorStoreIndex([TextNode(id_=id, text=text) for id, text in CORPUS.items()], embed_model=model, **settings)


# The engine


def test_an_index_with_the_nudged_model_answers_new_queries(model, engine):
    before, after = found(index_of(model)), found(index_of(engine.get_finetuned_model()))
    assert before < 0.3
    assert after > 0.6
    assert engine.result.before < 0.5 < engine.result.after


def test_auto_keeps_unit_length_if_the_similarity_is_unknown(engine):
    assert engine.result.method == "nudge-n"
    assert np.linalg.norm(engine.result.passages, axis=1) == pytest.approx(1, abs=1e-5)


def test_auto_may_choose_nudge_m_for_dot_product(model):
    both = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), similarity="dot")
    both.finetune()
    turned = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), method="nudge-n", center=0.0, gamma=0.5)
    turned.finetune()
    assert both.result.after >= turned.result.after


def test_options_are_passed_to_the_nudge(model):
    options = {"method": "nudge-n", "metric": "recall@3", "propagate": "neighbors", "center": 0.5, "gamma": 0.3}
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), **options)
    engine.finetune()
    result = engine.result
    assert (result.method, result.metric, result.center, result.gamma) == ("nudge-n", "recall@3", 0.5, 0.3)
    assert result.propagation is not None
    cosines = np.einsum("nd,nd->n", result.start[result.rows], result.vectors)
    assert cosines.min() == pytest.approx(1 - 0.3 / 2)


def test_without_validation_queries_are_held_out_by_the_seed(model):
    def gamma(seed):
        engine = NudgeFinetuneEngine(dataset("train", 3), model, method="nudge-n", seed=seed)
        engine.finetune()
        assert len(engine._train) == 3 * PASSAGES * 4 // 5
        return engine.result.gamma, engine.result.after

    assert gamma(1) == gamma(1) != gamma(2)


def test_too_few_queries_to_hold_some_out_are_rejected(model):
    one = SimpleNamespace(queries={"q": "?"}, corpus={"a": "A"}, relevant_docs={"q": ["a"]})
    with pytest.raises(ValueError, match="give validation queries, or gamma"):
        NudgeFinetuneEngine(one, model)


def test_datasets_can_be_json_files(model, engine, tmp_path):
    for part, each in (("train", 2), ("dev", 1)):
        (tmp_path / f"{part}.json").write_text(json.dumps(vars(dataset(part, each))))
    again = NudgeFinetuneEngine(tmp_path / "train.json", model, str(tmp_path / "dev.json"))
    again.finetune()
    np.testing.assert_array_equal(again.result.passages, engine.result.passages)


def test_results_before_finetune_are_rejected(model):
    engine = NudgeFinetuneEngine(dataset("train", 2), model)
    for call in (engine.get_finetuned_model, engine.nodes, lambda: engine.write(index_of(model))):
        with pytest.raises(RuntimeError, match=r"call finetune\(\) first"):
            call()


def test_texts_are_embedded_once_and_in_batches(engine):
    closed = Closed(embed_batch_size=16)
    other = NudgeFinetuneEngine(dataset("train", 2), closed, dataset("dev", 1))
    other.finetune()
    other.finetune()
    assert closed._texts == [16, 16, 8]
    assert len(closed._queries) == 3 * PASSAGES
    np.testing.assert_allclose(other.result.passages, engine.result.passages, atol=1e-5)


def test_num_workers_limits_concurrent_queries():
    closed = Closed(num_workers=5)
    engine = NudgeFinetuneEngine(dataset("train", 2), closed, dataset("dev", 1))
    engine.finetune()
    assert closed._waiting == [0, 5]
    assert len(closed._queries) == 3 * PASSAGES


def test_nodes_compete_and_are_embedded_with_their_metadata(model):
    nodes = [TextNode(id_="d0", text=CORPUS["d0"], metadata={"kind": "first"}), TextNode(id_="x", text="another")]
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), nodes=nodes, propagate=None)
    engine.finetune()
    embedded = {node.node_id: node for node in engine.nodes()}
    assert len(embedded) == PASSAGES + 1
    assert embedded["d0"].metadata == {"kind": "first"}
    assert embedded["x"].embedding == pytest.approx(model.get_text_embedding("another"), abs=1e-6)
    np.testing.assert_allclose(
        engine.result.start[0], model.get_text_embedding(f"kind: first\n\n{CORPUS['d0']}"), atol=1e-6
    )
    assert nodes[0].embedding is None


def test_nudge_m_is_rejected_for_cosine_with_a_fix(model, pushed):
    with pytest.raises(ValueError, match=r"compares by cosine.*use method='nudge-n'"):
        NudgeFinetuneEngine(dataset("train", 2), model, method="nudge-m", similarity="cosine")
    with pytest.raises(ValueError, match=r"SimpleVectorStore compares by cosine.*use method='nudge-n'"):
        pushed.write(index_of(model))
    with pytest.raises(ValueError, match="similarity must be 'cosine', 'dot' or None"):
        NudgeFinetuneEngine(dataset("train", 2), model, similarity="euclid")


def test_nudge_m_into_an_unknown_store_needs_a_similarity(model, pushed):
    index = VectorStoreIndex.from_vector_store(Shelf(), embed_model=model)
    with pytest.raises(ValueError, match="pass similarity='dot' if it does, or use method='nudge-n'"):
        pushed.write(index)
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), method="nudge-m", similarity="dot")
    engine.finetune()
    assert len(engine.write(index)) == len(index.vector_store.client) == PASSAGES


def test_arguments_of_other_engines_are_rejected_by_name(engine):
    with pytest.raises(TypeError, match="finetune takes no epochs"):
        engine.finetune(epochs=3)
    with pytest.raises(TypeError, match="get_finetuned_model takes no device"):
        engine.get_finetuned_model(device="cpu")


# The model


def test_the_nudged_model_returns_moved_vectors_for_corpus_texts_only(model, engine):
    tuned, (first, second) = engine.get_finetuned_model(), list(CORPUS.values())[:2]
    vectors = tuned.get_text_embedding_batch([second, "elsewhere", first])
    np.testing.assert_array_equal(np.float32(vectors[0]), engine.result.passages[1])
    np.testing.assert_array_equal(np.float32(vectors[2]), engine.result.passages[0])
    assert vectors[1] == model.get_text_embedding("elsewhere")
    assert tuned.get_text_embedding(first) == vectors[2] != model.get_text_embedding(first)
    assert tuned.get_query_embedding(first) == model.get_query_embedding(first)
    assert tuned.model_name == model.model_name


async def test_the_nudged_model_works_async(engine):
    tuned, first = engine.get_finetuned_model(), CORPUS["d0"]
    assert await tuned.aget_text_embedding(first) == tuned.get_text_embedding(first)
    assert await tuned.aget_text_embedding_batch([first, "else"]) == tuned.get_text_embedding_batch([first, "else"])
    assert await tuned.aget_query_embedding(first) == tuned.get_query_embedding(first)


def test_corpus_texts_are_not_embedded_again():
    closed = Closed()
    engine = NudgeFinetuneEngine(dataset("train", 2), closed, dataset("dev", 1))
    engine.finetune()
    tuned = engine.get_finetuned_model()
    closed._texts.clear()
    tuned.get_text_embedding_batch([*CORPUS.values(), "one", "one", "two"])
    assert sum(closed._texts) == 2


def test_a_pickle_of_the_nudged_model_contains_the_moved_vectors():
    closed = Closed()
    engine = NudgeFinetuneEngine(dataset("train", 2), closed, dataset("dev", 1))
    engine.finetune()
    tuned = engine.get_finetuned_model()
    copy = pickle.loads(pickle.dumps(tuned))
    texts = [CORPUS["d3"], "elsewhere"]
    assert copy.get_text_embedding_batch(texts) == tuned.get_text_embedding_batch(texts)


def test_a_dict_of_the_nudged_model_identifies_its_vectors_and_cannot_be_loaded(model, engine, pushed):
    tuned = engine.get_finetuned_model()
    assert tuned.to_dict() == engine.get_finetuned_model().to_dict() != pushed.get_finetuned_model().to_dict()
    assert tuned.to_dict()["embed_model"] == model.to_dict()
    json.dumps(tuned.to_dict())
    with pytest.raises(ValueError, match=r"pickle it, write the vectors into a store"):
        type(tuned).from_dict(tuned.to_dict())


def test_a_cached_pipeline_embeds_with_the_nudged_model(engine):
    pipeline = IngestionPipeline(transformations=[engine.get_finetuned_model()], cache=IngestionCache())
    for _ in range(2):
        (node,) = pipeline.run(nodes=[TextNode(text=CORPUS["d5"])])
        np.testing.assert_array_equal(np.float32(node.embedding), engine.result.passages[5])


# Writing


def test_write_changes_only_the_vectors_of_an_index(model, engine, tmp_path):
    documents = [Document(id_="page", text="page"), Document(id_="other", text="other")]
    index = VectorStoreIndex.from_documents(documents, embed_model=model)
    nodes = [
        TextNode(id_=id, text=text, metadata={"id": id}, excluded_embed_metadata_keys=["id"], relationships=parent)
        for parent in [{"1": documents[0].as_related_node_info()}]
        for id, text in CORPUS.items()
    ]
    index.insert_nodes(nodes)
    before, nodes_before = found(index), dict(index.docstore.docs)
    assert engine.write(index) == list(CORPUS)
    assert found(index) > before + 0.3
    assert index.docstore.docs == nodes_before
    assert set(index.ref_doc_info) == {"page", "other"}
    assert len(index.ref_doc_info["page"].node_ids) == len(set(index.ref_doc_info["page"].node_ids)) == PASSAGES + 1
    assert len(index.index_struct.nodes_dict) == PASSAGES + 2
    index.storage_context.persist(tmp_path)
    again = load_index_from_storage(StorageContext.from_defaults(persist_dir=tmp_path), embed_model=model)
    assert found(again) == found(index)
    index.delete_ref_doc("page", delete_from_docstore=True)
    assert len(index.docstore.docs) == len(index.vector_store.data.embedding_dict) == 1


def test_write_fills_an_empty_index(model, engine):
    index = VectorStoreIndex([], embed_model=model)
    engine.write(index)
    assert len(index.docstore.docs) == PASSAGES
    assert found(index) > 0.6


def test_write_is_idempotent(model, engine):
    index = index_of(model)
    engine.write(index)
    once = dict(index.vector_store.data.embedding_dict)
    engine.write(index)
    assert index.vector_store.data.embedding_dict == once


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_only_the_dense_vectors_of_m3_vector_store_change(model, pushed, tmp_path, kind):
    encoder = model.encoder
    store = M3VectorStore(LocalIndex.open(tmp_path / "index", encoder) if kind == "local" else None, encoder)
    index = index_of(model, storage_context=StorageContext.from_defaults(vector_store=store))
    before = store.index.vectors(list(CORPUS))
    pushed.write(index)
    after = store.index.vectors(list(CORPUS))
    np.testing.assert_array_equal(after.dense, pushed.result.passages)
    assert np.linalg.norm(after.dense, axis=1).max() > 1.1
    assert (after.sparse != before.sparse).nnz == 0
    np.testing.assert_array_equal(after.multi_vector.values, before.multi_vector.values)
    assert found(index) > 0.6


def test_write_adds_missing_nodes_to_m3_vector_store(model, engine):
    store = M3VectorStore(encoder=model.encoder)
    engine.write(VectorStoreIndex.from_vector_store(store, embed_model=model))
    np.testing.assert_array_equal(store.index.vectors(list(CORPUS), ["dense"]).dense, engine.result.passages)
    assert store.index.modes == {"dense", "sparse", "multi_vector"}


def test_write_deletes_nodes_first_if_add_does_not_replace(model, engine):
    store = Shelf()
    store.add([TextNode(id_="d1", text=CORPUS["d1"], embedding=[0.0], metadata={"n": 1}), TextNode(id_="x", text="x")])
    with pytest.warns(M3Warning, match="1 nodes of the index, 'd1' first, were embedded with another text"):
        engine.write(VectorStoreIndex.from_vector_store(store, embed_model=model))
    held = {node.node_id: node for node in store.client}
    assert len(store.client) == len(held) == PASSAGES + 1
    assert held["d1"].metadata == {"n": 1}
    np.testing.assert_array_equal(np.float32(held["d1"].embedding), engine.result.passages[1])


def test_a_store_without_get_nodes_needs_the_nodes(model, engine):
    index = VectorStoreIndex.from_vector_store(Shelf(mute=True), embed_model=model)
    with pytest.raises(ValueError, match=r"cannot return its nodes.*NudgeFinetuneEngine\(nodes=\[\.\.\.\]\)"):
        engine.write(index)
    nodes = [TextNode(id_=id, text=text) for id, text in CORPUS.items()]
    engine = NudgeFinetuneEngine(dataset("train", 2), model, dataset("dev", 1), nodes=nodes)
    engine.finetune()
    with pytest.raises(ValueError, match=r"cannot delete nodes by id.*VectorStoreIndex\(engine\.nodes\(\)"):
        engine.write(index)
    assert index.vector_store.client == []


# The drop-in for the class of llama-index-experimental


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("turns", [True, False])
def test_nudge_moves_by_the_rule_of_the_paper(model, turns):
    nudge = Nudge(model, dataset("train", 2), dataset("dev", 1), use_nudge_n=turns)
    start = nudge.get_finetuned_corpus_embeddings()
    nudge.finetune()
    result = nudge.result
    texts = [query.text for query in queries("train", 2)]
    vectors = np.array([model.get_query_embedding(text) for text in texts], np.float32)
    pulls = np.array([vectors[i::PASSAGES].sum(axis=0) for i in range(PASSAGES)])
    expected = (rotate if turns else translate)(start, pulls, result.gamma)
    np.testing.assert_allclose(nudge.get_finetuned_corpus_embeddings(), expected, atol=1e-5)
    assert result.after > result.before


@pytest.mark.parametrize("turns", [True, False])
def test_nudge_is_finite_and_correct_on_inputs_that_break_the_old_class(turns):
    rng = np.random.default_rng(0)
    texts = unit(rng.standard_normal((6, 8)))
    vectors = {f"text {i}": row.tolist() for i, row in enumerate(texts)}
    vectors |= {"same": texts[0].tolist(), "opposite": (-texts[1]).tolist(), "mute": unit(np.ones(8)).tolist()}
    vectors |= {f"ask {i}": unit(texts[i] + 0.8 * unit(rng.standard_normal(8))).tolist() for i in range(6)}
    corpus = {f"d{i}": f"text {i}" for i in range(5)}
    train = SimpleNamespace(
        queries={"q0": "same", "q1": "opposite", "q2": "mute", "q3": "ask 3", "q4": "ask 4"},
        corpus=corpus,
        relevant_docs={"q0": ["d0"], "q1": ["d1"], "q2": [], "q3": ["d3"], "q4": ["d4"]},
    )
    validation = SimpleNamespace(
        queries={"v0": "same", "v3": "ask 3", "v5": "ask 5", "v9": "mute"},
        corpus={**corpus, "d5": "text 5"},
        relevant_docs={"v0": ["d0"], "v3": ["d3"], "v5": ["d5"]},
    )
    nudge = Nudge(Given(vectors=vectors), train, validation, turns, device="cuda")
    nudge.finetune()
    moved = nudge.get_finetuned_corpus_embeddings()
    assert moved.shape == (6, 8)
    assert np.isfinite(moved).all()
    assert moved[0] @ texts[0] >= 1 - 1e-6
    np.testing.assert_allclose(moved[[2, 5]], texts[[2, 5]], atol=1e-6)
    assert nudge.result.unanswered_validation == nudge.result.unanswered_train == 1
    assert nudge.result.after >= nudge.result.before


def batch(name, n, seed, answers=None):
    """Return new passages, and queries with their own slang about them."""
    rng = np.random.default_rng(seed)
    corpus = {f"{name}{i}": " ".join(f"word{j}" for j in rng.integers(0, 200, 12)) for i in range(n)}
    questions = {f"{name}-{i}": f"new{i % n} {rng.choice(corpus[f'{name}{i % n}'].split())}" for i in range(2 * n)}
    answered = {f"{name}-{i}": [(answers or f"{name}{i % n}")] for i in range(2 * n)}
    return SimpleNamespace(queries=questions, corpus=corpus, relevant_docs=answered)


@pytest.mark.parametrize("validated", [True, False])
def test_inserting_a_batch_moves_only_the_batch(model, validated):
    nudge = Nudge(model, dataset("train", 2), dataset("dev", 1))
    nudge.finetune()
    before, gamma = nudge.get_finetuned_corpus_embeddings(), nudge.result.gamma
    new = batch("nudge-n", 8, 5)
    nudge.insert_data_and_finetune(new, new if validated else None)
    after = nudge.get_finetuned_corpus_embeddings()
    np.testing.assert_array_equal(after[:PASSAGES], before)
    assert after.shape == (PASSAGES + 8, 64)
    assert list(nudge.corpus) == [*CORPUS, *new.corpus]
    start = np.array([model.get_text_embedding(text) for text in new.corpus.values()])
    assert (np.abs(after[PASSAGES:] - start).max(axis=1) > 1e-3).all()
    assert validated or nudge.result.gamma == gamma
    nudge.finetune()
    assert nudge.get_finetuned_corpus_embeddings().shape == (PASSAGES + 8, 64)


def test_the_inserted_batch_competes_with_existing_passages(model):
    nudge = Nudge(model, dataset("train", 2), dataset("dev", 1))
    new = batch("nudge-n", 8, 5)
    alone = Nudge(model, new, new)
    alone.finetune()
    nudge.insert_data_and_finetune(new, new)
    assert nudge.result.before < alone.result.before


def test_a_batch_with_existing_passages_or_old_answers_is_rejected(model):
    nudge = Nudge(model, dataset("train", 2), dataset("dev", 1))
    with pytest.raises(ValueError, match=r"passages \['d0', 'd1', 'd10'\] exist already; use new ids"):
        nudge.insert_data_and_finetune(dataset("train", 1))
    validation = SimpleNamespace(queries={"v": "?"}, corpus=CORPUS, relevant_docs={"v": ["d0"]})
    with pytest.raises(UnknownId, match="answered by 'd0', which is none of the 8 passages"):
        nudge.insert_data_and_finetune(batch("nudge-n", 8, 5), validation)
    assert list(nudge.corpus) == list(CORPUS)
