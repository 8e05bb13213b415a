"""`m3 info`, `m3 check` and `m3 copy`."""

from __future__ import annotations

import json

import numpy as np

from m3_integrations import LocalIndex
from m3_integrations.index.local.array_file import map_arrays
from m3_integrations.testing.sample_data import same_vectors


def test_an_index_is_described(run, run_json, bge_m3, filled):
    described = run_json("info", filled)
    assert (described["passages"], described["model"], described["plan"]) == (2, str(bge_m3()), None)
    assert described["modes"].keys() == {"dense", "sparse", "multi_vector"}
    assert described["bytes"] == sum(file.stat().st_size for file in filled.iterdir())
    assert "passages     2" in run("info", filled).stdout


def test_a_whole_index_is_told_from_a_damaged_one(run, filled):
    whole = run("check", filled)
    assert (whole.exit_code, "is whole: 2 passages" in whole.stdout) == (0, True)
    file = next(filled.glob("dense*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    damaged = run("check", filled)
    assert damaged.exit_code == 1
    assert file.name in damaged.stdout


def test_damage_is_a_document_with_the_files_and_passages(run, filled):
    file = damaged_dense(filled)
    found = run("check", filled, "--json")
    document = json.loads(found.stdout)
    assert (found.exit_code, document["whole"], document["passages"]) == (1, False, 2)
    assert [each["file"] for each in document["files"]] == [file.name]
    assert {(each["problem"], each["has_text"]) for each in document["damaged"]} == {
        ("its dense embeddings are damaged", True)
    }


def test_undamaged_passages_are_saved_and_the_others_encoded_again(run, run_json, filled, tmp_path):
    with LocalIndex.open(filled) as index:
        before = index.vectors(index.ids())
    file = damaged_dense(filled)
    kept = file.read_bytes()
    left = run("repair", filled, tmp_path / "first", "--json")
    assert (left.exit_code, len(json.loads(left.stdout)["left"])) == (1, 1)
    repaired = run_json("repair", filled, "--reencode")
    assert (repaired["target"], repaired["saved"]) == (f"{filled}-repaired", 1)
    assert (len(repaired["reencoded"]), repaired["left"]) == (1, [])
    with LocalIndex.open(repaired["target"]) as index:
        assert np.allclose(index.vectors(index.ids()).dense, before.dense, atol=1e-5)
    assert file.read_bytes() == kept
    assert run("check", repaired["target"]).exit_code == 0
    assert run("repair", filled, tmp_path / "first").exit_code == 1  # it is not empty


def damaged_dense(folder):
    """Change the dense vector of one passage."""
    (file,) = folder.glob("dense*")
    data = bytearray(file.read_bytes())
    data[map_arrays(file, len(data)).offset("values") + 2] ^= 1
    file.write_bytes(data)
    return file


def test_a_copy_has_the_same_vectors(run, filled, tmp_path):
    assert "2 of them written and verified" in run("copy", filled, tmp_path / "copy").stdout
    with LocalIndex.open(filled) as index, LocalIndex.open(tmp_path / "copy") as copy:
        assert same_vectors(index.vectors(index.ids()), copy.vectors(copy.ids()))
