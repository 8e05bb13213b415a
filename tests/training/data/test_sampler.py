"""Batches of several sources: their members, sizes and reproducibility."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m3_integrations.data.splits import normalize_question
from m3_integrations.training.data.batch import Batch, TrainingRow, shuffle_segments
from m3_integrations.training.data.examples import Example
from m3_integrations.training.data.sampler import Sampler, Sampling, source_probabilities

STEPS = 40


def words(texts):
    return [len(text.split()) for text in texts]


# Few words, so that queries and answers collide; case and punctuation vary but normalize away.
texts = st.lists(st.sampled_from(["to", "To", "be", "or", "not"]), min_size=1, max_size=9).map(" ".join)
examples = st.builds(
    lambda query, positives, negatives: Example(query + "?", tuple(positives), tuple(negatives)),
    texts,
    st.lists(texts, min_size=1, max_size=2),
    st.lists(texts, max_size=4),
)
sources = st.dictionaries(st.sampled_from("abc"), st.lists(examples, min_size=1, max_size=12), min_size=1)
samplings = st.builds(
    Sampling,
    tokens=st.integers(1, 120),
    rows=st.none() | st.integers(1, 5),
    negatives=st.integers(0, 3),
    longest_passage=st.none() | st.integers(1, 6),
    seed=st.integers(0, 9),
)


def plain(count, tokens=lambda i: 3):
    """Examples without common texts; tokens(i) is the length of passage i."""
    return [Example(f"question {i}", (" ".join([f"answer-{i}"] * tokens(i)),)) for i in range(count)]


def run(sampler, steps=STEPS):
    return list(sampler.batches(0, steps))


def padded(batch, longest=10**9):
    """Tokens of a batch, its queries and its passages each padded to the longest."""
    queries, passages = words(batch.queries), [min(count, longest) for count in words(batch.passages)]
    return len(queries) * max(queries) + len(passages) * max(passages)


@given(sources, samplings)
def test_a_batch_stays_within_its_limits_except_a_single_longer_example(sources, sampling):
    for batch in run(Sampler(sources, words, sampling)):
        assert len(batch.rows) == 1 or padded(batch, sampling.longest_passage or 10**9) <= sampling.tokens
        assert sampling.rows is None or len(batch.rows) <= sampling.rows


@given(sources, samplings)
def test_an_epoch_holds_every_example_of_its_source_once(sources, sampling):
    for name, examples in sources.items():
        sampler = Sampler({name: examples}, words, sampling)
        queries = Counter(query for batch in run(sampler, sampler.steps(2)) for query in batch.queries)
        assert queries == Counter([example.query for example in examples] * 2)


def test_no_example_repeats_before_the_epoch_of_its_source_ends():
    sampler = Sampler({"big": plain(50), "small": plain(7)}, words, Sampling(tokens=40))
    for step in range(1, 60, 7):
        for name, size in (("big", 50), ("small", 7)):
            seen = Counter(query for each in run(sampler, step) if each.source == name for query in each.queries)
            times = [seen[f"question {i}"] for i in range(size)]
            assert max(times) - min(times) <= 1


@given(sources, samplings, st.permutations(range(STEPS)))
def test_a_batch_depends_only_on_the_seed_and_its_step(sources, sampling, order):
    uninterrupted = run(Sampler(sources, words, sampling))
    resumed = Sampler(sources, words, sampling)
    assert {step: resumed.batch(step) for step in order} == dict(enumerate(uninterrupted))


def test_a_run_resumes_at_its_step_after_many_epochs():
    sources = {"a": plain(30), "b": plain(9)}
    whole = run(Sampler(sources, words, Sampling(tokens=60)), 5_000)
    assert list(Sampler(sources, words, Sampling(tokens=60)).batches(4_990, 5_000)) == whole[4_990:]


def test_batches_of_a_source_do_not_repeat_across_blocks_of_steps():
    sampler = Sampler({"a": plain(5000), "b": plain(2)}, words, Sampling(rows=1, alpha=1))
    queries = [batch.queries[0] for batch in run(sampler, 4500) if batch.source == "a"]
    assert len(set(queries)) == len(queries) > 4400


def test_a_different_seed_draws_different_batches():
    first, other = (run(Sampler({"a": plain(30)}, words, Sampling(tokens=40, seed=seed))) for seed in (0, 1))
    assert first != other


def test_each_epoch_groups_a_source_differently():
    sampler = Sampler({"a": plain(30)}, words, Sampling(tokens=40))
    steps = sampler.steps()
    first, second = (
        {frozenset(sampler.batch(step + offset).queries) for step in range(steps)} for offset in (0, steps)
    )
    assert first != second


@given(sources, samplings, st.integers(1, 5))
def test_the_shards_of_all_workers_make_up_the_batch(sources, sampling, workers):
    samplers = [Sampler(sources, words, sampling) for _ in range(workers)]
    for step, batch in enumerate(run(samplers[0], 5)):
        shards = [sampler.batch(step).shard(rank, workers) for rank, sampler in enumerate(samplers)]
        assert Counter(row for shard in shards for row in shard.rows) == Counter(batch.rows)
        assert max(len(shard.rows) for shard in shards) - min(len(shard.rows) for shard in shards) <= 1


@given(sources, samplings)
def test_no_row_of_a_batch_answers_another_query(sources, sampling):
    for batch in run(Sampler(sources, words, sampling)):
        keys = [{normalize_question(row.query), normalize_question(row.positive)} for row in batch.rows]
        assert sum(map(len, keys)) == len(set().union(*keys))
        assert not set().union(*keys) & {normalize_question(text) for row in batch.rows for text in row.negatives}


def test_a_batch_comes_from_one_source():
    sources = {"a": [Example("a", ("a",))] * 3, "b": [Example("b", ("b",))] * 3}
    batches = run(Sampler(sources, words))
    assert all(set(batch.queries) == {batch.source} for batch in batches)
    assert {batch.source for batch in batches} == {"a", "b"}


def test_source_probabilities_are_powers_of_the_sizes():
    assert source_probabilities([1, 4, 9]) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert source_probabilities([1, 4, 9], alpha=1) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert source_probabilities([1, 4, 9], alpha=0) == pytest.approx([1 / 3] * 3)
    assert source_probabilities([10**9, 1], alpha=100) == pytest.approx([1, 0])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_sources_occur_in_proportion_to_their_probabilities(sizes, alpha, seed):
    sources = {str(i): plain(size) for i, size in enumerate(sizes)}
    sampler = Sampler(sources, words, Sampling(rows=2, alpha=alpha, seed=seed))
    steps = 300
    counts = Counter(batch.source for batch in run(sampler, steps))
    for name, p in zip(sources, source_probabilities(sizes, alpha), strict=True):
        assert sampler.probabilities[name] == pytest.approx(p)
        assert abs(counts[name] - steps * p) <= 6 * (steps * p * (1 - p)) ** 0.5 + 1


def test_texts_of_similar_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    sampler = Sampler({"a": plain(1000, lambda i: lengths[i])}, words, Sampling(tokens=4000))
    batches = run(sampler, sampler.steps())
    read = sum(sum(words(batch.queries + batch.passages)) for batch in batches)
    assert read > 0.85 * sum(padded(batch) for batch in batches)


def test_queries_that_share_an_answer_get_in_batch_negatives():
    answers = [" ".join([f"answer-{i}"] * (i + 1)) for i in range(20)]
    queries = [Example(f"question {i} {j}", (answers[i],)) for i in range(20) for j in range(5)]
    for seed in range(10):
        sampler = Sampler({"a": queries}, words, Sampling(tokens=300, seed=seed))
        assert min(len(batch.rows) for batch in run(sampler, sampler.steps())) >= 3


def test_queries_of_one_long_passage_get_in_batch_negatives():
    popular = [Example(f"question {i}", ("the long answer",)) for i in range(90)]
    sampler = Sampler({"a": [*popular, *plain(900, lambda i: 1)]}, words, Sampling(tokens=1000))
    assert 90 <= sampler.steps() <= 99  # no two of the 90 can share a batch
    assert min(len(batch.rows) for batch in run(sampler, sampler.steps())) >= 6


def test_a_source_with_a_single_answer_gives_batches_of_one():
    queries = [Example(f"question {i}", ("the answer",)) for i in range(1100)]
    sampler = Sampler({"a": queries}, words)
    assert sampler.steps() == 1100


def test_lengths_count_only_the_tokens_read():
    long = plain(8, lambda i: 1000)
    sampler = Sampler({"a": long}, words, Sampling(tokens=8 * (2 + 10), longest_query=2, longest_passage=10))
    assert len(sampler.batch(0).rows) == 8


def test_negatives_are_drawn_without_repetition_and_keep_their_scores():
    negatives = tuple(f"n{i}" for i in range(6))
    example = Example("q", ("p0", "p1"), negatives, (0.5, 1.5), tuple(float(i) for i in range(6)))
    sampler = Sampler({"a": [example]}, words, Sampling(negatives=4))
    rows = [batch.rows[0] for batch in run(sampler)]
    assert {row.positive for row in rows} == {"p0", "p1"}
    assert {text for row in rows for text in row.negatives} == set(negatives)
    for row in rows:
        assert len(set(row.negatives)) == 4
        assert row.positive_score == int(row.positive[1]) + 0.5
        assert row.negative_scores == tuple(float(text[1]) for text in row.negatives)


def test_groups_are_the_positions_of_each_rows_passages():
    rows = (
        TrainingRow("q0", "p0", ("a", "b"), 3, (1, 2)),
        TrainingRow("q1", "p1", (), 5, ()),
        TrainingRow("q2", "p2", ("c",), 7, (4,)),
    )
    batch = Batch(0, "a", rows)
    assert batch.queries == ["q0", "q1", "q2"]
    assert batch.passages == ["p0", "p1", "p2", "a", "b", "c"]
    assert batch.groups.tolist() == [[0, 3, 4], [1, -1, -1], [2, 5, -1]]
    assert batch.teacher_scores.tolist() == [[3, 1, 2], [5, -np.inf, -np.inf], [7, 4, -np.inf]]


def test_a_partly_scored_batch_has_no_teacher_scores():
    assert Batch(0, "a", (TrainingRow("q0", "p0", (), 3, ()), TrainingRow("q1", "p1"))).teacher_scores is None


def test_an_empty_shard_has_no_groups():
    shard = Batch(0, "a", (TrainingRow("q0", "p0"),)).shard(1, 2)
    assert (shard.queries, shard.passages, shard.groups.shape, shard.teacher_scores) == ([], [], (0, 1), None)


LONG = " ".join(f"word-{i}" for i in range(60))


@given(st.integers(0, 99))
def test_shuffled_segments_are_the_same_words_in_a_different_order(seed):
    shuffled = shuffle_segments(LONG, np.random.default_rng(seed))
    assert shuffled != LONG
    assert Counter(shuffled.split()) == Counter(LONG.split())
    breaks = [(a, b) for a, b in zip(shuffled.split(), shuffled.split()[1:], strict=False) if f"{a} {b}" not in LONG]
    assert 1 <= len(breaks) <= 2


def test_text_without_spaces_is_cut_between_characters():
    text = "".join(chr(0x4E00 + i) for i in range(150))
    shuffled = shuffle_segments(text, np.random.default_rng(0))
    assert Counter(shuffled.replace(" ", "")) == Counter(text)
    assert sorted(map(len, shuffled.split())) == [50, 50, 50]


def test_a_short_text_keeps_its_order():
    assert shuffle_segments("to be or not", np.random.default_rng(0)) == "to be or not"


@pytest.mark.parametrize(("share", "shuffled"), [(0, 0), (1, 1)])
def test_long_passages_are_shuffled_at_the_given_rate_and_queries_never(share, shuffled):
    example = Example(LONG, (LONG + " end",), (LONG + " not", "short"))
    (row,) = Sampler({"a": [example]}, words, Sampling(shuffle=share)).batch(0).rows
    assert row.query == LONG
    assert (row.positive != LONG + " end") is bool(shuffled)
    assert set(row.negatives) == {LONG + " not", "short"} if not shuffled else "short" in row.negatives


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"negatives": -1}, "negatives and seed must be at least 0, got -1"),
        ({"shuffle": 2}, "shuffle must be from 0 to 1"),
        ({"alpha": float("nan")}, "alpha must be finite, got nan; 0 draws sources uniformly"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_an_empty_source_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"sources without examples: \['empty'\]"):
        Sampler({"a": plain(1), "empty": []}, words)
    with pytest.raises(ValueError, match="no source given"):
        Sampler({}, words)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Sampler({"a": plain(1)}, words).batch(-1)
    with pytest.raises(ValueError, match="rank must be from 0 to workers - 1 = 1, got 2"):
        Sampler({"a": plain(1)}, words).batch(0).shard(2, 2)
