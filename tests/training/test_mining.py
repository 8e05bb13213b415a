"""Hard negatives from what our own retriever finds."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_integrations import MemoryIndex, Passage, Retriever, SearchPlan, ingest
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.nudging.splits import normalised
from m3_integrations.testing import HashEncoder
from m3_integrations.training.data import Example, read_examples, read_source, write_examples
from m3_integrations.training.mining import Margin, Mining, MiningReport, mine, mine_each, write_mined
from m3_integrations.training.sampling import Sampler, Sampling

WORLD = Path(__file__).parents[2] / "examples" / "world"


def over(*texts, **options):
    """A retriever over passages of these texts."""
    encoder, index = HashEncoder(), MemoryIndex()
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    index.add(passages, encoder.encode_passages(texts))
    return Retriever(encoder, index, SearchPlan(**options))


# Each shares fewer words with the query, so it ranks lower in every mode and in their sum.
QUERY = "one two three four five six"
RANKED = [
    "one two three four five x1",
    "one two three four x2 x3",
    "one two three x4 x5 x6",
    "one two x7 x8 x9 x10",
]
POSITIVE = "one two three four five six seven"


def by_words(query, passages):
    """A teacher that counts shared words."""
    return [len(set(query.split()) & set(passage.split())) for passage in passages]


def test_the_world_of_these_tests_ranks_as_it_says():
    matches = over(*RANKED, POSITIVE).retrieve(QUERY)
    assert [match.passage.text for match in matches] == [POSITIVE, *RANKED]


def test_the_best_ranked_that_are_no_positive_become_negatives():
    (mined,), report = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, POSITIVE), Mining(negatives=2))
    assert mined == Example(QUERY, (POSITIVE,), tuple(RANKED[:2]))
    assert report == MiningReport(queries=1, negatives=2, without=0, short={})


def test_ranks_are_those_of_the_retriever():
    window = Mining(negatives=9, first=3, last=4)
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, POSITIVE), window)
    assert mined.negatives == (RANKED[1], RANKED[2])


def test_negatives_and_scores_that_were_there_are_replaced():
    example = Example(QUERY, (POSITIVE,), ("old",), (1.0,), (0.0,))
    (mined,), _ = mine([example], over(*RANKED), Mining(negatives=1))
    assert mined == Example(QUERY, (POSITIVE,), (RANKED[0],))


@pytest.mark.parametrize("same", [POSITIVE, POSITIVE.upper(), f"  {POSITIVE}. ", QUERY, f"{QUERY}?"])
def test_what_equals_a_positive_or_the_query_is_no_negative_under_any_id(same):
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, POSITIVE, same))
    assert mined.negatives == tuple(RANKED)


def test_a_text_that_is_kept_twice_is_one_negative():
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, *RANKED))
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
def test_a_negative_ranks_in_the_window_below_every_positive_and_is_none(
    texts, examples, negatives, first, more, margin, seed
):
    retriever = over(*texts)
    mining = Mining(negatives, first, first + more, margin)
    rng = None if seed is None else np.random.default_rng(seed)
    mined, report = mine(examples, retriever, mining, rng=rng)
    for before, after in zip(examples, mined, strict=True):
        window = retriever.retrieve(before.query, mining.last)[first - 1 :]
        scores = {normalised(match.passage.text): match.score for match in reversed(window)}
        said = [normalised(text) for text in (*after.negatives, before.query, *before.positives)]
        assert (after.query, after.positives) == (before.query, before.positives)
        assert len(after.negatives) <= negatives
        assert len({*said[: len(after.negatives)]}) == len(after.negatives)
        assert not set(said[: len(after.negatives)]) & set(said[len(after.negatives) :])
        exact = over(*before.positives).retrieve(before.query)
        ceiling = margin.ceiling([match.score for match in exact])
        assert all(scores[text] <= ceiling + 1e-6 for text in said[: len(after.negatives)])
    assert report.negatives == sum(len(example.negatives) for example in mined)
    assert sum(report.short.values()) == sum(len(example.negatives) < negatives for example in mined)


def test_margins_are_below_the_lowest_positive():
    assert Margin(absolute=0.25).ceiling([3, 2]) == 2 - 0.25
    assert Margin(relative=0.05).ceiling([3, 2]) == 2 - 0.05 * 2
    assert Margin(absolute=0.25, relative=0.05).ceiling([3, 2]) == 2 - 0.25
    assert Margin(relative=0.5).ceiling([-2]) == -2 - 0.5 * 2


@pytest.mark.parametrize("known_to_the_index", [False, True])
def test_a_margin_keeps_what_scores_near_a_positive_away_whether_that_was_found_or_not(known_to_the_index):
    retriever = over(*RANKED, POSITIVE) if known_to_the_index else over(*RANKED)
    scores = {match.passage.text: match.score for match in over(*RANKED, POSITIVE).retrieve(QUERY)}
    between = scores[POSITIVE] - (scores[RANKED[1]] + scores[RANKED[2]]) / 2
    for margin in (Margin(absolute=between), Margin(relative=between / scores[POSITIVE])):
        (mined,), report = mine([Example(QUERY, (POSITIVE,))], retriever, Mining(negatives=3, margin=margin))
        assert mined.negatives == tuple(RANKED[2:])
        assert report.short == {"margin": 1}


def test_a_positive_is_scored_by_the_weights_of_the_plan():
    plan = {"propose": ("dense",), "weights": {"sparse": 2.0}}
    scores = {match.passage.text: match.score for match in over(*RANKED, POSITIVE, **plan).retrieve(QUERY)}
    between = Margin(absolute=scores[POSITIVE] - (scores[RANKED[1]] + scores[RANKED[2]]) / 2)
    (mined,), _ = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, **plan), Mining(margin=between))
    assert mined.negatives == tuple(RANKED[2:])


def test_a_teacher_drops_what_it_takes_for_an_answer_and_its_scores_are_kept():
    example = Example(QUERY, (POSITIVE, "one two three four"))
    (mined,), report = mine([example], over(*RANKED, POSITIVE), Mining(negatives=3), teacher=by_words)
    assert mined == Example(QUERY, example.positives, tuple(RANKED[2:]), (6.0, 4.0), (3.0, 2.0))
    assert report.short == {"teacher": 1}


def test_a_teacher_may_be_asked_for_scores_alone():
    mining = Mining(negatives=3, teacher_margin=None)
    (mined,), _ = mine([Example(QUERY, ("one",))], over(*RANKED), mining, teacher=by_words)
    assert mined == Example(QUERY, ("one",), tuple(RANKED[:3]), (1.0,), (5.0, 4.0, 3.0))


def test_a_teacher_judges_until_there_are_enough():
    judged = []

    def teacher(query, passages):
        judged.extend(passages)
        return by_words(query, passages)

    mine([Example(QUERY, (POSITIVE,))], over(*RANKED), Mining(negatives=1), teacher=teacher)
    assert judged == [POSITIVE, RANKED[0]]


@pytest.mark.parametrize("scores", [[], [1.0, 2.0], [float("nan")], [[1.0]]])
def test_a_teacher_that_does_not_answer_a_number_a_passage_is_told(scores):
    with pytest.raises(ValueError, match="a teacher answers one finite number a passage, 1 of them"):
        mine([Example(QUERY, (POSITIVE,))], over(*RANKED), teacher=lambda query, passages: scores)


def test_a_generator_draws_from_the_whole_window():
    drawn = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        (mined,), _ = mine([Example(QUERY, (POSITIVE,))], over(*RANKED, POSITIVE), Mining(negatives=1, last=4), rng=rng)
        drawn.update(mined.negatives)
    assert drawn == set(RANKED[:3])


def test_drawing_repeats_with_the_seed_and_does_not_depend_on_the_batch():
    examples = [Example(f"{word} {QUERY}", (POSITIVE,)) for word in ("one", "two", "three", "seven", "x7")]
    runs = [
        list(mine_each(examples, over(*RANKED), Mining(negatives=2), rng=np.random.default_rng(3), batch=batch))
        for batch in (1, 2, 64)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_what_is_mined_is_written_as_it_comes_with_the_report_of_all(tmp_path):
    examples = [Example(QUERY, (POSITIVE,)), Example(POSITIVE, (QUERY,))]
    mined, report = mine(examples, over(*RANKED), Mining(negatives=5))
    told = write_mined(tmp_path / "mined.jsonl", mine_each(examples, over(*RANKED), Mining(negatives=5)))
    assert told == report == MiningReport(queries=2, negatives=8, without=0, short={"window": 2})
    assert list(read_examples(tmp_path / "mined.jsonl")) == mined


def test_queries_are_taken_as_they_come():
    asked = count()
    endless = (Example(f"{QUERY} {number}", (POSITIVE,)) for number in asked)
    first = list(islice(mine_each(endless, over(*RANKED), batch=4), 6))
    assert [mined.example.query for mined in first] == [f"{QUERY} {number}" for number in range(6)]
    assert next(asked) == 8


@pytest.mark.parametrize(
    ("texts", "mining", "why"),
    [
        ([], Mining(negatives=2), "window"),
        (RANKED[:1], Mining(negatives=2), "window"),
        ([RANKED[0], POSITIVE], Mining(negatives=2), "known"),
        (RANKED, Mining(negatives=2, margin=Margin(absolute=9)), "margin"),
        (RANKED, Mining(negatives=2, teacher_margin=Margin(absolute=9)), "teacher"),
        (RANKED, Mining(negatives=2), None),
    ],
)
def test_a_shortage_has_the_reason_that_first_left_too_few(texts, mining, why):
    retriever = over(*texts) if texts else Retriever(HashEncoder(), MemoryIndex())
    (mined,) = mine_each([Example(QUERY, (POSITIVE,))], retriever, mining, teacher=by_words)
    assert mined.shortage == why


def test_a_report_says_how_many_fell_short_and_why():
    report = MiningReport.of([(2, None), (1, "known"), (0, "margin"), (0, "margin")])
    assert str(report).splitlines() == [
        "3 negatives for 4 queries; 2 queries got none",
        "1 got fewer: the passages found are positives, the query itself, or repeat one another",
        "2 got fewer: the passages found score too near the positives",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mining(negatives=0), "negatives must be at least 1"),
        (lambda: Mining(first=0), "1 <= first <= last, got first=0"),
        (lambda: Mining(first=9, last=8), "1 <= first <= last, got first=9 and last=8"),
        (lambda: Margin(relative=-1), "margins are at least 0"),
        (lambda: list(mine_each([], over(*RANKED), batch=0)), "batch must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_folder_is_mined_written_read_and_drawn_from(tmp_path):
    retriever = Retriever(HashEncoder(), MemoryIndex())
    ingest(retriever.encoder, retriever.index, read_beir(WORLD, "train").passages)
    mined, report = mine(read_source(WORLD), retriever, Mining(negatives=3), teacher=by_words)
    write_examples(tmp_path / "mined.jsonl.gz", mined, "flag_embedding")
    assert list(read_examples(tmp_path / "mined.jsonl.gz")) == mined
    assert report.negatives == sum(len(example.negatives) for example in mined) > 0

    sampler = Sampler({"world": mined}, lambda texts: [len(text.split()) for text in texts], Sampling(negatives=3))
    batch = sampler.batch(0)
    assert batch.teacher.shape == batch.groups.shape
    assert by_words(batch.queries[0], [batch.passages[i] for i in batch.groups[0]]) == batch.teacher[0].tolist()
