from __future__ import annotations

import pytest

from m3_integrations.index.local import LocalIndex
from m3_integrations.testing import IndexContract


class TestLocalIndex(IndexContract):
    @pytest.fixture
    def index(self, tmp_path):
        with LocalIndex.open(tmp_path / "index") as index:
            yield index

    def reopen(self, index):
        index.close()
        return LocalIndex.open(index.folder)
