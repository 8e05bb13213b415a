"""One encoder of several checkpoints: the vectors of each, in as few forward passes as possible."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest

from m3_integrations import M3Encoder
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError, MissingMode
from m3_integrations.encoders import ComposedEncoder, Encoder
from m3_integrations.llama_index import M3Embedding
from tests.checkpoints import TinyCheckpoint, write_backbone, write_bge_m3, write_sparse_encoder
from tests.models.layouts.late_interaction import write_pylate

TEXTS = ["the bridge", "Die Brücke über die Wolга", "", "橋はどこにある"]
WIDE = TinyCheckpoint(positions=512)


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense checkpoint, SPLADE and ColBERT, of different backbones."""
    root = tmp_path_factory.mktemp("parts")
    return {
        "dense": write_bge_m3(root / "dense", TinyCheckpoint(seed=1, sparse=False, colbert=False, colbert_width=8)),
        "sparse": write_sparse_encoder(root / "sparse", "bert", WIDE),
        "multi_vector": write_pylate(root / "late", "modernbert", WIDE),
        "plain": write_backbone(root / "plain", TinyCheckpoint()),
    }


@pytest.fixture(scope="module")
def parts(folders):
    return {mode: load(folders[mode], **({"pooling": "cls"} if mode == "dense" else {})) for mode in MODES}


@pytest.fixture(scope="module")
def composed(parts):
    return M3Encoder.compose(**parts)


