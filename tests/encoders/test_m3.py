"""M3Encoder on tiny random checkpoints, against plain re-computations in torch."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from m3_integrations import M3Encoder, RemoteEncoder
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError, HeadsMissing, MissingMode, NonFiniteVector, TextsTruncated
from m3_integrations.server import ServerSettings, create_app
from tests.checkpoints import WORDS, TinyCheckpoint, write_backbone, write_bge_m3, write_sentence_transformers
from tests.server.conftest import running

TEXTS = [
    "the bridge",
    "Die Brücke über die Wolga " * 5,
    "",
    "мост",
    "橋はどこにある",
    "what is a passage?",
    "안녕하세요",
]
COMMIT = "0123456789" * 4
CLS, PAD, EOS, UNK = 0, 1, 2, 3
CLOSE = {"rtol": 0, "atol": 2e-6}


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def encoder(bge_m3):
    return load(bge_m3())


@pytest.fixture(scope="module", params=["in this process", "on a server"])
def each_encoder(request, encoder):
    """The encoder, and a RemoteEncoder of a server that has it."""
    if request.param == "in this process":
        yield encoder
        return
    settings = ServerSettings(port=0, max_texts=5)
    with running(create_app(encoder, settings=settings), settings) as url, RemoteEncoder(url) as remote:
        yield remote


@pytest.fixture
def copied(bge_m3, tmp_path):
    """A checkpoint of one's own to spoil."""
    return shutil.copytree(bge_m3(), tmp_path / "model")


@pytest.fixture(scope="module")
def wordy(bge_m3, tmp_path_factory):
    """A checkpoint that gives every token a lexical weight above 0, so that none is absent by luck."""
    folder = shutil.copytree(bge_m3(), tmp_path_factory.mktemp("wordy") / "model")
    change_head(folder / "sparse_linear.pt", lambda head: {**head, "bias": torch.tensor([20.0])})
    return folder


def change_head(path, change):
    torch.save(change(torch.load(path, weights_only=True)), path)


def assert_same(one, other, **tolerance):
    assert one.modes == other.modes
    if "dense" in one.modes:
        np.testing.assert_allclose(one.dense, other.dense, **tolerance)
    if "sparse" in one.modes:
        np.testing.assert_allclose(one.sparse.toarray(), other.sparse.toarray(), **tolerance)
    if "multi_vector" in one.modes:
        assert one.multi_vector.offsets.tolist() == other.multi_vector.offsets.tolist()
        np.testing.assert_allclose(one.multi_vector.values, other.multi_vector.values, **tolerance)


EQUAL = {"rtol": 0, "atol": 0}


def long_text(tokens):
    return " ".join(np.random.default_rng(0).choice(WORDS, tokens))


