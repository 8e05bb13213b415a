"""The demo's page and a nudge report in a browser: accessible, narrow enough for a phone, and free of raw ids."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from m3_integrations import MemoryIndex, Nudger, Passage, Query, ingest
from m3_integrations.encoders.words import word_at
from m3_integrations.testing import HashEncoder

pytestmark = pytest.mark.browser

PAGES = ["index.html", "nudge.html"]
OPEN_FOLDS = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
ANSWERS = {
    "26 milyon tuğladan yapılmış köprü hangisidir?": "goeltzschtalbruecke",
    "Afro-Brazilian fight that looks like a dance": "capoeira",
    "How do I leave a loop early?": "python/break/0",
    "Telmatobius culeus": "titicaca",
    "من هي العالمة التي نالت جائزة نوبل في علمين مختلفين؟": "curie",
    "¿Qué hace la palabra yield dentro de una función?": "python/yield/0",
    "モスクワからウラジオストクまで何日かかる？": "transsib",
    "__getattr__": "python/attribute-access/1",
}


@pytest.mark.parametrize("folds", ["closed", "open"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(open_page, tmp_path, name, width, scheme, folds):
    page = open_page(name, width, scheme)
    if folds == "open":
        page.evaluate(OPEN_FOLDS)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="session")
def report_of_nothing(tmp_path_factory):
    """The report of a nudge that moved nothing, by questions that name few passages, rendered without the index."""
    encoder, index, path = HashEncoder(), MemoryIndex(), tmp_path_factory.mktemp("report") / "report.html"
    ingest(encoder, index, [Passage(f"p{i}", f"room {i} of the house") for i in range(60)])
    queries = [Query(f"q{i}", f"room {i}", {f"p{i}": 1.0}) for i in range(5)]
    Nudger(encoder, index).fit(queries[:4], queries[4:]).render(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_a_report_of_nothing_with_warnings(browser, report_of_nothing, scheme):
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto(report_of_nothing.as_uri())
    page.evaluate(OPEN_FOLDS)
    assert page.locator(".warning").count() == 3
    assert page.locator("h1").inner_text() == "Nothing was moved: no gain from 4 questions was significant."
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways_on_a_phone(open_page, name):
    page = open_page(name, width=360)
    page.evaluate(OPEN_FOLDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_else_and_warns_of_nothing(open_page, name):
    page = open_page(name)
    assert page.requests == [page.url]
    assert page.locator(".warning").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_the_result_is_on_the_first_screen(open_page, name):
    page = open_page(name)
    title, picture = (page.locator(each).first.bounding_box() for each in ("h1", "svg"))
    assert title["y"] + title["height"] < picture["y"] < 600


@pytest.mark.parametrize("name", PAGES)
def test_no_passage_is_shown_by_its_id(open_page, demo, name):
    page = open_page(name)
    page.evaluate(OPEN_FOLDS)
    words = set(page.locator("body").inner_text().split())
    assert not words & {id for id in demo.ids if "-" in id or "/" in id}


def test_every_question_shown_has_its_answer_first(demo):
    assert {answer.question.text: answer.matches[0].passage.id for answer in demo.demo.answers} == ANSWERS


def test_every_passage_states_its_language(open_page):
    page = open_page("index.html")
    for part in (".results .title", ".results p", ".changes .title"):
        assert page.locator(part).count() > 0
        assert page.locator(f"{part}:not([lang])").count() == 0


def test_marks_are_whole_words(open_page, demo):
    page = open_page("index.html")
    marks = page.locator("mark").all_inner_texts()
    assert len(marks) > 20
    for answer in demo.demo.answers:
        for explanation in answer.explanations:
            for start, stop, _ in explanation.passage_heat():
                assert word_at(explanation.passage, start, stop) in (None, (start, stop))
    assert not [mark for mark in marks if "▁" in mark or mark != mark.strip()]


def test_a_word_lights_its_partner_by_mouse_and_by_keyboard(open_page):
    page = open_page("index.html")
    card = page.locator(".answer").first
    chip, mark = card.locator(".chip.m0"), card.locator("mark.m0").first
    color = "mark => getComputedStyle(mark).backgroundColor"
    at_rest = mark.evaluate(color)
    chip.hover()
    lit = mark.evaluate(color)
    page.mouse.move(0, 0)
    assert mark.evaluate(color) == at_rest != lit
    while not chip.evaluate("chip => chip === document.activeElement"):
        page.keyboard.press("Tab")
    assert mark.evaluate(color) == lit
