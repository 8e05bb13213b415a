"""Every disk that a power cut may leave is opened and compared with an index in memory.

python -m tests.faults.power_loss           every cut: some thousand disks
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

from m3_integrations.index.local.index import LocalIndex
from m3_integrations.nudging.nudger import Nudger
from tests.faults import workload
from tests.faults.disk import CHANGES, Disk, Operation, outcomes, read_trace
from tests.faults.recorder import record
from tests.faults.workload import ENCODER, References, references, stored, vectors

INDEX = "new/index"  # two folders that the index creates


class Sync(NamedTuple):
    """Syncs of files of one kind, and a step of the workload that needs them."""

    is_of: Callable[[str], bool]
    step: int


def no_sync(path: str) -> bool:
    return False


# Every sync of ours, or that SQLite does because we ask for it (synchronous = FULL).
SYNCS: dict[str, Sync] = {
    "segment": Sync(lambda path: path.endswith(".segment.part"), 1),
    "index folder": Sync(lambda path: path.endswith("/index"), 1),
    "its parent folder": Sync(lambda path: path.endswith("/new"), 1),
    "the parent of that folder": Sync(lambda path: path.endswith("/disk"), 1),
    "catalog": Sync(lambda path: path.endswith("catalogue.sqlite-wal"), 1),
    "ledger": Sync(lambda path: path.endswith("nudges.sqlite-wal"), 9),
}


class Recording(NamedTuple):
    """The operations of the workload in a folder, and what an exact index holds after each step."""

    root: Path
    operations: list[Operation]
    expected: References


@cache
def recording() -> Recording:
    """Record the workload once, and check that the recorder saw every write."""
    root = Path(tempfile.mkdtemp(prefix="m3-power-")) / "disk"
    root.mkdir()
    trace = root.with_name("trace")
    record("tests.faults.workload", root, root / INDEX, trace)
    operations = read_trace(trace)
    disk = Disk(str(root))
    for operation in operations:
        disk.apply(operation)
    # SQLite maps its shared memory, of which nothing needs to survive.
    seen = {path: content for path, content in disk.contents().items() if not path.endswith("-shm")}
    actual = {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert seen == {path: content for path, content in actual.items() if not path.endswith("-shm")}
    shutil.rmtree(root.parent)
    return Recording(root, operations, references())


def cuts(operations: Sequence[Operation], forgotten: Callable[[str], bool]) -> Iterator[tuple[Disk, int, int]]:
    """Yield the disk after each operation, with the last step that was acknowledged and the last that had begun."""
    disk, done, begun = Disk(str(recording().root)), 0, 0
    for operation in operations:
        if operation.kind == "mark":
            event, number, _ = operation.path.split()
            done, begun = (int(number), begun) if event == "done" else (done, int(number))
        disk.apply(operation, is_ignored=operation.kind == "sync" and forgotten(operation.path))
        if operation.kind in CHANGES:
            yield disk, done, begun


def fault_of(folder: Path, done: int, begun: int) -> str:
    """Open a disk; return what is wrong with it, or an empty string."""
    expected = recording().expected
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with LocalIndex.open(folder, ENCODER) as index, closing(Nudger(ENCODER, index)) as nudger:
                found = stored(index, nudger.version)
                if found not in expected.nudged[done : begun + 1]:
                    return f"it holds another state than that after step {done} or {begun}"
                step = done + expected.nudged[done : begun + 1].index(found)
                index.verify()
                nudger.revert()
                if vectors(index, index.ids()) != expected.plain[step]:
                    return "its original vectors are not restored"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check(
    count: int | None = None,
    forgotten: Callable[[str], bool] = no_sync,
    *,
    steps: Collection[int] | None = None,
    kind: str | None = None,
    seed: int = 0,
    stop: bool = False,
) -> tuple[int, Counter[str]]:
    """Rebuild disks and open them.

    Args:
        count: Number of disks, drawn at random; None rebuilds all.
        forgotten: Paths of which syncs are ignored.
        steps: Steps during or after which the power is cut; None for all.
        kind: Kind of power cut, as `outcomes` names it; None for all.
        seed: Seed of what is lost and drawn.
        stop: Whether to stop at the first fault.

    Returns:
        The number of disks, and the faults.
    """
    operations, faults, disks = recording().operations, Counter[str](), 0
    total = sum(operation.kind in CHANGES for operation in operations) * len(list(outcomes(0)))
    chosen = range(total) if count is None else set(random.Random(seed).sample(range(total), min(count, total)))
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="m3-disks-", dir=_memory()) as temporary:
        for disk, done, begun in cuts(operations, forgotten):
            for name, *lost in outcomes(seed + done):
                number = next(numbers)
                if number not in chosen or kind not in (None, name):
                    continue
                if steps is not None and not {done, begun} & set(steps):
                    continue
                target = Path(temporary) / "disk"
                disk.write(target, *lost, random.Random(seed + number))
                fault = fault_of(target / INDEX, done, begun)
                shutil.rmtree(target)
                disks += 1
                if fault:
                    faults[f"{name}, after step {done}: {fault}".replace(temporary, "")] += 1
                    if stop:
                        return disks, faults
    return disks, faults


def _memory() -> str | None:
    """Return a folder in memory, where syncs take no time; None if there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> int:
    """Check every disk, or so many as the argument says, and that each forgotten sync is detected."""
    start = time.perf_counter()
    disks, faults = check(int(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{disks} disks of {len(workload.STEPS)} steps, {sum(faults.values())} inconsistent")
    for fault, count in faults.most_common(20):
        print(f"  {count} x {fault}")
    undetected = 0
    for name, sync in SYNCS.items():
        tried, found = check(forgotten=sync.is_of, steps=[sync.step], kind="all lost", stop=True)
        undetected += not found
        print(f"without the sync of {name}: {f'detected at disk {tried}' if found else 'NOT DETECTED'}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if faults or undetected else 0


if __name__ == "__main__":
    sys.exit(main())
