"""Passages and their embeddings as one Parquet file, and back, bit for bit.

Columns: id, text, metadata (JSON), dense (lists of length dim), tokens and weights (lists), multi_vector (flat lists of
vectors). The metadata of the schema state the dimension of each mode, the encoder's fingerprint and a digest of the
input.
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

INPUT_DIGEST = "made_of"  # key in the metadata of a file
_METADATA_KEY = b"m3_integrations"


def write_part(file: Path, passages: Sequence[Passage], encoded: Encoded, fingerprint: str, input_digest: str) -> None:
    """Write a file atomically.

    Args:
        file: File to write.
        passages: Passages.
        encoded: Their embeddings, row by row.
        fingerprint: Fingerprint of the encoder.
        input_digest: Digest of the passages and the model.

    Raises:
        ValueError: If a text has a lone surrogate, which UTF-8 cannot encode.
        MissingExtra: If pyarrow is not installed.
    """
    arrow: Any = import_optional("pyarrow", extra="files")
    metadata = {"widths": widths(encoded), "fingerprint": fingerprint, INPUT_DIGEST: input_digest}
    columns = {**_passages(arrow, passages), **_vectors(arrow, encoded)}
    table = arrow.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
    temporary = file.with_suffix(".new")
    _parquet().write_table(table, temporary, compression="zstd", use_dictionary=False)
    temporary.replace(file)


def read_part(file: Path) -> tuple[list[Passage], Encoded]:
    """Read the passages of a file and their embeddings, row by row."""
    table = _parquet().read_table(file)
    dims = json.loads(table.schema.metadata[_METADATA_KEY])["widths"]
    texts = zip(*(table[name].to_pylist() for name in ("id", "text", "metadata")), strict=True)
    passages = [Passage(id, text, json.loads(metadata)) for id, text, metadata in texts]
    return passages, Encoded(**{mode: _READERS[mode](table, dim) for mode, dim in dims.items()})


def read_part_metadata(file: Path) -> Mapping[str, Any]:
    """Read the metadata of a file: "widths", "fingerprint" and `INPUT_DIGEST`."""
    metadata: Mapping[str, Any] = json.loads(_parquet().read_schema(file).metadata[_METADATA_KEY])
    return metadata


def _passages(arrow: Any, passages: Sequence[Passage]) -> dict[str, Any]:
    try:
        return {
            "id": arrow.array([each.id for each in passages], arrow.string()),
            "text": arrow.array([each.text for each in passages], arrow.large_string()),
            "metadata": arrow.array([json.dumps(dict(each.metadata)) for each in passages], arrow.string()),
        }
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text has a lone surrogate, which Parquet cannot store: {error.object[:60]!r}; clean it with "
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
        vectors = encoded.multi_vector
        columns["multi_vector"] = _lists(arrow, vectors.values.ravel(), vectors.offsets * vectors.width)
    return columns


def _lists(arrow: Any, values: Any, offsets: Any) -> Any:
    return arrow.LargeListArray.from_arrays(arrow.array(np.asarray(offsets, np.int64)), arrow.array(values))


def _column(table: Any, name: str) -> tuple[Any, Any]:
    """Return the values and offsets of a column of lists."""
    lists = table[name].combine_chunks()
    offsets = lists.offsets.to_numpy()
    return lists.flatten().to_numpy(), offsets - offsets[0]


def _read_dense(table: Any, dim: int) -> Any:
    return _column(table, "dense")[0].reshape(-1, dim)


def _read_sparse(table: Any, dim: int) -> Any:
    weights, offsets = _column(table, "weights")
    return scipy.sparse.csr_array((weights, _column(table, "tokens")[0], offsets), shape=(len(table), dim))


def _read_multi_vector(table: Any, dim: int) -> MultiVectors:
    values, offsets = _column(table, "multi_vector")
    return MultiVectors(values.reshape(-1, dim), offsets // dim)


_READERS: Mapping[str, Any] = {"dense": _read_dense, "sparse": _read_sparse, "multi_vector": _read_multi_vector}


def _parquet() -> Any:
    return import_optional("pyarrow", extra="files", module="pyarrow.parquet")
