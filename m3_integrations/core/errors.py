"""Exceptions and warnings; every one derives from M3Error or M3Warning.

M3Error
├── MissingMode(KeyError)               a mode that the vectors, the checkpoint or the index do not have
├── MissingExtra(ImportError)           an optional library is not installed
├── CheckpointError                     a folder that is not a checkpoint
├── NonFiniteVector(ValueError)         NaN or infinity in a vector
├── WrongDimension(ValueError)          vectors of another dimension than the index or other vectors
├── UnknownId(KeyError)                 an id that is not in the index
├── PassagesChanged                     passages changed while vectors were computed for them
├── UnsupportedFilter(ValueError)       a filter that `Where` cannot express
├── InvalidFile(ValueError)             a file, or a line of one, that a reader cannot read
├── TrainingDiverged(ValueError)        a loss that is NaN or infinite
├── WrongSparseFormat(TypeError)        sparse embeddings read in the form of another library
├── NotPicklable(TypeError)             a component that holds what no pickle can
├── WorkerLost                          a process of an EncoderPool ended unexpectedly
├── ForkedProcess                       an object that a forked process cannot use
├── CopyDiffers                         a copied passage read back differs
├── StaleReport                         the index changed since the fit that a report describes
├── ServerError(ConnectionError)        a server of m3 serve that cannot be reached or refuses a request
├── QdrantUnreachable(ConnectionError)  no Qdrant server answers, or it refuses the key
├── WrongCollection(ValueError)         a Qdrant collection that QdrantIndex cannot use
├── PartlyWritten                       a write to Qdrant that failed in part
└── IndexFolderError                    a folder that is not an index, or is locked
    ├── WrongEncoder                    an index of another encoder
    ├── WriterBusy                      another process writes for longer than a write waits
    └── DamagedFolder                   files that are missing or do not match the catalog

M3Warning(UserWarning)
├── UnknownSegments                     files of an index folder that its catalog does not name
├── TextsTruncated                      texts longer than the encoder reads
├── ModeDropped                         a planned mode that the index or the encoder does not have
├── HeadsMissing                        a cached copy of a hub model that may lack heads
├── PartNotRead                         a part of a checkpoint that no mode uses
├── PartNotExported                     a part of a checkpoint that the BGE-M3 layout cannot hold
└── LexicalCollapse                     a sparse head that gives ever fewer tokens a weight in training
"""

from __future__ import annotations

from collections.abc import Sequence


class M3Error(Exception):
    """Base class of the exceptions of this package."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message, with quotes and escapes.
        return str(self.args[0]) if self.args else ""


class MissingMode(M3Error, KeyError):
    """A mode that the vectors, the checkpoint or the index do not have."""


class MissingExtra(M3Error, ImportError):
    """An optional library is not installed."""


class CheckpointError(M3Error):
    """A folder that cannot be read as a checkpoint, or only with more options."""


class NonFiniteVector(M3Error, ValueError):
    """A vector holds NaN or infinity.

    Args:
        message: Text of the error, in which "{position}" stands for the position.
        position: Position of the vector's text in the caller's sequence; None if it is not known.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position

    def __str__(self) -> str:
        return super().__str__().replace("{position}", str(self.position))


class WrongSparseFormat(M3Error, TypeError):
    """Sparse embeddings that another library reads in a form of its own."""


class NotPicklable(M3Error, TypeError):
    """A component over an encoder or an index that a pickle cannot hold."""


class WorkerLost(M3Error):
    """A process of an EncoderPool ended unexpectedly."""


class ForkedProcess(M3Error):
    """An object cannot be used after a fork of the process that made it."""


class WrongDimension(M3Error, ValueError):
    """Vectors of another dimension than those of the index or than other vectors."""


class UnknownId(M3Error, KeyError):
    """An id that is not in the index."""


class PassagesChanged(M3Error):
    """Passages were replaced or deleted while vectors were computed for them; nothing was written."""


class UnsupportedFilter(M3Error, ValueError):
    """A filter that `Where` cannot express.

    Attributes:
        position: Character of the filter's text that it begins to be wrong at; None if it was not a text.
    """

    position: int | None = None


class InvalidFile(M3Error, ValueError):
    """A file of data that cannot be read; the message begins with its path and, where it is a line, `path:line`."""


class TrainingDiverged(M3Error, ValueError):
    """A loss is NaN or infinite."""


class IndexFolderError(M3Error):
    """A folder that cannot be opened as an index."""


class WrongEncoder(IndexFolderError):
    """An index that another encoder filled."""


class WriterBusy(IndexFolderError):
    """Another writer did not finish in time."""


class DamagedFolder(IndexFolderError):
    """An index folder whose files are missing or do not match its catalog."""


class CopyDiffers(M3Error):
    """A copied passage read back differs from the one written."""


class StaleReport(M3Error):
    """The passages of an index changed since the fit that a report describes."""


class M3Warning(UserWarning):
    """Base class of the warnings of this package."""


class TextsTruncated(M3Warning):
    """Texts were longer than the encoder reads and were truncated.

    Args:
        count: Number of these texts.
        total: Number of texts in the call.
        advice: Rest of the message, after "<count> of <total> texts".
    """

    def __init__(self, count: int, total: int, advice: str) -> None:
        super().__init__(count, total, advice)
        self.count, self.total, self.advice = count, total, advice

    def __str__(self) -> str:
        return f"{self.count} of {self.total} texts {self.advice}"


class UnknownSegments(M3Warning):
    """An index folder has files with vectors that its catalog does not name."""


class ModeDropped(M3Warning):
    """A planned mode is not available; the search continues without it."""


class HeadsMissing(M3Warning):
    """A cached copy of a hub model may lack its sparse and multi-vector heads."""


class PartNotExported(M3Warning):
    """A checkpoint has a part that the BGE-M3 layout cannot hold."""


class PartNotRead(M3Warning):
    """A checkpoint has a part that no mode uses."""


class LexicalCollapse(M3Warning):
    """A sparse head gives ever fewer tokens a weight in training."""


class ServerError(M3Error, ConnectionError):
    """A server of `m3 serve` cannot be reached, or refuses a request.

    Args:
        message: Text of the error.
        status: HTTP status of the answer; None without one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class QdrantUnreachable(M3Error, ConnectionError):
    """No Qdrant server answers, or it refuses the key."""


class WrongCollection(M3Error, ValueError):
    """A Qdrant collection that QdrantIndex did not make, or that does not support a call."""


class PartlyWritten(M3Error):
    """A write to Qdrant that failed in part; repeating it is safe and completes it.

    Args:
        written: Ids of the passages written.
        left: Ids of the other passages, of which some may be written too.
        reason: Error of the request that failed.
    """

    def __init__(self, written: Sequence[str], left: Sequence[str], reason: Exception) -> None:
        self.written, self.left = list(written), list(left)
        super().__init__(
            f"{len(self.written)} of {len(self.written) + len(self.left)} passages were written before {reason}; "
            "the ids are in .written and .left: write the rest again"
        )
