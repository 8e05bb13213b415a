"""SQL of the catalog, and its formats."""

from __future__ import annotations

from m3_integrations.core.sqlite.schema import Schema

APPLICATION = 0x4D334958
FORMAT = 6
BEFORE_CHECKSUMS = 5  # no checksums of blocks and rows; readable
_BEFORE_MULTI_VECTOR_INT8 = 4  # multi-vectors without an int8 copy; readable
_BEFORE_DENSE_INT8 = 3  # dense segments without an int8 copy; readable
BEFORE_CUBIC_LEVELS = 2  # another meaning of int4; otherwise readable
BEFORE_PRECISION = 1
READABLE = range(BEFORE_PRECISION, FORMAT + 1)
CREATE = f"""
CREATE TABLE state (
    generation INTEGER NOT NULL,    -- increases with every commit
    next_slot INTEGER NOT NULL,     -- slots are numbers of passages, never reused
    forgotten INTEGER NOT NULL,     -- tombstones up to this generation are purged: an older reader must reload
    encoder TEXT,                   -- fingerprint of the encoder that fills the index
    encoder_label TEXT,             -- its repr
    precision TEXT NOT NULL,        -- precision of multi-vectors
    checks BLOB                     -- CatalogChecks
);
INSERT INTO state VALUES (0, 0, 0, NULL, NULL, ?, NULL);
CREATE TABLE modes (
    mode TEXT PRIMARY KEY, width INTEGER NOT NULL, precision TEXT NOT NULL,
    centre BLOB                     -- center of the codec, as float32
);
CREATE TABLE passages (
    slot INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, text BLOB NOT NULL, metadata BLOB NOT NULL, hash TEXT NOT NULL,
    checks BLOB                     -- of id, content hash and metadata; none for passages of earlier formats
);
CREATE TABLE tombstones (slot INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE INDEX tombstones_by_generation ON tombstones (generation);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- of two with the same slot, the higher number is current
    mode TEXT NOT NULL, file TEXT UNIQUE NOT NULL, length INTEGER NOT NULL, checksum TEXT NOT NULL,
    rows INTEGER NOT NULL, dead INTEGER NOT NULL
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
"""


STATE_COLUMNS = 7
SMALL_TABLES = {
    "modes": "SELECT * FROM modes",
    "segments": "SELECT number, mode, file, length, checksum, rows, dead FROM segments ORDER BY number",
    "plan": "SELECT plan FROM plan",
}
PLAN_TABLE = "CREATE TABLE IF NOT EXISTS plan (plan TEXT NOT NULL)"  # one row of JSON, or none
REMOVED_TABLE = "CREATE TABLE IF NOT EXISTS removed (file TEXT PRIMARY KEY)"  # files that a merge replaced
TABLES = Schema(
    columns={
        "state": ("generation", "next_slot", "forgotten", "encoder", "encoder_label", "precision", "checks"),
        "modes": ("mode", "width", "precision", "centre"),
        "passages": ("slot", "id", "text", "metadata", "hash", "checks"),
        "tombstones": ("slot", "generation"),
        "segments": ("number", "mode", "file", "length", "checksum", "rows", "dead"),
        "plan": ("plan",),
        "removed": ("file",),
    },
    indexes=("tombstones_by_generation",),
    defaults=("'float32'",),
)
