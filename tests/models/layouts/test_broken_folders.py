"""Every kind of checkpoint, broken in ten ways: one clear error each."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForTokenClassification

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError
from tests.checkpoints import TinyCheckpoint, write_inference_free, write_model, write_pooling, write_sparse_encoder
from tests.models.layouts.late_interaction import write_multi_vector, write_pylate
from tests.optional import requires_architecture

SHAPE = TinyCheckpoint(positions=128)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def write_gte(folder):
    return write_pooling(write_model(folder, "gte", AutoModelForTokenClassification, SHAPE, num_labels=1), "cls")


KINDS = {
    "gte": write_gte,
    "modernbert": lambda folder: write_pooling(write_model(folder, "modernbert", AutoModel, SHAPE), "mean"),
    "splade": lambda folder: write_sparse_encoder(folder, "bert", SHAPE),
    "inference-free": lambda folder: write_inference_free(folder, "bert", SHAPE),
    "pylate": lambda folder: write_pylate(folder, "bert", SHAPE),
    "multi-vector": lambda folder: write_multi_vector(folder, "bert", SHAPE),
}


def state(name, **changes):
    def change(root):
        path = root / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def cut(root):
    path = root / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-400])


def drop_a_layer(root):
    path = root / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if ".1." not in name}
    save_file(tensors, path, {"format": "pt"})


def shorten_embeddings(root):
    path = root / "model.safetensors"
    tensors = load_file(path)
    short = {name: each[:20] if "embeddings" in name and each.ndim == 2 else each for name, each in tensors.items()}
    save_file(short, path, {"format": "pt"})


FAULTS = {
    "no configuration": (lambda root: (root / "config.json").unlink(), "config.json|cannot be read|lacks"),
    "configuration is text": (lambda root: (root / "config.json").write_text("x"), "cannot be read as JSON"),
    "own code": (state("config.json", model_type="mine", auto_map={"AutoModel": "mine.Mine"}), "code of its own"),
    "unknown architecture": (state("config.json", model_type="mine"), "cannot be read as a transformers encoder"),
    "no weights": (lambda root: (root / "model.safetensors").unlink(), "lacks weights"),
    "cut weights": (cut, "cannot be read as tensors"),
    "pointer": (lambda root: (root / "model.safetensors").write_text(POINTER), "is a Git LFS pointer"),
    "fewer layers": (drop_a_layer, "states 2 layers, but the weights have 1"),
    "fewer tokens": (shorten_embeddings, "weights|embeddings for"),
    "broken tokenizer": (lambda root: (root / "tokenizer.json").write_text("{}"), "has no tokenizer"),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function that writes a folder of a kind once."""
    written = {}

    def folder(kind):
        if kind not in written:
            written[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return written[kind]

    return folder


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=requires_architecture("gte") if kind == "gte" else ()) for kind in KINDS]
)
def test_a_broken_folder_raises_one_clear_error(folder_of, tmp_path, kind, fault):
    change, message = FAULTS[fault]
    folder = shutil.copytree(folder_of(kind), tmp_path / "model")
    change(folder / "document_0_MLMTransformer" if kind == "inference-free" else folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        M3Encoder.from_pretrained(str(folder), device="cpu")
    assert len(str(raised.value).splitlines()) == 1
