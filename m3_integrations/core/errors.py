"""The error tree: everything that this package raises on purpose, under one root.

M3Error
├── MissingMode(KeyError)          a mode was asked for that these vectors, this checkpoint or this index do not have
├── MissingExtra(ImportError)      an optional library is not installed
├── CheckpointError                a model folder that cannot be read as one
├── NonFiniteVector(ValueError)    the model or the caller gave NaN or infinity
├── WrongDimension(ValueError)     vectors of one width met an index of another
├── UnknownId(KeyError)            an id that the index does not hold
├── UnsupportedFilter(ValueError)  a filter that cannot be said in `Where`
├── TrainingDiverged(ValueError)   a loss that is NaN or infinite
├── WorkerLost                     a process of an EncoderPool that ended by itself: in core/encoder_crew.py
├── QdrantUnreachable, WrongCollection, PartlyWritten: in index/qdrant_errors.py
└── IndexFolderError               a folder that is no index, is damaged, is locked, or is of another model
    ├── WrongEncoder
    └── DamagedFolder

M3Warning(UserWarning)
├── TextsTruncated                 texts longer than the model reads
├── ModeDropped                    a planned mode that the index or the encoder does not have
├── PartNotExported                a part of a checkpoint that the BGE-M3 layout cannot hold
└── LexicalCollapse                a lexical head that falls silent while it is trained
"""

from __future__ import annotations


class M3Error(Exception):
    """The root of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message, with quotes and escapes.
        return str(self.args[0]) if self.args else ""


class MissingMode(M3Error, KeyError):
    """A mode was asked for that is not there."""


class MissingExtra(M3Error, ImportError):
    """An optional library is not installed."""


class CheckpointError(M3Error):
    """A model folder that cannot be read as one, or only with more said about it."""


class NonFiniteVector(M3Error, ValueError):
    """A vector holds NaN or infinity."""


class WrongDimension(M3Error, ValueError):
    """Vectors of one width met an index, or other vectors, of another."""


class UnknownId(M3Error, KeyError):
    """An id that the index does not hold."""


class UnsupportedFilter(M3Error, ValueError):
    """A filter that cannot be said in `Where`."""


class TrainingDiverged(M3Error, ValueError):
    """A loss is NaN or infinite."""


class IndexFolderError(M3Error):
    """A folder that cannot be opened as an index."""


class WrongEncoder(IndexFolderError):
    """The folder was made with another encoder."""


class DamagedFolder(IndexFolderError):
    """The folder lacks, or no longer matches, what its catalogue names."""


class M3Warning(UserWarning):
    """The root of every warning of this package."""


class TextsTruncated(M3Warning):
    """Some texts were longer than the encoder reads, and were cut."""


class ModeDropped(M3Warning):
    """A planned mode is not to be had here; the search goes on without it."""


class PartNotExported(M3Warning):
    """A checkpoint has a part that the BGE-M3 layout cannot hold."""


class LexicalCollapse(M3Warning):
    """A lexical head gives ever fewer tokens a weight while it is trained."""
