"""`m3 info`, `m3 check` and `m3 copy`."""

from __future__ import annotations

from m3_integrations import LocalIndex
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
    assert file.name in damaged.stderr


def test_a_copy_has_the_same_vectors(run, filled, tmp_path):
    assert "2 of them written and verified" in run("copy", filled, tmp_path / "copy").stdout
    with LocalIndex.open(filled) as index, LocalIndex.open(tmp_path / "copy") as copy:
        assert same_vectors(index.vectors(index.ids()), copy.vectors(copy.ids()))
