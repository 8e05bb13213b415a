"""Copies between folders and Qdrant are the identity, and go on where they were broken off."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from m3_integrations import LocalIndex, MemoryIndex, Passage, QdrantIndex
from m3_integrations.cli import app
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.index.qdrant_copying import CopyDiffers, copy, copy_index
from m3_integrations.index.qdrant_errors import WrongCollection
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.contract import _random_encoded, same_vectors

COUNT = 600


@pytest.fixture
def folder(tmp_path):
    """A folder of random vectors, some of them empty, which remembers an encoder."""
    encoded = _random_encoded(np.random.default_rng(0), COUNT)
    with LocalIndex.open(tmp_path / "folder", HashEncoder()) as index:
        index.add([Passage(f"p{i} \ud800", f"text {i}", {"x": i / 7}) for i in range(COUNT)], encoded)
    return tmp_path / "folder"


def test_folder_to_qdrant_to_folder_is_the_identity(folder, tmp_path):
    there = copy(str(folder), f"qdrant://{tmp_path}/edge/c")
    back = copy(f"qdrant://{tmp_path}/edge/c", str(tmp_path / "back"))
    assert (there.total, there.written, there.besides) == (COUNT, COUNT, 0)
    assert there == back
    with LocalIndex.open(folder, HashEncoder()) as one, LocalIndex.open(tmp_path / "back", HashEncoder()) as other:
        assert one.passages() == other.passages()
        assert same_vectors(one.vectors(one.ids()), other.vectors(one.ids()))
    with pytest.raises(WrongEncoder):
        LocalIndex.open(tmp_path / "back", HashEncoder(seed=1))


def test_a_copy_goes_on_where_it_was_broken_off(folder, tmp_path):
    with LocalIndex.open(folder) as source, QdrantIndex.open(tmp_path, "c") as target:
        target.add(source.passages(source.ids()[:256]), source.vectors(source.ids()[:256]))
        assert copy_index(source, target).written == COUNT - 256
        assert copy_index(source, target).written == 0
        target.set_vectors([source.ids()[300]], source.vectors([source.ids()[0]]))
        assert copy_index(source, target).written == 256
        assert same_vectors(target.vectors(source.ids()), source.vectors(source.ids()))


def test_what_the_target_holds_besides_stays_and_is_counted(folder):
    target = MemoryIndex()
    target.add([Passage("besides", "")], _random_encoded(np.random.default_rng(1), 1))
    with LocalIndex.open(folder) as source:
        assert copy_index(source, target).besides == 1
    assert len(target) == COUNT + 1


def test_a_target_that_changes_what_it_keeps_is_found_out(folder):
    class Rounding(MemoryIndex):
        def add(self, passages, encoded):
            super().add(passages, encoded.with_dense(encoded.dense.astype(np.float16)))

    with LocalIndex.open(folder) as source, pytest.raises(CopyDiffers, match="did not come back"):
        copy_index(source, Rounding())


def test_places_that_are_none_are_said(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="m3 ingest"):
        copy(str(tmp_path / "nowhere"), str(tmp_path / "target"))
    with pytest.raises(FileNotFoundError, match="no passages at"):
        copy(f"qdrant://{tmp_path}/edge/none", str(tmp_path / "target"))
    with pytest.raises(WrongCollection, match="names no collection"):
        copy(str(folder), "qdrant://localhost:6333")


def test_the_command_copies_and_says_what_it_did(folder, tmp_path):
    said = CliRunner().invoke(app, ["copy", str(folder), f"qdrant://{tmp_path}/edge/c"])
    assert f"{COUNT} passages, {COUNT} of them written, read back equal" in " ".join(said.output.split())
    said = CliRunner().invoke(app, ["copy", f"qdrant://{tmp_path}/edge/c", str(folder)])
    assert f"{COUNT} passages, 0 of them written" in said.output
