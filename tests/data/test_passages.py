"""Passages are read from JSON lines, tables and Parquet alike."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from m3_integrations import Passage
from m3_integrations.data import read_passages
from tests.optional import requires

ROWS = [
    {"_id": "a", "text": "The heron nests.", "title": "Heron", "year": 2020, "seen": True},
    {"_id": "b", "text": "Copper doubled.", "year": 2021.5, "code": "007"},
]
PASSAGES = [
    Passage("a", "Heron\nThe heron nests.", {"year": 2020, "seen": True, "title": "Heron"}),
    Passage("b", "Copper doubled.", {"year": 2021.5, "code": "007"}),
]
TABLE = "_id,text,title,year,seen,code\na,The heron nests.,Heron,2020,true,\nb,Copper doubled.,,2021.5,,007\n"


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write(path):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif path.suffix == ".parquet":
        write_parquet(
            path,
            [{"_id": "", "text": "", "title": None, "year": 0.0, "seen": None, "code": None} | row for row in ROWS],
        )
    else:
        path.write_text(TABLE.replace(",", "\t" if path.suffix == ".tsv" else ","), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", pytest.param(".parquet", marks=requires("pyarrow"))])
def test_other_fields_become_metadata(ending, tmp_path):
    assert list(read_passages(write(tmp_path / f"rows{ending}"))) == PASSAGES


def test_rows_without_ids_are_numbered_after_their_file(tmp_path):
    file = tmp_path / "notes.csv"
    file.write_text('text\n"a note, with a comma"\nanother\n', encoding="utf-8")
    assert [passage.id for passage in read_passages(file)] == ["notes.csv#1", "notes.csv#2"]


def test_id_is_read_as_well_as_its_name_with_an_underscore(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 7, "text": "x"}\n', encoding="utf-8")
    assert list(read_passages(file)) == [Passage("7", "x")]


@requires("pyarrow")
def test_dates_of_parquet_are_iso_8601(tmp_path):
    file = write_parquet(tmp_path / "rows.parquet", [{"id": "a", "text": "x", "at": datetime(2024, 5, 31, 12)}])
    assert list(read_passages(file)) == [Passage("a", "x", {"at": "2024-05-31T12:00:00"})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "id,body\na,b\n", r"rows\.csv begins with 'id,body'; its first line is id,text,title"),
        ("rows.jsonl", '{"text": "x"}\n', r"rows\.jsonl:1 has no '_id'"),
        pytest.param("rows.parquet", "PAR", r"rows\.parquet cannot be read as Parquet", marks=requires("pyarrow")),
    ],
)
def test_an_invalid_file_is_named(name, text, message, tmp_path):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(read_passages(file))


@requires("pyarrow")
def test_parquet_without_a_text_names_its_columns(tmp_path):
    file = write_parquet(tmp_path / "rows.parquet", [{"id": "a", "body": "x"}])
    with pytest.raises(ValueError, match=r"has no column 'text'; its columns are \['id', 'body'\]"):
        list(read_passages(file))
