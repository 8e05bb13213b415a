"""PyLate itself, on random folders of our making and as it saves them: the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
from pylate import models

from m3_integrations import M3Encoder
from tests.checkpoints import WORDS, TinyCheckpoint
from tests.models.layouts.late_interaction import write_pylate

TEXTS = ["the bridge, where?", "Brücke (волга) - мост!", "橋はどこにある", "안녕하세요", "a", "the passage, " * 100]
WIDE = TinyCheckpoint(positions=512)
SKIPPED = list(".,;:!?'\"()-/")  # tokens of the vocabulary: PyLate skips unknown tokens for the others

pytestmark = pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")


def assert_agree(folder, texts=TEXTS):
    """Compare queries and passages with those of PyLate, and of the folder that it saves."""
    theirs = models.ColBERT(str(folder), device="cpu")
    theirs.save_pretrained(str(folder / "saved"))
    for each in (folder, folder / "saved"):
        ours = M3Encoder.from_pretrained(str(each), device="cpu")
        assert ours.modes == {"multi_vector"}
        for encode, is_query in ((ours.encode_queries, True), (ours.encode_passages, False)):
            expected = theirs.encode(texts, is_query=is_query, batch_size=3, show_progress_bar=False)
            for vectors, other in zip(encode(texts).multi_vector, expected, strict=True):
                np.testing.assert_allclose(vectors, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_vectors_agree(tmp_path, kind, attend):
    assert_agree(write_pylate(tmp_path, kind, WIDE, attend_to_expansion_tokens=attend, skiplist_words=SKIPPED))


def test_queries_without_expansion_agree(tmp_path):
    assert_agree(write_pylate(tmp_path, "bert", WIDE, do_query_expansion=False, skiplist_words=SKIPPED))


def test_a_default_prompt_agrees(tmp_path):
    prompts = {"prompts": {"all": "the query "}, "default_prompt_name": "all"}
    assert_agree(write_pylate(tmp_path, "bert", WIDE, skiplist_words=SKIPPED, **prompts))


def test_a_passage_of_8192_tokens_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8189))
    shape = TinyCheckpoint(positions=8192)
    assert_agree(write_pylate(tmp_path, "modernbert", shape, document_length=8192, skiplist_words=SKIPPED), [text])
