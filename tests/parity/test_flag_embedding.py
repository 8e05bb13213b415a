"""BGE-M3's own library (FlagEmbedding 1.4.2), on random checkpoints: the same vectors and the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel

from m3_integrations import M3Encoder, score

TOLERANCE = 1e-5
MAX_LENGTH = 48
TEXTS = [
    "the bridge over the river",
    "what is a passage",
    "Die Brücke über die Wolga",
    "мост через волгу",
    "γεφυρα",
    "جسر فوق النهر",
    "पुल नदी",
    "橋はどこにある",
    "中国的大桥",
    "안녕하세요",
    "a a a the the the",
    "unknown: ☃ ጨ 🙂",
    "a <mask> b",
    "",
    "   ",
    "the passage " * 100,  # longer than MAX_LENGTH
]
SHAPES = [
    {"seed": 0, "colbert_width": 32},
    {"seed": 1, "colbert_width": 8},
    {"seed": 2, "colbert_width": 64, "hidden": 48},
    {"seed": 3, "colbert_width": 24, "layers": 3, "heads": 2},
]
PAIRS = [(query, passage) for query in TEXTS[::3] for passage in TEXTS]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()))
def folder(request, bge_m3):
    return bge_m3(**request.param)


@pytest.fixture(scope="module")
def ours(folder):
    return M3Encoder.from_pretrained(str(folder), max_length=MAX_LENGTH, batch_tokens=400, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder, ours):
    return judge(folder, ours.multi_vector_dim)


def judge(folder, dim):
    return BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", colbert_dim=dim)


def encode(model):
    return model.encode(
        TEXTS, batch_size=5, max_length=MAX_LENGTH, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )


def sparse_row(encoded, i):
    row = encoded.sparse[[i]]
    return dict(zip(map(str, row.indices.tolist()), row.data.tolist(), strict=True))


def assert_agree(encoded, outputs):
    np.testing.assert_allclose(encoded.dense, outputs["dense_vecs"], rtol=0, atol=TOLERANCE)
    for i, weights in enumerate(outputs["lexical_weights"]):
        assert sparse_row(encoded, i) == pytest.approx(dict(weights), rel=0, abs=TOLERANCE)
    for vectors, expected in zip(encoded.multi_vector, outputs["colbert_vecs"], strict=True):
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
def test_vectors_of_all_three_modes_agree(ours, theirs):
    assert_agree(ours.encode_passages(TEXTS), encode(theirs))


@pytest.fixture(scope="module")
def judged(theirs):
    # One pair at a time: in a padded batch their maximum takes in the padding's zero vectors.
    return theirs.compute_score(
        PAIRS,
        batch_size=1,
        max_query_length=MAX_LENGTH,
        max_passage_length=MAX_LENGTH,
        weights_for_different_modes=[1.0, 0.3, 1.0],
    )


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("dense", {"dense": 1.0}),
        ("sparse", {"sparse": 1.0}),
        ("colbert", {"multi_vector": 1.0}),
        ("sparse+dense", {"dense": 1.0 / 1.3, "sparse": 0.3 / 1.3}),
        ("colbert+sparse+dense", {"dense": 1.0 / 2.3, "sparse": 0.3 / 2.3, "multi_vector": 1.0 / 2.3}),
    ],
)
def test_scores_agree(ours, judged, name, weights):
    scores = score(ours.encode_queries(TEXTS), ours.encode_passages(TEXTS), weights)
    mine = [scores[TEXTS.index(query), TEXTS.index(passage)] for query, passage in PAIRS]
    np.testing.assert_allclose(mine, judged[name], rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
def test_a_saved_folder_loads_in_flag_embedding_with_the_same_outputs(ours, theirs, tmp_path):
    ours.save_pretrained(tmp_path)
    before, after = encode(theirs), encode(judge(tmp_path, ours.multi_vector_dim))
    np.testing.assert_array_equal(before["dense_vecs"], after["dense_vecs"])
    assert before["lexical_weights"] == after["lexical_weights"]
    for was, now in zip(before["colbert_vecs"], after["colbert_vecs"], strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
def test_a_projected_head_loads_in_flag_embedding_with_the_same_outputs(ours, tmp_path):
    projected = ours.with_projection(TEXTS, 6)
    projected.save_pretrained(tmp_path)
    assert_agree(projected.encode_passages(TEXTS), encode(judge(tmp_path, 6)))


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
def test_projected_hidden_states_load_in_flag_embedding_with_the_same_outputs(bge_m3, tmp_path):
    M3Encoder.from_pretrained(str(bge_m3()), device="cpu").save_pretrained(tmp_path / "identity")
    head = {"weight": torch.eye(32), "bias": torch.zeros(32)}
    torch.save(head, tmp_path / "identity" / "colbert_linear.pt")
    projected = M3Encoder.from_pretrained(
        str(tmp_path / "identity"), max_length=MAX_LENGTH, device="cpu"
    ).with_projection(TEXTS, 6)
    projected.save_pretrained(tmp_path / "projected")
    assert_agree(projected.encode_passages(TEXTS), encode(judge(tmp_path / "projected", 6)))


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
def test_what_was_trained_here_loads_there_with_the_same_outputs(bge_m3, tmp_path):
    from tests.training.loops import run

    trained = run(bge_m3(), tmp_path / "model", steps=2, rows=4, learning_rate=1e-3)
    ours = M3Encoder.from_pretrained(str(trained.folder), max_length=MAX_LENGTH, device="cpu")
    assert_agree(ours.encode_passages(TEXTS), encode(judge(trained.folder, ours.multi_vector_dim)))


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.PartNotExported")
def test_a_saved_m3_mini_loads_there_with_the_same_dense_and_multi_vectors(mini, tmp_path):
    texts = [text for text in TEXTS[:-1] if text.strip()]
    mini.save_pretrained(tmp_path)
    model = BGEM3FlagModel(str(tmp_path), use_fp16=False, devices="cpu", pooling_method="mean")
    theirs = model.encode([f"passage: {text}" for text in texts], return_colbert_vecs=True)
    ours = mini.encode_passages(texts, ("dense", "multi_vector"))
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], rtol=0, atol=TOLERANCE)
    for row, vectors in enumerate(theirs["colbert_vecs"]):  # those of the prefix first, which ours leave out
        expected = vectors[-len(ours.multi_vector[row]) :]
        np.testing.assert_allclose(ours.multi_vector[row], expected, rtol=0, atol=TOLERANCE)
