"""Files derived from the segments of one generation: their names, atomic replacement, loading.

The name of a file contains its generation and its checksum. A file that is missing, damaged or outdated is built again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Arrays, Mode
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.files import checksum
from m3_integrations.index.local.array_file import MappedArrays, map_arrays, write_arrays
from m3_integrations.index.local.segments import Longs
from m3_integrations.index.local.snapshot import Snapshot

_NAME = re.compile(r"(dense|multi_vector)-([0-9]{8,19})-([0-9a-f]{64})\.(graph|lists)", re.ASCII)
UNFINISHED_NAME = re.compile(r"(dense|multi_vector)-[0-9a-f]{16}\.(graph|lists)\.unfinished", re.ASCII)
T = TypeVar("T")


class DerivedFile(NamedTuple):
    """A file in an index folder.

    Attributes:
        path: The file.
        kind: "graph" or "lists".
        generation: The generation of its vectors.
        checksum: SHA-256 of its content when it was written.
    """

    path: Path
    kind: str
    generation: int
    checksum: str

    def is_intact(self) -> bool:
        """Return whether its content is as it was written; one that cannot be read is not."""
        try:
            return checksum(self.path) == self.checksum
        except FileNotFoundError:
            raise
        except (OSError, DamagedFolder):
            return False


def derived_files(folder: Path, kind: str | None = None) -> Iterator[DerivedFile]:
    """Iterate over the derived files of a folder, of one kind or of all."""
    for path in list(folder.iterdir()):
        name = _NAME.fullmatch(path.name)
        if name and kind in (None, name[4]):
            yield DerivedFile(path, name[4], int(name[2]), name[3])


def save_derived(folder: Path, mode: Mode, kind: str, generation: int, arrays: Arrays) -> None:
    """Save a file atomically, replacing all others of its kind in the folder."""
    unfinished = folder / f"{mode}-{secrets.token_hex(8)}.{kind}.unfinished"
    try:
        written = write_arrays(unfinished, arrays)
        finished = unfinished.rename(folder / f"{mode}-{generation:08d}-{written.checksum}.{kind}")
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    for each in derived_files(folder, kind):
        if each.path != finished:
            each.path.unlink(missing_ok=True)


def load_derived(folder: Path, kind: str, generation: int, read: Callable[[int, MappedArrays], T]) -> T | None:
    """Read the newest valid file of a kind up to a generation; None if there is none.

    Args:
        folder: The index folder.
        kind: Kind of the file.
        generation: Largest generation.
        read: Function of the file's generation and arrays, which raises ValueError for invalid ones.
    """
    for each in sorted(derived_files(folder, kind), key=lambda file: -file.generation):
        try:
            if each.generation <= generation and each.is_intact():
                return read(each.generation, map_arrays(each.path, each.path.stat().st_size))
        except (OSError, DamagedFolder, ValueError):
            continue  # it can be built again
    return None


def current_rows(snapshot: Snapshot, mode: Mode, slots: Longs, generation: int) -> Longs:
    """Return the snapshot row of each slot; -1 if its passage is deleted, or its embedding newer than a generation."""
    rows = snapshot.rows_of(slots)
    is_current = (rows >= 0) & snapshot.live[rows] & (snapshot.written(mode)[rows] <= generation)
    current: Longs = np.where(is_current, rows, -1)
    return current


def array_types(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[str, int]]:
    """Return dtype and number of dimensions of each array."""
    return {name: (array.dtype.str, array.ndim) for name, array in arrays.items()}
