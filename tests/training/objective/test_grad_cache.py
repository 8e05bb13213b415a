"""Gradient caching: gradients equal those of the whole batch, memory is one sub-batch's, also across processes."""

from __future__ import annotations

import weakref
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_integrations.core.encoded import MODES
from m3_integrations.models.transformer import Heads, M3Model
from m3_integrations.training.objective.collectives import all_gather, local_rows
from m3_integrations.training.objective.grad_cache import GradientCache, encode_by_length
from m3_integrations.training.objective.losses import Loss, gte_loss, info_nce, kl_distillation, m3_loss, own_scores
from m3_integrations.training.objective.model import PARTS, TokenBatch, TrainableM3, concatenate
from m3_integrations.training.objective.scores import ScoreLayout, score_matrices, score_mode, score_modes

VOCABULARY, DIM, GROUP = 60, 16, 2


def tiny(layers=2, dropout=0.0, pooling="cls", seed=0):
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * DIM,
        max_position_embeddings=130,
        pad_token_id=1,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    heads = Heads(torch.nn.Linear(DIM, 1), 0.2 * torch.rand(VOCABULARY), torch.nn.Linear(DIM, 8))
    model = TrainableM3(
        M3Model(XLMRobertaModel(config, add_pooling_layer=False), heads),
        pooling=pooling,
        normalize=True,
        special_ids=[0, 1, 2, 3],
    )
    with torch.no_grad():
        heads.sparse.bias.fill_(1.0)  # a random head may give every token the weight 0
    model.train_only(PARTS)
    return model.train()


def texts(count, longest, seed):
    """Random texts of 4 to `longest` tokens between XLM-RoBERTa's special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest + 1, (count, 1), generator=generator)
    ids = torch.randint(4, VOCABULARY, (count, longest), generator=generator)
    positions = torch.arange(longest)
    mask = positions < lengths
    ids = ids.masked_fill(positions == 0, 0).masked_fill(positions == lengths - 1, 2).masked_fill(~mask, 1)
    return TokenBatch(ids, mask, mask & (positions > 0))


def batch(queries=4, seed=0):
    return texts(queries, 9, seed), texts(GROUP * queries, 14, seed + 1)


def layout_of(queries):
    return ScoreLayout.side_by_side(len(queries.ids), GROUP)


def total(loss):
    return Loss(loss, {})


def m3_objective(queries, passages):
    return m3_loss(score_modes(queries, passages, MODES), layout_of(queries), temperature=0.2)


def gte_objective(queries, passages):
    layout = layout_of(queries)
    return total(gte_loss(score_matrices("dense", queries, passages, layout), layout, temperature=0.1))


def single_mode_objective(mode, queries, passages):
    return total(info_nce(score_mode(mode, queries, passages), layout_of(queries).positive, temperature=0.2))


def teacher_objective(queries, passages):
    layout, teacher = layout_of(queries), torch.linspace(-2, 2, len(queries.ids) * GROUP).view(-1, GROUP)
    scores = score_modes(queries, passages, MODES)
    own = [kl_distillation(own_scores(matrix, layout), teacher, temperature=0.2) for matrix in scores.values()]
    return total(sum(own) + m3_loss(scores, layout, temperature=0.2, teacher=teacher).total)


OBJECTIVES = {
    "m3": m3_objective,
    "gte": gte_objective,
    "teacher": teacher_objective,
    **{mode: partial(single_mode_objective, mode) for mode in MODES},
}


def gradients(model):
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def whole_batch(model, objective, queries, passages):
    """Backpropagate without a cache; return the loss."""
    loss = objective(model(queries), model(passages))
    loss.total.backward()
    return loss.total.item()


def assert_equal_gradients(one, other):
    assert one.keys() == other.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-5, atol=1e-5, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_sub_batches_give_the_gradient_of_the_whole_batch(objective, rows, pooling):
    whole, cached = tiny(pooling=pooling), tiny(pooling=pooling)
    expected = whole_batch(whole, objective, *batch())
    loss = GradientCache(cached, rows).backward(*batch(), objective)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert_equal_gradients(gradients(whole), gradients(cached))


def test_texts_encoded_by_length_have_the_representations_and_gradients_of_one_pass():
    once, by_length = tiny().double(), tiny().double()
    passages = texts(9, 100, seed=5)  # 4 to 100 tokens, so that three passes save padding
    expected, found = once(passages), encode_by_length(by_length, passages, None)
    length = found.ids.shape[1]
    assert length == passages.mask.sum(1).max()

    def values(encoded, mode):
        tensor = encoded.tensor(mode)
        return tensor if mode == "dense" else tensor[:, :length][passages.content[:, :length]]

    for mode in MODES:
        torch.testing.assert_close(values(found, mode), values(expected, mode), rtol=0, atol=1e-5)
    for encoded in (expected, found):
        sum((values(encoded, mode) ** 3).sum() for mode in MODES).backward()
    assert_equal_gradients(gradients(once), gradients(by_length))


def test_every_part_of_the_model_gets_a_gradient_from_m3():
    model = tiny()
    GradientCache(model, 1).backward(*batch(), m3_objective)
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_freezing_parts_does_not_change_the_gradients_of_the_others():
    whole, cached = tiny(), tiny()
    for model in (whole, cached):
        model.train_only(["sparse", "token_prior", "multi_vector"])
    whole_batch(whole, m3_objective, *batch())
    GradientCache(cached, 2).backward(*batch(), m3_objective)
    assert len(gradients(cached)) == 5
    assert_equal_gradients(gradients(whole), gradients(cached))


def test_a_missing_part_cannot_be_trained():
    model = tiny()
    model.model.sparse = None
    with pytest.raises(ValueError, match="no part 'sparse'; it has"):
        model.train_only(["sparse"])


def test_unrequested_modes_are_not_encoded():
    model = tiny()
    GradientCache(model, 2, modes=("dense",)).backward(*batch(), OBJECTIVES["dense"])
    assert not any("backbone" not in name for name in gradients(model))


def test_gradients_accumulate_over_batches_by_their_scale():
    once, twice = tiny(), tiny()
    GradientCache(once, 2).backward(*batch(), m3_objective)
    for _ in range(2):
        GradientCache(twice, 2).backward(*batch(), m3_objective, scale=0.5)
    assert_equal_gradients(gradients(once), gradients(twice))


def with_graphs(model, rows, objective, queries, passages):
    """Backpropagate sub-batches that keep their graphs, with the dropout of the cache's first pass."""

    def encoded(texts):
        return concatenate([model(texts.rows(start, start + rows)) for start in range(0, len(texts.ids), rows)])

    objective(encoded(queries), encoded(passages)).total.backward()


