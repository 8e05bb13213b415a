"""EncoderPool: data-parallel encoding over several devices, one process each."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from tqdm import tqdm

from m3_integrations.core.encoded import Encoded, Mode, Modes, MultiVectors, SparseScore
from m3_integrations.core.errors import M3Warning, TextsTruncated
from m3_integrations.encoders.base import Dtype, EncoderConfig, WindowOverlap, check_texts, weights_of_modes
from m3_integrations.encoders.pool_workers import EncoderInfo, WorkerPool, encode, fingerprint, to_encoded
from m3_integrations.models.backends.exported import Backend
from m3_integrations.models.conventions import Pooling

Device: TypeAlias = "str | torch.device"
Rows: TypeAlias = npt.NDArray[np.int64]

# Bytes of text in a chunk; about four are a token. A call of fewer than the minimum is one chunk.
_MIN_CHUNK, _MAX_CHUNK = 1 << 12, 1 << 17
_CHUNKS_PER_DEVICE = 4  # at least, so that no device waits long for the last chunk of another
_SPECIAL_TOKENS = 8  # bytes that the special tokens of a text count as


class EncoderPool:
    """An Encoder over several devices, with one process and M3Encoder per device.

    Texts are divided into chunks, longest texts first, and each process takes the next chunk when it is free; a call
    of few texts is one chunk. Vectors are returned in the order of the texts and equal those of one M3Encoder, up to
    the rounding of other batch shapes. Calls from several threads are safe. Processes are spawned: in a script, make
    the pool below `if __name__ == "__main__":`. Close the pool or use it in a `with`; its processes end with this
    process in any case.

    Args:
        model: As in `EncoderConfig`, like every option but `devices`.
        devices: Devices such as ["cuda:0", "cuda:1"], with one process each; processes on "cpu" share its threads.
            None takes every CUDA device, or "cpu" once.

    Raises:
        WorkerLost: If a process ends before it has loaded the model.
        CheckpointError: As in `M3Encoder.from_pretrained`, like other errors of the options.
    """

    def __init__(
        self,
        model: str = "m3-mini",
        *,
        devices: Sequence[Device] | None = None,
        dtype: Dtype | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        revision: str | None = None,
        pooling: Pooling | None = None,
        window_overlap: WindowOverlap = None,
        mcls_interval: int | None = None,
        backend: Backend = "torch",
        export_dir: str | Path | None = None,
        token_pooling: int = 1,
        truncate_dim: int | None = None,
    ) -> None:
        self.devices = _device_names(devices, backend)
        self.config = EncoderConfig(
            model,
            dtype=dtype,
            max_length=max_length,
            batch_tokens=batch_tokens,
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            revision=revision,
            pooling=pooling,
            window_overlap=window_overlap,
            mcls_interval=mcls_interval,
            backend=backend,
            export_dir=export_dir,
            token_pooling=token_pooling,
            truncate_dim=truncate_dim,
        )
        self._workers = WorkerPool(self.config, self.devices)
        self._info: EncoderInfo = self._workers.loaded.value
        self._close = weakref.finalize(self, self._workers.close)
        for warning in self._workers.loaded.warnings:
            warnings.warn(warning, stacklevel=2)

    @property
    def name(self) -> str:
        """Name of the checkpoint, as passed to the constructor."""
        return self._info.name

    @property
    def modes(self) -> frozenset[Mode]:
        return self._info.modes

    @property
    def weights(self) -> Mapping[Mode, float]:
        return self.weights_for(self.modes)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        stated = self._info.conventions
        return weights_of_modes(self.modes & frozenset(modes), stated.weights, stated.pair_weights)

    @property
    def sparse_score(self) -> SparseScore:
        """Convention of the checkpoint for sparse scores, see `SearchPlan`."""
        return self._info.conventions.sparse_score

    @property
    def max_length(self) -> int:
        """Maximum length of a text in tokens, including prefix and special tokens."""
        return self._info.max_length

    @property
    def batch_tokens(self) -> int:
        """Tokens per forward pass, summed over all devices."""
        return self._info.batch_tokens * len(self.devices)

    @property
    def dense_dim(self) -> int:
        return self._info.dense_dim

    @property
    def multi_vector_dim(self) -> int:
        return self._info.multi_vector_dim

    @property
    def vocab_size(self) -> int:
        return self._info.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        ((_, response),) = self._workers.run(fingerprint, [()])
        return str(response.value)

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries as `M3Encoder.encode_queries` does, with its warnings and errors.

        Raises:
            WorkerLost: If a process was killed or crashed; the pool cannot be used any more.
            ValueError: If the pool is closed.
        """
        return self._encode("encode_queries", texts, modes, show_progress).with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages; arguments, result and errors as in `encode_queries`."""
        return self._encode("encode_passages", texts, modes, show_progress)

    def close(self) -> None:
        """End the processes; running calls have 5 seconds to finish. Closing twice does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an EncoderPool stays in the process that made it; give the other process the model's name and a device"
        )

    def __repr__(self) -> str:
        return f"EncoderPool({self.name!r}, devices={self.devices!r})"

    def _encode(
        self,
        method: Literal["encode_queries", "encode_passages"],
        texts: Sequence[str],
        modes: Modes | None,
        show_progress: bool,
    ) -> Encoded:
        texts = list(check_texts(texts))
        chunks = _split_into_chunks(texts, len(self.devices))
        calls = [(method, rows, [texts[i] for i in rows], modes) for rows in chunks]
        parts: dict[int, list[Encoded]] = {}
        recorded: list[M3Warning] = []
        with tqdm(total=len(texts), desc="encode", unit="text", disable=not show_progress) as bar:
            for chunk, response in self._workers.run(encode, calls):
                parts[chunk] = [to_encoded(tensors) for tensors in response.value]
                recorded += response.warnings
                bar.update(len(chunks[chunk]))
        for warning in _merge_warnings(recorded, len(texts)):
            warnings.warn(warning, stacklevel=3)
        return _restore_order(np.concatenate(chunks), [part for chunk in range(len(chunks)) for part in parts[chunk]])


