"""Copies between folders and Qdrant are exact and resumable."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from m3_integrations import LocalIndex, MemoryIndex, Passage, QdrantIndex
from m3_integrations.cli import app
from m3_integrations.core.errors import WrongCollection, WrongEncoder
from m3_integrations.index.copying import CopyDiffers, copy_index
from m3_integrations.index.opening import copy_location
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import random_encoded, same_vectors

COUNT = 600


@pytest.fixture
def folder(tmp_path):
    """Return a folder of random vectors, some of them empty, that records an encoder."""
    encoded = random_encoded(np.random.default_rng(0), COUNT)
    with LocalIndex.open(tmp_path / "folder", HashEncoder()) as index:
        index.add([Passage(f"p{i} \ud800", f"text {i}", {"x": i / 7}) for i in range(COUNT)], encoded)
    return tmp_path / "folder"


def test_folder_to_qdrant_to_folder_is_the_identity(folder, tmp_path):
    forth = copy_location(str(folder), f"qdrant://{tmp_path}/edge/c")
    back = copy_location(f"qdrant://{tmp_path}/edge/c", str(tmp_path / "back"))
    assert (forth.total, forth.written, forth.extra) == (COUNT, COUNT, 0)
    assert forth == back
    with LocalIndex.open(folder, HashEncoder()) as one, LocalIndex.open(tmp_path / "back", HashEncoder()) as other:
        assert one.passages() == other.passages()
        assert same_vectors(one.vectors(one.ids()), other.vectors(one.ids()))
    with pytest.raises(WrongEncoder):
        LocalIndex.open(tmp_path / "back", HashEncoder(seed=1))


def test_an_interrupted_copy_resumes(folder, tmp_path):
    with LocalIndex.open(folder) as source, QdrantIndex.open(tmp_path, "c") as target:
        target.add(source.passages(source.ids()[:256]), source.vectors(source.ids()[:256]))
        assert copy_index(source, target).written == COUNT - 256
        assert copy_index(source, target).written == 0
        target.set_vectors([source.ids()[300]], source.vectors([source.ids()[0]]))
        assert copy_index(source, target).written == 256
        assert same_vectors(target.vectors(source.ids()), source.vectors(source.ids()))


def test_extra_passages_of_the_target_stay_and_are_counted(folder):
    target = MemoryIndex()
    target.add([Passage("extra", "")], random_encoded(np.random.default_rng(1), 1))
    with LocalIndex.open(folder) as source:
        assert copy_index(source, target).extra == 1
    assert len(target) == COUNT + 1


def test_a_target_that_changes_vectors_raises(folder):
    class Rounding(MemoryIndex):
        def add(self, passages, encoded):
            super().add(passages, encoded.with_dense(encoded.dense.astype(np.float16)))

    with LocalIndex.open(folder) as source, pytest.raises(CopyDiffers, match="differ when read back"):
        copy_index(source, Rounding())


def test_locations_without_an_index_raise(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="m3 index"):
        copy_location(str(tmp_path / "nowhere"), str(tmp_path / "target"))
    with pytest.raises(FileNotFoundError, match="no passages at"):
        copy_location(f"qdrant://{tmp_path}/edge/none", str(tmp_path / "target"))
    with pytest.raises(WrongCollection, match="has no collection"):
        copy_location(str(folder), "qdrant://localhost:6333")


def test_the_command_reports_what_it_copied(folder, tmp_path):
    result = CliRunner().invoke(app, ["copy", str(folder), f"qdrant://{tmp_path}/edge/c"])
    assert f"{COUNT} passages, {COUNT} of them written and verified" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["copy", f"qdrant://{tmp_path}/edge/c", str(folder)])
    assert f"{COUNT} passages, 0 of them written" in result.output
