"""Length of passages in tokens of an encoder."""

from __future__ import annotations

import pytest

from m3_integrations import M3Encoder
from m3_integrations.adapters.text_length import count_tokens, max_tokens


@pytest.mark.parametrize("prefix", ["", "passage: "])
def test_tokens_are_counted_without_the_prefix_and_special_tokens(bge_m3, prefix):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), device="cpu", max_length=16, passage_prefix=prefix)
    assert encoder.overhead_tokens == encoder.token_count([""])[0] == 16 - max_tokens(encoder)
    for text in ("", "a", "a red cat sees the blue dog"):
        assert count_tokens(encoder, text) == encoder.token_count([text])[0] - encoder.overhead_tokens
    assert M3Encoder.from_pretrained(str(bge_m3()), device="cpu").overhead_tokens == 2
