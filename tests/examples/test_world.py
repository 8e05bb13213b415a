"""The example corpus keeps what its README and the demo promise."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

WORLD = Path(__file__).parents[2] / "examples" / "world"
SPLITS = ("train", "dev", "test")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (WORLD / name).read_text(encoding="utf-8").splitlines()]


def judgements(split: str) -> list[tuple[str, str, int]]:
    with (WORLD / "qrels" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["query-id", "corpus-id", "score"]
    return [(query, passage, int(score)) for query, passage, score in rows[1:]]


PASSAGES = {passage["_id"]: passage for passage in lines("passages.jsonl")}
QUERIES = {query["_id"]: query for query in lines("queries.jsonl")}
JUDGED = {split: judgements(split) for split in SPLITS}
EVERY_JUDGEMENT = [judgement for split in SPLITS for judgement in JUDGED[split]]
NICKNAMED = sorted({passage for query, passage, _ in EVERY_JUDGEMENT if query.startswith("desk-")})


def test_ids_and_texts_are_unique():
    for name in ("passages.jsonl", "queries.jsonl"):
        for key in ("_id", "text"):
            assert Counter(line[key] for line in lines(name)).most_common(1)[0][1] == 1


def test_the_corpus_is_as_large_and_as_varied_as_promised():
    assert len(PASSAGES) >= 60
    assert len(QUERIES) >= 60
    assert len({passage["metadata"]["language"] for passage in PASSAGES.values()}) >= 12
    assert len({passage["metadata"]["script"] for passage in PASSAGES.values()}) >= 4


def test_every_passage_has_a_title_and_three_facts_about_itself():
    for passage in PASSAGES.values():
        assert set(passage) == {"_id", "title", "text", "metadata"}
        assert passage["title"]
        assert set(passage["metadata"]) == {"language", "script", "topic"}


def test_most_passages_have_near_neighbours():
    topics = Counter(passage["metadata"]["topic"] for passage in PASSAGES.values())
    assert sum(size for size in topics.values() if size >= 3) > len(PASSAGES) * 3 / 4


def test_judgements_name_passages_and_queries_that_exist():
    assert {query for query, _, _ in EVERY_JUDGEMENT} == set(QUERIES)
    assert {passage for _, passage, _ in EVERY_JUDGEMENT} == set(PASSAGES)


def test_every_query_has_one_or_two_answers_of_grade_one_or_two():
    assert set(Counter(query for query, _, _ in EVERY_JUDGEMENT).values()) <= {1, 2}
    assert {grade for _, _, grade in EVERY_JUDGEMENT} <= {1, 2}
    assert {query for query, _, grade in EVERY_JUDGEMENT if grade == 2} == set(QUERIES)


def test_at_least_a_third_of_the_queries_cross_languages():
    languages: dict[str, set[str]] = {}
    for query, passage, _ in EVERY_JUDGEMENT:
        languages.setdefault(query, set()).add(PASSAGES[passage]["metadata"]["language"])
    crossing = [query for query, answered_in in languages.items() if QUERIES[query]["lang"] not in answered_in]
    assert len(crossing) >= len(QUERIES) / 3


def test_no_query_is_in_two_splits():
    asked = [{query for query, _, _ in JUDGED[split]} for split in SPLITS]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_train_asks_for_every_passage():
    assert {passage for _, passage, _ in JUDGED["train"]} == set(PASSAGES)


@pytest.mark.parametrize("passage", NICKNAMED)
def test_a_nicknamed_passage_is_asked_for_in_every_split(passage):
    for split in SPLITS:
        asked_for = {answer for query, answer, _ in JUDGED[split] if query.startswith("desk-")}
        assert passage in asked_for


def test_the_readme_counts_what_is_there():
    readme = (WORLD / "README.md").read_text(encoding="utf-8")
    assert f"{len(PASSAGES)} passages" in readme
    assert f"{len(QUERIES)} questions" in readme
    asked_in = Counter(query["lang"] for query in QUERIES.values())
    written_in = Counter(
        (passage["metadata"]["script"], passage["metadata"]["language"]) for passage in PASSAGES.values()
    )
    for (script, language), count in written_in.items():
        assert f"| {script} | {language} | {count} | {asked_in[language]} |" in readme
    for split in SPLITS:
        count = len({query for query, _, _ in JUDGED[split]})
        assert f"| {split} | {count} |" in readme