class Plain:
    """The paper's formulas once more, one sequence of ids at a time and in plain torch."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder).eval()
        self.sparse_head = torch.load(folder / "sparse_linear.pt", weights_only=True)
        self.colbert_head = torch.load(folder / "colbert_linear.pt", weights_only=True)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def hidden(self, ids):
        return self.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]

    def lexical(self, ids, hidden):
        """{token: its largest weight} of what weighs more than 0."""
        weights = functional.linear(hidden, self.sparse_head["weight"], self.sparse_head["bias"]).relu()[:, 0]
        best = {}
        for token, weight in zip(ids, weights.tolist(), strict=True):
            if token not in (CLS, PAD, EOS, UNK) and weight > 0:
                best[token] = max(weight, best.get(token, 0))
        return best

    def vectors(self, hidden):
        return functional.normalize(
            functional.linear(hidden, self.colbert_head["weight"], self.colbert_head["bias"]), dim=-1
        )


def assert_is(encoded, dense, lexical, vectors, **tolerance):
    np.testing.assert_allclose(encoded.dense[0], functional.normalize(dense, dim=-1), **tolerance)
    row = encoded.sparse[[0]]
    assert dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) == pytest.approx(lexical, rel=0, abs=2e-5)
    np.testing.assert_allclose(encoded.multi_vector[0], vectors, **tolerance)


# Order and batches


def test_a_texts_vectors_do_not_depend_on_its_batch(each_encoder):
    together = each_encoder.encode_passages(TEXTS)
    for i, text in enumerate(TEXTS):
        assert_same(each_encoder.encode_passages([text]), together.take([i]), **CLOSE)


def test_the_callers_order_is_kept_whatever_the_batches(bge_m3, encoder):
    small = load(bge_m3(), batch_tokens=20)
    assert_same(small.encode_passages(TEXTS), encoder.encode_passages(TEXTS), **CLOSE)
    assert_same(
        encoder.encode_passages(TEXTS[::-1]), encoder.encode_passages(TEXTS).take(range(len(TEXTS))[::-1]), **CLOSE
    )


def test_one_text_is_read_as_bge_m3_reads_it(bge_m3, each_encoder):
    plain = Plain(bge_m3())
    ids = [CLS, *plain.ids("the bridge мост"), EOS]
    hidden = plain.hidden(ids)
    encoded = each_encoder.encode_passages(["the bridge мост"])
    assert_is(encoded, hidden[0], plain.lexical(ids, hidden), plain.vectors(hidden[1:]), **CLOSE)


def test_no_texts_give_an_encoded_of_length_0(each_encoder):
    nothing = each_encoder.encode_passages([])
    assert (len(nothing), nothing.modes) == (0, frozenset(MODES))
    assert nothing.dense.shape == (0, each_encoder.dense_dim)
    assert nothing.sparse.shape == (0, each_encoder.vocab_size)
    assert nothing.multi_vector.width == each_encoder.multi_vector_dim


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000"])
def test_an_empty_text_has_a_defined_vector_and_an_empty_sparse_row(each_encoder, text):
    encoded = each_encoder.encode_passages(["the bridge", text])
    assert np.linalg.norm(encoded.dense[1]) == pytest.approx(1)
    assert encoded.sparse[[1]].nnz == 0
    assert_same(encoded.take([1]), each_encoder.encode_passages([""]), **CLOSE)


def test_a_stream_is_encoded_chunk_by_chunk(encoder):
    read = []
    stream = (read.append(text) or text for text in TEXTS)
    chunks = encoder.iter_encode(stream, chunk=3)
    first = next(chunks)
    assert (len(first), len(read)) == (3, 3)
    assert_same(first.join(*chunks), encoder.encode_passages(TEXTS), **CLOSE)


def test_threads_give_the_same_vectors(each_encoder):
    expected = each_encoder.encode_passages(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for encoded in pool.map(each_encoder.encode_passages, [TEXTS] * 12):
            assert_same(encoded, expected, **CLOSE)


def test_what_is_no_text_is_named_by_position(each_encoder):
    with pytest.raises(TypeError, match="position 1 is None, not a string; an empty text is ''"):
        each_encoder.encode_passages(["a", None])
    with pytest.raises(TypeError, match=r"got one text; write \['the bridge'\]"):
        each_encoder.encode_passages("the bridge")


# Modes


@pytest.mark.parametrize("modes", [("dense",), ("sparse",), ("multi_vector",), ("dense", "sparse"), MODES])
def test_the_modes_asked_are_those_that_come(each_encoder, modes):
    encoded = each_encoder.encode_passages(TEXTS, modes)
    assert encoded.modes == set(modes)
    assert_same(encoded, each_encoder.encode_passages(TEXTS).only(modes), **CLOSE)


def test_a_head_that_is_not_asked_for_is_not_run(copied):
    for head in ("sparse_linear.pt", "colbert_linear.pt"):
        change_head(copied / head, lambda tensors: {name: value * torch.nan for name, value in tensors.items()})
    encoder = load(copied)
    assert len(encoder.encode_passages(TEXTS, ("dense",))) == len(TEXTS)
    with pytest.raises(NonFiniteVector):
        encoder.encode_passages(TEXTS, ("sparse",))


def test_a_head_that_is_not_there_is_named_by_its_file(bge_m3):
    encoder = load(bge_m3(sparse=False))
    assert encoder.modes == {"dense", "multi_vector"}
    assert (encoder.vocab_size, encoder.encode_passages(TEXTS).modes) == (0, encoder.modes)
    with pytest.raises(MissingMode, match=r"no sparse_linear\.pt .* ask for modes=\('dense', 'multi_vector'\)"):
        encoder.encode_queries(["a"], ("sparse",))
    with pytest.raises(MissingMode, match=r"colbert_linear\.pt"):
        load(bge_m3(colbert=False)).encode_queries(["a"], ("multi_vector",))


# Prefixes and special tokens


def test_prefix_tokens_are_in_no_sparse_row_and_no_multi_vector(wordy):
    plain = Plain(wordy)
    encoder = load(wordy, passage_prefix="passage: ")
    encoded = encoder.encode_passages(["the bridge", ""])
    assert set(encoded.sparse[[0]].indices) == set(plain.ids("the bridge"))
    assert encoded.multi_vector.counts.tolist() == [len(plain.ids("the bridge")) + 1, 1]
    assert encoded.sparse[[1]].nnz == 0


def test_a_prefix_changes_the_states_that_it_stands_before(wordy):
    plain = Plain(wordy)
    prefix, text = plain.ids("passage:"), plain.ids("the bridge")
    ids = [CLS, *prefix, *text, EOS]
    hidden = plain.hidden(ids)
    kept = slice(1 + len(prefix), None)
    encoded = load(wordy, query_prefix="passage: ").encode_queries(["the bridge"])
    assert_is(
        encoded, hidden[0], plain.lexical(ids[kept], hidden[kept]), plain.vectors(hidden[kept]), rtol=0, atol=1e-5
    )


def test_special_tokens_have_no_lexical_weight_but_mask_has(wordy):
    plain = Plain(wordy)
    row = load(wordy).encode_passages(["a <s> ☃ <pad> <mask> </s> <unk> b"]).sparse
    assert set(row.indices) == {*plain.ids("a"), *plain.ids("b"), plain.tokenizer.mask_token_id}


def test_late_interaction_keeps_eos_and_leaves_cls_out(bge_m3, encoder):
    assert encoder.encode_passages([""]).multi_vector.counts.tolist() == [1]
    plain = Plain(bge_m3())
    np.testing.assert_allclose(
        encoder.encode_passages([""]).multi_vector[0], plain.vectors(plain.hidden([CLS, EOS])[1:]), **CLOSE
    )


# Long texts


def test_texts_that_are_cut_are_counted_and_said_once(bge_m3):
    encoder = load(bge_m3(), max_length=16, batch_tokens=16)
    texts = ["the " * 14, "the " * 15, "the bridge", "the " * 99]
    with pytest.warns(TextsTruncated, match="2 of 4 texts are longer than 16 tokens") as said:
        encoded = encoder.encode_passages(texts)
    assert len(said) == 1
    assert_same(encoded.take([1, 3]), encoded.take([0, 0]), **CLOSE)


def test_texts_that_fit_are_not_spoken_of(bge_m3):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(bge_m3(), max_length=16).encode_passages(["the " * 14])


def test_a_checkpoint_reads_no_more_than_its_positions(bge_m3):
    assert load(bge_m3()).max_length == 512
    with pytest.raises(ValueError, match="reads at most 512 tokens, got max_length=513"):
        load(bge_m3(), max_length=513)


@pytest.mark.parametrize(("tokens", "every"), [(40, 16), (48, 16), (1, 16), (7, 1)])
def test_mcls_is_the_mean_of_the_cls_states(bge_m3, tokens, every):
    check_mcls(bge_m3(), long_text(tokens), every)


def test_mcls_at_8192_tokens(bge_m3):
    folder = bge_m3(positions=8192, layers=1)
    text_tokens = check_mcls(folder, long_text(9000), 256)
    assert text_tokens > 8192


def check_mcls(folder, text, every):
    plain = Plain(folder)
    encoder = load(folder, mcls_interval=every)
    content = plain.ids(text)
    ids = []
    for place, token in enumerate(content):
        ids += [CLS, token] if place % every == 0 else [token]
    ids = [*ids[: encoder.max_length - 1], EOS]
    places = [place for place, token in enumerate(ids) if token == CLS]
    others = [place for place, token in enumerate(ids) if token != CLS]
    hidden = plain.hidden(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextsTruncated)
        encoded = encoder.encode_passages([text])
    assert_is(
        encoded,
        hidden[places].mean(dim=0),
        plain.lexical(ids, hidden),
        plain.vectors(hidden[others]),
        rtol=0,
        atol=1e-5,
    )
    return len(content)


def test_windows_are_the_mean_the_maximum_and_all(bge_m3):
    check_windows(bge_m3(), long_text(60), max_length=32, overlap=8)


def test_windows_of_8192_tokens(bge_m3):
    check_windows(bge_m3(positions=8192, layers=1), long_text(9000), max_length=8192, overlap=64)


def check_windows(folder, text, *, max_length, overlap):
    plain = Plain(folder)
    content, room = plain.ids(text), max_length - 2
    starts = [0]
    while starts[-1] + room < len(content):
        starts.append(starts[-1] + room - overlap)
    assert len(starts) > 1
    windows = [[CLS, *content[start : start + room], EOS] for start in starts]
    hidden = [plain.hidden(ids) for ids in windows]
    lexical = {}
    for ids, states in zip(windows, hidden, strict=True):
        for token, weight in plain.lexical(ids, states).items():
            lexical[token] = max(weight, lexical.get(token, 0))
    encoded = load(folder, max_length=max_length, window_overlap=overlap).encode_passages([text])
    dense = torch.stack([states[0] for states in hidden]).mean(dim=0)
    vectors = torch.cat([plain.vectors(states[1:]) for states in hidden])
    assert_is(encoded, dense, lexical, vectors, rtol=0, atol=1e-5)


def test_a_text_that_fits_is_read_the_same_with_windows(bge_m3, encoder):
    windowed = load(bge_m3(), window_overlap=8)
    assert_same(windowed.encode_passages(TEXTS), encoder.encode_passages(TEXTS), **CLOSE)


# Memory and numbers that are none


class Tight:
    """A backend that runs out of memory above `room` texts at once, with an error of the kind `error`."""

    def __init__(self, backend, room=2, error=None):
        self.backend, self.room, self.sizes = backend, room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.is_padded, self.batches_ahead = backend.is_padded, backend.batches_ahead

    def start(self, batch, modes):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return self.backend.start(batch, modes)


def tighten(folder, **limits):
    """An encoder over a backend with little memory."""
    encoder = M3Encoder.from_pretrained(str(folder), device="cpu")
    encoder._runner.backend = Tight(encoder._runner.backend, **limits)
    return encoder


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=repr,
)
def test_out_of_memory_halves_the_batch_and_goes_on(bge_m3, encoder, error):
    tight = tighten(bge_m3(), error=error)
    assert_same(tight.encode_passages(["the bridge"] * 8), encoder.encode_passages(["the bridge"] * 8), **CLOSE)
    assert tight._runner.backend.sizes == [8, 4, 2, 2, 2, 2]


def test_out_of_memory_with_one_text_is_raised(bge_m3):
    tight = tighten(bge_m3(), room=0)
    with pytest.raises(torch.OutOfMemoryError):
        tight.encode_passages(TEXTS)


def test_another_error_is_not_taken_for_want_of_memory(bge_m3):
    tight = tighten(bge_m3(), error=RuntimeError("expected scalar type Half but found Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        tight.encode_passages(["the bridge"] * 8)
    assert tight._runner.backend.sizes == [8]


def test_what_overflows_in_float16_is_computed_again_in_float32(copied):
    change_head(copied / "sparse_linear.pt", lambda head: {**head, "bias": torch.tensor([60_000.0])})
    change_head(copied / "sparse_linear.pt", lambda head: {**head, "weight": head["weight"] * 20_000})
    half, full = load(copied, dtype="float16").encode_passages(TEXTS), load(copied).encode_passages(TEXTS)
    assert full.sparse.max() > 65_504  # the largest float16
    np.testing.assert_allclose(half.sparse.toarray(), full.sparse.toarray(), rtol=0.05, atol=2000)


def test_a_text_that_gives_nan_is_named_by_position(copied):
    (bridge,) = Plain(copied).ids("橋")
    backbone = AutoModel.from_pretrained(copied)
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[bridge] = torch.nan
    backbone.save_pretrained(copied)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(NonFiniteVector, match=r"the text at position 2, in float32 too; remove that text"):
            load(copied, dtype=dtype).encode_passages(["a", "b c d e f", "the 橋", "c"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_float32_at_the_border(bge_m3, encoder, dtype):
    half, full = load(bge_m3(), dtype=dtype).encode_passages(TEXTS), encoder.encode_passages(TEXTS)
    assert half.dense.dtype == half.sparse.dtype == half.multi_vector.values.dtype == np.float32
    assert np.sum(half.dense * full.dense, axis=1).min() > 0.99


def test_a_dtype_that_is_none_is_refused(bge_m3):
    with pytest.raises(ValueError, match="dtype is one of"):
        load(bge_m3(), dtype="int8")


# Fingerprints and saving


def test_a_saved_checkpoint_loads_with_equal_vectors_and_fingerprint(bge_m3, tmp_path):
    encoder = load(bge_m3(colbert_width=8), query_prefix="query: ", passage_prefix="passage: ", max_length=64)
    encoder.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.conventions == encoder.conventions
    assert again.fingerprint == encoder.fingerprint
    assert_same(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS), **EQUAL)
    assert_same(again.encode_passages(TEXTS), encoder.encode_passages(TEXTS), **EQUAL)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precision_changes_neither_the_fingerprint_nor_what_is_saved(bge_m3, encoder, tmp_path, dtype):
    half = load(bge_m3(), dtype=dtype)
    assert half.fingerprint == encoder.fingerprint
    half.save_pretrained(tmp_path)
    assert_same(load(tmp_path).encode_passages(TEXTS), encoder.encode_passages(TEXTS), **EQUAL)


def test_a_checkpoint_may_be_saved_over_itself(copied):
    encoder = load(copied)
    expected = encoder.encode_passages(TEXTS)
    encoder.save_pretrained(copied)
    assert_same(load(copied).encode_passages(TEXTS), expected, **EQUAL)
    assert_same(encoder.encode_passages(TEXTS), expected, **EQUAL)


@pytest.mark.parametrize(
    "options",
    [
        {"query_prefix": "query: "},
        {"passage_prefix": "passage: "},
        {"max_length": 64},
        {"mcls_interval": 16},
        {"window_overlap": 8},
        {"token_pooling": 2},
    ],
    ids=str,
)
def test_what_changes_vectors_changes_the_fingerprint(bge_m3, encoder, options):
    assert load(bge_m3(), **options).fingerprint != encoder.fingerprint


def test_sparse_scores_are_sums_unless_the_checkpoint_says_means(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "m3_config.json").read_text())
    assert stated.pop("sparse_score") == encoder.sparse_score == "sum"
    (tmp_path / "m3_config.json").write_text(json.dumps(stated))  # as it was written before there were means
    assert load(tmp_path).sparse_score == "sum"
    (tmp_path / "m3_config.json").write_text(json.dumps({**stated, "sparse_score": "mean"}))
    means = load(tmp_path)
    assert means.fingerprint == encoder.fingerprint
    sums, divided = encoder.encode_queries(TEXTS).sparse.toarray(), means.encode_queries(TEXTS).sparse.toarray()
    totals = sums.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(divided, sums / np.where(totals > 0, totals, 1), rtol=1e-6)
    assert_same(means.encode_passages(TEXTS), encoder.encode_passages(TEXTS), **EQUAL)
    (tmp_path / "m3_config.json").write_text(json.dumps({**stated, "sparse_score": "max"}))
    with pytest.raises(CheckpointError, match=r"sparse_score is one of \['sum', 'mean', 'idf'\], got 'max'"):
        load(tmp_path)


def test_the_same_weights_have_the_same_fingerprint(bge_m3, encoder):
    assert load(bge_m3(), batch_tokens=8).fingerprint == encoder.fingerprint
    assert load(bge_m3(seed=1)).fingerprint != encoder.fingerprint


# Folders of others


def test_heads_are_read_from_safetensors_too(bge_m3, copied, encoder):
    for name in ("sparse_linear", "colbert_linear"):
        save_file(torch.load(copied / f"{name}.pt", weights_only=True), copied / f"{name}.safetensors")
        (copied / f"{name}.pt").unlink()
    assert load(copied).fingerprint == encoder.fingerprint
    assert_same(load(copied).encode_passages(TEXTS), encoder.encode_passages(TEXTS), **CLOSE)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("head", ["sparse_linear.pt", "colbert_linear.pt"])
@pytest.mark.parametrize(
    "write",
    [
        lambda harm, path: path.write_bytes(pickle.dumps(harm)),
        lambda harm, path: torch.save({"weight": harm}, path),
    ],
    ids=["pickle", "torch.save"],
)
def test_a_hostile_head_is_refused_and_nothing_in_it_runs(copied, tmp_path, head, write):
    write(Hostile(tmp_path / "harm"), copied / head)
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load(copied)
    assert not (tmp_path / "harm").exists()


def test_a_head_of_another_shape_is_refused(copied):
    torch.save({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, copied / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"must hold a 'weight' of \(1, 32\)"):
        load(copied)
    torch.save([torch.ones(1, 32)], copied / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match="must hold a dict of tensors"):
        load(copied)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", r"needs config\.json, model\.safetensors"),
        ("model.safetensors", r"needs config\.json, model\.safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_file_says_what_it_needs(copied, file, message):
    (copied / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        load(copied)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_a_checkpoint_error(copied, file):
    (copied / file).write_bytes((copied / file).read_bytes()[:20])
    with pytest.raises(CheckpointError):
        load(copied)


def test_a_plain_folder_asks_how_it_pools(tmp_path):
    folder = write_backbone(tmp_path, TinyCheckpoint())
    with pytest.raises(
        CheckpointError, match=r"does not state its pooling; write from_pretrained\(\.\.\., pooling='mean'\)"
    ):
        load(folder)
    assert load(folder, pooling="mean").modes == {"dense"}


def test_a_name_that_is_neither_folder_nor_hub_id_says_what_to_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"name a folder, a hub id such as 'BAAI/bge-m3', or 'm3-mini'"):
        load(tmp_path / "nothing here")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"is a file; name the folder that holds config\.json"):
        load(tmp_path / "file")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Cache a sentence-transformers checkpoint of dense vectors alone under a hub id; the hub cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def cache(model):
        folder = tmp_path / f"models--{model.replace('/', '--')}"
        (folder / "snapshots").mkdir(parents=True)
        write_sentence_transformers(tmp_path / "model", TinyCheckpoint(), "cls", True).rename(
            folder / "snapshots" / COMMIT
        )
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        return folder

    return cache


def test_a_cached_bge_m3_without_heads_is_rejected(hub_cache):
    hub_cache("BAAI/bge-m3")
    with pytest.raises(
        CheckpointError, match=r"sparse_linear\.pt and colbert_linear\.pt.*run: hf download BAAI/bge-m3"
    ):
        load("BAAI/bge-m3")


def test_a_cached_model_that_may_lack_heads_loads_with_a_warning(hub_cache):
    hub_cache("someone/embedder")
    with pytest.warns(HeadsMissing, match="only dense vectors are available"):
        assert load("someone/embedder").modes == {"dense"}


def test_a_cached_model_that_the_hub_said_has_no_heads_loads_without_a_warning(hub_cache, recwarn):
    known = hub_cache("someone/embedder") / ".no_exist" / COMMIT / "sparse_linear.pt"
    known.parent.mkdir(parents=True)
    known.touch()
    assert load("someone/embedder").modes == {"dense"}
    assert not [warning for warning in recwarn if warning.category is HeadsMissing]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentence_transformers_folder_is_pooled_as_it_says(tmp_path, pooling, normalise):
    encoder = load(write_sentence_transformers(tmp_path / "model", TinyCheckpoint(), pooling, normalise))
    assert (encoder.modes, encoder.max_length) == ({"dense"}, 64)
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("the bridge")["input_ids"]
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(tmp_path / "model")(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = hidden.mean(dim=0) if pooling == "mean" else hidden[0]
    expected = functional.normalize(pooled, dim=-1) if normalise else pooled
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:1]).dense[0], expected, **CLOSE)


def test_a_pooling_that_is_not_read_is_named(tmp_path):
    folder = write_sentence_transformers(tmp_path / "model", TinyCheckpoint())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(
        CheckpointError, match="pools by 'pooling_mode_max_tokens'; this package reads 'cls' and 'mean'"
    ):
        load(folder)


def test_a_module_that_is_not_read_is_named(tmp_path):
    folder = write_sentence_transformers(tmp_path / "model", TinyCheckpoint())
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="module 'Dense' at '3_Dense'; this package reads"):
        load(folder)


def test_mcls_needs_a_checkpoint_that_pools_by_cls(tmp_path):
    with pytest.raises(ValueError, match="mcls_interval needs a checkpoint that pools by its cls token"):
        load(write_sentence_transformers(tmp_path / "model", TinyCheckpoint()), mcls_interval=16)


def test_the_colbert_width_is_the_checkpoints(tmp_path):
    encoder = load(write_bge_m3(tmp_path, TinyCheckpoint(colbert_width=8)))
    assert (encoder.multi_vector_dim, encoder.encode_queries(["a"]).multi_vector.width) == (8, 8)


class TestWhatAReviewFound:
    """Each of these was a fault once."""

    @pytest.mark.parametrize(("max_length", "every"), [(67, 64), (66, 64), (130, 4), (18, 1)])
    def test_cls_tokens_leave_a_sequence_within_its_length(self, bge_m3, max_length, every):
        encoder = M3Encoder.from_pretrained(str(bge_m3()), max_length=max_length, mcls_interval=every)
        (sequence,), cut = encoder.sequencer.sequences(["a b c d " * 200], "")
        assert len(sequence.ids) <= max_length
        assert cut == 1

    def test_a_prefix_longer_than_the_stride_of_cls_tokens_stays_out_of_every_mode(self, bge_m3):
        prefixed = M3Encoder.from_pretrained(str(bge_m3()), mcls_interval=1, passage_prefix="where what the ")
        encoded = prefixed.encode_passages(["bridge"])
        assert encoded.multi_vector.counts.tolist() == [2]  # the word and the ending token
        assert prefixed.tokens(encoded.sparse.indices) in ([], ["▁bridge"])

    def test_a_prefix_that_leaves_no_room_is_refused(self, bge_m3):
        encoder = M3Encoder.from_pretrained(str(bge_m3()), max_length=8, passage_prefix="a b c d e f g h ")
        with pytest.raises(ValueError, match="shorten the prefix"):
            encoder.encode_passages(["bridge"])

    def test_a_folder_that_brings_its_own_code_is_refused_without_asking(self, bge_m3, tmp_path, monkeypatch):
        folder = shutil.copytree(bge_m3(), tmp_path / "hostile")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
        with pytest.raises(CheckpointError):
            M3Encoder.from_pretrained(str(folder))
        assert not (tmp_path / "ran").exists()

    def test_saving_again_leaves_no_head_of_the_earlier_checkpoint(self, bge_m3, tmp_path):
        M3Encoder.from_pretrained(str(bge_m3())).save_pretrained(tmp_path / "saved")
        M3Encoder.from_pretrained(str(bge_m3(sparse=False))).save_pretrained(tmp_path / "saved")
        assert "sparse" not in M3Encoder.from_pretrained(str(tmp_path / "saved")).modes

    def test_a_folder_that_is_not_ours_is_not_written_into(self, bge_m3, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(CheckpointError, match="save into a new folder"):
            M3Encoder.from_pretrained(str(bge_m3())).save_pretrained(tmp_path)

    def test_half_a_surrogate_pair_is_named_by_its_position(self, bge_m3):
        with pytest.raises(ValueError, match="position 1 holds half a surrogate pair"):
            M3Encoder.from_pretrained(str(bge_m3())).encode_passages(["a", "\ud83d"])

    def test_a_lexical_head_of_two_outputs_is_refused(self, bge_m3, tmp_path):
        folder = shutil.copytree(bge_m3(), tmp_path / "two-outputs")
        torch.save(torch.nn.Linear(32, 2).state_dict(), folder / "sparse_linear.pt")
        with pytest.raises(CheckpointError, match=r"must hold a 'weight' of \(1, 32\)"):
            M3Encoder.from_pretrained(str(folder))


def test_batches_of_no_tokens_are_an_error(bge_m3):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), device="cpu", batch_tokens=0)
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        encoder.encode_passages(["a bridge"])
