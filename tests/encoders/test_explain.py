"""What explain says adds up to the score, and its places are places of the texts."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations import M3Encoder, score
from m3_integrations.models.token_pooling import groups_of

QUERY, PASSAGE = "where the bridge", "The Brücke: the bridge"
WEIGHTS = {"dense": 0.5, "sparse": 0.25, "multi_vector": 2.0}


@pytest.fixture(scope="module", params=["", "passage: "], ids=["no prefix", "prefix"])
def encoder(request, bge_m3):
    return M3Encoder.from_pretrained(
        str(bge_m3(seed=4)), query_prefix=request.param, passage_prefix=request.param, device="cpu"
    )


@pytest.fixture(scope="module")
def explanation(encoder):
    return encoder.explain(QUERY, PASSAGE, WEIGHTS)


def test_the_modes_shares_add_up_to_the_score(encoder, explanation):
    expected = score(encoder.encode_queries([QUERY]), encoder.encode_passages([PASSAGE]), WEIGHTS)[0, 0]
    assert explanation.score == pytest.approx(expected, abs=1e-5)
    assert sum(explanation.by_mode.values()) == explanation.score


def test_lexical_matches_add_up_to_the_sparse_score(explanation):
    assert 0.25 * sum(match.score for match in explanation.lexical) == pytest.approx(explanation.by_mode["sparse"])
    for match in explanation.lexical:
        assert match.score == pytest.approx(match.query_weight * match.passage_weight)


def test_an_explanation_has_the_sparse_score_of_the_plan(mini):
    query, passage = "who built the bridge", "the bridge was built by Li Chun"
    mass = mini.encode_queries([query]).with_sparse_score("sum").sparse.sum()
    mean, total = (mini.explain(query, passage, {"sparse": 0.5}, each) for each in ("mean", "sum"))
    assert mean == mini.explain(query, passage, {"sparse": 0.5})
    assert mean.score * mass == pytest.approx(total.score, rel=1e-5)
    assert sum(match.score for match in mean.lexical) * 0.5 == pytest.approx(mean.score, rel=1e-5)


def test_lexical_matches_come_strongest_first(mini):
    scores = [match.score for match in mini.explain("the old red bridge", "a red bridge, very old").lexical]
    assert len(scores) >= 3
    assert scores == sorted(scores, reverse=True)


def test_vector_matches_add_up_to_the_late_interaction_score(explanation):
    assert 2.0 * sum(match.score for match in explanation.late) == pytest.approx(explanation.by_mode["multi_vector"])


def test_there_is_one_vector_match_for_each_query_vector(encoder, explanation):
    assert len(explanation.late) == len(encoder.encode_queries([QUERY]).multi_vector[0])


def test_places_are_those_of_the_tokens_in_the_texts(mini):
    explanation = mini.explain("Where is the bridge?", "An old bridge stands here.")
    for match in explanation.late[:-1]:
        assert "Where is the bridge?"[slice(*match.query_at)].strip().startswith(match.query_token.strip("▁"))
    (bridge,) = [match for match in explanation.late if match.query_token.strip("▁") == "bridge"]
    assert "An old bridge stands here."[slice(*bridge.passage_at)].strip() == "bridge"
    assert explanation.late[-1].query_at == (20, 20)  # the ending token stands after the text


def test_heat_is_between_0_and_1_and_the_strongest_is_1(explanation):
    places = explanation.passage_heat()
    assert max(heat for _, _, heat in places) == 1
    assert all(0 <= start < stop <= len(PASSAGE) and 0 <= heat <= 1 for start, stop, heat in places)
    assert places == sorted(places)


def test_modes_that_the_encoder_lacks_are_left_out(bge_m3):
    dense = M3Encoder.from_pretrained(str(bge_m3(sparse=False, colbert=False)), pooling="cls", device="cpu")
    explanation = dense.explain(QUERY, PASSAGE, WEIGHTS)
    assert (set(explanation.by_mode), explanation.lexical, explanation.late) == ({"dense"}, (), ())
    assert explanation.passage_heat() == []


@pytest.mark.parametrize(("query", "passage"), [("", "the bridge"), ("the bridge", ""), ("", " ")])
def test_empty_texts_are_explained_too(encoder, query, passage):
    explanation = encoder.explain(query, passage)
    assert explanation.lexical == ()
    assert np.isfinite(explanation.score)


@pytest.fixture(scope="module", params=[{}, {"max_length": 16, "window_overlap": 4}], ids=["whole", "windows"])
def pooling(request, bge_m3):
    return M3Encoder.from_pretrained(str(bge_m3(seed=4)), token_pooling=3, device="cpu", **request.param)


def test_what_is_explained_of_pooled_tokens_adds_up_to_what_an_index_scores(pooling):
    passage = f"{PASSAGE} " * 5
    found = pooling.explain(QUERY, passage, WEIGHTS)
    expected = score(pooling.encode_queries([QUERY]), pooling.encode_passages([passage]), WEIGHTS)[0, 0]
    assert found.score == pytest.approx(expected, abs=1e-5)
    assert 2.0 * sum(match.score for match in found.late) == pytest.approx(found.by_mode["multi_vector"])


def test_of_pooled_tokens_the_nearest_one_of_the_matched_group_is_named(pooling):
    passage = f"{PASSAGE} " * 5
    asked = pooling.encode_queries([QUERY]).multi_vector[0]
    tokens = pooling.encode_tokens([passage]).multi_vector[0]
    groups = groups_of(tokens, 3)
    best = np.argmax(asked @ pooling.encode_passages([passage]).multi_vector[0].T, axis=1)
    spans = pooling.passage_spans(passage)
    for q, match in enumerate(pooling.explain(QUERY, passage).late):
        members = np.flatnonzero(groups == best[q])
        nearest = spans[members[np.argmax(tokens[members] @ asked[q])]]
        assert match.passage_at == (nearest.start, nearest.stop)


def test_a_text_read_in_windows_has_a_span_for_each_vector(bge_m3):
    windowed = M3Encoder.from_pretrained(str(bge_m3()), max_length=16, window_overlap=4, device="cpu")
    text = "the bridge " * 20
    assert len(windowed.passage_spans(text)) == windowed.encode_passages([text]).multi_vector.counts[0]


def test_spans_are_whole_words_of_both_texts_by_mode(explanation):
    spans = explanation.spans
    assert spans.keys() == {"sparse", "multi_vector"}  # a dense vector stands for the whole text
    for found in spans.values():
        for text, marks in ((QUERY, found.query), (PASSAGE, found.passage)):
            assert marks == sorted(marks)
            assert all(0 < mark.strength <= 1 and text[mark.start : mark.stop].isalpha() for mark in marks)


def test_sparse_spans_are_every_occurrence_of_the_shared_words(mini):
    query, passage = "the old red bridge", "a red bridge, very old: red"
    spans = mini.explain(query, passage, {"sparse": 1.0}).spans["sparse"]
    assert [query[mark.start : mark.stop] for mark in spans.query] == ["old", "red", "bridge"]
    assert [passage[mark.start : mark.stop] for mark in spans.passage] == ["red", "bridge", "old", "red"]
    assert max(mark.strength for mark in spans.passage) == 1.0


def test_spans_are_those_of_the_modes_that_are_summed(encoder):
    assert encoder.explain(QUERY, PASSAGE, {"dense": 1.0}).spans == {}
    assert encoder.explain(QUERY, PASSAGE, {"sparse": 1.0}).spans.keys() == {"sparse"}


def test_an_explanation_is_html_in_a_notebook(explanation):
    html = explanation._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<mark") == sum(len(marks) for found in explanation.spans.values() for marks in found)
