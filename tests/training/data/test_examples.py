"""Training examples and their files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection, read_beir
from m3_integrations.data.question_generation import write_pairs
from m3_integrations.training.data.examples import (
    Example,
    load_examples,
    read_examples,
    read_parallel,
    to_examples,
    write_examples,
)

WORLD = Path(__file__).parents[3] / "examples" / "world"
SCORED = Example("Who?", ("She.", "Her."), ("He.",), (0.9, 0.8), (0.1,))
UNSCORED = Example("Wo ist “das”?", ("Über\u2028alles.",))

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def examples(draw):
    positives, negatives = draw(st.lists(texts, min_size=1, max_size=3)), draw(st.lists(texts, max_size=3))
    example = Example(draw(texts), tuple(positives), tuple(negatives)).drop_false_negatives()
    if not draw(st.booleans()):
        return example
    scores = [tuple(draw(numbers) for _ in passages) for passages in (example.positives, example.negatives)]
    return Example(example.query, example.positives, example.negatives, *scores)


def write(path, text):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@given(st.lists(examples(), max_size=4), st.sampled_from(["m3", "flag_embedding"]), st.sampled_from(["", ".gz"]))
def test_written_examples_read_back_equal(tmp_path_factory, written, fields, suffix):
    path = tmp_path_factory.mktemp("examples") / f"examples.jsonl{suffix}"
    write_examples(path, written, fields)
    assert list(read_examples(path)) == written


def test_files_of_flag_embedding_are_read(tmp_path):
    lines = [
        {"query": "Who?", "pos": ["She.", "Her."], "neg": ["He."], "pos_scores": [0.9, 0.8], "neg_scores": [0.1]},
        {"query": "Wo ist “das”?", "pos": ["Über\u2028alles."], "neg": [], "pos_scores": [], "prompt": "Find:"},
        {"query": "When?", "pos": ["Now."], "neg": ["Then."], "pos_scores": None, "neg_scores": None},
        {"query": "Why?", "pos": ["So."], "pos_scores": [1]},
    ]
    path = write(tmp_path / "train.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    assert list(read_examples(path)) == [
        SCORED,
        UNSCORED,
        Example("When?", ("Now.",), ("Then.",)),
        Example("Why?", ("So.",), (), (1.0,), ()),
    ]


def test_field_names_of_flag_embedding_are_optional(tmp_path):
    write_examples(tmp_path / "train.jsonl", [SCORED], "flag_embedding")
    assert json.loads((tmp_path / "train.jsonl").read_text()) == {
        "query": "Who?",
        "pos": ["She.", "Her."],
        "neg": ["He."],
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.1],
    }


def test_negatives_equal_to_a_positive_or_the_query_are_dropped(tmp_path):
    line = {"query": "q", "pos": ["p"], "neg": ["p", "n", "q"], "pos_scores": [3], "neg_scores": [3, 1, 2]}
    path = write(tmp_path / "train.jsonl", json.dumps(line))
    assert list(read_examples(path)) == [Example("q", ("p",), ("n",), (3.0,), (1.0,))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"pos": ["p"]}', "query must not be blank, got ''"),
        ('{"query": "q", "neg": ["n"]}', "'q' has no positives; omit the example"),
        ('{"query": "q", "pos": "p"}', "positives must be a list of texts, got 'p'"),
        ('{"query": "q", "pos": ["p", " "]}', "positives must be texts and not blank, got ' '"),
        ('{"query": "q", "pos": ["p"], "neg": [{"text": "n"}]}', "negatives must be texts and not blank"),
        (
            '{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}',
            "positive_scores must be one number per passage, 1 in all",
        ),
        ('{"query": "q", "pos": ["p"], "pos_scores": [NaN]}', "positive_scores must be finite numbers, got nan"),
        ('{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1]}', "pass both or neither"),
        ('{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1]}', "pass both or neither"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_invalid_line_is_named_in_the_error(tmp_path, line, message, suffix):
    path = write(tmp_path / f"train.jsonl{suffix}", f'{{"query": "q", "pos": ["p"]}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"train.jsonl{suffix}:3 is (no|not)") as raised:
        list(read_examples(path))
    assert message in str(raised.value)


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def broken():
        yield SCORED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path / "train.jsonl", broken())
    assert not (tmp_path / "train.jsonl").exists()


def test_grades_above_zero_are_positives_and_other_judged_passages_negatives():
    passages = [Passage("a", "A."), Passage("b", "B."), Passage("same", "A."), Passage("blank", " ")]
    queries = [
        Query("q1", "Who?", {"a": 2, "b": 0, "same": 1, "blank": 1}),
        Query("q2", "When?", {"b": 0}),
        Query("q3", "Why?", {"a": 1, "same": 0}),
    ]
    assert to_examples(JudgedCollection(passages, queries)) == [
        Example("Who?", ("A.",), ("B.",)),
        Example("Why?", ("A.",)),
    ]


def test_a_llama_index_dataset_converts_to_examples(tmp_path):
    parts = {"queries": {"q": "Who?"}, "corpus": {"a": "A.", "b": "B."}, "relevant_docs": {"q": ["a", "b"]}}
    (tmp_path / "set.json").write_text(json.dumps(parts))
    assert (
        to_examples(SimpleNamespace(**parts)) == load_examples(tmp_path / "set.json") == [Example("Who?", ("A.", "B."))]
    )


def test_a_beir_folder_gives_the_queries_of_its_train_split():
    read = load_examples(WORLD)
    collection = read_beir(WORLD, "train")
    passages = {passage.id: passage.text for passage in collection.passages}
    assert [example.query for example in read] == [query.text for query in collection.queries]
    assert all(
        set(example.positives) == {passages[id] for id, grade in query.relevant.items() if grade > 0}
        for example, query in zip(read, collection.queries, strict=True)
    )
    assert load_examples(WORLD, "dev") != read


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_parallel_sentences_are_read_from_two_columns(tmp_path, name):
    path = write(tmp_path / name, 'Ja, "gern".\tYes, "please".\n\n Nein.\tNo.\n')
    forward = [Example('Ja, "gern".', ('Yes, "please".',)), Example("Nein.", ("No.",))]
    backward = [Example('Yes, "please".', ('Ja, "gern".',)), Example("No.", ("Nein.",))]
    assert read_parallel(path) == load_examples(path) == forward
    assert read_parallel(path, bidirectional=True) == forward + backward


@pytest.mark.parametrize("line", ["Ja.", "Ja.\t", "Ja.\tYes.\tOui."])
def test_a_line_without_two_columns_is_named_in_the_error(tmp_path, line):
    path = write(tmp_path / "pairs.tsv", f"Nein.\tNo.\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv:2 must be a sentence and its translation"):
        read_parallel(path)


def test_generated_questions_convert_to_examples(tmp_path):
    passages = [Passage("a", "A."), Passage("b", "B.")]
    queries = [Query("q1", "Who?", {"a": 1.0, "b": 1.0}), Query("q2", "When?", {"b": 1.0})]
    write_pairs(tmp_path / "asked.jsonl", queries, passages)
    assert load_examples(tmp_path / "asked.jsonl") == [Example("Who?", ("A.", "B.")), Example("When?", ("B.",))]


def test_an_unreadable_source_raises_an_error_with_the_supported_formats(tmp_path):
    for name, text, error, message in [
        ("absent.jsonl", None, FileNotFoundError, "absent.jsonl does not exist; pass a BEIR folder"),
        ("table.xlsx", "x", ValueError, "ends in '.xlsx'; pass a BEIR folder"),
        ("empty.jsonl", "\n", ValueError, "holds no training example"),
        ("asked.jsonl.gz", '{"query": "q", "passage": "a", "text": "A."}', ValueError, "run: gunzip .*asked.jsonl.gz"),
    ]:
        if text is not None:
            write(tmp_path / name, text)
        with pytest.raises(error, match=message):
            load_examples(tmp_path / name)