def assert_equal(ours, theirs, mode):
    if mode == "dense":
        np.testing.assert_allclose(ours.dense, theirs.dense, rtol=0, atol=1e-6)
    elif mode == "sparse":
        np.testing.assert_allclose(ours.sparse.todense(), theirs.sparse.todense(), rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(ours.multi_vector.offsets, theirs.multi_vector.offsets)
        np.testing.assert_allclose(ours.multi_vector.values, theirs.multi_vector.values, rtol=0, atol=1e-6)


def test_every_mode_is_that_of_its_checkpoint(composed, parts):
    assert isinstance(composed, Encoder)
    assert composed.modes == set(MODES)
    assert (composed.dense_dim, composed.multi_vector_dim) == (32, 16)
    assert composed.vocab_size == parts["sparse"].vocab_size
    for encode in ("encode_queries", "encode_passages"):
        ours = getattr(composed, encode)(TEXTS)
        for mode, part in parts.items():
            assert_equal(ours, getattr(part, encode)(TEXTS, (mode,)), mode)
            assert getattr(composed, encode)(TEXTS, (mode,)).modes == {mode}


def test_its_fingerprint_is_that_of_its_parts(composed, parts, folders):
    again = M3Encoder.compose(dense=load(folders["dense"], pooling="cls"), **{m: parts[m] for m in MODES[1:]})
    assert again.fingerprint == composed.fingerprint
    others = [M3Encoder.compose(**{m: parts[m] for m in MODES[:2]}), M3Encoder.compose(dense=parts["dense"])]
    assert len({each.fingerprint for each in (composed, parts["dense"], *others)}) == 4


def test_checkpoints_with_one_backbone_share_a_forward_pass(tmp_path):
    one = load(write_bge_m3(tmp_path / "one", TinyCheckpoint(seed=3)))
    other = load(write_bge_m3(tmp_path / "other", TinyCheckpoint(seed=3, colbert_width=8)), token_pooling=2)
    apart = load(write_bge_m3(tmp_path / "apart", TinyCheckpoint(seed=4)))
    shared = M3Encoder.compose(dense=one, sparse=one, multi_vector=other)
    assert shared.passes == 1
    assert M3Encoder.compose(dense=one, sparse=apart, multi_vector=other).passes == 2
    encoded = shared.encode_passages(TEXTS)
    for mode, part in shared.parts.items():
        assert_equal(encoded, part.encode_passages(TEXTS, (mode,)), mode)


def test_shared_backbones_in_half_precision_keep_their_fingerprint(tmp_path):
    folders = [write_bge_m3(tmp_path / str(width), TinyCheckpoint(seed=3, colbert_width=width)) for width in (8, 16)]
    half = [load(folder, dtype="bfloat16") for folder in folders]
    whole = [load(folder) for folder in folders]
    ours = M3Encoder.compose(dense=half[0], multi_vector=half[1])
    assert ours.passes == 1
    assert ours.fingerprint == M3Encoder.compose(dense=whole[0], multi_vector=whole[1]).fingerprint


def test_another_prefix_needs_a_pass_of_its_own(tmp_path):
    folder = write_bge_m3(tmp_path / "model", TinyCheckpoint(seed=3))
    assert M3Encoder.compose(dense=load(folder, query_prefix="query "), sparse=load(folder)).passes == 2


def test_names_are_loaded_once(tmp_path):
    folder = str(write_bge_m3(tmp_path / "model", TinyCheckpoint(seed=3)))
    composed = M3Encoder.compose(dense=folder, sparse=folder, device="cpu")
    assert composed.parts["dense"] is composed.parts["sparse"]
    assert (composed.modes, composed.passes, composed.name) == ({"dense", "sparse"}, 1, folder)


def test_weights_are_one_for_each_mode_or_those_passed(parts):
    two = {mode: parts[mode] for mode in ("dense", "sparse")}
    assert M3Encoder.compose(**two).weights == {"dense": 1.0, "sparse": 1.0}
    weighed = M3Encoder.compose(**two, weights={"dense": 1.0, "sparse": 0.1})
    assert weighed.weights_for(("dense", "sparse")) == {"dense": 1.0, "sparse": 0.1}
    with pytest.raises(ValueError, match="has modes other than"):
        M3Encoder.compose(**two, weights={"dense": 1.0, "multi_vector": 1.0})


def emptied(folder, name, target):
    """A copy of a checkpoint without one of its files."""
    copied = shutil.copytree(folder, target / "copied")
    (copied / name).unlink()
    return str(copied)


BROKEN = {
    "no mode": (lambda *_: {}, ValueError, "compose needs an encoder of at least one mode"),
    "no such folder": (lambda *_: {"dense": "/no/such/model"}, CheckpointError, "there is no folder '/no/such/model'"),
    "a file": (
        lambda folders, *_: {"sparse": str(folders["sparse"] / "config.json")},
        CheckpointError,
        "is a file; name the folder",
    ),
    "no encoder": (lambda *_: {"dense": 3}, TypeError, "dense is the name of a checkpoint or an M3Encoder, got 3"),
    "lacking mode": (lambda _, parts, __: {"dense": parts["sparse"]}, MissingMode, "has no mode 'dense'"),
    "lacking mode by name": (
        lambda folders, *_: {"sparse": str(folders["multi_vector"])},
        MissingMode,
        "has no mode 'sparse'; it has",
    ),
    "no pooling": (lambda folders, *_: {"dense": str(folders["plain"])}, CheckpointError, "does not state its pooling"),
    "no weights": (
        lambda folders, _, place: {"sparse": emptied(folders["sparse"], "model.safetensors", place)},
        CheckpointError,
        "lacks weights",
    ),
    "no modules": (
        lambda folders, _, place: {"multi_vector": emptied(folders["multi_vector"], "modules.json", place)},
        CheckpointError,
        "states query_prefix='.Q. ', which is not supported",
    ),
    "no layer": (
        lambda folders, _, place: {"multi_vector": emptied(folders["multi_vector"], "1_Dense/config.json", place)},
        CheckpointError,
        "config.json cannot be read as JSON",
    ),
    "weight of no mode": (
        lambda _, parts, __: {"dense": parts["dense"], "weights": {"sparse": 1.0}},
        ValueError,
        "has modes other than",
    ),
    "negative weight": (
        lambda _, parts, __: {"dense": parts["dense"], "weights": {"dense": -1.0}},
        ValueError,
        "weights",
    ),
    "precision": (
        lambda folders, *_: {"sparse": str(folders["sparse"]), "dtype": "float8"},
        ValueError,
        "dtype is one of",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_composition_raises_one_clear_error(folders, parts, tmp_path, fault):
    arguments, kind, message = BROKEN[fault]
    with pytest.raises(kind, match=message) as raised:
        M3Encoder.compose(**arguments(folders, parts, tmp_path))
    assert len(str(raised.value).splitlines()) == 1


def test_a_mode_that_it_lacks_is_refused(parts):
    with pytest.raises(MissingMode, match="mode='sparse' is not available"):
        M3Encoder.compose(dense=parts["dense"]).encode_queries(TEXTS, ("sparse",))
    with pytest.raises(MissingMode, match="mode='sparse' is not available"):
        M3Encoder.compose(dense=parts["dense"]).tokens([5])


def test_a_score_is_explained_by_each_checkpoint(composed):
    explanation = composed.explain("the bridge", "the bridge, where")
    assert explanation.by_mode.keys() == set(MODES)
    assert explanation.score == pytest.approx(sum(explanation.by_mode.values()))
    assert explanation.lexical
    assert explanation.late


def test_copies_and_pickles_hold_the_parts(composed):
    assert copy.deepcopy(composed) is composed
    parts = {mode: load(part.name) for mode, part in composed.parts.items() if mode != "dense"}
    encoder = M3Encoder.compose(**parts)
    assert pickle.loads(pickle.dumps(encoder)).fingerprint == encoder.fingerprint


def test_splitters_count_the_tokens_of_the_shortest_checkpoint(composed):
    parser = M3Embedding(encoder=composed).node_parser()
    assert composed.max_length == composed.parts["multi_vector"].max_length == 180
    assert 170 <= parser.chunk_size < 180


def test_content_is_what_any_checkpoint_reads(composed):
    assert composed.has_content(["the", " ", ""]) == [True, False, False]
    assert isinstance(composed, ComposedEncoder)
    assert [len(each) for each in composed.iter_encode(TEXTS, ("dense",), chunk=3)] == [3, 1]
