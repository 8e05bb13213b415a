"""What commit b4e2c59 wrote to disk opens and gives the answers that it gave.

data/written.tar.xz holds the files, data/expected.json the answers; generate_b4e2c59.py.txt made both.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.settings import Settings

from m3_integrations import Field, LocalIndex, M3Encoder, Nudger, Passage, Query, Retriever, SearchPlan, all_of
from m3_integrations.distributed import encode_corpus, ingest_sharded, read_corpus
from m3_integrations.langchain import M3Embeddings, M3SparseEmbeddings
from m3_integrations.llama_index import M3Embedding, M3Index, M3Rerank, M3SparseEmbedding, M3VectorStore
from m3_integrations.testing import HashEncoder
from m3_integrations.training import Example, Sampling, Stage, TrainConfig, train

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
QUESTIONS = EXPECTED["questions"]
ENCODER = HashEncoder(8, 16, 64)
MODES = ("dense", "sparse", "multi_vector")
WHERE = all_of(Field("year", ">=", 1907), Field("kind", "in", ["house", "garden", "castle"]))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files in a folder of their own, which is the current one: they name each other by relative paths."""
    with tarfile.open(DATA / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    """Every file's name, content and time: a file that was written again differs."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


def digests(index):
    """SHA-256 of all vectors that an index holds, by mode."""
    encoded = index.vectors(index.ids())
    encoded.sparse.sort_indices()
    arrays = {
        "dense": [encoded.dense],
        "sparse": [encoded.sparse.indices, encoded.sparse.indptr, encoded.sparse.data],
        "multi_vector": [encoded.multi_vector.offsets, encoded.multi_vector.values],
    }
    return {mode: hashlib.sha256(b"".join(map(as_bytes, parts))).hexdigest() for mode, parts in arrays.items()}


def as_bytes(array):
    return np.ascontiguousarray(array, "<i8" if array.dtype.kind == "i" else "<f4").tobytes()


def as_lists(passages):
    return [[each.id, each.text, dict(each.metadata)] for each in passages]


def searches(index):
    queries = ENCODER.encode_queries(QUESTIONS)
    found = {}
    for name, where in (("all", None), ("filtered", WHERE)):
        for mode in MODES:
            hits = index.search(mode, queries, 5, where)
            found[f"{mode} {name}"] = [[[hit.id, hit.score] for hit in each] for each in hits]
        # The last question is empty, and the plan that a nudge stores with its index was not used then.
        matches = Retriever(ENCODER, index, SearchPlan(weights=ENCODER.weights)).retrieve_encoded(queries, 5, where)
        found[f"hybrid {name}"] = [[[match.passage.id, match.score] for match in each] for each in matches]
    return found


def assert_same_searches(found, expected):
    assert found.keys() == expected.keys()
    for name, rankings in expected.items():
        for ranking, before in zip(found[name], rankings, strict=True):
            assert_same_ranking(ranking, before)


def assert_same_ranking(found, expected):
    """The same ids with the same scores, best first; scores that differ by rounding alone may change places."""
    assert dict(found) == pytest.approx(dict(expected), rel=1e-4, abs=1e-5)
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4, abs=1e-5)


def assert_same_vectors(encoded, expected, tolerance=1e-5):
    late = encoded.multi_vector
    assert np.allclose(encoded.dense, expected["dense"], atol=tolerance)
    assert np.allclose(encoded.sparse.toarray(), expected["sparse"], atol=tolerance)
    each = [late.values[start:stop] for start, stop in zip(late.offsets, late.offsets[1:], strict=False)]
    for vectors, before in zip(each, expected["multi_vector"], strict=True):
        assert np.allclose(vectors, before, atol=tolerance)


def test_the_encoder_without_a_model_keeps_its_fingerprint():
    assert [repr(ENCODER), ENCODER.fingerprint] == EXPECTED["encoder"]


# Index folders


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_an_index_folder_gives_the_same_answers(written, precision):
    expected = EXPECTED[f"index-{precision}"]
    with LocalIndex.open(written / f"index-{precision}", ENCODER, precision={"multi_vector": precision}) as index:
        index.verify()
        assert index.ids() == expected["ids"]
        assert index.ids(WHERE) == expected["filtered_ids"]
        assert list(index.encoder) == expected["encoder"]
        assert digests(index) == expected["vectors"]
        assert_same_searches(searches(index), expected["searches"])


def test_passages_metadata_and_content_hashes_are_read(written):
    with LocalIndex.open(written / "index-float32", ENCODER) as index:
        assert as_lists(index.passages()) == EXPECTED["passages"]
        assert index.content_hashes() == EXPECTED["hashes"]


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_an_index_folder_can_be_added_to_and_merged(written, precision):
    folder = written / f"index-{precision}"
    segments = set(folder.glob("*.segment"))
    with LocalIndex.open(folder, ENCODER) as index:
        before = digests(index)
        for number in range(10):  # enough segments of a size to be merged with the old ones
            text = f"a yellow lighthouse {number}"
            index.add([Passage(f"zz{number}", text)], ENCODER.encode_passages([text]))
        queries = ENCODER.encode_queries(["a yellow lighthouse 3"])
        assert {index.search(mode, queries, 1)[0][0].id for mode in MODES} == {"zz3"}
        assert {path.name.partition("-")[0] for path in segments - set(folder.glob("*.segment"))} == set(MODES)
        index.verify()
        index.delete([f"zz{number}" for number in range(10)])
        assert digests(index) == before
        assert_same_searches(searches(index), EXPECTED[f"index-{precision}"]["searches"])


def test_a_saved_graph_is_searched_and_not_built_again(written):
    (graph,) = (written / "index-float32").glob("*.graph")
    before = graph.stat().st_mtime_ns
    with LocalIndex.open(written / "index-float32", ENCODER, exact_below=5) as index:
        found = index.search("dense", ENCODER.encode_queries(QUESTIONS), 5)
        for hits, expected in zip(found, EXPECTED["index-float32"]["searches"]["dense all"], strict=True):
            assert_same_ranking([[hit.id, hit.score] for hit in hits], expected)
    assert list((written / "index-float32").glob("*.graph")) == [graph]
    assert graph.stat().st_mtime_ns == before


# The nudge ledger


@pytest.fixture
def nudged(written):
    with LocalIndex.open(written / "nudged", ENCODER) as index:
        yield index


def added_queries():
    return [Query(id, text, relevant) for id, text, relevant in EXPECTED["nudged"]["added"]]


def test_a_ledger_lists_its_versions(nudged):
    nudger = Nudger(ENCODER, nudged)
    found = [
        [
            each.number,
            each.made,
            {mode: move["gamma"] for mode, move in each.moves.items()},
            dict(each.weights),
            each.before,
            each.after,
            each.moved,
        ]
        for each in nudger.versions()
    ]
    assert found == [
        [number, made, {mode: move["gamma"] for mode, move in moves.items()}, *figures]
        for number, made, moves, *figures in EXPECTED["nudged"]["versions"]
    ]
    assert nudger.version == 3
    assert digests(nudged) == EXPECTED["nudged"]["nudged"]["vectors"]
    assert_same_searches(searches(nudged), EXPECTED["nudged"]["nudged"]["searches"])


def test_a_refit_goes_by_the_options_and_queries_of_the_ledger(nudged):
    nudger = Nudger(ENCODER, nudged)
    nudger.add_queries(added_queries())
    nudger.refit()
    assert nudger.version == EXPECTED["nudged"]["refit"]["version"]
    refitted, fitted = searches(nudged), nudger.versions()[-1].options
    train, validation = nudger.queries("train"), nudger.queries("validation")
    assert {query.id for query in added_queries()} <= {query.id for query in [*train, *validation]}
    options = {"modes": fitted.modes, "metric": fitted.metric, "method": fitted.method, "propagate": fitted.propagate}
    nudger.fit(train, validation, **options)
    assert_same_searches(searches(nudged), refitted)


@pytest.mark.parametrize("version", [1, 2])  # NUDGE-N without propagation, NUDGE-M with it
def test_an_earlier_version_is_made_again(nudged, version):
    Nudger(ENCODER, nudged).revert(version)
    assert_same_searches(searches(nudged), EXPECTED["nudged"][f"version-{version}"]["searches"])


def test_reverting_restores_every_original_bit_for_bit(nudged):
    Nudger(ENCODER, nudged).revert()
    assert digests(nudged) == EXPECTED["nudged"]["original"]["vectors"]
    assert_same_searches(searches(nudged), EXPECTED["nudged"]["original"]["searches"])


def test_a_fit_that_died_before_it_reached_the_index_is_forgotten(written, nudged):
    (written / "pending" / "nudges.sqlite").replace(written / "nudged" / "nudges.sqlite")
    nudger = Nudger(ENCODER, nudged)
    assert [each.number for each in nudger.versions()] == [1, 2, 3]
    assert nudger.version == 3
    assert {query.id for query in added_queries()} <= {query.id for query in nudger.queries()}
    nudger.revert()
    assert digests(nudged) == EXPECTED["nudged"]["original"]["vectors"]


# Checkpoints and exported models


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("as_saved", {}),
        ("in_windows", {"max_length": 10, "window_overlap": 3}),
        ("mcls", {"mcls_interval": 4, "query_prefix": ""}),
        ("pooled", {"token_pooling": 2}),
    ],
)
def test_a_saved_checkpoint_gives_the_same_fingerprint_and_vectors(written, name, options):
    encoder = M3Encoder.from_pretrained("checkpoint", device="cpu", **options)
    expected = EXPECTED["checkpoint"][name]
    assert encoder.fingerprint == expected["fingerprint"]
    assert_same_vectors(encoder.encode_passages(texts(3)), expected["passages"])
    assert_same_vectors(encoder.encode_queries(QUESTIONS), expected["queries"])


def texts(count):
    return [text for _, text, _ in EXPECTED["corpus"][:count]]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_exported_model_is_loaded_and_not_exported_again(written, backend):
    folder = written / f"exported-{backend}"
    before = files(folder)
    encoder = M3Encoder.from_pretrained("checkpoint", backend=backend, export_dir=folder)
    assert encoder.fingerprint == EXPECTED["checkpoint"]["as_saved"]["fingerprint"]
    assert_same_vectors(encoder.encode_passages(texts(3)), EXPECTED["checkpoint"]["as_saved"]["passages"], 1e-4)
    assert files(folder) == before


# A corpus in Parquet


def test_a_corpus_is_read_and_its_encoding_goes_on_where_it_stopped(written):
    passages = [Passage(*each) for each in EXPECTED["corpus"]]
    before = files(written / "corpus")
    (first, last) = read_corpus(written / "corpus")
    assert as_lists([*first.passages, *last.passages]) == as_lists([*passages[:4], *passages[8:]])
    fresh = ENCODER.encode_passages(texts(4))
    assert np.allclose(first.encoded.dense, fresh.dense, atol=1e-6)
    assert np.allclose(first.encoded.sparse.toarray(), fresh.sparse.toarray(), atol=1e-6)
    assert np.allclose(first.encoded.multi_vector.values, fresh.multi_vector.values, atol=1e-6)
    assert encode_corpus(passages, written / "corpus", ENCODER, part=4) == (10, 3, 1)
    assert set(before) < set(files(written / "corpus"))


def test_a_corpus_is_ingested_into_an_index_that_holds_part_of_it(written):
    with LocalIndex.open(written / "nudged", ENCODER) as index:
        index.delete([EXPECTED["corpus"][0][0]])
        assert ingest_sharded(written / "corpus", index) == 1


# A training run


def test_a_stopped_training_run_goes_on_to_what_an_unbroken_one_gives(written):
    expected = EXPECTED["training"]
    state = written / "model.training" / "stage-2" / "checkpoint-2" / "trainer_state.json"
    marked = json.loads(state.read_text())
    marked["log_history"][0]["loss"] = 123.0  # only a run that goes on from here knows it
    state.write_text(json.dumps(marked))
    examples = [Example(query, positives, negatives) for query, positives, negatives in expected["examples"]]
    common = {"learning_rate": 1e-2, "dropout": 0.1, "sampling": Sampling(rows=4, negatives=1)}
    stages = [
        Stage({"places": examples}, steps=2, parts=("sparse", "multi_vector"), **common),
        Stage({"places": examples}, steps=6, **common),
    ]
    trained = train("checkpoint", stages, "model", config=TrainConfig(evaluate_every=2, log_every=1, device="cpu"))
    assert [each.kept for each in trained.stages] == expected["kept"]
    assert losses(trained.stages[0].log) == expected["losses"][0]
    assert losses(trained.stages[1].log) == pytest.approx([123.0, *expected["losses"][1][1:]], rel=1e-3)
    after, before = (M3Encoder.from_pretrained(each, device="cpu") for each in ("model", "checkpoint"))
    assert_same_vectors(after.encode_passages(texts(3)), expected["passages"], 1e-3)
    assert not np.allclose(before.encode_passages(texts(3)).dense, expected["passages"]["dense"], atol=1e-2)
    assert not (written / "model.training").exists()


def test_a_stopped_training_run_does_not_go_on_with_other_options(written):
    examples = [Example(*each) for each in EXPECTED["training"]["examples"]]
    with pytest.raises(ValueError, match="learning_rate"):
        train("checkpoint", [Stage({"places": examples}, learning_rate=5e-3)], "model")


def losses(log):
    return [entry["loss"] for entry in log if "loss" in entry]


# What LlamaIndex and LangChain keep


def test_a_persisted_llama_index_is_loaded_with_its_model_and_settings(written, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    index = M3Index.load_from_disk("storage")
    assert index.index_name == "places"
    assert index.encoder.fingerprint == EXPECTED["storage"]["fingerprint"]
    assert (index.encoder.max_length, index.store.candidates) == (20, 5)
    for question, expected in zip(QUESTIONS, EXPECTED["storage"]["found"], strict=False):
        assert_same_ranking([[each.node.node_id, each.score] for each in index.query(question, 4)], expected)


def renamed(saved):
    """The settings as they are written now: `exported` is `export_dir`."""
    return {"export_dir" if name == "exported" else name: value for name, value in saved.items()}


@pytest.mark.parametrize("component", [M3Embedding, M3SparseEmbedding, M3Rerank, M3VectorStore])
def test_a_llama_index_component_is_made_of_the_dict_it_was_written_as(written, component):
    saved = EXPECTED["llama_index"][component.__name__]
    assert renamed(saved).items() <= component.from_dict(saved).to_dict().items()


@pytest.mark.parametrize("component", [M3Embeddings, M3SparseEmbeddings])
def test_a_langchain_component_is_made_of_the_fields_it_was_written_as(component):
    saved = EXPECTED["langchain"][component.__name__]
    assert renamed(saved).items() <= component(**saved).model_dump().items()


def test_an_embedding_model_made_of_its_dict_reads_texts_as_before(written):
    expected = EXPECTED["embedded"]
    llama_index = M3Embedding.from_dict(EXPECTED["llama_index"]["M3Embedding"])
    langchain = M3Embeddings(**EXPECTED["langchain"]["M3Embeddings"])
    for found in (llama_index.get_query_embedding("the bridge"), langchain.embed_query("the bridge")):
        assert found == pytest.approx(expected["query"], abs=1e-5)
    assert llama_index.encoder.fingerprint == langchain.encoder.fingerprint == expected["fingerprint"]
    assert math.isclose(np.linalg.norm(expected["query"]), 1, abs_tol=1e-4)
