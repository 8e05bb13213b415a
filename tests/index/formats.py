"""Conversion of index folders to earlier formats."""

from __future__ import annotations


def remove_checks(connection, version):
    """Remove the checksums of a catalog, which format 6 added, and set its format number."""
    for table in ("state", "passages"):
        connection.execute(f"ALTER TABLE {table} DROP COLUMN checks")
    connection.execute(f"PRAGMA user_version = {version}")
