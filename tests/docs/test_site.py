"""The built site: pictures of today, a Markdown twin of each page, and llms.txt, which lists them."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.docs.blocks import ROOT

SITE = ROOT / "site"  # built by `make docs` before its tests
DRAWN = runpy.run_path(str(ROOT / "docs" / "pictures" / "draw.py"))


@pytest.mark.parametrize("name", DRAWN["PICTURES"])
def test_a_picture_is_what_its_script_draws_and_has_colors_for_dark(name):
    picture = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
    assert picture == str(DRAWN["PICTURES"][name]())
    assert "prefers-color-scheme: dark" in picture


def test_every_page_has_a_markdown_twin():
    pages = [page for page in SITE.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 60
    assert [page for page in pages if not page.with_suffix(".md").read_text(encoding="utf-8").strip()] == []


def test_the_twin_of_a_reference_page_has_signatures_and_arguments():
    text = (SITE / "reference" / "m3_integrations.md").read_text(encoding="utf-8")
    assert ":::" not in text
    assert "## Retriever" in text
    assert "retrieve(query: str, k: int = 10, where: Where | None = None) -> list[Match]" in text


def test_llms_txt_lists_every_page_with_a_description():
    text = (SITE / "llms.txt").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^- \[[^\]]+\]\(([^)]+)\): (.*)$", text, flags=re.MULTILINE))
    twins = {page.relative_to(SITE).with_suffix(".md").as_posix() for page in SITE.rglob("*.html")} - {"404.md"}
    assert listed.keys() == twins
    assert all(listed.values())


def test_no_page_loads_anything_from_elsewhere():
    loaded = re.compile(r'<(?:script|img|iframe)[^>]* src="?(https?:[^" >]+)|<link[^>]* href="?(https?:[^" >]+)')
    assert {
        page.name: found for page in SITE.rglob("*.html") if (found := loaded.findall(page.read_text("utf-8")))
    } == {}
