"""Processes with an encoder each: what is asked of them waits here, crosses over, and comes back as raw arrays."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from functools import cached_property, partial
from itertools import count
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch

from m3_integrations.core.encoded import Encoded, Mode, MultiVectors
from m3_integrations.core.encoder import M3Encoder
from m3_integrations.core.errors import M3Error, M3Warning
from m3_integrations.core.gathering import StateArrays
from m3_integrations.core.sequences import TokenSequence

Lane: TypeAlias = "multiprocessing.connection.Connection[Any, Any]"
Load: TypeAlias = Callable[..., M3Encoder]
Request: TypeAlias = Callable[[M3Encoder], Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

# Two requests a process: while one is computed, the other is tokenised, or its vectors are on their way.
_LANES = 2
# A connection asks for all that is left of a message, again and again: 125 MB came at 0.7 GB a second whole, and at 3.5
# in pieces of this size.
_PIECE = 1 << 18
_GRACE = 5.0  # seconds in which a process that is told to end may finish what it has


class WorkerLost(M3Error):
    """A process of an EncoderPool ended without being asked to."""


class _Task(NamedTuple):
    """A parcel that waits, or another question. Those of small calls come first: a query does not wait for a corpus."""

    parcels: int
    number: int
    request: Request
    answer: Future[Reply]


class Crew:
    """The processes, and what waits for them. A thread a lane carries it there and back."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._waiting: list[_Task] = []
        self._numbers = count()
        self._change = threading.Condition()
        self._end: Callable[[], Exception] | None = None
        self._process = os.getpid()
        for worker in workers:
            for lane in worker.lanes:
                threading.Thread(target=self._carry_all, args=(worker, lane), daemon=True).start()

    def ask(self, requests: Sequence[Request]) -> list[Future[Reply]]:
        """What an encoder answers to each. Raises what the crew ended with."""
        with self._change:
            if self._end is not None:
                raise self._end()
            tasks = [_Task(len(requests), next(self._numbers), each, Future()) for each in requests]
            for task in tasks:
                heapq.heappush(self._waiting, task)
            self._change.notify_all()
        return [task.answer for task in tasks]

    def close(self) -> None:
        if os.getpid() != self._process:  # in a fork: the processes are another's
            return
        self._end_with(
            partial(ValueError, "this EncoderPool is closed; make another, and close it when all is encoded")
        )
        until = monotonic() + _GRACE
        for worker in self._workers:
            worker.end(max(0.0, until - monotonic()))

    def _end_with(self, error: Callable[[], Exception]) -> None:
        """Nothing more is taken, what waits fails, and a lane is closed when it is free: so the processes end."""
        with self._change:
            self._end = self._end or error
            left, self._waiting = self._waiting, []
            self._change.notify_all()
        for task in left:
            if task.answer.set_running_or_notify_cancel():
                task.answer.set_exception(error())

    def _carry_all(self, worker: Worker, lane: Lane) -> None:
        with lane:
            while (task := self._next(worker)) is not None:
                if task.answer.set_running_or_notify_cancel():
                    self._carry(worker, lane, task)
                with self._change:
                    worker.busy -= 1
                    self._change.notify_all()

    def _carry(self, worker: Worker, lane: Lane, task: _Task) -> None:
        try:
            task.answer.set_result(worker.ask(lane, task.request))
        except Exception as error:
            if isinstance(error, WorkerLost):
                self._end_with(partial(WorkerLost, str(error)))
            task.answer.set_exception(error)

    def _next(self, worker: Worker) -> _Task | None:
        """What this worker does next, once there is something and no other worker is less busy; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._end is not None or (self._waiting and self._is_free(worker)))
            if self._end is not None:
                return None
            worker.busy += 1
            self._change.notify_all()
            return heapq.heappop(self._waiting)

    def _is_free(self, worker: Worker) -> bool:
        return worker.busy == min(each.busy for each in self._workers)


class Worker:
    """A process with an encoder on its device, and the lanes that lead there, each for one parcel at a time."""

    def __init__(self, load: Load, device: str, sharing: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with CUDA, may hang
        pairs = [context.Pipe() for _ in range(_LANES)]
        theirs = [end for _, end in pairs]
        self.device = device
        self.lanes: list[Lane] = [end for end, _ in pairs]
        self.busy = 0
        self._ending = threading.Lock()  # of two threads that wait for a process one would not learn how it ended
        self.process = context.Process(target=_serve, args=(load, device, sharing, theirs), daemon=True)
        self.process.start()
        for end in theirs:
            end.close()  # else the end of the process would not be seen

    @cached_property
    def ready(self) -> Reply:
        """The Facts of its encoder, once that is read. Raises what the reading raised; WorkerLost."""
        try:
            return _opened(_received(self.lanes[0]))
        except _Cut as cut:
            raise self._lost(
                "before it had read the model; what it wrote says why. A script makes its pool below "
                "`if __name__ == '__main__':`, because each process reads the script once more"
            ) from cut

    def ask(self, lane: Lane, request: Request) -> Reply:
        """What its encoder answers. Raises what the encoder raised; WorkerLost."""
        try:
            with _cut():
                lane.send(request)
            return _opened(_received(lane))
        except _Cut as cut:
            raise self._lost(
                "and the texts that it had were not encoded. Where memory ran out, pass a smaller batch_tokens or "
                "fewer devices; then make the EncoderPool anew"
            ) from cut

    def end(self, grace: float) -> None:
        """Wait for it so many seconds, and no longer."""
        with self._ending:
            self.process.join(grace)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()

    def _lost(self, what: str) -> WorkerLost:
        with self._ending:
            self.process.join(_GRACE)
            code = self.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerLost(f"the process of the EncoderPool on {self.device!r} ended {how}, {what}")


def started(load: Load, devices: Sequence[str], *, one_by_one: bool) -> list[Worker]:
    """A worker on each device, its model read. one_by_one: the first writes what the others find."""
    workers: list[Worker] = []
    try:
        for device in devices:
            workers.append(Worker(load, device, sharing=devices.count(device)))
            if one_by_one:
                _ = workers[-1].ready
        for worker in workers:
            _ = worker.ready
    except BaseException:
        for worker in workers:
            worker.end(grace=0.0)
        raise
    return workers


class Facts(NamedTuple):
    """What an encoder says of itself without reading its weights."""

    name: str
    modes: frozenset[Mode]
    weights: Mapping[Mode, float]
    dim: int
    width: int
    vocab_size: int
    max_length: int
    batch_tokens: int

    @classmethod
    def of(cls, encoder: M3Encoder) -> Facts:
        return cls(*(getattr(encoder, field) for field in cls._fields))


class Reply(NamedTuple):
    """What a process answers, or the error; and the warnings on the way there."""

    value: Any
    heard: list[M3Warning]


class _Shape(NamedTuple):
    """How an array is read that follows."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def _send(lane: Lane, value: Any, heard: list[M3Warning]) -> None:
    arrays = _arrays_of(value) if isinstance(value, Encoded) else {}
    shapes = [_Shape(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    lane.send((Reply(None if arrays else value, heard), shapes))
    for array in arrays.values():
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(octets), _PIECE):
            lane.send_bytes(octets.data, start, min(_PIECE, len(octets) - start))


def _received(lane: Lane) -> Reply:
    """What `_send` sent at the other end."""
    with _cut():
        reply, shapes = lane.recv()
        arrays = {name: np.empty(shape, dtype) for name, dtype, shape in shapes}
        for array in arrays.values():
            octets, filled = array.reshape(-1).view(np.uint8), 0
            while filled < len(octets):
                filled += lane.recv_bytes_into(octets.data, filled)
    return Reply(_encoded_of(arrays), reply.heard) if arrays else reply


def _opened(reply: Reply) -> Reply:
    if isinstance(reply.value, Exception):
        raise reply.value
    return reply


class _Cut(Exception):
    """A lane's other end is gone."""


@contextmanager
def _cut() -> Iterator[None]:
    # What the encoder itself raises, an OSError too, comes as a reply: these are of the lane.
    try:
        yield
    except (EOFError, OSError) as error:
        raise _Cut from error


def _arrays_of(encoded: Encoded) -> Arrays:
    arrays: Arrays = {}
    if "dense" in encoded.modes:
        arrays["dense"] = encoded.dense
    if "sparse" in encoded.modes:
        rows = encoded.sparse
        arrays |= {"weights": rows.data, "tokens": rows.indices, "starts": rows.indptr, "shape": np.array(rows.shape)}
    if "multi_vector" in encoded.modes:
        arrays |= {"vectors": encoded.multi_vector.values, "offsets": encoded.multi_vector.offsets}
    return arrays


def _encoded_of(arrays: Arrays) -> Encoded:
    sparse = multi_vector = None
    if "shape" in arrays:
        parts = arrays["weights"], arrays["tokens"], arrays["starts"]
        sparse = scipy.sparse.csr_array(parts, shape=tuple(arrays["shape"].tolist()))
    if "vectors" in arrays:
        multi_vector = MultiVectors(arrays["vectors"], arrays["offsets"])
    return Encoded(arrays.get("dense"), sparse, multi_vector)


class EncoderInTurn(M3Encoder):
    """Computes one batch at a time, so that memory holds one: threads tokenise and gather beside it."""

    _turn = threading.Lock()  # there is one such encoder in a process

    def _states(self, batch: Sequence[TokenSequence], modes: frozenset[Mode]) -> StateArrays:
        with self._turn:
            return super()._states(batch, modes)


class _Hearing(threading.local):
    """The package's warnings in a thread: `warnings.catch_warnings` is made for one thread alone."""

    def __init__(self) -> None:
        self.heard: list[M3Warning] = []

    def take(self) -> list[M3Warning]:
        taken, self.heard = self.heard, []
        return taken

    def begin(self) -> None:
        """Hear them from now on, in every thread; other warnings are shown as before."""
        shown = warnings.showwarning

        def show(message: Warning | str, *others: Any, **named: Any) -> None:
            if isinstance(message, M3Warning):
                self.heard.append(message)
            else:
                shown(message, *others, **named)

        warnings.simplefilter("always", M3Warning)
        warnings.showwarning = show


def _serve(load: Load, device: str, sharing: int, lanes: Sequence[Lane]) -> None:
    """A process's work: to read the model, say what it is, and answer on each lane until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the one that made the pool, who closes it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hearing = _Hearing()
    hearing.begin()
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    with suppress(OSError):  # of the lane
        encoder = _try(lanes[0], hearing, partial(load, device=device))
        if encoder is not None:
            _send(lanes[0], Facts.of(encoder), hearing.take())
            with ThreadPoolExecutor(len(lanes)) as threads:
                list(threads.map(partial(_answer_all, encoder, hearing), lanes))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever is being computed is for nobody


def _answer_all(encoder: M3Encoder, hearing: _Hearing, lane: Lane) -> None:
    with lane, suppress(EOFError, OSError):  # of the lane: nobody is at its other end
        while True:
            request: Request = lane.recv()
            value = _try(lane, hearing, partial(request, encoder))
            if value is not None:
                _send(lane, value, hearing.take())


def _try(lane: Lane, hearing: _Hearing, work: Callable[[], Any]) -> Any:
    """What the work gives; None where it failed, which is sent."""
    try:
        return work()
    except Exception as error:
        error.add_note(f"In the process of the EncoderPool: {traceback.format_exc()}")
        _send_error(lane, error, hearing.take())
        return None


def _send_error(lane: Lane, error: Exception, heard: list[M3Warning]) -> None:
    try:
        _send(lane, copy(error), heard)  # what cannot be copied cannot be read at the other end
    except OSError:  # of the lane
        raise
    except Exception:  # one that does not travel, by whatever it holds
        _send(lane, RuntimeError(f"{type(error).__name__}: {error}"), heard)
