"""The gradient cache: the whole batch's gradient on one sub-batch's memory, alone and over processes."""

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
from m3_integrations.core.model import Heads, M3Model
from m3_integrations.training.caching import GradientCache
from m3_integrations.training.losses import Loss, gte, info_nce, kl, m3, own_scores
from m3_integrations.training.model import PARTS, TokenBatch, TrainableM3, join
from m3_integrations.training.processes import gather, spread
from m3_integrations.training.scores import Layout, directions, score_mode, scores

VOCABULARY, WIDTH, GROUP = 60, 16, 2


def tiny(layers=2, dropout=0.0, pooling="cls", seed=0):
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=130,
        pad_token_id=1,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    heads = Heads(torch.nn.Linear(WIDTH, 1), 0.2 * torch.rand(VOCABULARY), torch.nn.Linear(WIDTH, 8))
    model = TrainableM3(
        M3Model(XLMRobertaModel(config, add_pooling_layer=False), heads),
        pooling=pooling,
        normalise=True,
        silent=[0, 1, 2, 3],
    )
    with torch.no_grad():
        heads.sparse.bias.fill_(1.0)  # a random head may weigh every token with nothing
    model.train_only(PARTS)
    return model.train()


def texts(count, longest, seed):
    """Random texts of 4 to `longest` tokens, in XLM-RoBERTa's frame."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest + 1, (count, 1), generator=generator)
    ids = torch.randint(4, VOCABULARY, (count, longest), generator=generator)
    places = torch.arange(longest)
    mask = places < lengths
    ids = ids.masked_fill(places == 0, 0).masked_fill(places == lengths - 1, 2).masked_fill(~mask, 1)
    return TokenBatch(ids, mask, mask & (places > 0))


def batch(queries=4, seed=0):
    return texts(queries, 9, seed), texts(GROUP * queries, 14, seed + 1)


def layout_of(queries):
    return Layout.side_by_side(len(queries.ids), GROUP)


def total(loss):
    return Loss(loss, {})


def of_m3(queries, passages):
    return m3(scores(queries, passages, MODES), layout_of(queries), temperature=0.2)


def of_gte(queries, passages):
    layout = layout_of(queries)
    return total(gte(directions("dense", queries, passages, layout), layout, temperature=0.1))


def of_one_mode(mode, queries, passages):
    return total(info_nce(score_mode(mode, queries, passages), layout_of(queries).positive, temperature=0.2))


def of_a_teacher(queries, passages):
    layout, teacher = layout_of(queries), torch.linspace(-2, 2, len(queries.ids) * GROUP).view(-1, GROUP)
    ours = scores(queries, passages, MODES)
    own = [kl(own_scores(matrix, layout), teacher, temperature=0.2) for matrix in ours.values()]
    return total(sum(own) + m3(ours, layout, temperature=0.2, teacher=teacher).total)


OBJECTIVES = {
    "m3": of_m3,
    "gte": of_gte,
    "teacher": of_a_teacher,
    **{mode: partial(of_one_mode, mode) for mode in MODES},
}


def gradients(model):
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def whole_batch(model, objective, queries, passages):
    """The gradient without any cache."""
    loss = objective(model(queries), model(passages))
    loss.total.backward()
    return loss.total.item()


def assert_equal_gradients(one, other):
    assert one.keys() == other.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-5, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_gradient_of_sub_batches_is_the_whole_batch_s(objective, rows, pooling):
    whole, cached = tiny(pooling=pooling), tiny(pooling=pooling)
    expected = whole_batch(whole, objective, *batch())
    loss = GradientCache(cached, rows).backward(*batch(), objective)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert_equal_gradients(gradients(whole), gradients(cached))


def test_every_part_of_the_model_learns_from_m3():
    model = tiny()
    GradientCache(model, 1).backward(*batch(), of_m3)
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_frozen_parts_get_no_gradient_and_the_others_the_same():
    whole, cached = tiny(), tiny()
    for model in (whole, cached):
        model.train_only(["sparse", "token_prior", "multi_vector"])
    whole_batch(whole, of_m3, *batch())
    GradientCache(cached, 2).backward(*batch(), of_m3)
    assert len(gradients(cached)) == 5
    assert_equal_gradients(gradients(whole), gradients(cached))


def test_a_part_that_is_not_there_cannot_learn():
    model = tiny()
    model.model.sparse = None
    with pytest.raises(ValueError, match="no 'sparse' to train; it has"):
        model.train_only(["sparse"])


def test_modes_that_were_not_asked_for_are_not_encoded():
    model = tiny()
    GradientCache(model, 2, modes=("dense",)).backward(*batch(), OBJECTIVES["dense"])
    assert not any("backbone" not in name for name in gradients(model))


def test_gradients_add_up_over_batches_by_their_scale():
    once, twice = tiny(), tiny()
    GradientCache(once, 2).backward(*batch(), of_m3)
    for _ in range(2):
        GradientCache(twice, 2).backward(*batch(), of_m3, scale=0.5)
    assert_equal_gradients(gradients(once), gradients(twice))


def in_portions(model, rows, objective, queries, passages):
    """The gradient of sub-batches that keep their graphs: dropout falls as in the cache's first pass."""

    def encoded(texts):
        return join([model(texts.rows(start, start + rows)) for start in range(0, len(texts.ids), rows)])

    objective(encoded(queries), encoded(passages)).total.backward()


