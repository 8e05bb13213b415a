"""The page of `m3 serve` in a browser: searching, explaining, judging, learning; accessible, also on a phone.

With M3_SCREENSHOTS=FOLDER, its pictures are written there.
"""

from __future__ import annotations

import os
import re
from io import BytesIO
from itertools import product
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from m3_integrations import LocalIndex, M3Encoder, MemoryIndex, Passage, ingest
from m3_integrations.demo import world
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.testing import HashEncoder
from tests.server.conftest import running

pytestmark = pytest.mark.browser

PICTURES = ("serve-1280-light", "serve-390-dark", "serve-learned")
PATIENCE = 180_000  # ms that a busy machine may take
expect.set_options(timeout=PATIENCE)
QUESTION = "Which Scottish railway bridge was opened in 1890?"
LANGUAGES = ("en", "de", "fr", "es", "sv", "ar")
ACTIONS = {"Reset": "redo", "Cancel": "ditch", "Change": "swap", "Find": "hunt", "Share": "lend"}
THINGS = {
    "password": "passphrase",
    "invoice": "bill",
    "subscription": "plan",
    "address": "flat",
    "calendar": "diary",
    "printer": "inkjet",
    "backup": "copy",
    "keyboard": "keys",
}
MOVE_SLIDERS = """() => {
  for (const name of ["dense", "multi_vector"]) {
    const slider = document.querySelector(`[name=${name}]`);
    slider.value = 0;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
  }
  return [...document.querySelectorAll("#found li:not([hidden]) a.title")].map(each => each.innerText);
}"""  # one task: no answer of the server can come in between
SENTENCE = "Open Settings, choose {thing} and then {action}. A message says when it is done."
ARTICLES = [
    Passage(f"kb/{i}", f"# {action} the {thing}\n\n{SENTENCE.format(thing=thing, action=action)}", {"topic": thing})
    for i, (action, thing) in enumerate(product(ACTIONS, THINGS))
]
SLANG = [(ACTIONS[action], THINGS[thing], thing) for action, thing in product(ACTIONS, THINGS)]  # of each article


@pytest.fixture(scope="module")
def site():
    """URL of a server over passages about the world, with m3-mini."""
    encoder, index = M3Encoder.from_pretrained(), MemoryIndex()
    ingest(encoder, index, [each for each in world().passages if each.metadata["language"] in LANGUAGES])
    settings = ServerSettings(port=0)
    with running(create_app(encoder, {"world": index}, settings), settings) as url:
        yield url


@pytest.fixture
def help_desk(tmp_path):
    """URL of a server over the articles of a help desk, whose customers have other words."""
    encoder, settings = HashEncoder(), ServerSettings(port=0)
    with LocalIndex.open(tmp_path / "help-desk", encoder) as index:
        ingest(encoder, index, ARTICLES)
        with running(create_app(encoder, {"help-desk": index}, settings), settings) as url:
            yield url


