"""EncoderPool: several devices as one encoder, a process for each, which takes a call's texts parcel by parcel."""

from __future__ import annotations

import re
import warnings
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from functools import cached_property, partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from tqdm import tqdm

from m3_integrations.core.encoded import Encoded, Mode, MultiVectors
from m3_integrations.core.encoder import Dtype, check_texts
from m3_integrations.core.encoder_crew import Crew, EncoderInTurn, Facts, Reply, started
from m3_integrations.core.errors import M3Warning
from m3_integrations.core.exported import Backend
from m3_integrations.core.model import Pooling

Device: TypeAlias = "str | torch.device"
Rows: TypeAlias = npt.NDArray[np.int64]

# Of a parcel, in bytes of text, four of which are a token, about: a call of less is not divided, and no parcel is more.
_LEAST, _MOST = 1 << 12, 1 << 17
_PARCELS_EACH = 4  # that a device takes of a call, at least: the last of them is what the others wait for
_FRAME = 8  # what the special tokens of a text count, in bytes
_PLACE = re.compile(r"(?<=the text at position )\d+|(?<=first in row )\d+")
_COUNTED = re.compile(r"(?:(\d+) of \d+ (?=texts))?(.*)", re.DOTALL)


class EncoderPool:
    """The Encoder over several devices: each has a process with an M3Encoder of its own, and a call's texts are shared.

    Texts go out in parcels, the longest first, of which each process takes the next when it is free; a call of few
    texts is one parcel. Vectors come back in the caller's order and are those of one M3Encoder, but for the rounding
    that another batch brings. Safe to call from many threads. Processes are spawned: in a script, make the pool below
    `if __name__ == "__main__":`. Close it, or use it in a `with`; its processes end with this one whatever happens.
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
        window_overlap: int | None = None,
        cls_every: int | None = None,
        backend: Backend = "torch",
        exported: str | Path | None = None,
        token_pooling: int = 1,
    ) -> None:
        """devices: such as ["cuda:0", "cuda:1"], a process for each; None takes every CUDA device, else "cpu" once.

        All else as in `M3Encoder.from_pretrained`, which raises likewise. Processes on "cpu" share its threads.
        Raises WorkerLost where a process ends before it has read the model.
        """
        self.devices = _devices(devices, backend)
        load = partial(
            EncoderInTurn.from_pretrained,
            model,
            dtype=dtype,
            max_length=max_length,
            batch_tokens=batch_tokens,
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            revision=revision,
            pooling=pooling,
            window_overlap=window_overlap,
            cls_every=cls_every,
            backend=backend,
            exported=exported,
            token_pooling=token_pooling,
        )
        workers = started(load, self.devices, one_by_one=exported is not None)
        self._facts: Facts = workers[0].ready.value
        for warning in workers[0].ready.heard:
            warnings.warn(warning, stacklevel=2)
        self._crew = Crew(workers)
        self._close = weakref.finalize(self, self._crew.close)

    @property
    def name(self) -> str:
        """The checkpoint, as it was asked for."""
        return self._facts.name

    @property
    def modes(self) -> frozenset[Mode]:
        return self._facts.modes

    @property
    def weights(self) -> Mapping[Mode, float]:
        return dict(self._facts.weights)

    @property
    def max_length(self) -> int:
        """The tokens that it reads of a text, prefix and special tokens among them."""
        return self._facts.max_length

    @property
    def batch_tokens(self) -> int:
        """The tokens of a forward pass, those of all devices."""
        return self._facts.batch_tokens * len(self.devices)

    @property
    def dim(self) -> int:
        return self._facts.dim

    @property
    def width(self) -> int:
        return self._facts.width

    @property
    def vocab_size(self) -> int:
        return self._facts.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        (asked,) = self._crew.ask([attrgetter("fingerprint")])
        return str(asked.result().value)

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode questions, in the caller's order.

        Raises and warns as `M3Encoder.encode_queries`, the positions being those of `texts`; WorkerLost where a process
        was killed or crashed, after which the pool is at its end; ValueError when it is closed.
        """
        return self._encode("encode_queries", texts, modes, show_progress)

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode texts to be found, likewise."""
        return self._encode("encode_passages", texts, modes, show_progress)

    def close(self) -> None:
        """End the processes; what is being encoded has 5 seconds. To close again does nothing."""
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
        modes: Collection[Mode] | None,
        show_progress: bool,
    ) -> Encoded:
        given = list(check_texts(texts))
        parcels = _parcels(given, len(self.devices))
        asked = self._crew.ask([methodcaller(method, [given[i] for i in rows], modes) for rows in parcels])
        try:
            with tqdm(total=len(given), desc="encode", unit="text", disable=not show_progress) as bar:
                rows_of = dict(zip(asked, parcels, strict=True))
                for each in as_completed(asked):
                    _raise_placed(each, rows_of[each])
                    bar.update(len(rows_of[each]))
        finally:
            for each in asked:
                each.cancel()
        replies = [each.result() for each in asked]
        for warning in _as_one([heard for reply in replies for heard in reply.heard], len(given)):
            warnings.warn(warning, stacklevel=3)
        return _in_order(parcels, [reply.value for reply in replies])


def _devices(devices: Sequence[Device] | None, backend: Backend) -> list[str]:
    if isinstance(devices, (str, torch.device)):
        raise TypeError(f"devices is a sequence, got {devices!r}; write devices=[{str(devices)!r}]")
    if devices is None:
        found = torch.cuda.device_count() if backend == "torch" else 0
        return [f"cuda:{i}" for i in range(found)] or ["cpu"]
    if not devices:
        raise ValueError(
            "devices is empty; name at least one, such as 'cuda:0', or leave it out for all that there are"
        )
    return [str(device) for device in devices]


def _parcels(texts: Sequence[str], devices: int) -> list[Rows]:
    """The rows of each parcel: the longest texts first, and parcels small enough for devices to finish together."""
    sizes = np.array([_FRAME + len(text.encode()) for text in texts], np.int64)
    if sizes.sum() <= _LEAST:
        return [np.arange(len(texts))]
    room = min(max(_LEAST, int(sizes.sum()) // (devices * _PARCELS_EACH)), _MOST)
    longest_first = np.argsort(-sizes, kind="stable")
    parcel = np.cumsum(sizes[longest_first]) // room
    return np.split(longest_first, np.flatnonzero(np.diff(parcel)) + 1)


def _in_order(parcels: Sequence[Rows], parts: Sequence[Encoded]) -> Encoded:
    """What each parcel became, as one in the caller's order."""
    if len(parts) == 1:
        return parts[0]
    places, modes = np.argsort(np.concatenate(parcels)), parts[0].modes
    dense = np.concatenate([part.dense for part in parts])[places] if "dense" in modes else None
    sparse = scipy.sparse.vstack([part.sparse for part in parts], "csr")[places] if "sparse" in modes else None
    return Encoded(dense, sparse, _ragged(places, parts) if "multi_vector" in modes else None)


def _ragged(places: Rows, parts: Sequence[Encoded]) -> MultiVectors:
    # Not join and take, which copy each vector twice more: they are most of what is encoded.
    texts = [text for part in parts for text in part.multi_vector]
    return MultiVectors.of([texts[i] for i in places])


def _raise_placed(reply: Future[Reply], rows: Rows) -> None:
    """Raise what a parcel raised, its positions being those of the caller's texts."""
    try:
        reply.result()
    except Exception as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (_PLACE.sub(lambda place: str(rows[int(place[0])]), error.args[0], count=1),)
        raise


def _as_one(heard: Iterable[M3Warning], texts: int) -> list[M3Warning]:
    """The warnings of a call's parcels as those of one call: how many texts they are about is added up."""
    counts: Counter[tuple[type[M3Warning], str]] = Counter()
    for each in heard:
        counted = _COUNTED.fullmatch(str(each))
        assert counted is not None
        counts[type(each), counted[2]] += int(counted[1] or 0)
    return [kind(f"{some} of {texts} {rest}" if some else rest) for (kind, rest), some in counts.items()]
