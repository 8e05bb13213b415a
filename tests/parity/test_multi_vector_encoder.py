"""sentence-transformers' MultiVectorEncoder, on random folders in its layout and in PyLate's."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder

from m3_integrations import M3Encoder
from tests.checkpoints import WORDS, TinyCheckpoint
from tests.models.layouts.late_interaction import write_multi_vector, write_pylate

TEXTS = ["the bridge, where?", "Brücke (волга) - мост!", "橋はどこにある", "안녕하세요", "a", "the passage, " * 100]
WIDE = TinyCheckpoint(positions=512)
CLOSE = {"rtol": 0, "atol": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")


def assert_agree(folder, texts=TEXTS):
    """Compare queries and passages with those of sentence-transformers, and of the folder that it saves."""
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    theirs.save_pretrained(str(folder / "saved"))
    for each in (folder, folder / "saved"):
        ours = M3Encoder.from_pretrained(str(each), device="cpu")
        assert ours.modes == {"multi_vector"}
        for own, other in ((ours.encode_queries, theirs.encode_query), (ours.encode_passages, theirs.encode_document)):
            for vectors, expected in zip(own(texts).multi_vector, other(texts, batch_size=3), strict=True):
                np.testing.assert_allclose(vectors, np.asarray(expected), **CLOSE)


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_pylate_folders_agree(tmp_path, kind, attend):
    assert_agree(write_pylate(tmp_path, kind, WIDE, attend_to_expansion_tokens=attend))


def test_pylate_folders_without_expansion_agree(tmp_path):
    assert_agree(write_pylate(tmp_path, "bert", WIDE, do_query_expansion=False))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_folders_of_its_own_layout_agree(tmp_path, kind):
    assert_agree(write_multi_vector(tmp_path, kind, WIDE, mask={"skiplist_words": [",", "?", "!"]}))


@pytest.mark.parametrize("strategy", ["fixed", "min"])
@pytest.mark.parametrize("attend", [False, True])
def test_expanded_queries_agree(tmp_path, strategy, attend):
    expansion = {"strategy": strategy, "attend": attend, "length": 24}
    assert_agree(write_multi_vector(tmp_path, "bert", WIDE, transformer={"query_expansion": expansion}))


def test_a_passage_of_8192_tokens_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8189))
    assert_agree(write_pylate(tmp_path, "modernbert", TinyCheckpoint(positions=8192), document_length=8192), [text])


def test_a_passage_of_8192_tokens_through_several_layers_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8189))
    settings = {"max_seq_length": 8192}
    assert_agree(write_multi_vector(tmp_path, "modernbert", TinyCheckpoint(positions=8192), settings), [text])
