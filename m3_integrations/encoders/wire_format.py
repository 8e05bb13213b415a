"""Embeddings as the bytes of an .npz archive, as the server and RemoteEncoder exchange them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import SPARSE_SCORES, Encoded, MultiVectors

WireDtype = Literal["float32", "float16"]
MEDIA_TYPE = "application/x-npz"


def to_npz(encoded: Encoded, dtype: WireDtype = "float32") -> bytes:
    """Return embeddings as an uncompressed .npz archive, which `numpy.load` reads.

    The arrays are `dense`, shape (n, dim); `sparse_weights`, `sparse_indices`, `sparse_offsets` and `sparse_shape` of a
    CSR matrix; `multi_vector`, shape (total, dim), and `multi_vector_offsets`; and `sparse_score`, "sum" or "mean".

    Args:
        encoded: The embeddings; sparse weights are written as the model gives them.
        dtype: Type of the numbers; float32 is exact.
    """
    arrays: dict[str, Any] = {"sparse_score": np.array(encoded.sparse_score)}
    if "dense" in encoded.modes:
        arrays["dense"] = encoded.dense.astype(dtype, copy=False)
    if "sparse" in encoded.modes:
        rows = encoded.with_sparse_score("sum").sparse
        arrays["sparse_weights"] = rows.data.astype(dtype, copy=False)
        arrays["sparse_indices"] = rows.indices.astype(np.int32, copy=False)
        arrays["sparse_offsets"] = rows.indptr.astype(np.int64, copy=False)
        arrays["sparse_shape"] = np.array(rows.shape, np.int64)
    if "multi_vector" in encoded.modes:
        arrays["multi_vector"] = encoded.multi_vector.values.astype(dtype, copy=False)
        arrays["multi_vector_offsets"] = encoded.multi_vector.offsets
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def from_npz(data: bytes) -> Encoded:
    """Read embeddings as `to_npz` writes them; nothing is unpickled.

    Raises:
        ValueError: If the bytes are not such an archive.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return _encoded({name: arrays[name] for name in arrays.files})
    except (KeyError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{len(data):,} bytes are not an .npz archive of embeddings: {error}") from error


def _encoded(arrays: Mapping[str, Any]) -> Encoded:
    parts: dict[str, Any] = {}
    if "dense" in arrays:
        parts["dense"] = arrays["dense"].astype(np.float32)
    if "sparse_weights" in arrays:
        stored = arrays["sparse_weights"].astype(np.float32), arrays["sparse_indices"], arrays["sparse_offsets"]
        rows, columns = arrays["sparse_shape"].tolist()
        parts["sparse"] = scipy.sparse.csr_array(stored, shape=(rows, columns))
    if "multi_vector" in arrays:
        parts["multi_vector"] = MultiVectors(arrays["multi_vector"], arrays["multi_vector_offsets"])
    sparse_score = str(arrays["sparse_score"])
    if sparse_score not in SPARSE_SCORES:
        raise ValueError(f"sparse_score is {sparse_score!r}")
    return Encoded(**parts).with_sparse_score("mean" if sparse_score == "mean" else "sum")
