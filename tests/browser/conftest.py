"""A headless browser, and the pages of `m3 demo` as it opens them; a browser that cannot start is an error, no skip."""

from __future__ import annotations

import shutil
from typing import NamedTuple

import pytest
from playwright.sync_api import sync_playwright

from m3_integrations import LocalIndex, M3Encoder
from m3_integrations.demo import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class RenderedDemo(NamedTuple):
    demo: object
    ids: list[str]
    folder: object


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo of m3-mini, and the folder of its pages."""
    encoder, folder = M3Encoder.from_pretrained(), tmp_path_factory.mktemp("demo")
    with LocalIndex.open(folder / "index", encoder) as index:
        result = run(encoder, index)
        result.render(folder, index)
        return RenderedDemo(result, index.ids(), folder)


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium or Chrome, or else that of Playwright."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-lcd-text"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, demo):
    """A function that opens a page of the demo: `open_page("index.html", width=390, scheme="dark")`."""
    pages = []

    def opened(name, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((demo.folder / name).as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
