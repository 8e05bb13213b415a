"""copy_index copies passages with their vectors."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations import LocalIndex, MemoryIndex, Passage
from m3_integrations.index.copying import copy_index
from m3_integrations.testing import HashEncoder


@pytest.mark.parametrize("count", [0, 3, 1100])
def test_a_copy_holds_all_passages_and_vectors(tmp_path, count):
    encoder, source = HashEncoder(), MemoryIndex()
    passages = [Passage(f"p{i:04d}", f"text {i}", {"i": i}) for i in range(count)]
    source.add(passages, encoder.encode_passages([passage.text for passage in passages]))
    with LocalIndex.open(tmp_path / "copy") as target:
        copy_index(source, target)
        assert target.passages() == passages
        if count:
            assert np.array_equal(target.vectors(target.ids()).dense, source.vectors(source.ids()).dense)
