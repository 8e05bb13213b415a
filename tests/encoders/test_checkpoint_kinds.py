"""Every kind of checkpoint in the indexes, the adapters, NUDGE and the command line, in the modes that it has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from transformers import AutoModel, AutoModelForTokenClassification
from typer.testing import CliRunner

from m3_integrations import LocalIndex, M3Encoder, MemoryIndex, Nudger, Passage, Query, Retriever, cli, ingest
from m3_integrations.core.errors import MissingMode, WrongEncoder
from m3_integrations.encoders import EncoderPool
from m3_integrations.langchain import M3Embeddings, M3Retriever as LangChainRetriever, M3SparseEmbeddings
from m3_integrations.llama_index import M3Embedding, M3Retriever, M3SparseEmbedding
from tests.checkpoints import TinyCheckpoint, write_inference_free, write_model, write_pooling, write_sparse_encoder
from tests.models.layouts.late_interaction import write_multi_vector, write_pylate
from tests.optional import requires_architecture

SHAPE = TinyCheckpoint(positions=256)
PLACES = ("river", "bridge", "house", "garden", "castle", "forest", "valley", "harbour")
PASSAGES = [Passage(place, f"the {place} is near the sea") for place in PLACES]
QUERIES = [Query(place, f"where is the {place}", {place: 1.0}) for place in PLACES]


def write_gte(folder):
    return write_pooling(write_model(folder, "gte", AutoModelForTokenClassification, SHAPE, num_labels=1), "cls")


def write_modern_bert(folder):
    return write_pooling(write_model(folder, "modernbert", AutoModel, SHAPE), "mean")


KINDS = {
    "gte": (write_gte, {"dense", "sparse"}),
    "modernbert": (write_modern_bert, {"dense"}),
    "splade": (lambda folder: write_sparse_encoder(folder, "bert", SHAPE), {"sparse"}),
    "inference-free": (lambda folder: write_inference_free(folder, "bert", SHAPE), {"sparse"}),
    "pylate": (lambda folder: write_pylate(folder, "bert", SHAPE), {"multi_vector"}),
    "multi-vector": (lambda folder: write_multi_vector(folder, "modernbert", SHAPE), {"multi_vector"}),
}
EVERY_KIND = [pytest.param(kind, marks=requires_architecture("gte") if kind == "gte" else ()) for kind in KINDS]
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)
every_encoder = pytest.mark.parametrize("kind", [*EVERY_KIND, "composed"])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function that writes a folder of a kind once."""
    written = {}

    def folder(kind):
        if kind not in written:
            written[kind] = KINDS[kind][0](tmp_path_factory.mktemp(kind))
        return written[kind]

    return folder


@pytest.fixture(scope="module")
def encoder_of(folder_of):
    """A function that loads the encoder of a kind once."""
    loaded = {}

    def encoder(kind):
        if kind not in loaded:
            if kind == "composed":
                parts = {"dense": "modernbert", "sparse": "inference-free", "multi_vector": "pylate"}
                loaded[kind] = M3Encoder.compose(**{mode: encoder(name) for mode, name in parts.items()})
            else:
                loaded[kind] = M3Encoder.from_pretrained(str(folder_of(kind)), device="cpu")
        return loaded[kind]

    return encoder


def values_of(vectors):
    """Vectors of any mode as one array."""
    return vectors.todense() if hasattr(vectors, "todense") else getattr(vectors, "values", vectors)


def assert_same(ours, theirs):
    """Compare the vectors of every mode, up to the rounding of other batch shapes."""
    assert ours.modes == theirs.modes
    for mode in ours.modes:
        one, other = getattr(ours, mode), getattr(theirs, mode)
        if mode == "multi_vector":
            np.testing.assert_array_equal(one.offsets, other.offsets)
        np.testing.assert_allclose(values_of(one), values_of(other), rtol=0, atol=1e-6)


def found(retriever):
    matches = [retriever.retrieve(query.text, k=3) for query in QUERIES]
    return [[match.passage.id for match in each] for each in matches]


@every_kind
def test_a_checkpoint_has_the_modes_of_its_kind(encoder_of, kind):
    assert encoder_of(kind).modes == KINDS[kind][1]


