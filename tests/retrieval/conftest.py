"""An empty index of each kind."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex, MemoryIndex


@pytest.fixture(params=["memory", "local"])
def index(request, tmp_path):
    with MemoryIndex() if request.param == "memory" else LocalIndex.open(tmp_path / "index") as opened:
        yield opened
