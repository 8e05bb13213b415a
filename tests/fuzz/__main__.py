"""Fuzzing of every reader by random edits.

python -m tests.fuzz --cases 1000000 --seed 0
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from m3_integrations.core.errors import M3Error
from tests.fuzz.limits import bounded
from tests.fuzz.mutation import damage, draw_edits
from tests.fuzz.readers import FOLDERS, MANIFEST, READERS, read_file, read_folder, read_manifest
from tests.fuzz.samples import FILES, folders, parquet_file, weight_file

FOLDER_CASES = 0.01  # share of the cases, which take a hundred times as long
SLOW = 1.0  # seconds of processor time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind of file")
    arguments = parser.parse_args()
    choice, contents = (
        random.Random(arguments.seed),
        {**FILES, "weights.bin": weight_file(), "passages.parquet": parquet_file()},
    )
    problems, counts, slowest, examples = Counter[str](), Counter[str](), (0.0, ""), 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        place, samples = Path(temporary), folders(Path(temporary) / "samples")

        def draw() -> tuple[str, Callable[[], None]]:
            edits = draw_edits(choice)
            name = arguments.only or choice.choice(
                [*FOLDERS] if choice.random() < FOLDER_CASES else [*READERS, "manifest"]
            )
            if name in FOLDERS:
                return name, lambda: read_folder(name, samples, lambda content: damage(content, edits), place)
            if name == "manifest":
                return name, lambda: read_manifest(damage(MANIFEST, edits), place)
            return name, lambda: read_file(name, damage(contents[name], edits), place)

        with bounded():
            for _, run in (draw() for _ in range(100)):  # what is loaded at first use
                with suppress(Exception):
                    run()
        for number in range(arguments.cases):
            name, run = draw()
            counts[name] += 1
            before = time.process_time()
            try:
                with bounded():
                    run()
            except M3Error:
                pass
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                where = traceback.extract_tb(error.__traceback__)[-1]
                problem = f"{name}: {type(error).__name__}: {str(error)[:120]} at {where.filename[-60:]}:{where.lineno}"
                key = f"{name}: {type(error).__name__} at {where.filename[-60:]}:{where.lineno}"
                if not problems[key] and examples < 60:
                    examples += 1
                    print(f"case {number}: {problem}", flush=True)
                problems[key] += 1
            seconds = time.process_time() - before
            if seconds > slowest[0]:
                slowest = seconds, f"{name} (case {number})"
            if seconds > SLOW:
                problems[f"{name}: over {SLOW:g} s"] += 1
            if number % 50_000 == 49_999:
                seconds = time.perf_counter() - start
                print(f"{number + 1} cases, {seconds:.0f} s, {sum(problems.values())} problems", flush=True)
    print(f"{arguments.cases} cases in {time.perf_counter() - start:.0f} s")
    print(f"slowest: {slowest[0]:.2f} s of processor time, {slowest[1]}")
    print(f"{sum(problems.values())} problems: {dict(problems.most_common(30))}")
    print(dict(counts))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
