"""After a power cut at any point, a folder holds the last acknowledged state; run by `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.power_loss import SYNCS, check

pytestmark = pytest.mark.faults


def test_after_a_power_cut_the_folder_holds_the_last_acknowledged_state():
    disks, faults = check(300, seed=1)
    assert (disks, dict(faults)) == (300, {})


@pytest.mark.parametrize("name", SYNCS)
def test_a_sync_that_is_left_out_is_detected(name):
    _, faults = check(forgotten=SYNCS[name].is_of, steps=[SYNCS[name].step], kind="all lost", stop=True)
    assert faults
