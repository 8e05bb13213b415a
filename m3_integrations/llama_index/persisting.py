"""A vector store as a file of settings, and beside it a folder of the nodes that it held in memory."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]  # likewise

from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import IndexFolderError
from m3_integrations.index.base import Index
from m3_integrations.index.catalogue import FILE_NAME
from m3_integrations.index.copying import copy_passages
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex

_FORMAT = "M3VectorStore"
# SimpleVectorStore reads any JSON whose name ends as ours must, and would be an empty store: this makes it fail.
_NOT_SIMPLE = {"embedding_dict": "this is an M3VectorStore; read it with M3VectorStore.from_persist_dir"}


@dataclass(frozen=True)
class Persisted:
    """What a file of settings says. vectors: a folder beside it, or anywhere; neither where the index keeps itself."""

    path: str
    fs: fsspec.AbstractFileSystem
    settings: Mapping[str, Any]
    beside: str | None
    folder: str | None

    @property
    def in_memory(self) -> bool:
        return self.beside is not None

    @contextmanager
    def vectors(self) -> Iterator[Path]:
        """The folder of the nodes, on this machine. Raises IndexFolderError where the index keeps itself."""
        if self.beside is None and self.folder is None:
            raise IndexFolderError(f"{self.path} names no folder, as its index keeps itself; pass index= to load it")
        if self.beside is None or isinstance(self.fs, LocalFileSystem):
            yield _require_index(Path(self.path).parent / str(self.beside or self.folder), self.path)
        else:
            with TemporaryDirectory() as here:
                self.fs.get(_beside(self.path, self.beside), f"{here}/vectors", recursive=True)
                yield _require_index(Path(here) / "vectors", self.path)


def write(
    path: str, fs: fsspec.AbstractFileSystem | None, settings: Mapping[str, Any], index: Index, encoder: Encoder
) -> None:
    """Write the settings, and a folder of the nodes where these are in memory; what was there before goes last."""
    fs = fs or fsspec.filesystem("file")
    path = fs._strip_protocol(path)
    before = read(path, fs).beside if is_ours(path, fs) else None
    beside = f"{PurePosixPath(path).name}.{uuid.uuid4().hex[:8]}" if isinstance(index, MemoryIndex) else None
    folder = _as_seen_from(path, fs, index.folder) if isinstance(index, LocalIndex) else None
    fs.makedirs(_parent(path), exist_ok=True)
    if beside is not None:
        _write_nodes(_beside(path, beside), fs, index, encoder)
    said = {"format": _FORMAT, "settings": dict(settings), "beside": beside, "folder": folder, **_NOT_SIMPLE}
    _write_text(path, fs, json.dumps(said, ensure_ascii=False, indent=2))
    if before is not None:
        fs.rm(_beside(path, before), recursive=True)


def read(path: str, fs: fsspec.AbstractFileSystem | None = None) -> Persisted:
    """What `write` wrote. Raises IndexFolderError where there is no such file, or it is none of ours."""
    fs = fs or fsspec.filesystem("file")
    path = fs._strip_protocol(path)
    if not fs.exists(path):
        raise IndexFolderError(f"there is no M3VectorStore at {path}; persist one, or name the folder that holds it")
    try:
        said = json.loads(fs.cat_file(path))
        if said["format"] != _FORMAT:
            raise ValueError(f"format {said['format']!r}")
        beside = said["beside"]
        if beside is not None and not _is_neighbour(path, beside):
            raise ValueError(f"nodes at {beside!r}")
        return Persisted(path, fs, said["settings"], beside, said["folder"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexFolderError(f"{path} is no M3VectorStore ({error}); it was written by another store") from error


def _is_neighbour(path: str, name: str) -> bool:
    return re.fullmatch(re.escape(PurePosixPath(path).name) + r"\.[0-9a-f]{8}", name) is not None


def _require_index(folder: Path, named_by: str) -> Path:
    if not (folder / FILE_NAME).exists():
        raise IndexFolderError(
            f"{folder}, where the nodes of {named_by} are, holds no index; put it back, or pass index= with where it is"
        )
    return folder


def _as_seen_from(path: str, fs: fsspec.AbstractFileSystem, folder: Path) -> str:
    """A folder below the file's own by its way from there, so that both can be moved together."""
    together = isinstance(fs, LocalFileSystem) and folder.is_relative_to(_parent(path))
    return str(folder.relative_to(_parent(path)) if together else folder)


def is_ours(path: str, fs: fsspec.AbstractFileSystem | None = None) -> bool:
    """Whether `read` would read it."""
    try:
        read(path, fs)
    except IndexFolderError:
        return False
    return True


def _write_nodes(path: str, fs: fsspec.AbstractFileSystem, index: Index, encoder: Encoder) -> None:
    if isinstance(fs, LocalFileSystem):
        with LocalIndex.open(path, encoder) as kept:
            copy_passages(index, kept)
        return
    with TemporaryDirectory() as here:
        _write_nodes(f"{here}/vectors", fsspec.filesystem("file"), index, encoder)
        fs.put(f"{here}/vectors", path, recursive=True)


def _write_text(path: str, fs: fsspec.AbstractFileSystem, text: str) -> None:
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text.encode())
        return
    neighbour = Path(f"{path}.{uuid.uuid4().hex[:8]}.new")
    neighbour.write_text(text, encoding="utf-8")
    neighbour.replace(path)


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _beside(path: str, name: str) -> str:
    return str(PurePosixPath(path).with_name(name))
