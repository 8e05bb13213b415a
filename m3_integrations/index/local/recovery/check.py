"""Verification of an index folder: catalog, passages, segments block by block, derived files and ledger."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from m3_integrations.core.errors import DamagedFolder
from m3_integrations.index.local.array_file import damaged_file_error
from m3_integrations.index.local.candidates.derived_files import derived_files
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.ledger_file import find_ledger_fault, ledgers
from m3_integrations.index.local.recovery.folder_content import read_folder
from m3_integrations.index.local.recovery.values import CheckReport, DamagedFile

_MAX_ATTEMPTS = 5


def check_index(folder: str | PathLike[str]) -> CheckReport:
    """Verify all files of an index folder, without changing them.

    Args:
        folder: The index folder.

    Returns:
        Damaged files, and the passages that cannot be read as they were written.

    Raises:
        FileNotFoundError: If there is no index.
        IndexFolderError: If the folder is not an index, or a newer version wrote it.
    """
    path = Path(folder).absolute()
    require_catalog(path)
    for _ in range(_MAX_ATTEMPTS):
        try:
            return _check(path)
        except FileNotFoundError as error:
            missing = error  # a merge may have removed it in the meantime
    file = Path(missing.filename)
    raise damaged_file_error(file, "is missing") from missing


def require_catalog(folder: Path) -> None:
    """Raise FileNotFoundError unless a folder has a catalog."""
    if not (folder / FILE_NAME).exists():
        raise FileNotFoundError(f"there is no index at {folder}: it has no {FILE_NAME}")


def _check(folder: Path) -> CheckReport:
    others = [*_damaged_derived_files(folder), *_damaged_ledgers(folder)]
    try:
        with read_folder(folder) as content:
            damaged = content.damaged_passages()
            return CheckReport(folder, len(content.slots) - len(damaged), [*content.files, *others], damaged)
    except DamagedFolder as error:
        problem = str(error).partition("is damaged: ")[2].partition("; put back")[0] or str(error)
        return CheckReport(folder, 0, [DamagedFile(FILE_NAME, problem), *others], [])


def _damaged_derived_files(folder: Path) -> list[DamagedFile]:
    problem = "differs from what was written; it is built again when it is needed"
    return [
        DamagedFile(file.path.name, problem, is_derived=True) for file in derived_files(folder) if not file.is_intact()
    ]


def _damaged_ledgers(folder: Path) -> list[DamagedFile]:
    faults = {path.name: find_ledger_fault(path) for path in ledgers(folder)}
    return [DamagedFile(name, fault) for name, fault in faults.items() if fault]
