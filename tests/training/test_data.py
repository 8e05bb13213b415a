"""What a model learns from, as it is read and written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_integrations.core.questions import write_pairs
from m3_integrations.core.texts import Passage, Query
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.training.data import (
    Example,
    examples_of,
    read_examples,
    read_parallel,
    read_source,
    write_examples,
)

WORLD = Path(__file__).parents[2] / "examples" / "world"
TAUGHT = Example("Who?", ("She.", "Her."), ("He.",), (0.9, 0.8), (0.1,))
BARE = Example("Wo ist “das”?", ("Über\u2028alles.",))

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def examples(draw):
    positives, negatives = draw(st.lists(texts, min_size=1, max_size=3)), draw(st.lists(texts, max_size=3))
    example = Example(draw(texts), tuple(positives), tuple(negatives)).without_false_negatives()
    if not draw(st.booleans()):
        return example
    scores = [tuple(draw(numbers) for _ in passages) for passages in (example.positives, example.negatives)]
    return Example(example.query, example.positives, example.negatives, *scores)


def write(path, text):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@given(st.lists(examples(), max_size=4), st.sampled_from(["m3", "flag_embedding"]), st.sampled_from(["", ".gz"]))
def test_what_is_written_is_read_again(tmp_path_factory, written, fields, packed):
    path = tmp_path_factory.mktemp("examples") / f"examples.jsonl{packed}"
    write_examples(path, written, fields)
    assert list(read_examples(path)) == written


def test_flag_embeddings_files_are_read(tmp_path):
    lines = [
        {"query": "Who?", "pos": ["She.", "Her."], "neg": ["He."], "pos_scores": [0.9, 0.8], "neg_scores": [0.1]},
        {"query": "Wo ist “das”?", "pos": ["Über\u2028alles."], "neg": [], "pos_scores": [], "prompt": "Find:"},
        {"query": "When?", "pos": ["Now."], "neg": ["Then."], "pos_scores": None, "neg_scores": None},
        {"query": "Why?", "pos": ["So."], "pos_scores": [1]},
    ]
    path = write(tmp_path / "train.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    assert list(read_examples(path)) == [
        TAUGHT,
        BARE,
        Example("When?", ("Now.",), ("Then.",)),
        Example("Why?", ("So.",), (), (1.0,), ()),
    ]


def test_flag_embeddings_names_are_written_by_choice(tmp_path):
    write_examples(tmp_path / "train.jsonl", [TAUGHT], "flag_embedding")
    assert json.loads((tmp_path / "train.jsonl").read_text()) == {
        "query": "Who?",
        "pos": ["She.", "Her."],
        "neg": ["He."],
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.1],
    }


def test_a_negative_that_equals_a_positive_or_the_query_is_left_out(tmp_path):
    line = {"query": "q", "pos": ["p"], "neg": ["p", "n", "q"], "pos_scores": [3], "neg_scores": [3, 1, 2]}
    path = write(tmp_path / "train.jsonl", json.dumps(line))
    assert list(read_examples(path)) == [Example("q", ("p",), ("n",), (3.0,), (1.0,))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"pos": ["p"]}', "needs a query that is not blank, got ''"),
        ('{"query": "q", "neg": ["n"]}', "'q' has no positives; leave it out"),
        ('{"query": "q", "pos": "p"}', "positives are a list of texts, got 'p'"),
        ('{"query": "q", "pos": ["p", " "]}', "positives are texts that are not blank, got ' '"),
        ('{"query": "q", "pos": ["p"], "neg": [{"text": "n"}]}', "negatives are texts that are not blank"),
        ('{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}', "positive_scores are one number a passage, 1 of them"),
        ('{"query": "q", "pos": ["p"], "pos_scores": [NaN]}', "positive_scores are finite numbers, got nan"),
        ('{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1]}', "give both scores or neither"),
        ('{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1]}', "give both scores or neither"),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_that_is_no_example_is_named(tmp_path, line, message, packed):
    path = write(tmp_path / f"train.jsonl{packed}", f'{{"query": "q", "pos": ["p"]}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"train.jsonl{packed}:3 is (no|not)") as raised:
        list(read_examples(path))
    assert message in str(raised.value)


def test_a_file_is_whole_or_not_there(tmp_path):
    def broken():
        yield TAUGHT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path / "train.jsonl", broken())
    assert not (tmp_path / "train.jsonl").exists()


def test_grades_above_zero_are_positives_and_judged_others_are_negatives():
    passages = [Passage("a", "A."), Passage("b", "B."), Passage("same", "A."), Passage("blank", " ")]
    queries = [
        Query("q1", "Who?", {"a": 2, "b": 0, "same": 1, "blank": 1}),
        Query("q2", "When?", {"b": 0}),
        Query("q3", "Why?", {"a": 1, "same": 0}),
    ]
    assert examples_of(Collection(passages, queries)) == [Example("Who?", ("A.",), ("B.",)), Example("Why?", ("A.",))]


def test_a_llama_index_dataset_gives_its_pairs(tmp_path):
    parts = {"queries": {"q": "Who?"}, "corpus": {"a": "A.", "b": "B."}, "relevant_docs": {"q": ["a", "b"]}}
    (tmp_path / "set.json").write_text(json.dumps(parts))
    assert (
        examples_of(SimpleNamespace(**parts)) == read_source(tmp_path / "set.json") == [Example("Who?", ("A.", "B."))]
    )


def test_a_folder_gives_the_queries_that_its_train_split_judges():
    read = read_source(WORLD)
    collection = read_beir(WORLD, "train")
    passages = {passage.id: passage.text for passage in collection.passages}
    assert [example.query for example in read] == [query.text for query in collection.queries]
    assert all(
        set(example.positives) == {passages[id] for id, grade in query.relevant.items() if grade > 0}
        for example, query in zip(read, collection.queries, strict=True)
    )
    assert read_source(WORLD, "dev") != read


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_parallel_sentences_are_two_columns(tmp_path, name):
    path = write(tmp_path / name, 'Ja, "gern".\tYes, "please".\n\n Nein.\tNo.\n')
    there = [Example('Ja, "gern".', ('Yes, "please".',)), Example("Nein.", ("No.",))]
    back = [Example('Yes, "please".', ('Ja, "gern".',)), Example("No.", ("Nein.",))]
    assert read_parallel(path) == read_source(path) == there
    assert read_parallel(path, both_ways=True) == there + back


@pytest.mark.parametrize("line", ["Ja.", "Ja.\t", "Ja.\tYes.\tOui."])
def test_a_line_that_is_not_two_texts_is_named(tmp_path, line):
    path = write(tmp_path / "pairs.tsv", f"Nein.\tNo.\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv:2 is not a sentence and its translation"):
        read_parallel(path)


def test_questions_about_passages_are_examples(tmp_path):
    passages = [Passage("a", "A."), Passage("b", "B.")]
    queries = [Query("q1", "Who?", {"a": 1.0, "b": 1.0}), Query("q2", "When?", {"b": 1.0})]
    write_pairs(tmp_path / "asked.jsonl", queries, passages)
    assert read_source(tmp_path / "asked.jsonl") == [Example("Who?", ("A.", "B.")), Example("When?", ("B.",))]


def test_a_source_that_cannot_be_read_says_what_can(tmp_path):
    for name, text, error, message in [
        ("absent.jsonl", None, FileNotFoundError, "there is no .*absent.jsonl; name a BEIR folder"),
        ("table.xlsx", "x", ValueError, "ends in '.xlsx'; examples are read from"),
        ("empty.jsonl", "\n", ValueError, "holds no example to learn from"),
        ("asked.jsonl.gz", '{"query": "q", "passage": "a", "text": "A."}', ValueError, "run: gunzip .*asked.jsonl.gz"),
    ]:
        if text is not None:
            write(tmp_path / name, text)
        with pytest.raises(error, match=message):
            read_source(tmp_path / name)
