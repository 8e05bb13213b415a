"""Both of our own indexes, for what must hold over each."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex, MemoryIndex


@pytest.fixture(params=["memory", "local"])
def index(request, tmp_path, hash_encoder):
    if request.param == "memory":
        yield MemoryIndex()
        return
    with LocalIndex.open(tmp_path / "index", hash_encoder) as local:
        yield local