def noisy_objective(queries, passages):
    """An objective that draws random numbers itself."""
    noisy = {
        mode: matrix + 0.1 * torch.rand_like(matrix) for mode, matrix in score_modes(queries, passages, MODES).items()
    }
    return m3_loss(noisy, layout_of(queries), temperature=0.2)


def test_both_passes_draw_the_same_dropout_and_the_next_batch_draws_its_own():
    reference, cached = tiny(dropout=0.3), tiny(dropout=0.3)
    torch.manual_seed(1)
    with_graphs(reference, 2, noisy_objective, *batch())
    expected = torch.rand(3)
    torch.manual_seed(1)
    GradientCache(cached, 2).backward(*batch(), noisy_objective)
    assert_equal_gradients(gradients(reference), gradients(cached))
    torch.testing.assert_close(torch.rand(3), expected)


class InBf16(torch.nn.Module):
    """A model that enters autocast itself, as accelerate wraps one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(*args)


@pytest.mark.parametrize("around", [True, False], ids=["autocast around", "autocast inside"])
def test_under_bf16_the_cache_gives_the_gradient_of_sub_batches_with_graphs(around):
    reference, cached, exact = tiny(), tiny(), tiny()
    with_graphs(InBf16(reference), 2, m3_objective, *batch())
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        loss = GradientCache(cached if around else InBf16(cached), 2).backward(*batch(), m3_objective)
    assert loss.total.dtype == torch.float32
    assert_equal_gradients(gradients(reference), gradients(cached))
    whole_batch(exact, m3_objective, *batch())
    assert not torch.allclose(exact.model.sparse.weight.grad, cached.model.sparse.weight.grad)  # bf16 was in effect


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_layers_give_the_same_gradient(dropout):
    plain, checkpointed = tiny(dropout=dropout), tiny(dropout=dropout)
    checkpointed.enable_checkpointing()
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        GradientCache(model, 2).backward(*batch(), m3_objective)
    assert_equal_gradients(gradients(plain), gradients(checkpointed))


class MemoryPeak(TorchDispatchMode):
    """Peak bytes of live tensors created inside the context, over all torch operations."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {self._key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and self._key(each) not in self._seen | old:
                self._count(each.untyped_storage())
        return result

    @staticmethod
    def _key(tensor):
        return tensor.untyped_storage()._cdata

    def _count(self, storage):
        size, key = storage.nbytes(), storage._cdata
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._seen.discard(key)
        self.alive -= size


