"""Each file call of each operation fails once, or from then on, as on a failing or a full disk.

python -m tests.faults.io_errors                     every call, all precisions
python -m tests.faults.io_errors --every 40 float32  one call in forty
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from m3_integrations.core.errors import M3Error
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.nudging.nudger import Nudger
from tests.faults.recorder import ROOT, environment
from tests.faults.workload import ENCODER, STEPS, Stored, stored, vectors

PRECISIONS = ("float32", "int8", "int4")
REMEDY = re.compile(
    r"check the space|then repeat|put back a copy|wait for it to end|pass a folder|change its permissions"
)
SECONDS = 60


class Fault(NamedTuple):
    """An error, whether it stays, and whether only calls that write have it."""

    number: int
    stays: bool
    only_writes: bool

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]}{' that stays' if self.stays else ''}"


FAULTS = (
    Fault(errno.EIO, False, False),
    Fault(errno.EIO, True, False),
    Fault(errno.ENOSPC, False, True),
    Fault(errno.ENOSPC, True, True),
)


class Outcome(NamedTuple):
    """How an operation ended: its error, if any, and the calls that it made."""

    error: str
    is_ours: bool
    calls: int
    failed: bool


def attempt(folder: Path, number: int, fault: Fault | None, nth: int) -> Outcome:
    """Carry out a step in a forked process in which the nth call fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        shim, error, is_ours = ctypes.CDLL(None), "", True
        shim.m3_arm(ctypes.c_long(nth if fault else 0), *(fault or (0, False, False)))
        try:
            with LocalIndex.open(folder, ENCODER) as index:
                STEPS[number][1](index)
        except BaseException as raised:
            error, is_ours = f"{type(raised).__name__}: {raised}", isinstance(raised, M3Error)
            if not is_ours:
                error += f" at {traceback.extract_tb(raised.__traceback__)[-3:]}"
        calls, failed = shim.m3_calls(), shim.m3_failed()
        shim.m3_arm(ctypes.c_long(0), 0, 0, 0)
        os.write(writer, json.dumps(Outcome(error, is_ours, calls, bool(failed))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return Outcome(f"ended by signal {os.WTERMSIG(status)}", False, 0, True)
    return Outcome(*json.loads(answer))


class State(NamedTuple):
    """What a folder holds after a step, and its vectors without nudges."""

    stored: Stored
    plain: tuple[bytes, ...]


def read(folder: Path) -> State:
    """Return what a folder holds, and, after a revert of its nudges, the original vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LocalIndex.open(folder, ENCODER) as index, closing(Nudger(ENCODER, index)) as nudger:
            index.verify()
            found = stored(index, nudger.version)
            nudger.revert()
            return State(found, vectors(index, index.ids()))


def faults_of(outcome: Outcome, folder: Path, before: State, after: State) -> Iterator[str]:
    """Yield what is wrong after an attempt."""
    try:
        found = read(folder)
    except Exception as error:
        yield f"torn: {type(error).__name__}: {error}"
        return
    if found not in (before, after):
        yield "torn: the folder holds another state than before or after"
    if not outcome.error and found != after:
        yield "acknowledged and lost"
    if outcome.error and not outcome.is_ours:
        yield f"an error of another tree: {outcome.error}"
    if outcome.is_ours and outcome.error:
        if str(folder.parent) not in outcome.error:
            yield f"an error without a file: {outcome.error}"
        if not REMEDY.search(outcome.error):
            yield f"an error without a remedy: {outcome.error}"


def check(root: Path, precision: str, every: int) -> tuple[int, Counter[str]]:
    """Let calls of each step fail, one in `every`; return the number of failures and what was wrong after them."""
    counted, problems, turn = 0, Counter[str](), 0
    base, work = root / "base", root / "work"
    LocalIndex.open(base, ENCODER, precision={"multi_vector": precision}).close()
    copy = root.parent / "copy"
    before = _read_copy(base, copy)
    for number, (name, _) in enumerate(STEPS):
        shutil.copytree(base, work)
        for fault in FAULTS:
            shutil.rmtree(work)
            shutil.copytree(base, work)
            calls = attempt(work, number, Fault(fault.number, False, fault.only_writes), 1 << 40).calls
            after = _read_copy(work, copy)
            for nth in range(1, calls + 1):
                turn += 1
                if turn % every:
                    continue
                shutil.rmtree(work)
                shutil.copytree(base, work)
                outcome = attempt(work, number, fault, nth)
                counted += outcome.failed
                for problem in faults_of(outcome, work, before, after):
                    problems[f"{name}: {fault}: {problem}"] += 1
        shutil.rmtree(work)
        attempt(base, number, None, 0)
        before = _read_copy(base, copy)
    return counted, problems


def _read_copy(folder: Path, copy: Path) -> State:
    shutil.copytree(folder, copy)
    try:
        return read(copy)
    finally:
        shutil.rmtree(copy)


def run(every: int, precisions: Sequence[str] = PRECISIONS) -> tuple[int, Counter[str]]:
    """Run the checks in a process with the shim, and return the number of failures and what was wrong."""
    with tempfile.TemporaryDirectory(
        prefix="m3-errors-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as place:
        root = Path(place, "disk")
        root.mkdir()
        command = [sys.executable, "-m", "tests.faults.io_errors", "--every", str(every), "--root", root, *precisions]
        done = subprocess.run(command, cwd=ROOT, env=environment(root), stdout=subprocess.PIPE, text=True, check=True)
        counted, problems = json.loads(done.stdout.splitlines()[-1])
    return counted, Counter(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="let one call in so many fail")
    parser.add_argument("--root", type=Path, help="run here, in a process with the shim")
    parser.add_argument("precisions", nargs="*", default=PRECISIONS)
    arguments = parser.parse_args()
    if arguments.root is None:
        counted, problems = run(arguments.every, arguments.precisions)
        print(f"{counted} failed calls, {sum(problems.values())} problems")
        for problem, count in problems.most_common(60):
            print(f"  {count} x {problem}")
        return 1 if problems else 0
    counted, problems = 0, Counter[str]()
    for precision in arguments.precisions:
        folder = arguments.root / precision
        folder.mkdir()
        found, wrong = check(folder, precision, arguments.every)
        counted += found
        problems += wrong
    print(json.dumps([counted, problems]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
