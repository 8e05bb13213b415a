"""Worker processes of EncoderPool: one encoder and one executor per device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch

from m3_integrations.core.encoded import Encoded, Mode, Modes, MultiVectors
from m3_integrations.core.errors import M3Warning, NonFiniteVector, WorkerLost
from m3_integrations.core.forking import ProcessBound
from m3_integrations.encoders.base import EncoderConfig
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.models.backends.base import ModelBackend
from m3_integrations.models.backends.states import PendingStates
from m3_integrations.models.conventions import CheckpointConventions
from m3_integrations.models.tokenization import TokenSequence

Rows: TypeAlias = npt.NDArray[np.int64]
Tensors: TypeAlias = dict[str, torch.Tensor]

_TASKS_PER_WORKER = 2  # one runs, the next is already in the process
_PART_BYTES = 1 << 15  # of text: while one part of a task is computed, the next is tokenized
_GRACE = 5.0  # seconds that a task may take after its pool was closed
_encoder: M3Encoder  # of a worker process
_warnings: list[M3Warning] = []  # of the task that runs in a worker process


class EncoderInfo(NamedTuple):
    """Properties of an encoder that are known without hashing its weights."""

    name: str
    modes: frozenset[Mode]
    conventions: CheckpointConventions
    dense_dim: int
    multi_vector_dim: int
    vocab_size: int
    max_length: int
    batch_tokens: int


class Response(NamedTuple):
    """Result of a task and the warnings that it issued."""

    value: Any
    warnings: list[M3Warning]


class WorkerPool:
    """One worker per device; each call's tasks go to the workers that become free.

    A call waits for one free worker at a time, so a call of few texts is not queued behind all of a long one.

    Raises:
        WorkerLost: If a process ends before it has loaded its model.
    """

    def __init__(self, config: EncoderConfig, devices: Sequence[str]) -> None:
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._error: Callable[[], Exception] | None = None
        self._process = ProcessBound("an EncoderPool")
        self._workers: list[Worker] = []
        try:
            for device in devices:
                self._workers.append(Worker(replace(config, device=device), sharing=devices.count(device)))
                if config.export_dir is not None:  # the first worker writes the files that the others read
                    self._result(self._workers[-1], self._workers[-1].loaded)
            self.loaded, *_ = [self._result(worker, worker.loaded) for worker in self._workers]
        except BaseException:
            self.close(grace=0.0)
            raise
        for worker in self._workers * _TASKS_PER_WORKER:
            self._idle.put(worker)

    def run(self, task: Callable[..., Response], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Response]]:
        """Run a task once per tuple of arguments.

        Yields:
            Each call's position and response as they finish.

        Raises:
            ValueError: If the pool is closed.
            WorkerLost: If a process has ended.
        """
        running: dict[Future[Response], tuple[int, Worker]] = {}
        try:
            for position, arguments in enumerate(calls):
                future, worker = self._submit(task, arguments)
                running[future] = position, worker
                yield from self._finished(running, timeout=0)
            while running:
                yield from self._finished(running, timeout=None)
        finally:
            for future in running:
                future.cancel()

    def close(self, grace: float = _GRACE) -> None:
        """End the processes, after at most `grace` seconds for the tasks that run."""
        if self._process.is_forked:
            return
        self._end(partial(ValueError, "this EncoderPool is closed; make another, and close it when all is encoded"))
        deadline = monotonic() + grace
        for worker in self._workers:
            worker.end(deadline)

    def _submit(self, task: Callable[..., Response], arguments: tuple[Any, ...]) -> tuple[Future[Response], Worker]:
        self._process.check()
        if self._error is not None:
            raise self._error()
        worker = self._idle.get()
        try:
            future = worker.executor.submit(task, *arguments)
        except RuntimeError as error:
            self._idle.put(worker)  # another call that waits gets the error too
            raise self._lost(worker, worker.lost_encoding) from error
        future.add_done_callback(lambda _: self._idle.put(worker))
        return future, worker

    def _finished(
        self, running: dict[Future[Response], tuple[int, Worker]], timeout: float | None
    ) -> Iterator[tuple[int, Response]]:
        for future in wait(running, timeout, FIRST_COMPLETED).done:
            position, worker = running.pop(future)
            yield position, self._result(worker, future)

    def _result(self, worker: Worker, future: Future[Response]) -> Response:
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError) as error:
            message = worker.lost_loading if future is worker.loaded else worker.lost_encoding
            raise self._lost(worker, message) from error

    def _lost(self, worker: Worker, message: str) -> Exception:
        """Return the error that ended the pool: the first, if there were several."""
        if self._error is None:
            code = worker.exit_code(monotonic() + _GRACE)
            reason = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            self._end(partial(WorkerLost, message.format(device=worker.device, reason=reason)))
        assert self._error is not None
        return self._error()

    def _end(self, error: Callable[[], Exception]) -> None:
        """Let every call fail with this error, now and later."""
        self._error = self._error or error
        for worker in self._workers:
            worker.executor.shutdown(wait=False, cancel_futures=True)


class Worker:
    """A process with an encoder on one device.

    Args:
        config: Options of the encoder, its device among them.
        sharing: Number of workers on the same device.
    """

    lost_loading = (
        "the process of the EncoderPool on {device!r} ended {reason} before it had loaded the model; its own output "
        "has the reason. In a script, make the pool below `if __name__ == '__main__':`, because each process imports "
        "the script"
    )
    lost_encoding = (
        "the process of the EncoderPool on {device!r} ended {reason}, and its texts were not encoded. If memory ran "
        "out, pass a smaller batch_tokens or fewer devices; then make another EncoderPool"
    )

    def __init__(self, config: EncoderConfig, sharing: int) -> None:
        context = _SpawnContext()
        self.device = str(config.device)
        self.executor = ProcessPoolExecutor(1, context)
        self.loaded = self.executor.submit(load, config, sharing)
        self._process = context.process

    def exit_code(self, deadline: float) -> int | None:
        """Wait until this time for the process to end; None if it runs on."""
        while (code := self._process.exitcode) is None and monotonic() < deadline:
            sleep(0.01)
        return code

    def end(self, deadline: float) -> None:
        """Kill the process unless it ends before this time."""
        if self.exit_code(deadline) is None:
            self._process.kill()
            self.exit_code(monotonic() + _GRACE)


class _SpawnContext(SpawnContext):
    """A spawn context that keeps the process it made.

    A fork of a process with threads, or with CUDA, may hang.
    """

    process: BaseProcess

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # type: ignore[override]  # a class there
        self.process = multiprocessing.get_context("spawn").Process(*args, **kwargs)
        return self.process


class SerialEncoder(M3Encoder):
    """An M3Encoder that computes one batch at a time while other threads tokenize."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._runner.backend = SerialBackend(self._runner.backend)


