"""sentence-transformers, on random folders that pool by mean or by cls: the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from m3_integrations import M3Encoder
from tests.checkpoints import TinyCheckpoint, write_sentence_transformers

TEXTS = [
    "the bridge over the river",
    "Die Brücke über die Wolga",
    "мост через волгу",
    "جسر فوق النهر",
    "橋はどこにある",
    "안녕하세요",
    "",
    "the passage " * 100,  # longer than the 64 tokens that the folder states
]


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_dense_vectors_agree(tmp_path, pooling, normalise, seed):
    folder = write_sentence_transformers(tmp_path, TinyCheckpoint(seed=seed), pooling, normalise)
    ours = M3Encoder.from_pretrained(str(folder), device="cpu").encode_passages(TEXTS).dense
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
