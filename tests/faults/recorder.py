"""The shim that records file operations and makes them fail, compiled by the system's C compiler."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("shim.c")


@functools.cache
def shim() -> Path:
    """Compile the shim."""
    folder = tempfile.TemporaryDirectory(prefix="m3-shim-")
    _KEPT.append(folder)
    library = Path(folder.name, "shim.so")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    return library


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def environment(root: Path, trace: Path | None = None) -> dict[str, str]:
    """Return the environment of a process whose file operations below a folder go through the shim."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    extra = {} if trace is None else {"M3_TRACE": str(trace)}
    return {**os.environ, "LD_PRELOAD": str(shim()), "M3_ROOT": str(root), "PYTHONPATH": paths, **extra}


def record(module: str, root: Path, folder: Path, trace: Path) -> None:
    """Run a module on a folder below a root, and record its operations."""
    subprocess.run([sys.executable, "-m", module, folder], check=True, cwd=ROOT, env=environment(root, trace))