class SerialBackend:
    """A backend that computes one batch at a time."""

    def __init__(self, backend: ModelBackend) -> None:
        self.backend, self.is_padded, self.batches_ahead = backend, backend.is_padded, backend.batches_ahead
        self._lock = threading.Lock()

    def start(self, batch: Sequence[TokenSequence], modes: Modes) -> PendingStates:
        """Start to compute the states of a batch, after those of other threads."""
        with self._lock:
            return self.backend.start(batch, modes)


def load(config: EncoderConfig, sharing: int) -> Response:
    """Load the encoder of this process, and return its EncoderInfo."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that made the pool, and closes it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _record_warnings()
    if config.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    with _portable_errors():
        _encoder = SerialEncoder.from_config(config)
        return _respond(EncoderInfo(*(getattr(_encoder, name) for name in EncoderInfo._fields)))


def fingerprint() -> Response:
    """Return the fingerprint of this process's encoder."""
    with _portable_errors():
        return _respond(_encoder.fingerprint)


def encode(method: str, rows: Rows, texts: Sequence[str], modes: Modes | None) -> Response:
    """Encode the texts of a chunk in this process.

    Args:
        method: "encode_queries" or "encode_passages".
        rows: Position of each text in the caller's sequence.
        texts: Texts of the chunk.
        modes: As in `Encoder.encode_queries`.

    Returns:
        Tensors in shared memory, one dict for each part of the texts.
    """
    count = max(1, sum(len(text.encode()) for text in texts) // _PART_BYTES)
    step = max(1, -(-len(texts) // count))
    with _portable_errors(), ThreadPoolExecutor(2) as threads:
        parts = [slice(start, start + step) for start in range(0, max(1, len(texts)), step)]
        return _respond(list(threads.map(lambda part: _encode_part(method, rows[part], texts[part], modes), parts)))


def to_encoded(tensors: Tensors) -> Encoded:
    """Copy the tensors of a part out of shared memory."""
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    sparse = multi_vector = None
    if "shape" in arrays:
        rows = arrays["weights"], arrays["tokens"], arrays["starts"]
        sparse = scipy.sparse.csr_array(rows, shape=tuple(arrays["shape"].tolist()))
    if "vectors" in arrays:
        multi_vector = MultiVectors(arrays["vectors"], arrays["offsets"])
    return Encoded(arrays.get("dense"), sparse, multi_vector)


def _encode_part(method: str, rows: Rows, texts: Sequence[str], modes: Modes | None) -> Tensors:
    try:
        return _to_tensors(getattr(_encoder, method)(texts, modes).with_sparse_score("sum"))
    except NonFiniteVector as error:
        if error.position is not None:
            error.position = int(rows[error.position])
        raise


def _to_tensors(encoded: Encoded) -> Tensors:
    """Convert to tensors, which torch sends through shared memory, faster than pickles."""
    arrays: dict[str, Any] = {}
    if "dense" in encoded.modes:
        arrays["dense"] = encoded.dense
    if "sparse" in encoded.modes:
        rows = encoded.sparse
        arrays |= {"weights": rows.data, "tokens": rows.indices, "starts": rows.indptr}
        arrays["shape"] = torch.tensor(rows.shape).numpy()
    if "multi_vector" in encoded.modes:
        arrays |= {"vectors": encoded.multi_vector.values, "offsets": encoded.multi_vector.offsets}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _respond(value: Any) -> Response:
    recorded = list(_warnings)
    _warnings.clear()
    return Response(value, recorded)


def _record_warnings() -> None:
    """Collect this package's warnings from every thread; show others as before."""
    show_others = warnings.showwarning

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if isinstance(message, M3Warning):
            _warnings.append(message)
        else:
            show_others(message, *args, **kwargs)

    warnings.showwarning = show
    warnings.simplefilter("always", M3Warning)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # the tensors are only read


@contextmanager
def _portable_errors() -> Iterator[None]:
    """Note the traceback on an error; replace one that cannot be sent to a process."""
    try:
        yield
    except Exception as error:
        _warnings.clear()
        error.add_note(f"In the process of the EncoderPool: {traceback.format_exc()}")
        if _is_portable(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _is_portable(error: Exception) -> bool:
    try:
        copy(error)  # fails if it cannot be made again from its arguments
        ForkingPickler.dumps(error)
    except Exception:
        return False
    return True


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
