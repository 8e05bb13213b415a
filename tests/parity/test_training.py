"""Training losses and their gradients, against FlagEmbedding 1.4.2's M3 and sentence-transformers' GTE."""

from __future__ import annotations

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoTokenizer

from m3_integrations.core.encoded import MODES
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.tokenization import SequenceTokenizer
from m3_integrations.training.objective.grad_cache import GradientCache
from m3_integrations.training.objective.losses import Loss, gte_loss, m3_loss
from m3_integrations.training.objective.model import TokenBatch, TrainableM3
from m3_integrations.training.objective.scores import ScoreLayout, score_matrices, score_modes
from tests.checkpoints import TinyCheckpoint, write_sentence_transformers

MAX_LENGTH, TEMPERATURE, TOLERANCE = 32, 0.02, 1e-5
QUERIES = ["where is the bridge", "мост через волгу", "橋はどこ", "what is a passage"]
PASSAGES = [
    "the bridge over the river the bridge",
    "a passage, a query",
    "der Bogen in der Mitte",
    "мост через реку волгу",
    "Die Brücke über die Wolga",
    "where what <unk> ☃ the",
    "橋の上の橋",
    "नदी पुल",
    "안녕하세요",
    "the passage is here",
    "query and passage, query and passage",
    "a b c d e f",
]
GROUP = 3
TEACHER = [2.0, 0.5, -1.0, 3.0, 2.5, -2.0, 1.0, 0.0, 0.5, 4.0, 1.0, 1.0]


def tokens(checkpoint, texts, length=None):
    """Tokenize texts to a batch; with a length, repeat or cut each to it."""
    if length is not None:
        texts = [f"{text} " * length for text in texts]
    sequencer = SequenceTokenizer(checkpoint.tokenizer, checkpoint.special, length or MAX_LENGTH)
    return TokenBatch.of(sequencer.sequences(texts, "")[0], checkpoint.special.pad)


@pytest.fixture(params=[0, 1, 2], ids="seed {}".format)
def folder(request, bge_m3):
    return bge_m3(seed=request.param, hidden=16, heads=2, colbert_width=8)


@pytest.fixture
def ours(folder):
    checkpoint = checkpoints.read(str(folder))
    with torch.no_grad():
        checkpoint.heads.sparse.bias += 1  # a random head gives many tokens the weight 0
    # At a temperature of 0.02, two float32 computations agree only to about 1e-5.
    model = TrainableM3.from_checkpoint(checkpoint).double()
    model.train_only(["encoder", "sparse", "multi_vector"])
    return model


@pytest.fixture
def batch(folder):
    # Passages have equal lengths, because FlagEmbedding's late interaction also scores the padding of shorter ones.
    checkpoint = checkpoints.read(str(folder))
    return tokens(checkpoint, QUERIES), tokens(checkpoint, PASSAGES, length=14)


def flag_embedding_model(folder, ours, **options):
    """FlagEmbedding's training model with a copy of our weights."""
    backbone = checkpoints.read(str(folder)).backbone
    heads = {
        "colbert_linear": torch.nn.Linear(16, 8),
        "sparse_linear": torch.nn.Linear(16, 1),
    }
    heads["colbert_linear"].load_state_dict(ours.model.multi_vector.state_dict())
    heads["sparse_linear"].load_state_dict(ours.model.sparse.state_dict())
    reference = EncoderOnlyEmbedderM3Model(
        {"model": backbone, **heads},
        tokenizer=AutoTokenizer.from_pretrained(folder),
        temperature=TEMPERATURE,
        normalize_embeddings=True,
        **options,
    )
    reference.double().train()
    reference.model.eval()  # no dropout
    return reference


def features(batch):
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long()}


def gradients(parts):
    return {
        f"{part}.{name}": each.grad
        for part, module in parts.items()
        for name, each in module.named_parameters()
        if each.grad is not None
    }


def assert_same_gradients(ours, reference):
    actual = {"encoder": ours.model.backbone, "sparse": ours.model.sparse, "multi_vector": ours.model.multi_vector}
    expected = {"encoder": reference.model, "sparse": reference.sparse_linear, "multi_vector": reference.colbert_linear}
    assert_close(gradients(actual), gradients(expected))


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=TOLERANCE, msg=lambda s, n=name: f"{n}: {s}")


def learn(model, batch, objective, rows):
    loss = GradientCache(model, rows).backward(*batch, objective)
    return loss.total.item()


@pytest.mark.parametrize("rows", [100, 2], ids=["whole", "cached"])
@pytest.mark.parametrize("distilled", [True, False])
def test_m3_loss_and_gradients_equal_those_of_flag_embedding(folder, ours, batch, distilled, rows):
    reference = flag_embedding_model(folder, ours, use_self_distill=distilled)
    expected = reference(features(batch[0]), features(batch[1])).loss
    expected.backward()

    def objective(queries, passages):
        layout = ScoreLayout.side_by_side(len(QUERIES), GROUP)
        return m3_loss(
            score_modes(queries, passages, MODES), layout, temperature=TEMPERATURE, self_distillation=distilled
        )

    assert learn(ours, batch, objective, rows) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert_same_gradients(ours, reference)


def test_distillation_from_a_teacher_equals_that_of_flag_embedding(folder, ours, batch):
    reference = flag_embedding_model(folder, ours, use_self_distill=True, kd_loss_type="m3_kd_loss")
    expected = reference(features(batch[0]), features(batch[1]), teacher_scores=TEACHER).loss
    expected.backward()

    def objective(queries, passages):
        layout, teacher = ScoreLayout.side_by_side(len(QUERIES), GROUP), torch.tensor(TEACHER).view(-1, GROUP)
        return m3_loss(score_modes(queries, passages, MODES), layout, temperature=TEMPERATURE, teacher=teacher)

    assert learn(ours, batch, objective, 2) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert_same_gradients(ours, reference)


@pytest.mark.parametrize("rows", [100, 1], ids=["whole", "cached"])
@pytest.mark.parametrize("group", [1, 3], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gte_loss_and_gradients_equal_those_of_sentence_transformers(tmp_path, pooling, group, rows):
    folder = write_sentence_transformers(tmp_path, TinyCheckpoint(hidden=16, heads=2), pooling)
    checkpoint = checkpoints.read(str(folder))
    reference = SentenceTransformer(str(folder), device="cpu").double().eval()
    loss = MultipleNegativesRankingLoss(
        reference,
        scale=1 / 0.01,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        partition_mode="joint",
    )
    passages = [text for first in range(0, len(PASSAGES), GROUP) for text in PASSAGES[first : first + group]]
    batch = tokens(checkpoint, QUERIES), tokens(checkpoint, passages)
    columns = [batch[0], *(TokenBatch(*(tensor[i::group] for tensor in batch[1])) for i in range(group))]
    expected = loss([features(column) for column in columns], torch.empty(0))
    expected.backward()

    ours = TrainableM3.from_checkpoint(checkpoint).double()
    ours.train_only(["encoder"])

    def objective(queries, passages):
        layout = ScoreLayout.side_by_side(len(QUERIES), group)
        return Loss(gte_loss(score_matrices("dense", queries, passages, layout), layout, temperature=0.01), {})

    assert learn(ours, batch, objective, rows) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert_close(gradients({"encoder": ours.model.backbone}), gradients({"encoder": reference[0].auto_model}))
