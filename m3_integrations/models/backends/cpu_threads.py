"""Number of threads for torch on a CPU, within the quota of a container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def limit_threads() -> None:
    """Lower torch's number of threads to the CPUs that this process may use.

    torch counts the cores of the machine; more threads than a container's quota wait for each other. A number set by
    OMP_NUM_THREADS or MKL_NUM_THREADS stays.
    """
    if not any(variable in os.environ for variable in _VARIABLES):
        torch.set_num_threads(min(available_cpus(), torch.get_num_threads()))


def available_cpus(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return the number of CPUs that this process may use: its affinity and its cgroup's quota, at least 1.

    Args:
        cgroups: Mount point of the cgroup file systems, version 1 or 2.
        own: File that lists the cgroups of this process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the CPU quota, in CPUs, of each cgroup of this process and of its ancestors."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups if not controllers else next(iter(cgroups.glob(f"{controllers}*")), cgroups / "cpu")
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(root):
                yield from _quota(each)


def _quota(folder: Path) -> Iterator[float]:
    second_version = _read(folder / "cpu.max").split()
    limit, period = second_version or (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
    if limit.strip().isdigit() and period.strip().isdigit() and int(period):
        yield int(limit) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