@every_encoder
def test_a_local_index_finds_what_one_in_memory_finds_and_knows_its_encoder(encoder_of, kind, tmp_path):
    encoder = encoder_of(kind)
    with MemoryIndex() as memory:
        ingest(encoder, memory, PASSAGES)
        expected = found(Retriever(encoder, memory))
    with LocalIndex.open(tmp_path / "index", encoder) as local:
        ingest(encoder, local, PASSAGES)
        assert local.modes == encoder.modes
    with LocalIndex.open(tmp_path / "index", encoder) as local:
        assert found(Retriever(encoder, local)) == expected
    assert any(expected)
    if encoder.modes != {"sparse"}:  # which finds only passages with a term of the query
        assert all(len(each) == 3 for each in expected)


@every_encoder
def test_llama_index_retrieves_with_it(encoder_of, kind):
    encoder = encoder_of(kind)
    nodes = [TextNode(id_=passage.id, text=passage.text) for passage in PASSAGES]
    retrieved = M3Retriever.from_nodes(nodes, encoder, similarity_top_k=3).retrieve("where is the bridge")
    assert len(retrieved) == 3


@every_encoder
def test_langchain_retrieves_with_it_what_a_retriever_of_ours_does(encoder_of, kind):
    encoder = encoder_of(kind)
    with MemoryIndex() as index:
        ingest(encoder, index, PASSAGES)
        retriever = LangChainRetriever(index=index, encoder=encoder, k=3)
        for query, expected in zip(QUERIES[:2], found(Retriever(encoder, index)), strict=False):
            assert [document.id for document in retriever.invoke(query.text)] == expected


@every_encoder
def test_embeddings_of_both_frameworks_have_its_modes_or_name_the_one_that_it_lacks(encoder_of, kind):
    encoder = encoder_of(kind)
    embeddings = [
        ("dense", lambda: M3Embedding(encoder=encoder).get_query_embedding("the bridge")),
        ("dense", lambda: M3Embeddings(encoder=encoder).embed_query("the bridge")),
        ("sparse", lambda: M3SparseEmbedding(encoder=encoder).get_query_embedding("the bridge")),
        ("sparse", lambda: M3SparseEmbeddings(encoder=encoder).embed_query("the bridge")),
    ]
    for mode, embed in embeddings:
        if mode in encoder.modes:
            assert embed()
        else:
            with pytest.raises(MissingMode, match=mode):
                embed()


@every_encoder
def test_nudge_moves_its_vectors_and_reverts_them(encoder_of, kind):
    encoder = encoder_of(kind)
    with MemoryIndex() as index:
        ingest(encoder, index, PASSAGES)
        before = index.vectors(list(PLACES))
        nudger = Nudger(encoder, index)
        report = nudger.fit(QUERIES, QUERIES, modes=tuple(encoder.modes))
        assert set(report.moves) <= encoder.modes
        nudger.revert()
        after = index.vectors(list(PLACES))
    for mode in encoder.modes:
        np.testing.assert_array_equal(values_of(getattr(after, mode)), values_of(getattr(before, mode)))


@pytest.mark.parametrize("kind", ["inference-free"])  # a process each; the others take the same way through it
def test_a_pool_encodes_as_the_encoder_does(encoder_of, folder_of, kind):
    encoder, texts = encoder_of(kind), [passage.text for passage in PASSAGES]
    with EncoderPool(str(folder_of(kind)), devices=["cpu"]) as pool:
        assert (pool.modes, pool.fingerprint) == (encoder.modes, encoder.fingerprint)
        assert_same(pool.encode_passages(texts), encoder.encode_passages(texts))
        assert_same(pool.encode_queries(texts), encoder.encode_queries(texts))


@every_kind
def test_the_command_indexes_and_searches_with_it(folder_of, kind, tmp_path):
    file = tmp_path / "passages.jsonl"
    file.write_text("".join(json.dumps({"_id": each.id, "text": each.text}) + "\n" for each in PASSAGES))
    index, run = str(tmp_path / "index"), CliRunner().invoke
    filled = run(cli.app, ["index", index, str(file), "--model", str(folder_of(kind))])
    assert filled.exit_code == 0, filled.output
    assert filled.stdout == "8 added, 0 replaced, 0 unchanged; the index holds 8\n"
    searched = run(cli.app, ["search", index, "where is the bridge", "-k", "3", "--json"])
    assert searched.exit_code == 0, searched.output
    assert len(json.loads(searched.stdout)["matches"]) == 3


def test_an_index_of_another_kind_is_refused(encoder_of, tmp_path):
    with LocalIndex.open(tmp_path / "index", encoder_of("splade")) as index:
        ingest(encoder_of("splade"), index, PASSAGES)
    with pytest.raises(WrongEncoder):
        LocalIndex.open(tmp_path / "index", encoder_of("inference-free"))
