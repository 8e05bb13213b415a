from __future__ import annotations

import shutil
import sqlite3

import pytest

from m3_integrations import LocalIndex, Passage
from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.index import check_index, repair_index
from m3_integrations.index.local.array_file import map_arrays
from m3_integrations.index.local.catalog import FILE_NAME
from tests.index.local.damage import ENCODER, contents, make_folder, run_trials

TEXTS = [f"red cat {i} w{i % 7}" for i in range(300)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "index"
    with LocalIndex.open(folder, ENCODER) as index:
        index.add([Passage(f"p{i}", text, {"n": i}) for i, text in enumerate(TEXTS)], ENCODER.encode_passages(TEXTS))
        index.delete(["p0"])
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "index")
    return tmp_path / "index"


def zero(path, begin, length):
    data = bytearray(path.read_bytes())
    data[begin : begin + length] = bytes(length)
    path.write_bytes(data)


def run_sql(folder, *statements):
    with sqlite3.connect(folder / FILE_NAME) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def saved(folder):
    with LocalIndex.open(folder, ENCODER) as index:
        return contents(index)


def use(folder):
    with LocalIndex.open(folder) as index:
        index.search("dense", ENCODER.encode_queries(["red"]), 300)
        index.passages()


def test_an_intact_folder_is_whole_and_repair_changes_nothing(folder, tmp_path):
    report = check_index(folder)
    assert (report.is_whole, report.intact) == (True, 299)
    assert repair_index(folder, tmp_path / "new").target is None
    assert not (tmp_path / "new").exists()


def test_damaged_vectors_are_listed_by_passage_and_the_others_are_saved(folder, tmp_path):
    before, path = saved(folder), next(folder.glob("dense-*"))
    zero(path, map_arrays(path, path.stat().st_size).offset("values") + 5_000, 300)
    damaged = path.read_bytes()
    report = check_index(folder)
    assert [each.file for each in report.files] == [path.name]
    assert 1 <= len(report.passages) <= 4
    assert {(each.problem, each.has_text) for each in report.passages} == {("its dense embeddings are damaged", True)}
    result = repair_index(folder, tmp_path / "new")
    lost = {each.id for each in result.left}
    assert saved(tmp_path / "new") == {id: each for id, each in before.items() if id not in lost}
    assert (result.saved, len(lost)) == (299 - len(lost), len(report.passages))
    assert path.read_bytes() == damaged


def test_passages_with_intact_text_are_encoded_again(folder, tmp_path):
    before = saved(folder)
    path = next(folder.glob("sparse-*"))
    zero(path, map_arrays(path, path.stat().st_size).offset("columns") + 600, 200)
    result = repair_index(folder, tmp_path / "new", ENCODER)
    assert result.reencoded
    assert result.left == []
    assert saved(tmp_path / "new") == before
    assert check_index(tmp_path / "new").is_whole


def test_a_damaged_table_of_a_segment_costs_no_passage(folder, tmp_path):
    before = saved(folder)
    for path in folder.glob("*.segment"):
        zero(path, 0, 64)
    assert check_index(folder).passages == []
    assert repair_index(folder, tmp_path / "new").left == []
    assert saved(tmp_path / "new") == before


def test_an_outdated_vector_never_takes_the_place_of_a_damaged_one(folder, tmp_path):
    changed = [f"p{i}" for i in range(10, 20)]
    with LocalIndex.open(folder, ENCODER) as index:
        index.set_vectors(changed, ENCODER.encode_passages([f"blue {id}" for id in changed]))
    newest = max(folder.glob("dense-*"), key=lambda path: path.name)
    newest.write_bytes(bytes(newest.stat().st_size))
    result = repair_index(folder, tmp_path / "new")
    assert {each.id for each in result.left} >= set(changed)
    assert not set(changed) & saved(tmp_path / "new").keys()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE passages SET id = CAST('p999' AS BLOB) WHERE slot = 7", "id of slot|ids are not those"),
        ("UPDATE passages SET metadata = CAST('{\"n\": 8}' AS BLOB) WHERE slot = 7", "metadata"),
        ("DELETE FROM passages WHERE slot = 7", "passages"),
        ("UPDATE state SET generation = generation + 1", "state"),
        ("UPDATE state SET encoder_label = 'other'", "state"),
        ("UPDATE segments SET dead = 7", "'segments'"),
        ("UPDATE modes SET width = 31 WHERE mode = 'dense'", "'modes'"),
    ],
)
def test_a_changed_row_of_the_catalog_is_an_error_and_costs_at_most_its_passage(folder, tmp_path, statement, problem):
    before = saved(folder)
    run_sql(folder, statement)
    assert not check_index(folder).is_whole
    with pytest.raises(DamagedFolder, match=problem):
        use(folder)
    repair_index(folder, tmp_path / "new")
    kept = saved(tmp_path / "new") if (tmp_path / "new").exists() else {}
    assert kept.items() <= before.items()
    assert len(kept) >= 298


