"""Passages and their vectors as one Parquet file, and back, to the bit.

Columns: id, text, metadata (JSON), dense (a list of dim), tokens and weights (lists), multi_vector (a flat list of rows
of `width`). The file's own metadata say how wide each mode is, who encoded it, and what it was made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Encoded, MultiVectors
from m3_integrations.core.optional import import_optional
from m3_integrations.core.types import Passage
from m3_integrations.index.validation import widths

MADE_OF = "made_of"
_ABOUT = b"m3_integrations"


def write_part(file: Path, passages: Sequence[Passage], encoded: Encoded, fingerprint: str, made_of: str) -> None:
    """All of it, or nothing: written to a neighbour and renamed. Raises ValueError for what UTF-8 cannot say."""
    arrow: Any = import_optional("pyarrow", extra="ray")
    said = {"widths": widths(encoded), "fingerprint": fingerprint, MADE_OF: made_of}
    columns = {**_passages(arrow, passages), **_vectors(arrow, encoded)}
    table = arrow.table(columns).replace_schema_metadata({_ABOUT: json.dumps(said).encode()})
    written = file.with_suffix(".new")
    _parquet().write_table(table, written, compression="zstd", use_dictionary=False)
    written.replace(file)


def read_part(file: Path) -> tuple[list[Passage], Encoded]:
    """Passages, and their vectors row by row."""
    table = _parquet().read_table(file)
    wide = json.loads(table.schema.metadata[_ABOUT])["widths"]
    texts = zip(*(table[name].to_pylist() for name in ("id", "text", "metadata")), strict=True)
    passages = [Passage(id, text, json.loads(metadata)) for id, text, metadata in texts]
    return passages, Encoded(**{mode: _READ[mode](table, width) for mode, width in wide.items()})


def about(file: Path) -> Mapping[str, Any]:
    """What a file says of itself: widths, fingerprint, made_of."""
    said: Mapping[str, Any] = json.loads(_parquet().read_schema(file).metadata[_ABOUT])
    return said


def _passages(arrow: Any, passages: Sequence[Passage]) -> dict[str, Any]:
    try:
        return {
            "id": arrow.array([each.id for each in passages], arrow.string()),
            "text": arrow.array([each.text for each in passages], arrow.large_string()),
            "metadata": arrow.array([json.dumps(dict(each.metadata)) for each in passages], arrow.string()),
        }
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds a lone surrogate, which Parquet cannot keep: {error.object[:60]!r}; clean it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from None


def _vectors(arrow: Any, encoded: Encoded) -> dict[str, Any]:
    columns = {}
    if "dense" in encoded.modes:
        columns["dense"] = _lists(arrow, encoded.dense.ravel(), np.arange(len(encoded) + 1) * encoded.dense.shape[1])
    if "sparse" in encoded.modes:
        rows = encoded.sparse
        columns["tokens"] = _lists(arrow, rows.indices.astype(np.int32), rows.indptr)
        columns["weights"] = _lists(arrow, rows.data, rows.indptr)
    if "multi_vector" in encoded.modes:
        late = encoded.multi_vector
        columns["multi_vector"] = _lists(arrow, late.values.ravel(), late.offsets * late.width)
    return columns


def _lists(arrow: Any, values: Any, offsets: Any) -> Any:
    return arrow.LargeListArray.from_arrays(arrow.array(np.asarray(offsets, np.int64)), arrow.array(values))


def _column(table: Any, name: str) -> tuple[Any, Any]:
    """The values and offsets of a column of lists."""
    lists = table[name].combine_chunks()
    offsets = lists.offsets.to_numpy()
    return lists.flatten().to_numpy(), offsets - offsets[0]


def _read_dense(table: Any, width: int) -> Any:
    return _column(table, "dense")[0].reshape(-1, width)


def _read_sparse(table: Any, width: int) -> Any:
    weights, offsets = _column(table, "weights")
    return scipy.sparse.csr_array((weights, _column(table, "tokens")[0], offsets), shape=(len(table), width))


def _read_multi_vector(table: Any, width: int) -> MultiVectors:
    values, offsets = _column(table, "multi_vector")
    return MultiVectors(values.reshape(-1, width), offsets // width)


_READ: Mapping[str, Any] = {"dense": _read_dense, "sparse": _read_sparse, "multi_vector": _read_multi_vector}


def _parquet() -> Any:
    return import_optional("pyarrow", extra="ray", module="pyarrow.parquet")
