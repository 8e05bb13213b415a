"""Hard-negative mining with our own retriever."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from m3_integrations import MemoryIndex, Passage, Retriever, SearchPlan, ingest
from m3_integrations.data.beir import read_beir
from m3_integrations.data.splits import normalize_question
from m3_integrations.testing import HashEncoder
from m3_integrations.training.data.examples import Example, load_examples, read_examples, write_examples
from m3_integrations.training.data.sampler import Sampler, Sampling
from m3_integrations.training.mining import Margin, MiningOptions, MiningReport, mine, mine_each, write_mined

WORLD = Path(__file__).parents[2] / "examples" / "world"


def retriever_over(*texts, **options):
    """A retriever over passages with these texts."""
    encoder, index = HashEncoder(), MemoryIndex()
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    index.add(passages, encoder.encode_passages(texts))
    return Retriever(encoder, index, SearchPlan(**options))


# Each shares fewer words with the query than the one before, so it ranks lower in every mode and in their sum.
QUERY = "one two three four five six"
RANKED = [
    "one two three four five x1",
    "one two three four x2 x3",
    "one two three x4 x5 x6",
    "one two x7 x8 x9 x10",
]
POSITIVE = "one two three four five six seven"


def shared_words(query, passages):
    """Score passages by the number of words shared with the query."""
    return [len(set(query.split()) & set(passage.split())) for passage in passages]


def test_the_passages_rank_in_the_listed_order():
    matches = retriever_over(*RANKED, POSITIVE).retrieve(QUERY)
    assert [match.passage.text for match in matches] == [POSITIVE, *RANKED]


def test_the_best_ranked_other_passages_become_negatives():
    (mined,), report = mine(
        [Example(QUERY, (POSITIVE,))], retriever_over(*RANKED, POSITIVE), MiningOptions(negatives=2)
    )
    assert mined == Example(QUERY, (POSITIVE,), tuple(RANKED[:2]))
    assert report == MiningReport(queries=1, negatives=2, without_negatives=0, shortfalls={})


def test_the_ranks_of_the_retriever_include_positives():
    window = MiningOptions(negatives=9, first=3, last=4)
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED, POSITIVE), window)
    assert mined.negatives == (RANKED[1], RANKED[2])


def test_existing_negatives_and_scores_are_replaced():
    example = Example(QUERY, (POSITIVE,), ("old",), (1.0,), (0.0,))
    (mined,), _ = mine([example], retriever_over(*RANKED), MiningOptions(negatives=1))
    assert mined == Example(QUERY, (POSITIVE,), (RANKED[0],))


@pytest.mark.parametrize("same", [POSITIVE, POSITIVE.upper(), f"  {POSITIVE}. ", QUERY, f"{QUERY}?"])
def test_a_copy_of_a_positive_or_the_query_is_never_a_negative(same):
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED, POSITIVE, same))
    assert mined.negatives == tuple(RANKED)


def test_a_duplicate_text_is_one_negative():
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED, *RANKED))
    assert mined.negatives == tuple(RANKED)


words = st.lists(st.sampled_from(["to", "To", "be", "or", "not", "question"]), min_size=1, max_size=5).map(" ".join)


@given(
    st.lists(words, min_size=1, max_size=12),
    st.lists(st.builds(Example, words, st.lists(words, min_size=1, max_size=3)), max_size=4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 9),
    st.builds(Margin, st.floats(0, 0.5), st.floats(0, 0.5)),
    st.none() | st.integers(0, 9),
)
def test_a_negative_is_within_the_ranks_and_the_margin_and_not_a_positive(
    texts, examples, negatives, first, extra, margin, seed
):
    retriever = retriever_over(*texts)
    mining = MiningOptions(negatives, first, first + extra, margin)
    rng = None if seed is None else np.random.default_rng(seed)
    mined, report = mine(examples, retriever, mining, rng=rng)
    for before, after in zip(examples, mined, strict=True):
        window = retriever.retrieve(before.query, mining.last)[first - 1 :]
        scores = {normalize_question(match.passage.text): match.score for match in reversed(window)}
        keys = [normalize_question(text) for text in (*after.negatives, before.query, *before.positives)]
        assert (after.query, after.positives) == (before.query, before.positives)
        assert len(after.negatives) <= negatives
        assert len({*keys[: len(after.negatives)]}) == len(after.negatives)
        assert not set(keys[: len(after.negatives)]) & set(keys[len(after.negatives) :])
        exact = retriever_over(*before.positives).retrieve(before.query)
        max_score = margin.max_score([match.score for match in exact])
        assert all(scores[text] <= max_score + 1e-6 for text in keys[: len(after.negatives)])
    assert report.negatives == sum(len(example.negatives) for example in mined)
    assert sum(report.shortfalls.values()) == sum(len(example.negatives) < negatives for example in mined)


def test_a_margin_is_below_the_lowest_positive():
    assert Margin(absolute=0.25).max_score([3, 2]) == 2 - 0.25
    assert Margin(relative=0.05).max_score([3, 2]) == 2 - 0.05 * 2
    assert Margin(absolute=0.25, relative=0.05).max_score([3, 2]) == 2 - 0.25
    assert Margin(relative=0.5).max_score([-2]) == -2 - 0.5 * 2


@pytest.mark.parametrize("indexed", [False, True])
def test_a_margin_excludes_passages_close_to_a_positive_even_if_it_is_not_indexed(indexed):
    retriever = retriever_over(*RANKED, POSITIVE) if indexed else retriever_over(*RANKED)
    scores = {match.passage.text: match.score for match in retriever_over(*RANKED, POSITIVE).retrieve(QUERY)}
    between = scores[POSITIVE] - (scores[RANKED[1]] + scores[RANKED[2]]) / 2
    for margin in (Margin(absolute=between), Margin(relative=between / scores[POSITIVE])):
        (mined,), report = mine([Example(QUERY, (POSITIVE,))], retriever, MiningOptions(negatives=3, margin=margin))
        assert mined.negatives == tuple(RANKED[2:])
        assert report.shortfalls == {"margin": 1}


def test_a_positive_is_scored_with_the_weights_of_the_plan():
    plan = {"propose": ("dense",), "weights": {"sparse": 2.0}}
    scores = {match.passage.text: match.score for match in retriever_over(*RANKED, POSITIVE, **plan).retrieve(QUERY)}
    between = Margin(absolute=scores[POSITIVE] - (scores[RANKED[1]] + scores[RANKED[2]]) / 2)
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED, **plan), MiningOptions(margin=between))
    assert mined.negatives == tuple(RANKED[2:])


def test_a_teacher_filters_the_negatives_and_its_scores_are_stored():
    example = Example(QUERY, (POSITIVE, "one two three four"))
    (mined,), report = mine(
        [example], retriever_over(*RANKED, POSITIVE), MiningOptions(negatives=3), teacher=shared_words
    )
    assert mined == Example(QUERY, example.positives, tuple(RANKED[2:]), (6.0, 4.0), (3.0, 2.0))
    assert report.shortfalls == {"teacher": 1}


def test_a_teacher_without_margin_only_scores():
    mining = MiningOptions(negatives=3, teacher_margin=None)
    (mined,), _ = mine([Example(QUERY, ("one",))], retriever_over(*RANKED), mining, teacher=shared_words)
    assert mined == Example(QUERY, ("one",), tuple(RANKED[:3]), (1.0,), (5.0, 4.0, 3.0))


def test_a_teacher_scores_only_as_many_passages_as_needed():
    scored = []

    def teacher(query, passages):
        scored.extend(passages)
        return shared_words(query, passages)

    mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED), MiningOptions(negatives=1), teacher=teacher)
    assert scored == [POSITIVE, RANKED[0]]


@pytest.mark.parametrize("scores", [[], [1.0, 2.0], [float("nan")], [[1.0]]])
def test_a_teacher_must_return_one_finite_number_per_passage(scores):
    with pytest.raises(ValueError, match="a teacher must return one finite number per passage, 1 in all"):
        mine([Example(QUERY, (POSITIVE,))], retriever_over(*RANKED), teacher=lambda query, passages: scores)


def test_random_negatives_come_from_all_ranks():
    drawn = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        (mined,), _ = mine(
            [Example(QUERY, (POSITIVE,))],
            retriever_over(*RANKED, POSITIVE),
            MiningOptions(negatives=1, last=4),
            rng=rng,
        )
        drawn.update(mined.negatives)
    assert drawn == set(RANKED[:3])


def test_random_negatives_depend_on_the_seed_and_not_on_the_batch_size():
    examples = [Example(f"{word} {QUERY}", (POSITIVE,)) for word in ("one", "two", "three", "seven", "x7")]
    runs = [
        list(
            mine_each(
                examples, retriever_over(*RANKED), MiningOptions(negatives=2), rng=np.random.default_rng(3), batch=batch
            )
        )
        for batch in (1, 2, 64)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_mined_examples_are_written_with_the_same_report(tmp_path):
    examples = [Example(QUERY, (POSITIVE,)), Example(POSITIVE, (QUERY,))]
    mined, report = mine(examples, retriever_over(*RANKED), MiningOptions(negatives=5))
    written = write_mined(
        tmp_path / "mined.jsonl", mine_each(examples, retriever_over(*RANKED), MiningOptions(negatives=5))
    )
    assert written == report == MiningReport(queries=2, negatives=8, without_negatives=0, shortfalls={"window": 2})
    assert list(read_examples(tmp_path / "mined.jsonl")) == mined


def test_examples_are_read_lazily():
    numbers = count()
    endless = (Example(f"{QUERY} {number}", (POSITIVE,)) for number in numbers)
    first = list(islice(mine_each(endless, retriever_over(*RANKED), batch=4), 6))
    assert [mined.example.query for mined in first] == [f"{QUERY} {number}" for number in range(6)]
    assert next(numbers) == 8


@pytest.mark.parametrize(
    ("texts", "mining", "reason"),
    [
        ([], MiningOptions(negatives=2), "window"),
        (RANKED[:1], MiningOptions(negatives=2), "window"),
        ([RANKED[0], POSITIVE], MiningOptions(negatives=2), "known"),
        (RANKED, MiningOptions(negatives=2, margin=Margin(absolute=9)), "margin"),
        (RANKED, MiningOptions(negatives=2, teacher_margin=Margin(absolute=9)), "teacher"),
        (RANKED, MiningOptions(negatives=2), None),
    ],
)
def test_a_shortfall_has_its_first_reason(texts, mining, reason):
    retriever = retriever_over(*texts) if texts else Retriever(HashEncoder(), MemoryIndex())
    (mined,) = mine_each([Example(QUERY, (POSITIVE,))], retriever, mining, teacher=shared_words)
    assert mined.reason == reason


def test_a_report_counts_shortfalls_by_reason():
    report = MiningReport.from_shortfalls([(2, None), (1, "known"), (0, "margin"), (0, "margin")])
    assert str(report).splitlines() == [
        "3 negatives for 4 queries; 2 queries got none",
        "1 got fewer: passages are positives, the query itself, or duplicates",
        "2 got fewer: scores are too close to the positives",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MiningOptions(negatives=0), "negatives must be at least 1"),
        (lambda: MiningOptions(first=0), "1 <= first <= last, got first=0"),
        (lambda: MiningOptions(first=9, last=8), "1 <= first <= last, got first=9 and last=8"),
        (lambda: Margin(relative=-1), "margins must be at least 0"),
        (lambda: list(mine_each([], retriever_over(*RANKED), batch=0)), "batch must be at least 1"),
    ],
)
def test_invalid_options_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mined_examples_of_a_folder_round_trip_to_batches(tmp_path):
    retriever = Retriever(HashEncoder(), MemoryIndex())
    ingest(retriever.encoder, retriever.index, read_beir(WORLD, "train").passages)
    mined, report = mine(load_examples(WORLD), retriever, MiningOptions(negatives=3), teacher=shared_words)
    write_examples(tmp_path / "mined.jsonl.gz", mined, "flag_embedding")
    assert list(read_examples(tmp_path / "mined.jsonl.gz")) == mined
    assert report.negatives == sum(len(example.negatives) for example in mined) > 0

    sampler = Sampler({"world": mined}, lambda texts: [len(text.split()) for text in texts], Sampling(negatives=3))
    batch = sampler.batch(0)
    assert batch.teacher_scores.shape == batch.groups.shape
    assert (
        shared_words(batch.queries[0], [batch.passages[i] for i in batch.groups[0]]) == batch.teacher_scores[0].tolist()
    )
