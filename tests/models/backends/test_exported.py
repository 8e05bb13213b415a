"""The same checkpoint through other engines, and folders that are not of this checkpoint."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from m3_integrations import M3Encoder
from m3_integrations.adapters.encoder_registry import get_encoder
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError, MissingExtra
from m3_integrations.encoders.base import EncoderConfig
from tests.encoders.test_m3 import CLOSE, assert_same

TEXTS = ["where the bridge is", "", "мост через волга " * 20, "a", "the passage"]
ENGINES = [("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32"), ("openvino", "bfloat16")]


@pytest.mark.parametrize(("backend", "dtype"), [("onnx", "float32"), ("openvino", "float32")])
def test_another_engine_gives_the_same_vectors_in_float32(bge_m3, exported, backend, dtype):
    folder = bge_m3(colbert_width=8)
    expected = M3Encoder.from_pretrained(str(folder), device="cpu", passage_prefix="passage: ")
    options = exported(backend, colbert_width=8)
    encoder = M3Encoder.from_pretrained(str(folder), passage_prefix="passage: ", **options)
    assert_same(encoder.encode_passages(TEXTS), expected.encode_passages(TEXTS), **CLOSE)
    assert_same(encoder.encode_queries(["the bridge"]), expected.encode_queries(["the bridge"]), **CLOSE)
    assert encoder.encode_passages(TEXTS, ("sparse",)).modes == {"sparse"}
    assert (encoder.dtype, encoder.fingerprint) == (dtype, expected.fingerprint)


@pytest.mark.parametrize(("backend", "dtype"), ENGINES)
def test_reduced_precision_is_near(bge_m3, exported, backend, dtype):
    expected = M3Encoder.from_pretrained(str(bge_m3()), device="cpu").encode_passages(TEXTS)
    found = M3Encoder.from_pretrained(str(bge_m3()), **exported(backend, dtype)).encode_passages(TEXTS)
    for mode in ("dense", "multi_vector"):
        ours, theirs = (each.dense if mode == "dense" else each.multi_vector.values for each in (found, expected))
        assert ours.dtype == np.float32
        assert np.sum(ours * theirs, axis=1).min() > 0.97
    assert np.abs((found.sparse - expected.sparse).toarray()).max() < 0.1


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_windows_and_cls_tokens_reach_the_pooled_state_of_every_engine(bge_m3, exported, backend):
    options = {"max_length": 24, "window_overlap": 4, "mcls_interval": 7}
    expected = M3Encoder.from_pretrained(str(bge_m3()), device="cpu", **options)
    encoder = M3Encoder.from_pretrained(str(bge_m3()), **exported(backend), **options)
    assert_same(encoder.encode_passages(TEXTS), expected.encode_passages(TEXTS), **CLOSE)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_engine_has_the_modes_of_its_checkpoint(bge_m3, backend):
    encoder = M3Encoder.from_pretrained(str(bge_m3(sparse=False)), backend=backend)
    assert encoder.encode_passages(TEXTS).modes == set(MODES) - {"sparse"}


@pytest.mark.parametrize(("backend", "dtype"), [("onnx", "int8"), ("openvino", "float32")])
def test_an_exported_folder_is_kept_and_read_again(bge_m3, exported, backend, dtype):
    folder = exported(backend, dtype)["export_dir"]
    first = M3Encoder.from_pretrained(str(bge_m3()), backend=backend, dtype=dtype)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = M3Encoder.from_pretrained(str(bge_m3()), **exported(backend, dtype))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert_same(again.encode_passages(TEXTS), first.encode_passages(TEXTS), **CLOSE)


def test_a_folder_of_another_checkpoint_is_refused(bge_m3, exported):
    with pytest.raises(CheckpointError, match=r"exported from a checkpoint other than .*; remove .*to export again"):
        M3Encoder.from_pretrained(str(bge_m3(seed=1)), **exported("onnx"))


def test_a_folder_of_another_engine_or_precision_is_refused(bge_m3, exported):
    folder = exported("onnx")["export_dir"]
    with pytest.raises(CheckpointError, match="for 'onnx' in float32, not for 'onnx' in int8"):
        M3Encoder.from_pretrained(str(bge_m3()), backend="onnx", dtype="int8", export_dir=folder)
    with pytest.raises(CheckpointError, match="for 'onnx' in float32, not for 'openvino' in float32"):
        M3Encoder.from_pretrained(str(bge_m3()), backend="openvino", export_dir=folder)


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_folder_is_refused(bge_m3, exported, tmp_path, damage):
    shutil.copytree(exported("openvino")["export_dir"], tmp_path / "out")
    weights = tmp_path / "out" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1]) if damage == "cut" else weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin is missing or differs from the exported file"):
        M3Encoder.from_pretrained(str(bge_m3()), backend="openvino", export_dir=tmp_path / "out")


@pytest.mark.parametrize("manifest", [None, "[]", "{", json.dumps({"backend": "onnx"})])
def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(bge_m3, tmp_path, manifest):
    (tmp_path / "letter.txt").write_text("dear")
    if manifest is not None:
        (tmp_path / "m3_exported.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"is not an exported model.*name a new folder"):
        M3Encoder.from_pretrained(str(bge_m3()), backend="onnx", export_dir=tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend is one of .*'onnx'.* got 'tensorrt'"),
        ({"backend": "onnx", "dtype": "bfloat16"}, r"dtype of the backend 'onnx' is one of \['float32', 'int8'\]"),
        ({"backend": "openvino", "dtype": "int8"}, r"one of \['float32', 'bfloat16'\]"),
        ({"backend": "onnx", "device": "cuda"}, "'onnx' runs on the CPU, got device='cuda'"),
        ({"export_dir": "somewhere"}, "add backend='onnx' or 'openvino'"),
    ],
    ids=str,
)
def test_what_no_engine_can_do_is_refused(bge_m3, options, message):
    with pytest.raises(ValueError, match=message):
        M3Encoder.from_pretrained(str(bge_m3()), **options)


@pytest.mark.parametrize(("backend", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_without_its_library_an_engine_says_what_to_install(bge_m3, monkeypatch, backend, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"'{library}' is not installed; run: pip install .*\[{backend}\]"):
        M3Encoder.from_pretrained(str(bge_m3()), backend=backend)


def test_settings_that_frameworks_carry_name_the_engine(bge_m3):
    assert get_encoder(EncoderConfig(str(bge_m3()), backend="openvino")).backend == "openvino"
