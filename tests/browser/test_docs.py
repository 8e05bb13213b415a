"""The documentation in a browser, opened from its folder without a server: accessible, searchable, on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

pytestmark = pytest.mark.browser

SITE = Path(__file__).parents[2] / "site"  # built by `make browser`
PAGES = ["index.html", "faq.html", "guides/filters.html", "benchmarks.html", "reference/m3_integrations.retrieval.html"]


@pytest.fixture
def open_docs(browser):
    """A function that opens a page of the documentation from its file."""
    pages = []

    def opened(name, scheme="light"):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((SITE / name).as_uri(), wait_until="load")
        return page

    yield opened
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation_in_the_documentation(open_docs, name, scheme):
    found = Axe().run(open_docs(name, scheme))
    assert found.violations_count == 0, found.generate_report()


def test_the_search_works_from_a_folder_and_nothing_is_loaded_from_elsewhere(open_docs):
    page = open_docs("index.html")
    page.keyboard.press("/")
    page.keyboard.type("calibrate")
    page.locator(".md-search-result__item").first.wait_for(state="attached")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests)
