"""The served page as a browser without JavaScript gets it: results, filters, escaping, its policy, its key."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html import unescape

import httpx
import numpy as np
import pytest

from m3_integrations import M3Encoder, MemoryIndex, Passage, ingest
from m3_integrations.core.encoded import MODES
from m3_integrations.encoders.explain import word_heat
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.server.http.page.form import SearchForm, filter_controls
from m3_integrations.server.http.page.search import PageSearch, token_vectors
from tests.server.conftest import running

HOSTILE = "<script>alert(1)</script> the 'old' \"bridge\" & <img src=x onerror=alert(2)>"
PASSAGES = [
    Passage("p1", "# Bridges\n\nthe old bridge over the river", {"year": 1901, "lang": "en", "tags": ["river", "old"]}),
    Passage("p2", "a green house by the river", {"year": 1950, "lang": "de", "tags": ["river"]}),
    Passage("p3", "herons nest in tall trees", {"year": 2020, "lang": "en"}),
    Passage('x"><script>alert(3)</script>', HOSTILE, {"title": "<b>bold</b>", "</td><script>": "</td><script>"}),
]


@pytest.fixture(scope="module")
def notes(hash_encoder):
    index = MemoryIndex()
    ingest(hash_encoder, index, PASSAGES)
    return index


@pytest.fixture(scope="module")
def page(hash_encoder, notes):
    """A function that gets a path of a server over two indexes, one of them empty."""
    settings = ServerSettings(port=0)
    app = create_app(hash_encoder, {"notes": notes, "nothing": MemoryIndex()}, settings)
    with running(app, settings) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield lambda path="/", **params: client.get(path, params=params or None)


def parsed(answer):
    """The page as XML, which it is too."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return ET.fromstring(answer.text.replace("<!DOCTYPE html>", "").replace(' autofocus=""', ""))


def ids(tree):
    return [item.get("data-id") for item in tree.iter("li") if item.get("data-id")]


def text(element):
    return " ".join("".join(element.itertext()).split())


def test_the_form_without_javascript_finds_and_shows_the_first_result_in_full(page):
    tree = parsed(page(q="old bridge river"))
    assert ids(tree)[0] == "p1"
    first = next(item for item in tree.iter("li") if item.get("data-id") == "p1")
    assert text(first.find(".//a")) == "Bridges"
    assert [mark.text for mark in first.iter("mark")] == ["old", "bridge", "river"]
    assert first.find(".//a").get("lang") == "en"
    assert first.find(".//a").get("dir") == "auto"
    assert "id=p1" in first.find(".//a").get("href")
    article = tree.find(".//article")
    assert article.get("data-id") == "p1"
    assert [text(link) for link in article.iter("a")][:1] != []


def test_parts_of_the_score_are_at_the_usual_weights_whatever_the_sliders_say(page):
    def parts(**params):
        return {
            item.get("data-id"): [float(item.get(f"data-{mode}")) for mode in MODES]
            for item in parsed(page(q="old bridge", **params)).iter("li")
            if item.get("data-id")
        }

    usual = parts()
    for moved in (parts(dense="0"), parts(sparse="150", multi_vector="10")):
        assert set(moved) <= set(usual)
        for id in moved:
            assert np.allclose(moved[id], usual[id], atol=1e-6)


def test_sliders_change_the_order(page):
    def score(item, mode):
        return float(item.get(f"data-{mode}"))

    tree = parsed(page(q="herons by the river", dense="0", multi_vector="0", sparse="200"))
    found = [item for item in tree.iter("li") if item.get("data-id")]
    assert [score(item, "sparse") for item in found] == sorted((score(item, "sparse") for item in found), reverse=True)
    assert "Every slider is at 0" in page(q="old", dense="0", sparse="0", multi_vector="0").text


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"f.lang": '"de"'}, {"p2"}),
        ({"f.tags": '"river"'}, {"p1", "p2"}),
        ({"f.year": "2020"}, {"p3"}),
        ({"f.lang": '"en"', "f.tags": '"old"'}, {"p1"}),
    ],
)
def test_filters_come_from_the_metadata(page, params, expected):
    assert set(ids(parsed(page(q="river", **params)))) == expected


def test_numbers_with_many_values_are_filtered_by_a_range():
    field = {"name": "n", "passages": 99, "kind": "number", "is_list": False, "min": 0, "max": 98, "has_more": True}
    (control,) = filter_controls([{**field, "values": [{"value": i, "passages": 1} for i in range(60)]}], 99)
    low, high = control.conditions({"min.n": "5", "max.n": "7.5"})
    assert [n for n in range(20) if low.matches({"n": n}) and high.matches({"n": n})] == [5, 6, 7]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"f.lang": "de"}, 'f.lang must be a JSON value such as "de" or 2020'),
        ({"dense": "much"}, "dense must be a number from 0 to 200"),
        ({"dense": "nan"}, "dense must be a number from 0 to 200"),
        ({"q": "x" * 10_001}, "the question has over 10,000 characters"),
        ({"index": "other"}, "there is no index 'other'"),
    ],
)
def test_an_address_that_cannot_be_read_is_an_error_that_says_why(page, params, message):
    answer = page(**{"q": "river", **params})
    assert answer.status_code in (404, 422)
    assert message in unescape(answer.text)
    assert page("/page/results", **{"q": "river", **params}).json()["error"].startswith(message.split(" such")[0])


