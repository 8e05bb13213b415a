"""Results of checking and repairing an index folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class DamagedFile(NamedTuple):
    """A damaged file of an index folder.

    Attributes:
        file: Its name.
        problem: What is wrong.
        is_derived: Whether it holds only what can be computed again.
    """

    file: str
    problem: str
    is_derived: bool = False


class DamagedPassage(NamedTuple):
    """A passage that cannot be read as it was written.

    Attributes:
        id: Its id; None if that cannot be read.
        problem: What is wrong.
        has_text: Whether its text and metadata are intact, so that it can be encoded again.
    """

    id: str | None
    problem: str
    has_text: bool


class CheckReport(NamedTuple):
    """What `check_index` found.

    Attributes:
        folder: The index folder.
        intact: Number of intact passages.
        files: Damaged files.
        passages: Damaged passages.
    """

    folder: Path
    intact: int
    files: Sequence[DamagedFile]
    passages: Sequence[DamagedPassage]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.files and not self.passages


class RepairReport(NamedTuple):
    """What `repair_index` did.

    Attributes:
        target: The new folder; None if none was needed.
        saved: Number of passages saved with their vectors.
        reencoded: Ids of the passages that were encoded again.
        left: Damaged passages that the new folder does not have.
        removed: Damaged derived files that were removed, which the next search that needs them builds again.
        check: What was found in the old folder.
    """

    target: Path | None
    saved: int
    reencoded: Sequence[str]
    left: Sequence[DamagedPassage]
    removed: Sequence[str]
    check: CheckReport
