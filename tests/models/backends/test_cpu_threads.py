"""The number of threads follows affinity and the quota of cgroups, version 1 and 2."""

from __future__ import annotations

import os

import pytest
import torch

from m3_integrations.models.backends.cpu_threads import available_cpus, limit_threads

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def machine(tmp_path):
    """A function that writes cgroup files and returns the number of CPUs available with them."""

    def cpus(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_cpus(tmp_path / "cgroup", tmp_path / "own")

    return cpus


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", CPUS)])
def test_the_quota_of_version_2_counts(machine, quota, expected):
    assert machine("0::/app\n", {"app/cpu.max": quota}) == expected


def test_the_quota_of_an_ancestor_counts(machine):
    assert machine("0::/pod/app\n", {"pod/cpu.max": "100000 100000\n", "pod/app/cpu.max": "max 100000\n"}) == 1


def test_the_quota_of_a_container_at_its_root_counts(machine):
    assert machine("0::/\n", {"cpu.max": "100000 100000\n"}) == 1


@pytest.mark.parametrize(("quota", "expected"), [("100000\n", 1), ("-1\n", CPUS)])
def test_the_quota_of_version_1_counts(machine, quota, expected):
    own = "5:memory:/app\n4:cpu,cpuacct:/app\n"
    files = {"cpu,cpuacct/app/cpu.cfs_quota_us": quota, "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n"}
    assert machine(own, files) == expected


@pytest.mark.parametrize("files", [{}, {"app/cpu.max": ""}, {"app/cpu.max": "100000 0"}, {"app/cpu.max": "x y"}])
def test_a_missing_or_unreadable_quota_limits_nothing(machine, files):
    assert machine("0::/app\n", files) == CPUS


def test_torch_uses_no_more_threads_than_cpus(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(available_cpus() + 3)
        limit_threads()
        assert torch.get_num_threads() == available_cpus()
        torch.set_num_threads(1)
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_number_of_threads_from_the_environment_stays(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    try:
        torch.set_num_threads(available_cpus() + 3)
        limit_threads()
        assert torch.get_num_threads() == available_cpus() + 3
    finally:
        torch.set_num_threads(before)
