"""Small twins of the soaks that `make soak` runs."""

from __future__ import annotations

import pytest

from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.quantization.codecs import PRECISIONS
from tests.soak.mixed import soak
from tests.soak.processes import ENCODER, ROLES, Journal, faults_of, run


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_mixture_of_operations_stays_equal_to_a_fresh_exact_index(tmp_path, precision):
    done = soak(tmp_path / "index", 150, seed=1, precision=precision, compare_every=50)
    assert (done.operations, done.comparisons) == (150, 3)


def test_processes_that_are_killed_at_random_leave_all_that_was_acknowledged(tmp_path):
    counts, faults = run(tmp_path, seconds=0, seed=1, kills=6)
    assert faults == []
    assert counts["kills"] == 6
    assert counts["journal entries"] > 0
    assert len(ROLES) == 8


def test_what_was_acknowledged_and_is_missing_is_found(tmp_path):
    LocalIndex.open(tmp_path / "index", ENCODER).close()
    journal = Journal(tmp_path, "ingest")
    journal.write("begin", 0, False, ["ingest-a"])
    assert faults_of(tmp_path) == []
    journal.write("done", 0, False, ["ingest-a"])
    assert [fault.partition(",")[0] for fault in faults_of(tmp_path)] == ["ingest-a holds None"]
