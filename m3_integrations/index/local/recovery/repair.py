"""Repair of an index folder: its undamaged passages in a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.files import sync_folder, translate_write_errors
from m3_integrations.index.base import Fingerprinted
from m3_integrations.index.local.catalog import Catalog
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.ledger_file import ledgers
from m3_integrations.index.local.recovery.check import check_index
from m3_integrations.index.local.recovery.folder_content import FolderContent, read_folder
from m3_integrations.index.local.recovery.values import CheckReport, DamagedPassage, RepairReport

_PASSAGES_AT_ONCE = 1000
_TIMEOUT = 60.0


class PassageEncoder(Fingerprinted, Protocol):
    """What encodes passages again: the encoder of the index."""

    def encode_passages(self, texts: Sequence[str]) -> Encoded:
        """Encode texts of passages."""


@dataclass(frozen=True)
class _KnownEncoder:
    """Identity of the encoder of the damaged index."""

    fingerprint: str
    label: str

    def __repr__(self) -> str:
        return self.label


def repair_index(
    folder: str | PathLike[str],
    target: str | PathLike[str],
    encoder: PassageEncoder | Callable[[str | None], PassageEncoder] | None = None,
) -> RepairReport:
    """Save the undamaged passages of an index in a new folder; the old one keeps all of its data.

    Derived files that are damaged are removed, since they are built again when they are needed. If nothing else is
    damaged, no new folder is made. Ledgers that are intact are copied.

    Args:
        folder: The damaged index folder.
        target: The new folder, which must be empty or missing.
        encoder: Encoder of the index, to encode again passages whose text is intact and whose vectors are not; or a
            function that loads it, given the repr that the index recorded. None lists these passages.

    Returns:
        What was saved and what is left.

    Raises:
        FileNotFoundError: If there is no index.
        IndexFolderError: If the target is not empty, or nothing of the catalog can be read.
        WrongEncoder: If the encoder is not that of the index.
    """
    source, new = Path(folder).absolute(), Path(target).absolute()
    report = check_index(source)
    derived = [each.file for each in report.files if each.is_derived]
    for name in derived:
        with translate_write_errors(source / name):
            (source / name).unlink(missing_ok=True)
    if not report.passages and all(each.is_derived for each in report.files):
        return RepairReport(None, report.intact, [], [], derived, report)
    if new.exists() and (not new.is_dir() or any(new.iterdir())):
        raise IndexFolderError(f"{new} is not empty; name a new folder for the undamaged passages")
    with read_folder(source) as content:
        loaded = encoder(content.encoder[1]) if callable(encoder) else encoder
        return _save(source, content, new, loaded, derived, report)


def _save(
    source: Path,
    content: FolderContent,
    target: Path,
    encoder: PassageEncoder | None,
    derived: list[str],
    report: CheckReport,
) -> RepairReport:
    _create(content, target, encoder)
    intact = np.flatnonzero(content.is_intact())
    reencoded: list[str] = []
    unread: list[str | None] = []
    saved = 0
    with LocalIndex.open(target, encoder) as index:
        for start in range(0, len(intact), _PASSAGES_AT_ONCE):
            part = intact[start : start + _PASSAGES_AT_ONCE]
            readable, passages = content.passages(part)
            if passages:
                index.add(passages, content.encoded(readable))
            saved += len(passages)
            unread += (content.ids[position] for position in set(part.tolist()) - set(readable.tolist()))
        if encoder is not None:
            reencoded = _encode_again(content, index, encoder)
        with suppress(DamagedFolder, sqlite3.Error):  # it is in the report
            index.plan = content.transaction.plan()
        index.verify()
    for ledger in ledgers(source):
        if not any(each.file == ledger.name for each in report.files):
            _copy_ledger(ledger, target / ledger.name)
    sync_folder(target)
    left = [each for each in report.passages if each.id not in reencoded]
    left += (DamagedPassage(id, "its text cannot be read", False) for id in unread)
    return RepairReport(target, saved, reencoded, left, derived, report)


def _create(content: FolderContent, target: Path, encoder: PassageEncoder | None) -> None:
    """Create an index that stores vectors as the damaged one does, codecs included."""
    multi_vector = content.modes.get("multi_vector")
    codec = multi_vector.codec if multi_vector else None
    fingerprint, label = content.encoder
    known = _KnownEncoder(fingerprint, label or "an encoder") if fingerprint else None
    LocalIndex.open(target, known, precision={"multi_vector": codec.precision} if codec else None).close()
    catalog = Catalog(target, _TIMEOUT)
    try:
        with catalog.write() as transaction:
            transaction.set_modes(content.modes)
    finally:
        catalog.close()
    LocalIndex.open(target, encoder).close()


def _encode_again(content: FolderContent, index: LocalIndex, encoder: PassageEncoder) -> list[str]:
    """Add the passages whose text alone is intact."""
    has_text = [slot not in content.problems for slot in content.slots.tolist()]
    positions = np.flatnonzero(np.array(has_text, bool) & ~np.array(content.is_intact(), bool))
    ids: list[str] = []
    for start in range(0, len(positions), _PASSAGES_AT_ONCE):
        _, passages = content.passages(positions[start : start + _PASSAGES_AT_ONCE])
        encoded = encoder.encode_passages([passage.text for passage in passages])
        index.add(passages, encoded.only(tuple(content.modes)))
        ids += [passage.id for passage in passages]
    return ids


def _copy_ledger(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