def of_noisy_scores(queries, passages):
    """An objective that draws random numbers itself."""
    noisy = {mode: matrix + 0.1 * torch.rand_like(matrix) for mode, matrix in scores(queries, passages, MODES).items()}
    return m3(noisy, layout_of(queries), temperature=0.2)


def test_dropout_falls_alike_both_times_and_anew_in_the_next_batch():
    portions, cached = tiny(dropout=0.3), tiny(dropout=0.3)
    torch.manual_seed(1)
    in_portions(portions, 2, of_noisy_scores, *batch())
    expected = torch.rand(3)
    torch.manual_seed(1)
    GradientCache(cached, 2).backward(*batch(), of_noisy_scores)
    assert_equal_gradients(gradients(portions), gradients(cached))
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
def test_under_bf16_the_cache_computes_what_sub_batches_with_graphs_do(around):
    portions, cached, exact = tiny(), tiny(), tiny()
    in_portions(InBf16(portions), 2, of_m3, *batch())
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        loss = GradientCache(cached if around else InBf16(cached), 2).backward(*batch(), of_m3)
    assert loss.total.dtype == torch.float32
    assert_equal_gradients(gradients(portions), gradients(cached))
    whole_batch(exact, of_m3, *batch())
    assert not torch.allclose(exact.model.sparse.weight.grad, cached.model.sparse.weight.grad)  # it was bf16 indeed


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_layers_give_the_same_gradient(dropout):
    plain, checkpointed = tiny(dropout=dropout), tiny(dropout=dropout)
    checkpointed.checkpoint_layers()
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        GradientCache(model, 2).backward(*batch(), of_m3)
    assert_equal_gradients(gradients(plain), gradients(checkpointed))


class MemoryPeak(TorchDispatchMode):
    """The most bytes of tensors, made since it was entered, that were alive at one time: whatever torch computes."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {self._key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and self._key(each) not in self._seen | old:
                self._count(each.untyped_storage())
        return found

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
    """The peak of bytes above the weights and their gradients."""
    model = tiny(layers=4)
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    with MemoryPeak() as memory:
        backward(model)
    return memory.peak


def test_the_memory_is_counted_right():
    with MemoryPeak() as memory:
        kept = torch.zeros(1000)
        (kept + 1).sum()
        view = kept.view(10, 100)
        kept.add_(1)
    assert memory.peak == pytest.approx(2 * 4000, abs=50)
    assert memory.alive == 4000
    del kept, view
    assert memory.alive == 0


def test_sixteen_sub_batches_need_a_fifth_of_the_memory_at_most():
    asked, offered = texts(32, 12, seed=0), texts(64, 96, seed=1)
    whole = peak(lambda model: whole_batch(model, of_m3, asked, offered))
    cached = peak(lambda model: GradientCache(model, 6).backward(asked, offered, of_m3))
    assert cached <= whole / 5, (whole, cached)


def test_checkpointed_layers_need_less_memory():
    def checkpointed(model):
        model.checkpoint_layers()
        whole_batch(model, of_m3, *batch(16))

    assert peak(checkpointed) < 0.6 * peak(lambda model: whole_batch(model, of_m3, *batch(16)))


def test_a_sub_batch_has_a_text():
    with pytest.raises(ValueError, match="at least 1 text, got rows=0"):
        GradientCache(tiny(), 0)


COUNTS = {"as many": (4, 4), "fewer": (3, 5)}


def of_all_processes(queries, passages):
    """M3's loss and GTE's over the passages and queries of every process."""
    layout = spread(layout_of(queries))
    everyone = gather(passages)
    both = m3(scores(queries, everyone, MODES), layout, temperature=0.2).total
    ways = directions("dense", gather(queries), everyone, layout)
    return total(both + gte(ways, layout, temperature=0.1))


def joined(counts):
    """The batch of every process, and the layout's columns are in the order of processes."""
    each = [batch(count, seed=10 * rank) for rank, count in enumerate(counts)]
    return tuple(TokenBatch(*map(torch.cat, zip(*side, strict=True))) for side in zip(*each, strict=True))


def share(rank, folder):
    """What one process does: its own texts, padded to its own longest."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    for name, counts in COUNTS.items():
        mine = [each.rows(0, len(each.ids)) for each in batch(counts[rank], seed=10 * rank)]
        torch.save(learned(tiny(), mine, counts[rank] / sum(counts), name), f"{folder}/{name} {rank}.pt")
    distributed.destroy_process_group()


def learned(model, mine, weight, name):
    if name == "as many":
        GradientCache(DistributedDataParallel(model), 2).backward(*mine, of_all_processes)
    else:
        # A mean over processes is not one over rows here: each weighs by its rows, and gradients are summed.
        GradientCache(model, 2).backward(*mine, of_all_processes, scale=weight)
        for gradient in gradients(model).values():
            distributed.all_reduce(gradient)
    return gradients(model)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes left what they learned."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(share, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_two_processes_learn_what_one_with_the_joined_batch_does(two_processes, name):
    alone = tiny()
    whole_batch(alone, of_all_processes, *joined(COUNTS[name]))
    for rank in range(2):
        assert_equal_gradients(gradients(alone), torch.load(two_processes / f"{name} {rank}.pt"))
