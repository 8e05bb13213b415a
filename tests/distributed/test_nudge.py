"""nudge_sharded is nudge, wherever the passages lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m3_integrations import Judged, nudge
from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.distributed.executors import InProcess, ProcessPool, RayActors
from m3_integrations.distributed.nudge import nudge_sharded
from tests.optional import requires

DIM = 16


def unit(vectors):
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def problem(seed, passages=600, queries=80):
    """Passages, some of them twice, and two sets of queries that lie off the same passages, all to one side."""
    random = np.random.default_rng(seed)
    kept = unit(random.standard_normal((passages, DIM)))
    kept[-5:] = kept[:5]
    off = random.standard_normal(DIM)
    rows = random.integers(0, passages, queries)
    train, validation = (
        Judged.of(
            unit(kept[rows] + 1.2 * off / np.linalg.norm(off) + 0.3 * random.standard_normal((queries, DIM))),
            [{int(row): 1.0, int((row + 1) % passages): 0.5} for row in rows],
        )
        for _ in range(2)
    )
    return kept, train, validation


def shards(passages, count=8):
    """Of different sizes, one of them empty."""
    return np.split(passages, [3, 3, *np.linspace(10, len(passages), count - 1).astype(int)[:-1]])


def assert_the_same(parts, whole):
    assert parts.rows.tolist() == whole.rows.tolist()
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)
    nudged = parts.nudged
    assert (nudged.method, nudged.propagation, nudged.center) == (whole.method, whole.propagation, whole.center)
    assert nudged.gamma == pytest.approx(whole.gamma, abs=1e-6)
    assert (nudged.before, nudged.after) == pytest.approx((whole.before, whole.after), abs=1e-6)
    np.testing.assert_allclose(nudged.curve.edges, whole.curve.edges, atol=1e-6)
    np.testing.assert_allclose(nudged.curve.levels, whole.curve.levels, atol=1e-6)


@pytest.mark.parametrize("method", ["nudge-n", "nudge-m", "auto"])
@pytest.mark.parametrize("metric", ["ndcg@10", "recall@3"])
@pytest.mark.parametrize("spread", [None, "neighbors"])
@pytest.mark.parametrize("seed", range(3))
def test_over_eight_shards_it_is_the_same_nudge(method, metric, spread, seed):
    passages, train, validation = problem(seed)
    options = {"method": method, "metric": metric, "propagate": spread}
    whole = nudge(passages, train, validation, **options)
    assert (len(whole.rows) == 600) if spread else (50 < len(whole.rows) < 600)
    assert_the_same(nudge_sharded(shards(passages), train, validation, **options), whole)


@pytest.mark.parametrize("seed", range(4))
def test_left_to_itself_it_chooses_what_nudge_chooses(seed):
    passages, train, validation = problem(seed)
    whole = nudge(passages, train, validation)
    assert whole.gamma > 0
    assert_the_same(nudge_sharded(shards(passages), train, validation), whole)


@settings(deadline=None, max_examples=15)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=10), seed=st.integers(0, 5), propagate=st.sampled_from([None, "auto"])
)
def test_it_does_not_matter_where_the_passages_are_cut(cuts, seed, propagate):
    passages, train, validation = problem(seed, passages=90, queries=20)
    whole = nudge(passages, train, validation, propagate=propagate)
    assert_the_same(nudge_sharded(np.split(passages, sorted(cuts)), train, validation, propagate=propagate), whole)


def test_with_a_gamma_that_is_given_it_takes_the_same_way():
    passages, train, validation = problem(3)
    whole = nudge(passages, train, validation, gamma=0.3)
    assert_the_same(nudge_sharded(shards(passages), train, validation, gamma=0.3), whole)


def test_with_few_queries_and_no_validation_folds_judge_alike():
    passages, train, _ = problem(4, passages=300, queries=30)
    nobody = train.take([])
    whole = nudge(passages, train, nobody, propagate="neighbors")
    assert_the_same(nudge_sharded(shards(passages), train, nobody, propagate="neighbors"), whole)


def test_much_less_than_all_comes_together():
    passages, train, validation = problem(0, passages=20_000, queries=10)
    nudged = nudge_sharded(shards(passages), train, validation, method="nudge-m").nudged
    assert len(nudged.start) < 1100  # 40 answers, 50 for each of 20 judges, and few that are not among those


def test_each_shard_is_told_its_own_rows():
    passages, train, validation = problem(1)
    parts = shards(passages)
    nudged = nudge_sharded(parts, train, validation)
    whole = nudge(passages, train, validation).passages
    for number, part in enumerate(parts):
        rows, vectors = nudged.of_shard(number)
        moved = np.array(part)
        moved[rows] = vectors
        np.testing.assert_allclose(moved, shards(whole)[number], atol=1e-6)


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(InProcess(), id="here"),
        pytest.param(ProcessPool(2), id="processes"),
        pytest.param(RayActors(2), id="ray", marks=requires("ray")),
    ],
)
def test_shards_may_be_files_and_the_workers_other_processes(tmp_path, workers):
    passages, train, validation = problem(2, passages=100, queries=10)
    files = []
    for number, part in enumerate(shards(passages, 4)):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], part)
    nudged = nudge_sharded(files, train, validation, method="nudge-n", propagate="neighbors", workers=workers)
    whole = nudge(passages, train, validation, method="nudge-n", propagate="neighbors")
    assert len(whole.rows)
    assert_the_same(nudged, whole)
    for number, (rows, vectors) in enumerate(nudged.each_shard(workers)):
        assert [each.tolist() for each in nudged.of_shard(number)] == [rows.tolist(), vectors.tolist()]


def test_what_does_not_fit_together_is_said():
    passages, train, validation = problem(0)
    with pytest.raises(WrongDimension, match="but there are 100 passages"):
        nudge_sharded([passages[:100]], train, validation)
    with pytest.raises(WrongDimension, match="begins at row 500 has 8 dimensions"):
        nudge_sharded([passages[:500], passages[500:, :8]], train, validation)
    with pytest.raises(ValueError, match="give at least one array"):
        nudge_sharded([], train, validation)
    long = passages.copy()
    long[550] *= 2
    with pytest.raises(ValueError, match="passage 550 has length 2 and method 'nudge-n' needs length 1"):
        nudge_sharded(shards(long), train, validation, method="nudge-n", propagate="neighbors")
    broken = passages.copy()
    broken[550, 3] = np.nan
    with pytest.raises(NonFiniteVector, match="passage 550 holds NaN"):
        nudge_sharded(shards(broken), train, validation)