def pages_of(folder, table):
    """Numbers of the first page of a table and of the others."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    return size, root


ROOTS = ("sqlite_master", "state", "modes", "segments", "passages", "sqlite_autoindex_passages_1")


@pytest.mark.parametrize("table", ROOTS)
def test_a_damaged_root_page_costs_no_passage(folder, tmp_path, table):
    before = saved(folder)
    size, root = (4096, 1) if table == "sqlite_master" else pages_of(folder, table)
    zero(folder / FILE_NAME, (root - 1) * size, size)
    report = check_index(folder)
    assert FILE_NAME in [each.file for each in report.files]
    with pytest.raises(DamagedFolder):
        use(folder)
    assert repair_index(folder, tmp_path / "new").left == []
    assert saved(tmp_path / "new") == before
    assert check_index(tmp_path / "new").is_whole


def test_passages_that_were_deleted_or_replaced_do_not_come_back_with_damaged_pages(folder, tmp_path):
    with LocalIndex.open(folder, ENCODER) as index:
        index.delete([f"p{i}" for i in range(50, 200)])
        replaced = [f"p{i}" for i in range(200, 260)]
        texts = [f"another text {id} " * 80 for id in replaced]
        index.add([Passage(id, text) for id, text in zip(replaced, texts, strict=True)], ENCODER.encode_passages(texts))
    before = saved(folder)
    for page in (1, pages_of(folder, "passages")[1], pages_of(folder, "state")[1]):
        copy, new = tmp_path / f"copy-{page}", tmp_path / f"new-{page}"
        shutil.copytree(folder, copy)
        zero(copy / FILE_NAME, (page - 1) * 4096, 4096)
        repair_index(copy, new, ENCODER)
        assert saved(new) == before


def test_the_rows_of_a_page_without_its_beginning_are_found(folder, tmp_path):
    before = saved(folder)
    data = (folder / FILE_NAME).read_bytes()
    pages = range(4096, len(data), 4096)
    zero(folder / FILE_NAME, next(at for at in pages if data[at] == 0x0D and data.count(b"cat", at, at + 4096) > 5), 8)
    assert repair_index(folder, tmp_path / "new").left == []
    assert saved(tmp_path / "new") == before


@pytest.mark.parametrize(("place", "bit"), [(60, 3), (63, 0), (63, 2), (63, 5), (68, 6), (71, 0)])
def test_a_changed_bit_of_the_format_or_the_application_id_is_noticed(folder, tmp_path, place, bit):
    before, path = saved(folder), folder / FILE_NAME
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    if place < 64 and int.from_bytes(data[60:64]) > 6:
        with pytest.raises(IndexFolderError, match="install a newer"):
            check_index(folder)
    else:
        assert not check_index(folder).is_whole
        assert repair_index(folder, tmp_path / "new").left == []
        assert saved(tmp_path / "new") == before


def test_what_is_in_the_log_alone_is_found_too(folder, tmp_path):
    with LocalIndex.open(folder, ENCODER) as index:
        index.add([Passage("new", "blue dog")], ENCODER.encode_passages(["blue dog"]))
        index.delete(["p7"])
        before = contents(index)
        shutil.copytree(folder, tmp_path / "copy")  # as after a kill
    data = bytearray((tmp_path / "copy" / FILE_NAME).read_bytes())
    data[:4096] = data[4096 * 2 : 4096 * 3] = bytes(4096)
    (tmp_path / "copy" / FILE_NAME).write_bytes(data)
    repair_index(tmp_path / "copy", tmp_path / "new")
    assert saved(tmp_path / "new" if (tmp_path / "new").exists() else tmp_path / "copy") == before


def test_a_damaged_graph_is_removed_and_no_folder_is_made(folder, tmp_path):
    with LocalIndex.open(folder, ENCODER, exact_below=10) as index:
        index.search("dense", ENCODER.encode_queries(["red"]), 3)
    (graph,) = folder.glob("*.graph")
    zero(graph, 3_000, 100)
    report = check_index(folder)
    assert [(each.file, each.is_derived) for each in report.files] == [(graph.name, True)]
    result = repair_index(folder, tmp_path / "new")
    assert (result.target, list(result.removed)) == (None, [graph.name])
    assert check_index(folder).is_whole


def test_a_folder_in_the_place_of_a_file_is_damage(folder, tmp_path):
    with LocalIndex.open(folder, ENCODER, exact_below=10) as index:
        index.search("dense", ENCODER.encode_queries(["red"]), 3)
    for path in (next(folder.glob("*.graph")), next(folder.glob("dense-*.segment"))):
        path.unlink()
        path.mkdir()
        assert path.name in [each.file for each in check_index(folder).files]
    with pytest.raises(IndexFolderError, match=r"\.graph"):
        repair_index(folder, tmp_path / "new")


def test_a_folder_with_files_is_no_target(folder, tmp_path):
    zero(next(folder.glob("dense-*")), 10_000, 300)
    with pytest.raises(IndexFolderError, match="is not empty; name a new folder"):
        repair_index(folder, tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no index"):
        check_index(tmp_path)


def test_an_upgraded_folder_is_checked_too(folder):
    for table in ("state", "passages"):
        run_sql(folder, f"ALTER TABLE {table} DROP COLUMN checks")
    run_sql(folder, "PRAGMA user_version = 5")
    with LocalIndex.open(folder, ENCODER) as index:
        index.add([Passage("new", "blue")], ENCODER.encode_passages(["blue"]))
        index.delete(["p5"])
        assert len(index) == 299
    assert check_index(folder).is_whole
    run_sql(folder, "DELETE FROM passages WHERE slot = 9")
    with pytest.raises(DamagedFolder, match="298 passages, which are not those that were written"):
        LocalIndex.open(folder)


def trials(tmp_path, count, seed, precision):
    make_folder(tmp_path / "index", precision)
    return run_trials(tmp_path / "index", tmp_path, count, seed)


def test_damage_is_never_silent(tmp_path):
    outcomes = trials(tmp_path, 50, 1, "float32")
    assert sum(count for name, count in outcomes.items() if not name.startswith("repair")) == 50


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_damage_is_never_silent_in_a_thousand_trials(tmp_path, precision):
    outcomes = trials(tmp_path, 334, 2, precision)
    print(*sorted(outcomes.items()), sep="\n")
