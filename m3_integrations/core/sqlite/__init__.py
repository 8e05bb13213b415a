"""SQLite databases in folders that others may have written: connections, schemas, errors."""
