"""Persistence of an M3VectorStore: a settings file, and a sibling folder of nodes."""

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

from m3_integrations.core.errors import IndexFolderError
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Index
from m3_integrations.index.copying import copy_index
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex

_FORMAT = "M3VectorStore"
# StorageContext.from_defaults(persist_dir=...) reads any JSON file of this name as a SimpleVectorStore, which would be
# empty. The text in the place of a number fails instead, and is the message of the error.
_NOT_SIMPLE = {
    "embedding_dict": {
        _FORMAT: [
            "this is an M3VectorStore; pass vector_store=M3VectorStore.from_persist_dir(persist_dir) to "
            "StorageContext.from_defaults"
        ]
    }
}


@dataclass(frozen=True)
class PersistedSettings:
    """Content of a settings file.

    Attributes:
        path: Path of the file.
        fs: File system of the file.
        settings: Fields of the M3VectorStore.
        nodes_name: Name of the sibling folder that holds the nodes of a MemoryIndex; None for other indexes.
        index_folder: Folder of a LocalIndex, absolute or relative to the file; None for other indexes.
    """

    path: str
    fs: fsspec.AbstractFileSystem
    settings: Mapping[str, Any]
    nodes_name: str | None
    index_folder: str | None

    @property
    def is_in_memory(self) -> bool:
        """Whether the store held its nodes in a MemoryIndex."""
        return self.nodes_name is not None

    @contextmanager
    def local_folder(self) -> Iterator[Path]:
        """Yield the LocalIndex folder of the nodes, downloaded if it is on another file system.

        Raises:
            IndexFolderError: If the file names no folder, or the folder holds no index.
        """
        folder = self.nodes_name or self.index_folder
        if folder is None:
            raise IndexFolderError(
                f"{self.path} names no folder, as its index is stored elsewhere; pass index= to load it"
            )
        if self.nodes_name is None or isinstance(self.fs, LocalFileSystem):
            yield _check_index_folder(Path(self.path).parent / folder, self.path)
        else:
            with TemporaryDirectory() as temporary:
                self.fs.get(_sibling(self.path, folder), f"{temporary}/vectors", recursive=True)
                yield _check_index_folder(Path(temporary) / "vectors", self.path)


def write(
    path: str, fs: fsspec.AbstractFileSystem | None, settings: Mapping[str, Any], index: Index, encoder: Encoder
) -> None:
    """Write the settings file of a store, and its nodes if they are in memory.

    The nodes of a previous version are removed last, so that an interrupted write leaves that version readable.

    Args:
        path: Path of the settings file.
        fs: File system to write to; default the local one.
        settings: Fields of the M3VectorStore.
        index: Index of the store. A LocalIndex is referred to by its folder, any other persistent index not at all.
        encoder: Encoder of the store.
    """
    fs = fs or fsspec.filesystem("file")
    path = fs._strip_protocol(path)
    previous_nodes = read(path, fs).nodes_name if is_m3_store(path, fs) else None
    nodes_name = f"{PurePosixPath(path).name}.{uuid.uuid4().hex[:8]}" if isinstance(index, MemoryIndex) else None
    index_folder = _relative_folder(path, fs, index.folder) if isinstance(index, LocalIndex) else None
    fs.makedirs(_parent(path), exist_ok=True)
    if nodes_name is not None:
        _write_nodes(_sibling(path, nodes_name), fs, index, encoder)
    content = {"format": _FORMAT, "settings": dict(settings), "beside": nodes_name, "folder": index_folder}
    _write_text(path, fs, json.dumps({**content, **_NOT_SIMPLE}, ensure_ascii=False, indent=2))
    if previous_nodes is not None:
        fs.rm(_sibling(path, previous_nodes), recursive=True)


def read(path: str, fs: fsspec.AbstractFileSystem | None = None) -> PersistedSettings:
    """Read a settings file.

    Raises:
        IndexFolderError: If the file is missing or was not written by `write`.
    """
    fs = fs or fsspec.filesystem("file")
    path = fs._strip_protocol(path)
    if not fs.exists(path):
        raise IndexFolderError(f"there is no M3VectorStore at {path}; persist one, or pass the folder of another one")
    try:
        content = json.loads(fs.cat_file(path))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        nodes_name = content["beside"]
        if nodes_name is not None and not _is_nodes_name(path, nodes_name):
            raise ValueError(f"nodes at {nodes_name!r}")
        return PersistedSettings(path, fs, content["settings"], nodes_name, content["folder"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexFolderError(f"{path} is no M3VectorStore ({error}); another store wrote it") from error


def is_m3_store(path: str, fs: fsspec.AbstractFileSystem | None = None) -> bool:
    """Return whether `read` can read the file."""
    try:
        read(path, fs)
    except IndexFolderError:
        return False
    return True


def _is_nodes_name(path: str, name: str) -> bool:
    return re.fullmatch(re.escape(PurePosixPath(path).name) + r"\.[0-9a-f]{8}", name) is not None


def _check_index_folder(folder: Path, settings_path: str) -> Path:
    if not (folder / FILE_NAME).exists():
        raise IndexFolderError(
            f"{folder}, the folder of the nodes of {settings_path}, holds no index; put it back, or pass index="
        )
    return folder


def _relative_folder(path: str, fs: fsspec.AbstractFileSystem, folder: Path) -> str:
    """Return a folder below the file's own as a relative path, so both can be moved."""
    is_below = isinstance(fs, LocalFileSystem) and folder.is_relative_to(_parent(path))
    return str(folder.relative_to(_parent(path)) if is_below else folder)


def _write_nodes(path: str, fs: fsspec.AbstractFileSystem, index: Index, encoder: Encoder) -> None:
    if isinstance(fs, LocalFileSystem):
        with LocalIndex.open(path, encoder) as written:
            copy_index(index, written)
        return
    with TemporaryDirectory() as temporary:
        _write_nodes(f"{temporary}/vectors", fsspec.filesystem("file"), index, encoder)
        fs.put(f"{temporary}/vectors", path, recursive=True)


def _write_text(path: str, fs: fsspec.AbstractFileSystem, text: str) -> None:
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text.encode())
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _sibling(path: str, name: str) -> str:
    return str(PurePosixPath(path).with_name(name))