@pytest.fixture
def visit(browser):
    """A function that opens a page and collects what the browser complains about; there is to be nothing."""
    contexts, complaints = [], []

    def visited(url, width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    visited.complaints = complaints
    yield visited
    for context in contexts:
        context.close()
    assert complaints == []


def ask(page, question):
    """Type a question and wait for the explained results."""
    with page.expect_response(lambda answer: "explained=1" in answer.url):
        page.locator("#q").fill(question)
    expect(page.locator("#passage article")).to_be_visible()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    return page


def titles(page):
    return page.locator("#found li:not([hidden]) a.title").all_inner_texts()


def picture(page, name):
    """Write a screenshot that docs/serving.md shows, in few colors, if there is a folder for it."""
    folder = os.environ.get("M3_SCREENSHOTS")
    if folder and name in PICTURES:
        from PIL import Image

        Path(folder).mkdir(parents=True, exist_ok=True)
        with Image.open(BytesIO(page.screenshot())) as image:
            few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
            few.save(Path(folder) / f"{name}.png", optimize=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_violation(site, visit, width, scheme):
    page = visit(site, width, scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    ask(page, QUESTION)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.evaluate("document.querySelector('#controls').open = innerWidth > 640")
    picture(page, f"serve-{width}-{scheme}")


@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_no_width_scrolls_sideways(site, visit, width):
    page = ask(visit(site, width), QUESTION)
    page.locator("#controls").evaluate("details => details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_results_come_as_you_type_with_words_lit_and_no_ids(site, visit):
    page = ask(visit(site), QUESTION)
    assert titles(page)[0] == "Forth Bridge"
    assert page.url.endswith("?" + str(httpx.QueryParams({"q": QUESTION})))
    marks = page.locator("#found li:first-child mark").all_inner_texts()
    assert {"Bridge", "railway", "1890"} <= set(marks)
    body = page.locator("#found").inner_text()
    assert "forth-bridge" not in body
    assert "▁" not in page.content()
    for part in ("#found .title", "#found p[dir]", "#passage-title", ".passage"):
        assert page.locator(f"{part}:not([lang])").count() == 0
    assert page.locator("#found .bar").first.get_attribute("aria-label").startswith("score ")


def test_sliders_change_the_order_at_once_and_then_the_search_agrees(site, visit):
    page = ask(visit(site), "a red bridge of steel over the water")
    usual = titles(page)
    with page.expect_response(lambda answer: "dense=0&multi_vector=0" in answer.url):
        at_once = page.evaluate(MOVE_SLIDERS)
        assert at_once != usual
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    assert "dense=0&multi_vector=0" in page.url
    assert titles(page)[0] == at_once[0]
    with page.expect_response(lambda answer: "explained=1" in answer.url):
        page.get_by_role("button", name="Usual ranking").click()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    assert titles(page) == usual


def test_the_heat_map_joins_words_and_a_word_lights_its_match(site, visit):
    page = ask(visit(site), QUESTION)
    heat = page.locator("table.heat")
    column = heat.locator("thead th").all_inner_texts().index("railway")
    row = heat.locator("tbody tr").filter(has=page.locator("th", has_text="railway"))
    cells = [int(text) for text in row.locator("td").all_inner_texts()]
    assert cells[column] == max(cells) > 50
    chip, mark = row.locator(".chip"), page.locator(".passage mark", has_text="railway").first
    color = "mark => getComputedStyle(mark).backgroundColor"
    at_rest = mark.evaluate(color)
    chip.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")  # focus by keyboard is visible focus
    assert mark.evaluate(color) != at_rest


def test_a_passage_opens_with_neighbors_and_metadata_and_filters_narrow_the_results(site, visit):
    page = ask(visit(site), QUESTION)
    page.locator("#found li").nth(1).locator("a.title").click()
    second = titles(page)[1]
    expect(page.locator("#passage-title")).to_have_text(second)
    expect(page.locator("#passage-title")).to_be_focused()
    neighbor = page.locator(".neighbors a").first
    name = neighbor.inner_text()
    neighbor.click()
    expect(page.locator("#passage-title")).to_have_text(name)
    with page.expect_response(lambda answer: "f.language" in answer.url):
        page.locator("[name='f.language']").select_option('"de"')
    expect(page.locator("#found .title").first).to_have_attribute("lang", "de")
    assert page.locator("#found .title:not([lang=de])").count() == 0


def test_empty_no_result_and_error_states_are_written_out(site, visit):
    page = visit(site)
    expect(page.locator("#found")).to_contain_text("Type a question or a few words above.")
    page.route(
        "**/page/results*", lambda route: route.fulfill(status=503, json={"error": "256 requests are in progress"})
    )
    page.locator("#q").fill("bridge")
    expect(page.locator("#status")).to_contain_text("The search failed: 256 requests are in progress")
    assert all("503" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
    page.unroute("**/page/results*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#found li").first).to_be_visible()
    with page.expect_response(lambda answer: "explained=1" in answer.url):
        page.locator("#q").fill("   ")
        page.locator("#q").fill("\u200b")
    expect(page.locator("#found")).to_contain_text("Nothing was found")


def test_the_keyboard_alone_searches_opens_and_judges(site, visit):
    page = visit(site)
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    with page.expect_response(lambda answer: "explained=1" in answer.url):
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
    expect(page.locator("#passage article")).to_be_visible()

    def tab_to(selector):
        for _ in range(40):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("input[name=dense]")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".slider output").first).to_have_text("90 %")
    tab_to("#found li:nth-child(2) a.title")
    page.keyboard.press("Enter")
    expect(page.locator("#passage-title")).to_be_focused()
    tab_to("#passage .thumb[data-useful=true]")
    page.keyboard.press("Enter")
    expect(page.locator("#passage .thumb[data-useful=true]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#judged")).to_contain_text("Questions judged so far:")
    tab_to("#learn")


def test_without_javascript_the_form_finds_filters_and_opens(site, visit):
    page = visit(site, java_script_enabled=False)
    assert page.get_by_role("button", name="Learn from them").count() == 0
    page.locator("#q").fill(QUESTION)
    page.get_by_role("button", name="Search").click()
    assert titles(page)[0] == "Forth Bridge"
    assert page.locator("#passage-title").inner_text() == "Forth Bridge"
    page.locator("[name='f.language']").select_option('"de"')
    page.get_by_role("button", name="Search").click()
    assert page.locator("#found .title:not([lang=de])").count() == 0
    page.locator("#found a.title").nth(1).click()
    assert page.locator("#passage-title").inner_text() == titles(page)[1]


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(visit):
    encoder, index, settings = HashEncoder(), MemoryIndex(), ServerSettings(port=0, api_key="secret")
    ingest(encoder, index, ARTICLES)
    with running(create_app(encoder, {"help-desk": index}, settings), settings) as url:
        page = visit(f"{url}/?q=password")
        page.get_by_label("Key, which").fill("secret")
        page.get_by_role("button", name="Open").click()
        expect(page.locator("#found li").first).to_be_visible()
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            ["secret"],
            0,
            "",
        ]
        page.reload()
        ask(page, "Reset the invoice")
        assert titles(page)[0] == "Reset the invoice"
        page.close()


def test_ten_judgements_are_too_few_and_150_move_the_right_answers_up_until_undone(help_desk, visit):
    page = visit(help_desk)
    for i, (action, _, thing) in enumerate(SLANG[:10]):
        ask(page, f"how do I {action} the {thing}")
        item = page.locator(f"#found li[data-id='kb/{i}']")
        if not item.is_visible():
            page.locator("#more").click()
        item.locator(".thumb[data-useful=true]").click()
        expect(item.locator(".thumb[data-useful=true]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#judged")).to_contain_text("Questions judged so far: 10 (10 results useful, 0 not)")
    page.get_by_role("button", name="Learn from them").click()
    report = page.locator("#report")
    expect(report.locator("h2").first).to_have_text("Not enough evidence yet, nothing moved")
    expect(report).to_be_focused()
    expect(page.locator("#undo")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(report).to_be_hidden()

    with httpx.Client(base_url=help_desk, trust_env=False) as client:
        for i in range(10, 150):
            action, slang, thing = SLANG[i % len(SLANG)]
            question = f"please {action} that {slang if i % 3 else thing} {i}"
            body = {"query": question, "id": f"kb/{i % len(SLANG)}", "useful": True}
            assert client.post("/feedback", json=body).status_code == 200
    asked = "please ditch that passphrase now"
    ask(page, asked)
    before = titles(page)
    page.get_by_role("button", name="Learn from them").click()
    expect(report.locator("h2").first).to_contain_text("After learning from")
    assert re.search(r"the right answer comes first for \d+% of \d+ new questions, up from \d+%", report.inner_text())
    assert report.locator("svg").count() > 0
    picture(page, "serve-learned")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Escape")
    after = titles(page)
    assert after[0] == "Cancel the password"
    assert before != after
    assert page.locator("#found .moved.rose", has_text="▲").count() > 0
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#judged")).to_contain_text("The original vectors are restored.")
    expect(page.locator("#found .title").first).to_have_text(before[0])
    assert titles(page) == before
    expect(page.locator("#undo")).to_be_hidden()