def _device_names(devices: Sequence[Device] | None, backend: Backend) -> list[str]:
    if isinstance(devices, (str, torch.device)):
        raise TypeError(f"devices is a sequence, got {devices!r}; write devices=[{str(devices)!r}]")
    if devices is None:
        count = torch.cuda.device_count() if backend == "torch" else 0
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if not devices:
        raise ValueError("devices is empty; name at least one, such as 'cuda:0', or leave it out to use all of them")
    return [str(device) for device in devices]


def _split_into_chunks(texts: Sequence[str], devices: int) -> list[Rows]:
    """Return the rows of each chunk, longest texts first.

    Chunks are small enough for devices to finish together.
    """
    sizes = np.array([_SPECIAL_TOKENS + len(text.encode()) for text in texts], np.int64)
    if sizes.sum() <= _MIN_CHUNK:
        return [np.arange(len(texts))]
    size = min(max(_MIN_CHUNK, int(sizes.sum()) // (devices * _CHUNKS_PER_DEVICE)), _MAX_CHUNK)
    longest_first = np.argsort(-sizes, kind="stable")
    chunk = np.cumsum(sizes[longest_first]) // size
    return np.split(longest_first, np.flatnonzero(np.diff(chunk)) + 1)


def _restore_order(rows: Rows, parts: Sequence[Encoded]) -> Encoded:
    """Join parts whose texts are these rows of the call, in the order of the call."""
    order, modes = np.argsort(rows), parts[0].modes
    if len(parts) == 1 and np.all(rows[:-1] < rows[1:]):
        return parts[0]
    dense = np.concatenate([part.dense for part in parts])[order] if "dense" in modes else None
    sparse = scipy.sparse.vstack([part.sparse for part in parts], "csr")[order] if "sparse" in modes else None
    return Encoded(dense, sparse, _take_multi_vectors(order, parts) if "multi_vector" in modes else None)


def _take_multi_vectors(order: Rows, parts: Sequence[Encoded]) -> MultiVectors:
    # Encoded.join and take would copy each vector twice more, and vectors are most of the data.
    texts = [text for part in parts for text in part.multi_vector]
    return MultiVectors.of([texts[i] for i in order])


def _merge_warnings(recorded: Iterable[M3Warning], texts: int) -> list[M3Warning]:
    """Merge the warnings of chunks: add up truncated texts, give equal warnings once."""
    truncated: Counter[str] = Counter()
    others: dict[tuple[type[M3Warning], str], M3Warning] = {}
    for warning in recorded:
        if isinstance(warning, TextsTruncated):
            truncated[warning.advice] += warning.count
        else:
            others[type(warning), str(warning)] = warning
    return [*(TextsTruncated(count, texts, advice) for advice, count in truncated.items()), *others.values()]
