"""A full or failing disk leaves the state before or after a call, and an error with a file and a remedy."""

from __future__ import annotations

import pytest

from tests.faults.io_errors import PRECISIONS, run

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_failing_file_call_tears_nothing_and_is_reported_with_a_remedy(precision):
    counted, problems = run(every=150, precisions=[precision])
    assert dict(problems) == {}
    assert counted >= 40
