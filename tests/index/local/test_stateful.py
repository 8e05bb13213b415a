"""Whatever is done to a folder, in whatever order and process, its answers are those of the exact index."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from m3_integrations.core.encoded import MODES
from m3_integrations.index.quantization.codecs import PRECISIONS
from tests.index.local.mirrored import WORDS, MirroredIndex

ids = st.sampled_from([*(f"p{i}" for i in range(12)), "é", "\U0001f600"])
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
passages = st.lists(st.tuples(ids, texts), min_size=1, max_size=6)


def machine_of(precision: str) -> type[RuleBasedStateMachine]:
    """Return a state machine over a folder of some precision."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = tempfile.TemporaryDirectory()
            self.both = MirroredIndex(Path(self.folder.name, "index"), precision)

        @rule(added=passages, elsewhere=st.booleans())
        def add(self, added, elsewhere):
            self.both.add(*zip(*added, strict=True), elsewhere=elsewhere)

        @rule(added=st.lists(st.tuples(ids, texts), min_size=4, max_size=9))
        def merge(self, added):
            for id, text in added:
                self.both.add([id], [text])

        @rule(deleted=st.lists(ids, max_size=4), purge=st.booleans())
        def delete(self, deleted, purge):
            self.both.delete(deleted, purge=purge)

        @rule(deleted=st.lists(ids, min_size=1, max_size=4))
        def delete_elsewhere(self, deleted):
            self.both.delete(deleted, elsewhere=True)

        @rule(changed=passages, mode=st.sampled_from(MODES))
        def set_vectors(self, changed, mode):
            self.both.set_vectors(*zip(*changed, strict=True), mode)

        @rule()
        def fit(self):
            self.both.fit()

        @rule()
        def revert(self):
            self.both.revert()

        @rule()
        def reopen(self):
            self.both.reopen()

        @rule()
        def search(self):
            self.both.check()

        def teardown(self):
            try:
                self.both.check()
                self.both.index.verify()
            finally:
                self.both.close()
                self.folder.cleanup()

    return Machine


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_folder_stays_equal_to_the_exact_index(precision):
    bounds = settings(
        max_examples=8,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine_of(precision), settings=bounds)