def test_empty_pages_say_what_to_do(page, hash_encoder):
    assert "Type a question" in page().text
    assert "“nothing” is empty. Add texts with" in page(index="nothing").text
    nothing = parsed(page(q="river", **{"f.lang": '"de"', "f.year": "2020"}))
    assert ids(nothing) == []
    (link,) = [each for each in nothing.iter("a") if each.get("id") == "unfilter"]
    assert ids(parsed(page(link.get("href")))) != []
    assert "Nothing was found" in page(q="   \u200b").text
    settings = ServerSettings(port=0)
    with running(create_app(hash_encoder, {}, settings), settings) as url:
        assert "m3 serve FOLDER" in httpx.get(url, trust_env=False).text


def test_a_hostile_passage_is_text_and_nothing_else(page):
    hostile = PASSAGES[-1].id
    for answer in (
        page(q=HOSTILE, id=hostile),
        page("/page/results", q=HOSTILE, explained="1"),
        page("/page/passage", q=HOSTILE, id=hostile),
    ):
        tree = parsed(answer)
        assert [script.get("src") for script in tree.iter("script")] in ([], ["/page/script.js"])
        assert list(tree.iter("img")) == list(tree.iter("b")) == []
        assert not [name for each in tree.iter() for name in each.attrib if name.startswith("on") or name == "style"]
        assert hostile in [each.get("data-id") for each in tree.iter()]


def test_the_policy_allows_files_of_the_server_alone_and_no_script_in_the_page(page):
    answer = page(q="river")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script type="module" src="/page/script.js">']
    links = [
        each.get("href") or each.get("src") for each in parsed(answer).iter() if each.get("href") or each.get("src")
    ]
    assert not [link for link in links if "//" in link]
    for file, kind in (("style.css", "text/css"), ("script.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        found = page(f"/page/{file}")
        assert found.headers["content-type"].startswith(kind)
        assert not re.search(r"https?://(?!www\.w3\.org/)", found.text)


def test_a_page_with_a_key_shows_nothing_before_it(hash_encoder, notes):
    settings = ServerSettings(port=0, api_key="secret")
    app = create_app(hash_encoder, {"notes": notes}, settings)
    with running(app, settings) as url, httpx.Client(base_url=url, trust_env=False) as client:
        bare = client.get("/", params={"q": "river", "id": "p1"})
        assert bare.status_code == 200
        assert "This server needs its key" in bare.text
        assert "river" not in bare.text
        assert "notes" not in bare.text
        for path in ("/page", "/page/results", "/page/passage", "/learn", "/feedback"):
            assert client.get(path, params={"q": "river", "id": "p1"}).status_code == 401
        assert client.post("/", json={"inputs": "text"}).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert "p1" in client.get("/page", params={"q": "river"}, headers=key).text


def test_a_passage_that_is_gone_is_named_and_a_neighbor_is_found_by_its_id(page):
    assert page("/page/passage", q="river", id="gone").status_code == 404
    assert parsed(page("/page/passage", q="herons", id="p2")).find(".//article").get("data-id") == "p2"


@pytest.fixture(scope="module")
def tiny(bge_m3):
    """A tiny model and an index of its passages."""
    encoder, index = M3Encoder.from_pretrained(str(bge_m3())), MemoryIndex()
    ingest(encoder, index, PASSAGES[:3])
    return encoder, index


def test_stored_vectors_explain_without_the_model(tiny, monkeypatch):
    encoder, index = tiny
    passages = index.passages()
    expected = [encoder.encode_tokens([passage.text]) for passage in passages]
    monkeypatch.setattr(encoder, "encode_tokens", None)
    for found, read in zip(token_vectors(encoder, index, passages), expected, strict=True):
        assert np.allclose(found.multi_vector[0], read.multi_vector[0], atol=1e-5)


def test_the_heat_map_has_whole_words_of_both_texts(tiny):
    encoder, index = tiny
    heat = word_heat(encoder, "the old bridge", PASSAGES[0].text)
    assert ["the old bridge"[slice(*span)] for span in heat.query] == ["the", "old", "bridge"]
    words = [PASSAGES[0].text[slice(*span)] for span in heat.passage]
    assert words == ["Bridges", "the", "old", "bridge", "over", "the", "river"]
    assert heat.strengths.shape == (3, 7)
    assert (heat.strengths >= 0).all()
    assert (heat.strengths <= 1).all()
    settings = ServerSettings(port=0)
    with running(create_app(encoder, {"notes": index}, settings), settings) as url:
        tree = parsed(httpx.get(url, params={"q": "the old bridge", "id": "p1"}, trust_env=False, timeout=60))
    table = next(each for each in tree.iter("table") if each.get("class") == "heat")
    shown = {text(cell) for cell in table.iter("th")}
    assert shown <= {"the", "old", "bridge", *words}
    assert len(shown) > 1


def test_a_form_keeps_what_it_was_given_in_its_addresses(hash_encoder, notes):
    form = SearchForm.from_params([("q", " a & b "), ("dense", "50"), ("f.lang", '"de"'), ("other", "x"), ("id", "p1")])
    assert form.url("p2") == "/?q=a+%26+b&dense=50&f.lang=%22de%22&id=p2"
    sliders = {
        slider.mode: (slider.percent, slider.default) for slider in PageSearch(hash_encoder, notes, form).sliders
    }
    assert sliders == {"dense": (50, 100), "sparse": (100, 100), "multi_vector": (100, 100)}