def peak(backward, **options):
    """Peak bytes beyond the weights and their gradients."""
    model = tiny(layers=4)
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    with MemoryPeak() as memory:
        backward(model)
    return memory.peak


def test_memory_peak_counts_live_tensors():
    with MemoryPeak() as memory:
        tensor = torch.zeros(1000)
        (tensor + 1).sum()
        view = tensor.view(10, 100)
        tensor.add_(1)
    assert memory.peak == pytest.approx(2 * 4000, abs=50)
    assert memory.alive == 4000
    del tensor, view
    assert memory.alive == 0


def test_sixteen_sub_batches_need_at_most_a_fifth_of_the_memory():
    queries, passages = texts(32, 12, seed=0), texts(64, 96, seed=1)
    whole = peak(lambda model: whole_batch(model, m3_objective, queries, passages))
    cached = peak(lambda model: GradientCache(model, 6).backward(queries, passages, m3_objective))
    assert cached <= whole / 5, (whole, cached)


def test_checkpointed_layers_need_less_memory():
    def checkpointed(model):
        model.enable_checkpointing()
        whole_batch(model, m3_objective, *batch(16))

    assert peak(checkpointed) < 0.6 * peak(lambda model: whole_batch(model, m3_objective, *batch(16)))


def test_a_sub_batch_has_at_least_one_text():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        GradientCache(tiny(), 0)


COUNTS = {"equal": (4, 4), "unequal": (3, 5)}


def cross_process_objective(queries, passages):
    """M3's loss and GTE's over the passages and queries of every process."""
    layout = local_rows(layout_of(queries))
    gathered = all_gather(passages)
    m3 = m3_loss(score_modes(queries, gathered, MODES), layout, temperature=0.2).total
    matrices = score_matrices("dense", all_gather(queries), gathered, layout)
    return total(m3 + gte_loss(matrices, layout, temperature=0.1))


def joined(counts):
    """The batches of all processes joined in order of rank."""
    each = [batch(count, seed=10 * rank) for rank, count in enumerate(counts)]
    return tuple(TokenBatch(*map(torch.cat, zip(*side, strict=True))) for side in zip(*each, strict=True))


def train_rank(rank, folder):
    """Save the gradients of one process, which pads its texts to its own longest."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    for name, counts in COUNTS.items():
        local = [each.rows(0, len(each.ids)) for each in batch(counts[rank], seed=10 * rank)]
        torch.save(rank_gradients(tiny(), local, counts[rank] / sum(counts), name), f"{folder}/{name} {rank}.pt")
    distributed.destroy_process_group()


def rank_gradients(model, local, weight, name):
    if name == "equal":
        GradientCache(DistributedDataParallel(model), 2).backward(*local, cross_process_objective)
    else:
        # Means over processes and over rows differ: weight each process by its rows and sum the gradients.
        GradientCache(model, 2).backward(*local, cross_process_objective, scale=weight)
        for gradient in gradients(model).values():
            distributed.all_reduce(gradient)
    return gradients(model)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with the gradients of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(train_rank, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_two_processes_get_the_gradient_of_one_process_with_the_joined_batch(two_processes, name):
    alone = tiny()
    whole_batch(alone, cross_process_objective, *joined(COUNTS[name]))
    for rank in range(2):
        assert_equal_gradients(gradients(alone), torch.load(two_processes / f"{name} {rank}.pt"))
