"""`make parity` fails if comparisons are skipped or missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
def test_agrees(): pass
def test_agrees_too(): pass
def test_skipped(): pytest.skip("the peer is not installed")
@pytest.mark.xfail
def test_differs(): assert False
"""


@pytest.mark.parametrize(("minimum", "status"), [(2, 0), (3, 1)])
def test_only_tests_that_passed_count(tmp_path, minimum, status):
    file = tmp_path / "test_peer.py"
    file.write_text(TESTS)
    options = ["-p", "tests.parity.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--min-comparisons={minimum}", str(file)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert "2 test_peer" in done.stdout
    assert f"2 in all; at least {minimum} must pass" in done.stdout
